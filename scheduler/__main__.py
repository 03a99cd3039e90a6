"""The scheduler process: moves messages between sockets and core."""

from __future__ import annotations

import gc
from pathlib import Path

import structlog
import zmq

from accelgen.proto.child import Child, endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config
from accelgen.proto.messages import (
    Abort,
    Activate,
    Body,
    Directory,
    Facts,
    Inventory,
    KvReport,
    Member,
    Plan,
    Replayed,
    Role,
    StepResult,
    Submit,
)
from accelgen.proto.profiles import ProfileError, load_profile, profile_path
from accelgen.proto.sockets import Dealer
from accelgen.proto.trace import note
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.cost_model import Coefficients, fit
from accelgen.scheduler.gauges import Stopwatch, gauges_of
from accelgen.scheduler.policy import UnknownPolicy, load_policy

IDLE_S = 0.2  # longest sleep: heartbeats and the supervisor's words come at least this often
STARVED_S = 5.0  # a policy that leaves waiting requests alone for so long, with nothing in flight, is broken
CREDIT_MARGIN = 256  # open requests of a frontend beyond the queue bound, so that the scheduler does the refusing

log = structlog.get_logger()


class Links:
    """One Dealer per peer, polled together."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._dealers: dict[tuple[Role, int], Dealer] = {}
        self._poller = zmq.Poller()
        self._poller.register(child.link.socket, zmq.POLLIN)
        self.stale = 0

    @property
    def peers(self) -> set[tuple[Role, int]]:
        """Who is connected."""
        return set(self._dealers)

    def connect(self, role: Role, index: int, credits: int = 0, step: int = -1) -> None:
        """Connects to a peer and Activates it."""
        child = self._child
        self.disconnect(role, index)
        identity = f"scheduler:{child.incarnation}:{child.epoch}"
        dealer = Dealer(endpoint_of(child.run_dir, role, index), identity, child.incarnation)
        self._dealers[role, index] = dealer
        self._poller.register(dealer.socket, zmq.POLLIN)
        dealer.send(Activate(credits, step), child.epoch)

    def disconnect(self, role: Role, index: int) -> None:
        """Closes the link to a peer that is gone, if there is one."""
        dealer = self._dealers.pop((role, index), None)
        if dealer is not None:
            self._poller.unregister(dealer.socket)
            dealer.close()

    def send(self, role: Role, index: int, body: Body) -> None:
        """Sends; a peer that is gone loses its messages (the Directory says so soon)."""
        dealer = self._dealers.get((role, index))
        if dealer is not None:
            dealer.send(body, self._child.epoch)

    def receive(self, timeout_s: float) -> list[tuple[Role, int, Body]]:
        """Everything that has come, waiting at most `timeout_s` for the first."""
        self._poller.poll(max(0, int(timeout_s * 1000)))
        found: list[tuple[Role, int, Body]] = []
        for (role, index), dealer in self._dealers.items():
            while (message := dealer.recv()) is not None:
                header, body = message
                if role is not Role.FRONTEND and header.epoch != self._child.epoch:
                    self.stale += 1
                    continue
                found.append((role, index, body))
        return found

    def count(self, name: str) -> int:
        """A codec counter, summed over links."""
        return sum(dealer.codec.counters[name] for dealer in self._dealers.values())


def main() -> None:
    child = Child.from_command_line(Role.SCHEDULER)
    try:
        policy = load_policy(child.config.policy, child.config.policy_params)
    except UnknownPolicy as error:
        child.fail(str(error))
        raise
    if not _stand_by(child):
        return
    child.phase("waiting for workers", bound_s=3600.0)
    links = Links(child)
    found = _await_replicas(child, links)
    if found is None:
        return
    specs = [ReplicaSpec(f.num_blocks, f.block_size, _fitted(child, f)) for f, _ in found]
    core = SchedulerCore(child.config, policy, specs)
    for index, (_, inventory) in enumerate(found):
        core.inherit(inventory, index)
    gc.collect()
    gc.freeze()  # what start-up made stays: collections then walk the requests only
    child.phase("ready")
    try:
        _run(child, links, core)
    except Exception as error:
        log.exception("scheduler failed")
        child.fail(f"scheduler: {type(error).__name__}: {error}")


def _stand_by(child: Child) -> bool:
    """Waits, with everything imported and the policy made, until it is to take over; False if it is to stop."""
    if child.standby:
        child.phase("standby", 5.0)
    while child.standby and not child.stopping:
        child.link.socket.poll(int(IDLE_S * 1000))
        child.beat()
    return not child.stopping


def _watch(child: Child, core: SchedulerCore) -> None:
    """Says when it has yielded; ends a policy that starves its requests, so that the supervisor can act."""
    if child.yielding and not core.yielding:
        core.yielding = True
    if core.yielding and core.settled and child.current_phase != "yielded":
        child.phase("yielded", 5.0)
    starved_s = core.starved_s(now_s())
    if starved_s > STARVED_S:
        waiting = sum(len(replica.table) for replica in core.replicas)
        child.fail(
            f"policy {core.policy.name} has planned nothing for {starved_s:.1f} s, and {waiting} requests wait"
        )


def _await_replicas(child: Child, links: Links) -> list[tuple[Facts, Inventory]] | None:
    """Waits until every replica is ready and has answered Activate; what its KV manager holds. None if told to stop.

    The KV manager first: from its answer on it passes on no work of an older epoch, and the worker, told which step
    was the last, answers when that has been run. So what the KV manager counts as computed is."""
    count = child.config.replicas
    facts: dict[int, Facts] = {}
    held: dict[int, Inventory] = {}
    settled: set[int] = set()
    while len(settled) < count:
        for role, index, body in links.receive(IDLE_S):
            if isinstance(body, Inventory) and role is Role.KVMANAGER:
                held[index] = body
                links.connect(Role.WORKER, index, step=body.step)
            elif isinstance(body, Inventory):
                settled.add(index)
        child.beat()
        if child.stopping:
            return None
        for member in _ready_members(child.directory, (Role.KVMANAGER, Role.WORKER)):
            if member.facts is not None and member.role is Role.WORKER:
                facts[member.index] = member.facts
        for index in facts:
            if (Role.KVMANAGER, index) not in links.peers and _is_ready(
                child, Role.KVMANAGER, index
            ):
                links.connect(Role.KVMANAGER, index)
    return [(facts[index], held[index]) for index in range(count)]


def _is_ready(child: Child, role: Role, index: int) -> bool:
    return any(member.index == index for member in _ready_members(child.directory, (role,)))


def _ready_members(directory: Directory | None, roles: tuple[Role, ...]) -> list[Member]:
    if directory is None:
        return []
    return [m for m in directory.members if m.role in roles and m.phase == "ready"]


def _fitted(child: Child, facts: Facts) -> Coefficients | None:
    """Coefficients from the configured profile, else the cached one, else the worker's rough samples."""
    config: Config = child.config
    cached = profile_path(facts.model, facts.device, facts.dtype)
    path = Path(config.profile_file) if config.profile_file else cached
    samples = facts.samples
    if config.profile_file or cached.exists():
        try:
            samples = load_profile(path).samples
        except ProfileError as error:
            child.fail(str(error))
    return fit(samples) if len(samples) >= 3 else None


class Frontends:
    """Follows the frontends that the Directory lists: new lives get connected, the requests of dead ones end."""

    def __init__(self, links: Links, core: SchedulerCore, credits: int) -> None:
        self._links, self._core, self._credits = links, core, credits
        self._alive: dict[int, int] = {}  # index -> incarnation
        self._replaying: set[int] | None = None  # have yet to submit what they had

    def replayed(self, index: int) -> None:
        """This one has; after the last one, what nobody claimed of the scheduler before is given back."""
        if self._replaying is not None:
            self._replaying.discard(index)
            if not self._replaying:
                self._core.release_unclaimed()

    def follow(self, directory: Directory, now: float) -> None:
        """Call with every new Directory."""
        members = [m for m in directory.members if m.role is Role.FRONTEND]
        serving = {m.index: m.incarnation for m in members if m.phase != "dead" and m.incarnation}
        for index in [i for i in self._alive if serving.get(i) != self._alive[i]]:
            log.warning("frontend lost", index=index)
            self._core.on_frontend_lost(index, now)
            self._links.disconnect(Role.FRONTEND, index)
            del self._alive[index]
            self.replayed(index)
        if self._replaying is None:
            self._replaying = set(serving)
            if not serving:  # nobody is left who could claim anything
                self._core.release_unclaimed()
        for index, incarnation in serving.items():
            if index not in self._alive:
                self._links.connect(Role.FRONTEND, index, self._credits)
                self._alive[index] = incarnation


def _run(child: Child, links: Links, core: SchedulerCore) -> None:
    frontends = Frontends(links, core, child.config.max_queued_requests + CREDIT_MARGIN)
    decisions = Stopwatch()
    seen: Directory | None = None
    while not child.stopping:
        now = now_s()
        for role, index, body in links.receive(min(IDLE_S, core.next_s(now) - now)):
            if isinstance(body, Replayed):
                frontends.replayed(index)
            else:
                _dispatch(core, role, index, body, now_s())
        child.beat()
        _watch(child, core)
        if child.directory is not None and child.directory is not seen:
            seen = child.directory
            core.draining = seen.draining
            frontends.follow(seen, now_s())
            child.gauges = gauges_of(core, decisions) | _link_gauges(links)
        begun = now_s()
        if core.next_s(begun) <= begun:
            core.tick(begun)
            decisions.add(now_s() - begun)
        for role, index, body in core.outbox:
            if isinstance(body, Plan):
                note("begin", body, begun)
            links.send(role, index, body)
        core.outbox.clear()


def _dispatch(core: SchedulerCore, role: Role, index: int, body: Body, now: float) -> None:
    match body:
        case Submit():
            core.on_submit(body, index, now)
        case Abort():
            core.on_abort(body, now)
        case KvReport():
            core.on_report(body, index, now)
        case StepResult():
            core.on_result(body, index, now)
        case Inventory():
            pass
        case _:
            log.warning(
                "unexpected message", kind=type(body).__name__, sender=f"{role.name}-{index}"
            )


def _link_gauges(links: Links) -> dict[str, float]:
    names = ("malformed", "duplicate", "gap", "unsent")
    found = {
        f'accelgen:messages_total{{process="scheduler",kind="{n}"}}': links.count(n) for n in names
    }
    found['accelgen:messages_total{process="scheduler",kind="stale"}'] = links.stale
    return {name: float(value) for name, value in found.items()}


if __name__ == "__main__":
    main()
