"""The small loop that moves messages between the worker's socket and its core."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

import structlog
import torch
import zmq

from accelgen.proto.child import HEARTBEAT_S, Child
from accelgen.proto.clocks import now_s
from accelgen.proto.epochs import Claim, Fence, epoch_name
from accelgen.proto.frame import Header
from accelgen.proto.logs import warn_seldom
from accelgen.proto.messages import Activate, Batch, Body, Inventory, Pulse, Resync, Role
from accelgen.proto.pulse import SILENCE_S, Metronome
from accelgen.proto.sockets import Router
from accelgen.worker.core import WorkerCore
from accelgen.worker.engine import (
    OVERHEAD_BYTES,
    Engine,
    host_bytes,
    overhead_bytes,
    start_engine,
)
from accelgen.worker.faults import FatalError, LoadError, mib, one_line

IDLE_BOUND_S = 5.0
LOADED = "accelgen:worker_load_progress"

log = structlog.get_logger()


def run(child: Child) -> None:
    """Loads the model and serves; returns when told to stop. Fatal faults end the process with one line."""
    try:
        engine = start_engine(child.config, child.phase, lambda share: _progress(child, share))
        _report(engine)
        loop = Loop(child, engine)
        child.phase("ready", IDLE_BOUND_S, engine.facts)
        loop.serve()
        loop.router.close()
    except (LoadError, FatalError) as error:
        child.fail(str(error))
    except Exception as error:  # a defect of ours, or of a library: the trace is for the log
        log.exception("worker failed")
        child.fail(f"the worker failed: {one_line(error)}")


def _progress(child: Child, share: float) -> None:
    child.gauges = lambda: {LOADED: share}
    child.beat(600.0)


def _report(engine: Engine) -> None:
    """Memory at start: weights, cache, and what the process takes beyond (budget: 600 MiB)."""
    facts, overhead = engine.facts, overhead_bytes(engine)
    for note in engine.notes:
        log.warning(note)
    log.info(
        "worker memory",
        weights=mib(facts.weights_bytes),
        kv_cache=mib(facts.kv_bytes),
        kv_blocks=facts.num_blocks,
        swap_space=mib(host_bytes(engine)),
        max_model_len=facts.max_model_len,
        overhead=mib(overhead),
    )
    if overhead > OVERHEAD_BYTES:
        log.warning(
            "overhead is above its budget", overhead=mib(overhead), budget=mib(OVERHEAD_BYTES)
        )
    log.info(
        "self-check passed",
        error=float(f"{engine.check_error:.3g}"),
        threads=torch.get_num_threads(),
    )


@dataclass(frozen=True)
class Queued:
    """A word of the KV manager that waits for its turn, with the epoch it came in."""

    body: Batch | Resync
    epoch: int
    manager: bytes


class Loop:
    """Polls, obeys the highest activated epoch, does what its KV manager says, in order."""

    def __init__(self, child: Child, engine: Engine) -> None:
        self.child, self.facts = child, engine.facts
        self.core: WorkerCore = engine.core
        self.router = Router(child.endpoint, child.incarnation)
        self.queue: deque[Queued] = deque()
        self.fence = Fence[Activate](Role.SCHEDULER)
        self.manager = Fence[Resync](Role.KVMANAGER, child.index)  # only its batches are run
        self._heard_s = 0.0
        self._gap = (
            False  # a batch was lost: none is run before the KV manager has asked what there is
        )
        self._metronome = Metronome()
        self.counters: Counter[str] = Counter()
        self._poller = zmq.Poller()
        self._poller.register(self.router.socket, zmq.POLLIN)
        self._poller.register(child.link.socket, zmq.POLLIN)
        child.gauges = self._gauges

    def serve(self) -> None:
        """Until Stop."""
        while not self.child.stopping:
            self._receive()
            self._activate(self.fence.learn(self.child.directory))
            self._resync(self.manager.learn(self.child.directory))
            if self.queue:
                self._do(self.queue.popleft())
                continue
            self._poller.poll(int(HEARTBEAT_S * 1000))
            self.child.beat(IDLE_BOUND_S)
            self._pulse()

    def _pulse(self) -> None:
        if self.fence.peer and self._metronome.due(now_s()):
            self.router.send(self.fence.peer, Pulse(), self.fence.epoch)

    def _receive(self) -> None:
        for message in self.router.messages():
            self._look_for_gap()
            self._take(*message)
        self._look_for_gap()
        # Only now: after a long iteration the pulses of that time had to be read first.
        silent_s = now_s() - self._heard_s
        if self.manager.peer and silent_s > SILENCE_S and not self.router.pending:
            self._note_gap(f"the KV manager was silent for {silent_s:.1f} s")

    def _look_for_gap(self) -> None:
        if self.manager.peer and self.router.codec.lost(self.manager.peer):
            self._note_gap("messages of the KV manager were lost")

    def _note_gap(self, cause: str) -> None:
        if not self._gap:
            self._gap = True
            log.error(cause, epoch=epoch_name(self.fence.epoch))
            self.router.send(self.fence.peer, Resync(cause), self.fence.epoch)

    def _take(self, peer: bytes, header: Header, body: Body) -> None:
        if peer == self.manager.peer:
            self._heard_s = now_s()
        match body:
            case Activate():
                self._activate(self.fence.claim(peer, header, body))
            case Resync():
                self._resync(self.manager.claim(peer, header, body))
            case Batch():
                # Of an older epoch than the scheduler's, too: its KV manager counts on it, and passes on no more.
                if self.manager.passes(peer, header):
                    self._take_batch(body, header.epoch, peer)
            case Pulse():
                # Who has yielded pulses until it hears of its successor, which may have been heard of here before.
                self.counters["stale"] += peer not in (self.manager.peer, self.fence.peer)
            case _:
                self.counters["unexpected"] += 1
                warn_seldom(
                    "unexpected message",
                    kind=type(body).__name__,
                    epoch=epoch_name(header.epoch),
                    sender=peer[:80],
                )

    def _take_batch(self, batch: Batch, epoch: int, manager: bytes) -> None:
        if self._gap:
            self.counters["stale"] += 1
        else:
            self.queue.append(Queued(batch, epoch, manager))

    def _resync(self, given: Claim[Resync] | None) -> None:
        """A KV manager wants to know what there is, once what it has sent has been run."""
        if given is None:
            return
        self._gap, self._heard_s = False, now_s()
        self.router.codec.lost(given.peer)  # what it has asked in vain is of no consequence
        asked = Queued(given.body, given.epoch, given.peer)
        if asked not in self.queue:
            self.queue.append(asked)

    def _activate(self, given: Claim[Activate] | None) -> None:
        """A scheduler takes over (or repeats itself): results go to it from now on."""
        if given is not None:
            if not given.repeated:
                log.info("activated", epoch=epoch_name(given.epoch), step=self.core.step)
            self.router.send(given.peer, Inventory(self.core.step, []), given.epoch)

    def _do(self, item: Queued) -> None:
        if isinstance(item.body, Resync):  # all that was sent before it has been run
            self.router.send(item.manager, self.core.inventory(), item.epoch)
            return
        self.child.beat(max(item.body.bound_s, IDLE_BOUND_S))
        result = self.core.execute(item.body)
        self.router.send(self.fence.peer, result, item.epoch)
        for id, cause in zip(result.failed, result.causes, strict=True):
            log.warning("request failed", id=id, step=result.step, cause=cause)

    def _gauges(self) -> dict[str, float]:
        core = self.core
        counters = self.counters + self.fence.counters + self.manager.counters
        counters += self.router.codec.counters
        samples = {
            "steps_total": core.steps,
            "step_seconds": core.last_s,
            "step_max_seconds": core.longest_s,
            "run_seconds_total": core.run_s,
            "idle_seconds_total": core.wait_s,
            "tokens_total": core.tokens_processed,
            "drafted_tokens_total": core.drafted,
            "accepted_tokens_total": core.accepted,
        }
        for kind in ("stale", "stranger", "unexpected", "malformed", "duplicate", "gap"):
            samples[f"{kind}_messages_total"] = counters[kind]
        label = f'{{replica="{self.child.index}"}}'
        found = {f"accelgen:worker_{name}{label}": float(n) for name, n in samples.items()}
        return {LOADED: 1.0, **found}
