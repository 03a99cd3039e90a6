"""One epoch of a scheduler process: it takes over all replicas that can be used, serves, and ends when it must.

It must end when something was lost on a link (`Links.trouble`), when an iteration does not come back, or when the set
of replicas changes. The next session takes over like a new process would: the frontends' journals and the KV
managers' inventories are all that counts. So there is one way to recover, whatever has happened.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from accelgen.proto.child import Child
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config
from accelgen.proto.epochs import epoch_name
from accelgen.proto.messages import (
    Abort,
    Body,
    Directory,
    Facts,
    Handoff,
    Inventory,
    KvReport,
    Replayed,
    Role,
    Sample,
    StepResult,
    Submit,
    SwapSample,
    Yield,
)
from accelgen.proto.profiles import ProfileError, load_profile, profile_path
from accelgen.proto.pulse import Metronome
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.cost_model import fit
from accelgen.scheduler.frontends import Frontends
from accelgen.scheduler.gauges import Stopwatch, gauges_of
from accelgen.scheduler.links import Links, Peer
from accelgen.scheduler.members import Life, has_successor, lives_of
from accelgen.scheduler.memory.crossover import fit_copies
from accelgen.scheduler.memory.policy import MemoryPolicy
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.recording import RecordedCore
from accelgen.scheduler.replica import ResultOutOfTurn
from accelgen.scheduler.routing.planned import PLANNED
from accelgen.scheduler.routing.policy import Routing
from accelgen.scheduler.snapshot import Experience

IDLE_S = 0.2  # longest sleep: heartbeats and the supervisor's words come at least this often
STARVED_S = 5.0  # a policy that leaves waiting requests alone for so long, with nothing in flight, is broken
CREDIT_MARGIN = 256  # open requests of a frontend beyond the queue bound, so that the scheduler does the refusing
ANSWER_S = 2.0  # for KV managers to answer Activate; doubled each time: a worker may be amid a long iteration
ANSWER_MOST_S = 16.0
ASK_AGAIN_S = 0.5  # before that
RETRY_S = 10.0  # a replica that did not answer is left alone for so long, while others serve

log = structlog.get_logger()


@dataclass
class Office:
    """What a scheduler process keeps from one session of its term to the next."""

    child: Child
    policy: Policy
    experience: Experience
    memory: MemoryPolicy
    routing: Routing = PLANNED
    counters: Counter[str] = field(default_factory=Counter)
    decisions: Stopwatch = field(default_factory=Stopwatch)
    failures: int = 0  # sessions in a row that did not get to serve, or not for long
    yielding: bool = False  # told to let another one take over
    yielded: bool = False

    def heed(self) -> bool:
        """Takes a Yield that has come. Whether anything else has, which ends the term."""
        orders = self.child.orders
        while orders and isinstance(orders[0], Yield):
            orders.popleft()
            self.yielding = True
        return bool(orders)

    def hand_over(self) -> None:
        """Nothing is in flight any more: says so, and what has been learnt."""
        self.yielded = True
        self.child.link.send(Handoff(self.experience.packed(self.policy)), self.child.epoch)
        self.child.phase("yielded", 5.0)


class Session:
    """One epoch. `run` returns why it has ended."""

    def __init__(self, office: Office, epoch: int) -> None:
        self.office, self.child, self.epoch = office, office.child, epoch
        self.links = Links(self.child, epoch, office.counters)
        self._lives: dict[int, Life] = {}
        self._skipped: dict[int, Life] = {}  # have not answered; tried again at that time
        self._retry_s = float("inf")
        self._directory: Directory | None = None  # that the frontends have been looked up in
        self._compared: Directory | None = None  # in which the replicas were still the same

    def run(self) -> str:
        """Takes over and serves until that is over, or the supervisor has said something else."""
        try:
            self._lives = self._await_replicas()
            inventories = self._activate()
            if not inventories:
                self.office.failures += 1
                return self.links.trouble or "no replica has answered"
            core = self._make_core(inventories)
            log.info("serving", epoch=epoch_name(self.epoch), replicas=sorted(self._lives))
            self.child.gauges = partial(self._gauges, core)  # its first words in office have them
            self.child.phase("ready")
            return self._serve(core)
        finally:
            self.links.close()

    # --- taking over ---------------------------------------------------------------------------------------------

    def _await_replicas(self) -> dict[int, Life]:
        while not (lives := lives_of(self.child.directory)) and not self._is_told():
            if self.child.current_phase != "waiting for workers":
                self.child.phase("waiting for workers", bound_s=5.0)
            self.links.receive(IDLE_S)
            self.child.beat()
        return lives

    def _activate(self) -> dict[int, Inventory]:
        """Activates each KV manager and worker: what the KV managers hold. Those that do not answer in time are
        skipped for a while if others do.

        The worker only learns where its results go. Its KV manager asks it what it has computed."""
        pending: set[Peer] = {(r, i) for r in (Role.KVMANAGER, Role.WORKER) for i in self._lives}
        for role, index in pending:
            self.links.connect(role, index)
        found: dict[int, Inventory] = {}
        until_s = now_s() + min(ANSWER_MOST_S, ANSWER_S * 2**self.office.failures)
        again = Metronome(ASK_AGAIN_S, now_s())
        while pending and now_s() < until_s and not self._must_end():
            for role, index, body in self.links.receive(IDLE_S):
                if isinstance(body, Inventory):
                    pending.discard((role, index))
                    if role is Role.KVMANAGER:
                        found[index] = body
            if again.due(now_s()):  # question or answer may have been lost
                for role, index in pending:
                    self.links.activate(role, index)
            self._tend(pending)
            self.child.beat()
        if pending and self._must_end():
            return {}
        self._skip({index for _, index in pending})
        return {index: found[index] for index in self._lives}

    def _tend(self, pending: set[Peer]) -> None:
        """Who has answered must not take us for dead. A worker may have an iteration left that its KV manager waits
        for."""
        self.links.tend(pending | {(Role.WORKER, index) for _, index in pending})

    def _skip(self, indices: set[int]) -> None:
        if indices:
            log.warning("replicas have not answered", indices=sorted(indices))
            self._retry_s = now_s() + RETRY_S
        for index in indices:
            self._skipped[index] = self._lives.pop(index)
            self.links.disconnect(Role.KVMANAGER, index)
            self.links.disconnect(Role.WORKER, index)

    def _must_end(self) -> bool:
        return bool(self.links.trouble or self._is_told() or self._has_changed())

    def _is_told(self) -> bool:
        return self.child.stopping or bool(self.child.orders)

    def _make_core(self, inventories: dict[int, Inventory]) -> SchedulerCore:
        specs = {index: _spec_of(life, self.child) for index, life in self._lives.items()}
        office = self.office
        core = RecordedCore(self.child.config, office.policy, specs, office.memory, office.routing)
        self.office.experience.give_to(core)
        for index, inventory in inventories.items():
            core.inherit(inventory, index)
        return core

    # --- serving -------------------------------------------------------------------------------------------------

    def _serve(self, core: SchedulerCore) -> str:
        credits = self.child.config.max_queued_requests + CREDIT_MARGIN
        frontends = Frontends(self.links, core, credits)
        begun_s = now_s()
        while not self.child.stopping:
            self._take_in(core, frontends)
            self.child.beat()
            self._watch(core)
            self._follow(core, frontends)
            self._decide(core)
            if why := self._is_over(core):
                self.office.experience.take_from(core)
                self.office.failures = 0 if now_s() > begun_s + IDLE_S else self.office.failures + 1
                return why
        return ""

    def _is_over(self, core: SchedulerCore) -> str:
        """Why this session has to end, "" if it has not."""
        if self.office.heed():
            return "told otherwise"
        core.yielding = self.office.yielding
        if core.yielding and core.settled and not self.office.yielded:
            self.office.experience.take_from(core)
            self.office.hand_over()
        if self.office.yielded and has_successor(self.child.directory, self.child.epoch):
            return "another one has taken over"
        return str(self.links.trouble or core.overdue(now_s()) or self._has_changed())

    def _take_in(self, core: SchedulerCore, frontends: Frontends) -> None:
        now = now_s()
        for role, index, body in self.links.receive(min(IDLE_S, core.next_s(now) - now)):
            if isinstance(body, Replayed):
                frontends.replayed(index)
                continue
            try:
                _dispatch(core, role, index, body, now_s())
            except ResultOutOfTurn as error:
                self.links.trouble = str(error)
                return
        frontends.mind(now_s())
        self.links.tend({(Role.WORKER, index) for index in core.busy})

    def _decide(self, core: SchedulerCore) -> None:
        begun = now_s()
        if core.next_s(begun) <= begun:
            core.tick(begun)
            self.office.decisions.add(now_s() - begun)
        for role, index, body in core.outbox:
            self.links.send(role, index, body)
        core.outbox.clear()

    def _follow(self, core: SchedulerCore, frontends: Frontends) -> None:
        seen = self.child.directory
        if seen is not None and seen is not self._directory:
            self._directory = seen
            core.draining = seen.draining
            frontends.follow(seen, now_s())

    def _watch(self, core: SchedulerCore) -> None:
        """Ends a policy that starves its requests, so that the supervisor can act."""
        starved_s = core.starved_s(now_s())
        if starved_s > STARVED_S:
            waiting = sum(len(replica.table) for replica in core.replicas.values())
            self.child.fail(
                f"policy {core.policy.name} has planned nothing for {starved_s:.1f} s, and {waiting} requests wait"
            )

    def _has_changed(self) -> str:
        """Whether the replicas are not those any more that this session has taken over."""
        if now_s() > self._retry_s:
            return f"replicas {sorted(self._skipped)} are tried again"
        if self.child.directory is self._compared:
            return ""
        self._compared = self.child.directory
        lives = lives_of(self.child.directory)
        if lives == self._lives | self._skipped:
            return ""
        return f"replicas {sorted(self._lives)} have become {sorted(lives)}, or other lives of them"

    def _gauges(self, core: SchedulerCore) -> dict[str, float]:
        names = ("malformed", "duplicate", "gap", "unsent", "stale", "resyncs")
        label = 'accelgen:messages_total{{process="scheduler",kind="{}"}}'
        links = {label.format(name): float(self.links.count(name)) for name in names}
        return gauges_of(core, self.office.decisions) | links


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
            pass  # asked for twice
        case _:
            log.warning(
                "unexpected message", kind=type(body).__name__, sender=f"{role.name}-{index}"
            )


def _spec_of(life: Life, child: Child) -> ReplicaSpec:
    facts = life.facts
    samples, swaps = _measured(child, facts)
    coefficients = fit(samples) if len(samples) >= 3 else None
    copies = fit_copies(swaps) if facts.host_blocks else None
    blocks, size = facts.num_blocks, facts.block_size
    return ReplicaSpec(blocks, size, coefficients, life.worker, copies, life.manager)


def _measured(child: Child, facts: Facts) -> tuple[list[Sample], list[SwapSample]]:
    """Timed iterations, and copies of KV: from the configured profile, else the cached one, else the worker's rough
    samples. A profile without copies has been taken before there were any."""
    config: Config = child.config
    cached = profile_path(facts.model, facts.device, facts.dtype)
    path = Path(config.profile_file) if config.profile_file else cached
    samples, swaps = facts.samples, facts.swaps
    if config.profile_file or cached.exists():
        try:
            profile = load_profile(path)
        except ProfileError as error:
            child.fail(str(error))
        samples, swaps = profile.samples, profile.swaps or swaps
    return samples, swaps
