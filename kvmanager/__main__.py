"""The process around `KvCore`: takes messages of the scheduler, hands Batches to its worker, reports back."""

from __future__ import annotations

import gc
from collections import Counter
from enum import Enum
from typing import Any

import structlog
import zmq

from accelgen.kvmanager.core import KvCore
from accelgen.proto.child import HEARTBEAT_S, Child
from accelgen.proto.clocks import now_s
from accelgen.proto.epochs import Claim, Fence, epoch_name
from accelgen.proto.messages import (
    Activate,
    Body,
    Inventory,
    Lookup,
    Member,
    Plan,
    Pulse,
    Resync,
    Role,
)
from accelgen.proto.pulse import SILENCE_S, Metronome
from accelgen.proto.sockets import Dealer, EndpointError, Router

QUESTION = Resync("a scheduler takes over")
ASK_AGAIN_S = 1.0
IDLE_S = 1.0  # so long without a message: time to check the invariants
CHECK_LIMIT = 200_000  # blocks; the check of more would hold up an arrival for longer than 0.2 s

log = structlog.get_logger()


def wait_for_worker(child: Child) -> Member | None:
    """The replica's worker as soon as its facts are known; None if the server stops before."""
    child.phase("waiting for worker", bound_s=5.0)
    while not child.stopping:
        child.link.socket.poll(int(HEARTBEAT_S * 1000))
        child.beat()
        for member in child.directory.members if child.directory else []:
            if (
                member.role is Role.WORKER
                and member.index == child.index
                and member.facts
                and member.phase != "dead"
            ):
                return member
    return None


class State(Enum):
    IDLE = "no scheduler yet"
    ASKING = "the worker is asked what it holds"
    SERVING = "plans are carried out"
    GAP = "words were lost: nothing is done before another epoch"


class KvProcess:
    """One KV manager: the core, the scheduler's Router, the worker's Dealer, and the epoch it obeys."""

    def __init__(self, child: Child, worker: Member) -> None:
        assert worker.facts is not None
        num_blocks, block_size = worker.facts.num_blocks, worker.facts.block_size
        if not (num_blocks and block_size):
            child.fail(
                f"worker-{worker.index} offers num_blocks {num_blocks} of block_size {block_size}; "
                "both must be at least 1"
            )
        self.child = child
        caching, host_blocks = child.config.prefix_caching, worker.facts.host_blocks
        self.core = KvCore(num_blocks, block_size, caching, host_blocks)
        try:
            self.router = Router(child.endpoint, child.incarnation)
        except (EndpointError, zmq.ZMQError) as error:
            child.fail(f"{child.name}: {error}")
        self.poller = zmq.Poller()
        self.poller.register(self.router.socket, zmq.POLLIN)
        self.poller.register(child.link.socket, zmq.POLLIN)
        self.worker_endpoint = worker.endpoint
        self.worker: Dealer | None = None  # from the first epoch on
        self.fence = Fence[Activate](Role.SCHEDULER)
        self.state = State.IDLE
        self.metronome, self._asked = Metronome(), Metronome()
        self.counters: Counter[str] = Counter()
        self.sound: bool | None = None  # None: not checked yet
        self._idle_since_s = self._heard_s = now_s()
        self._checked = False
        child.gauges = self._gauges

    def run(self) -> None:
        """Serves until told to stop."""
        while not self.child.stopping:
            ready = {socket for socket, _ in self.poller.poll(int(HEARTBEAT_S * 1000))}
            self._serve()
            self._hear_worker(ready)
            self._rest()
            self.child.beat()
            self._activate(self.fence.learn(self.child.directory))

    def close(self) -> None:
        self.router.close()
        if self.worker is not None:
            self.worker.close()

    def _serve(self) -> None:
        for peer, header, body in self.router.messages():
            self._look_for_gap()
            if isinstance(body, Activate):
                self._activate(self.fence.claim(peer, header, body))
            elif self.fence.passes(peer, header):
                self._heard_s = now_s()
                if self.state is State.SERVING:
                    self._obey(body)
            if not isinstance(body, Pulse):
                self._idle_since_s, self._checked = now_s(), False
        self._look_for_gap()
        silent_s = now_s() - self._heard_s
        if silent_s > SILENCE_S and not self.router.pending:
            self._note_gap(f"the scheduler was silent for {silent_s:.1f} s")

    def _look_for_gap(self) -> None:
        if self.router.codec.lost(self.fence.peer):
            self._note_gap("messages of the scheduler were lost")

    def _note_gap(self, cause: str, asking_too: bool = False) -> None:
        """No plan is made on tables with a gap: nothing is done before the scheduler has taken over again."""
        if self.state is State.SERVING or (asking_too and self.state is State.ASKING):
            self.state = State.GAP
            log.error(cause, epoch=epoch_name(self.fence.epoch))
            self.router.send(self.fence.peer, Resync(cause), self.fence.epoch)

    def _activate(self, given: Claim[Activate] | None) -> None:
        """Asks the worker, over a new connection, what it holds; then the scheduler is answered."""
        if given is None:
            return
        self._heard_s = now_s()
        if given.repeated and self.state is State.ASKING:
            return  # it will be answered
        if given.repeated and self.state is State.SERVING:  # the answer was lost
            self.router.send(self.fence.peer, self.core.on_activate(), self.fence.epoch)
            return
        log.info("activated", epoch=epoch_name(given.epoch))
        if self.worker is not None:
            self.poller.unregister(self.worker.socket)
            self.poller.unregister(self.worker.events)
            self.worker.close()
        identity = f"{self.child.name}:{self.child.incarnation}:{self.fence.epoch}"
        endpoint, incarnation = self.worker_endpoint, self.child.incarnation
        self.worker = Dealer(endpoint, identity, incarnation, watched=True)
        self.poller.register(self.worker.socket, zmq.POLLIN)
        self.poller.register(self.worker.events, zmq.POLLIN)
        self.worker.send(QUESTION, self.fence.epoch)
        self.state, self._asked = State.ASKING, Metronome(ASK_AGAIN_S, now_s())

    def _hear_worker(self, ready: set[Any]) -> None:
        """From the sockets in `ready`: a worker rarely says anything, and to hear that costs as much as to hear it."""
        worker = self.worker
        if worker is not None and worker.events in ready and worker.was_cut():
            self._note_gap("the connection to the worker was cut", asking_too=True)
        while worker is not None and worker.socket in ready and (message := worker.recv()):
            header, body = message
            if (
                isinstance(body, Inventory)
                and header.epoch == self.fence.epoch
                and self.state is State.ASKING
            ):
                for fault in self.core.on_inventory(body):
                    log.error("the worker's inventory does not add up", fault=fault)
                self.state = State.SERVING
                self.router.send(self.fence.peer, self.core.on_activate(), self.fence.epoch)
            else:
                self.counters["unexpected"] += 1

    def _obey(self, body: Body) -> None:
        assert self.worker is not None
        match body:
            case Plan():
                batch, report = self.core.on_plan(body)
                if not self.worker.send(batch, self.fence.epoch):
                    self.child.fail(
                        f"{self.child.name}: worker at {self.worker.endpoint} takes no more batches "
                        f"(step {body.step})"
                    )
                self.router.send(self.fence.peer, report, self.fence.epoch)
                self.core.settle()
            case Lookup():
                self.router.send(self.fence.peer, self.core.on_lookup(body), self.fence.epoch)
            case Pulse():
                pass
            case _:
                self.counters["unexpected"] += 1
                log.warning("unexpected message", kind=type(body).__name__)

    def _rest(self) -> None:
        """What is done between messages: pulses, a question asked again, and the check of the invariants when idle."""
        now = now_s()
        if self.worker is not None and self.state is State.ASKING and self._asked.due(now):
            self.worker.send(QUESTION, self.fence.epoch)  # question or answer may have been lost
        if self.worker is not None and self.metronome.due(now):
            self.router.send(self.fence.peer, Pulse(), self.fence.epoch)
            self.worker.send(Pulse(), self.fence.epoch)
        if not self._checked and now >= self._idle_since_s + IDLE_S:
            self._checked = True
            self._check()
            gc.collect()

    def _check(self) -> None:
        if self.core.pool.num_blocks > CHECK_LIMIT:
            return
        faults = self.core.check()
        self.sound = not faults
        for fault in faults:
            log.error("invariant violated", fault=fault)

    def _gauges(self) -> dict[str, float]:
        core, wire = self.core, self.router.codec.counters
        pool, counts = core.pool, core.counters
        samples = {
            "kv_blocks": pool.num_blocks,
            "kv_blocks_free": pool.free,
            "kv_blocks_cached": pool.cached,
            "kv_blocks_used": pool.used,
            "kv_cache_usage_perc": pool.used / pool.num_blocks,
            "kv_blocks_leaving": pool.leaving,
            "kv_host_blocks": core.host_blocks,
            "kv_host_blocks_used": core.tables.host.used,
            "kv_requests": core.num_requests,
            "kv_copies_total": counts["copies"],
            "kv_evictions_total": pool.evictions,
            "kv_swapped_out_total": counts["swapped_out"],
            "kv_swapped_in_total": counts["swapped_in"],
            "kv_unswapped_total": counts["unswapped"],
            "kv_blocks_lent_total": core.tables.loans.lent,
            "kv_guests": core.tables.loans.living_inside,
            "kv_guests_total": core.tables.loans.guests,
            "kv_blocks_unused": core.unused_blocks,
            "kv_blocks_never_used_total": counts["never_used"],
            "kv_entries_dropped_total": counts["dropped"],
            "kv_pins_withdrawn_total": counts["unpinned"],
            "prefix_cache_queries_total": counts["queries"],
            "prefix_cache_hits_total": counts["hits"],
            "kv_messages_malformed_total": wire["malformed"],
            "kv_messages_duplicate_total": wire["duplicate"],
            "kv_messages_gap_total": wire["gap"],
            "kv_messages_stale_total": self.fence.counters["stale"],
            "kv_messages_stranger_total": self.fence.counters["stranger"],
            "kv_messages_unexpected_total": self.counters["unexpected"],
        }
        if self.sound is not None:
            samples["kv_invariant_ok"] = self.sound
        label = f'{{replica="{self.child.index}"}}'
        return {f"accelgen:{name}{label}": float(value) for name, value in samples.items()}


def main() -> None:
    child = Child.from_command_line(Role.KVMANAGER)
    worker = wait_for_worker(child)
    if worker is not None:
        process = KvProcess(child, worker)
        gc.collect()
        gc.freeze()  # imports and the pool live for ever: collections need not visit them
        child.phase("ready")
        process.run()
        process.close()
    child.phase("stopping")
    child.link.close()
    zmq.Context.instance().term()


if __name__ == "__main__":
    main()
