"""`distserve`: DistServe (OSDI'24; read in its code, `context_stage_scheduler.py`,
`decoding_stage_scheduler.py`, `single_stage_engine.py`). Prompts and decodes on different devices; simulated only.

Prefill: first come, first served, whole prompts; a batch is limited in requests, tokens, and blocks, those of prompts
that no decode device has taken yet included. Decode: first come, first served, one token each per iteration. After an
iteration it pulls the KV of finished prompts, one after the other, while those pulled and not yet running hold less
than 5 % of its blocks and there is room; the next iteration waits for that. Out of blocks, the last of the batch is
swapped out to the host; swapped ones return before new ones begin.

Reconstructed: with several prefill (decode) devices, that with the fewest tokens (requests) takes a request; swapping
takes its time on the host's link, and the iteration waits for it; a prompt longer than a batch is run alone; the code
counts the blocks of a request that is about to run twice, and can lock itself up when blocks are short: here they
count once, and if nothing can run, the last that was pulled is swapped out. No prefix cache, as in the code. Default
limits are those of its artifact; the link is what send/recv reaches between two A100s of one node (225 GB/s).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

from accelgen.proto.config import Config
from accelgen.proto.messages import Reason
from accelgen.scheduler.cost_model import Work
from accelgen.simulator.device import Device, Iteration
from accelgen.simulator.run import WATCH_STEPS, Fate, Run, Stuck, Watcher
from accelgen.simulator.scenarios import ScenarioError
from accelgen.simulator.stages import Decode, Prefill, Rules, Task
from accelgen.simulator.worker import SimulatedWorker
from accelgen.simulator.workload import Arrival, Workload

NAME = "distserve"


class DistServe:
    """As `Simulation`, for the devices that `config.replicas` counts; raises ScenarioError with fewer than two."""

    def __init__(self, rules: Rules, workload: Workload, device: Device, config: Config) -> None:
        devices, prefills = config.replicas, rules.prefill_devices or config.replicas // 2
        if not 1 <= prefills < devices:
            detail = f"{prefills} of {devices} cannot be for prefill"
            raise ScenarioError(f"replicas: {NAME} needs at least 2, of both kinds; {detail}")
        self.rules, self.workload, self.device = rules, workload, device
        self.block_size = config.block_size
        blocks = config.kv_blocks or device.blocks(config.block_size)
        workers = [SimulatedWorker(device) for _ in range(devices)]
        self.prefills = [Prefill(worker, blocks) for worker in workers[:prefills]]
        self.decodes = [Decode(worker, blocks) for worker in workers[prefills:]]
        self.fates: list[Fate] = []
        self.run = Run(workload.name, NAME, self.fates, 0.0, workers)
        self.ended = 0
        self._begun: dict[
            int, int
        ] = {}  # by identity: the numbers of requests that begin a session
        self._order = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []  # a heap
        self._seen_s = 0.0
        for arrival in workload.arrivals:
            self._arrive_at(arrival.at_s, arrival)

    def go(self, watch: Watcher | None = None) -> Run:
        """Until every request has ended, or until `watch` says so. Raises Stuck."""
        run, now_s, watched = self.run, 0.0, 0
        while self._events and not run.given_up:
            now_s, _, act = heapq.heappop(self._events)
            self._note_use(now_s)
            act(now_s)
            if watch is not None and run.steps - watched >= WATCH_STEPS:
                watched = run.steps
                run.given_up = watch(run, now_s)
        left = sum(fate.end is None for fate in self.fates)
        if left and not self._events and not run.given_up:
            raise Stuck(f"policy {NAME}: {left} requests are left and none is planned")
        tokens_s = max((fate.token_s[-1] for fate in self.fates if fate.token_s), default=0.0)
        run.end_s = now_s if left else tokens_s
        return run

    # --- events ------------------------------------------------------------------------------------------------------

    def _at(self, at_s: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), act))

    def _arrive_at(self, at_s: float, arrival: Arrival, session: int = -1) -> None:
        self._at(at_s, lambda now_s: self._arrive(replace(arrival, at_s=now_s), session, now_s))

    def _arrive(self, arrival: Arrival, session: int, now_s: float) -> None:
        fate = Fate(arrival, session=session)
        if session < 0 and arrival.follow_up is not None:
            self._begun[id(fate)] = len(self.fates)
        self.fates.append(fate)
        tokens = arrival.prompt_tokens + arrival.limit_tokens
        if tokens > self.decodes[0].blocks * self.block_size:
            self._end(fate, Reason.REFUSED_TOO_LONG, now_s)
            return
        prefill = min(self.prefills, key=lambda one: one.tokens)
        prefill.add(Task(fate, self.block_size))
        self._start_prefill(prefill, now_s)

    def _start_prefill(self, prefill: Prefill, now_s: float) -> None:
        if prefill.batch:
            return
        prefill.form(self.rules)
        lengths = [task.prompt for task in prefill.batch]
        if lengths:
            work = Work(sum(lengths), prefill_work=sum(n * n for n in lengths) / 2)
            end_s = self._execute(prefill.worker, work, len(lengths), now_s)
            self._at(end_s, partial(self._end_prefill, prefill))

    def _end_prefill(self, prefill: Prefill, now_s: float) -> None:
        for task in prefill.end():
            self._add_token(task, now_s)
            if not task.done:
                prefill.unaccepted += task.prompt_blocks
                decode = min(self.decodes, key=lambda one: one.load)
                decode.unaccepted.append((task, prefill))
        self._start_prefill(prefill, now_s)
        for decode in self.decodes:
            self._start_decode(decode, now_s)

    def _start_decode(self, decode: Decode, now_s: float) -> None:
        """Pulls what it accepts, then begins the next iteration."""
        if decode.busy:
            return
        block_bytes = self.block_size * self.device.kv_token_bytes
        while (accepted := decode.accept(self.rules.waiting_share)) is not None:
            task, prefill = accepted
            now_s += task.prompt_blocks * block_bytes / (self.rules.link_gb_s * 1e9)
            self._at(now_s, partial(self._release, prefill, task))
        copies_s = decode.form(self.rules) * block_bytes / self.device.swap_bytes_s
        decode.worker.copies_s += copies_s
        now_s += copies_s
        if decode.batch:
            decode.busy = True
            size = len(decode.batch)
            context = sum(task.prompt + task.generated - 1 for task in decode.batch)
            end_s = self._execute(decode.worker, Work(0, size, context), size, now_s)
            self._at(end_s, partial(self._end_decode, decode))

    def _end_decode(self, decode: Decode, now_s: float) -> None:
        decode.busy = False
        for task in decode.end():
            self._add_token(task, now_s)
        self._start_decode(decode, now_s)

    def _release(self, prefill: Prefill, task: Task, now_s: float) -> None:
        """The KV of a prompt has been pulled."""
        prefill.unaccepted -= task.prompt_blocks
        self._start_prefill(prefill, now_s)

    # --- what comes of it --------------------------------------------------------------------------------------------

    def _execute(self, worker: SimulatedWorker, work: Work, sequences: int, now_s: float) -> float:
        """When it will have ended."""
        iteration = Iteration(work, 0, sequences)
        run_s = self.device.seconds(iteration)
        worker.busy_s += run_s
        worker.saturated_s += self.device.saturated_seconds(iteration)
        worker.prefill_tokens += work.prefill_tokens
        worker.decode_tokens += work.decode_seqs
        self.run.steps += 1
        self.run.entries += sequences
        return now_s + run_s

    def _add_token(self, task: Task, now_s: float) -> None:
        task.generated += 1
        task.fate.token_s.append(now_s)
        if task.done:
            arrival = task.fate.arrival
            whole = arrival.output_tokens == arrival.limit_tokens
            self._end(task.fate, Reason.LENGTH if whole else Reason.STOP, now_s)

    def _end(self, fate: Fate, reason: Reason, now_s: float) -> None:
        fate.end = reason
        self.ended += 1
        follow_up = fate.arrival.follow_up
        if follow_up is not None and reason in (Reason.STOP, Reason.LENGTH):
            begun = self._begun.pop(id(fate), fate.session)
            self._arrive_at(now_s + fate.arrival.think_s, follow_up, begun)

    def _note_use(self, now_s: float) -> None:
        blocks = self.decodes[0].blocks
        share = sum(one.used for one in self.prefills) + sum(one.used for one in self.decodes)
        self.run.kv_used_s += share / blocks * (now_s - self._seen_s)
        self._seen_s = now_s
