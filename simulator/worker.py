"""A worker without a model: it runs Batches strictly in order, knows lengths only, and says when it will be done."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from accelgen.proto.messages import Batch, StepResult
from accelgen.scheduler.cost_model import Work
from accelgen.simulator.device import Device, Iteration

NEVER = 1 << 62  # tokens
TOKEN, STOP = 0, 1  # what every request samples, and with what it ends if it has tokens left
THINK_END = 2  # the mark that ends its thinking


@dataclass(slots=True)
class _Known:
    """A request here: its prompt tokens, all tokens so far, and how many it has when it samples STOP, and THINK_END."""

    prompt: int
    length: int
    stop_at: int
    think_at: int


class SimulatedWorker:
    """`busy_s`, `copies_s`, `prefill_tokens`, `decode_tokens`: what it has done so far. `saturated_s` is what the same
    work takes at best (`Device.saturated_seconds`). `stops` says, by request, after how many tokens (prompt included)
    it ends by itself, `thoughts` after how many its thinking does; the caller fills them in.

    A block of KV takes `block_s` to the host, and as long back. Copies begin with the iteration that they came with and
    run beside it and those that follow, one after the other; only without anything to compute the oldest one is waited
    for, and that is what `copies_s` counts."""

    def __init__(
        self,
        device: Device,
        stops: Mapping[int, int] = MappingProxyType({}),
        thoughts: Mapping[int, int] = MappingProxyType({}),
        block_s: float = 0.0,
    ) -> None:
        self.device, self._block_s = device, block_s
        self._stops, self._thoughts = stops, thoughts
        self.busy_s = self.copies_s = self.saturated_s = 0.0
        self.prefill_tokens = self.decode_tokens = 0
        self._known: dict[int, _Known] = {}
        self._free_s = 0.0  # when it has run everything it was given
        self._copies: deque[tuple[float, int]] = deque()  # when each is done, and whose it is
        self._copied_s = 0.0  # when the last one is done

    def run(self, batch: Batch, now_s: float) -> tuple[float, StepResult]:
        """When the batch will be done, and its result."""
        known = self._known
        for id in batch.release:
            known.pop(id, None)
        for prompt in batch.new:
            tokens = len(prompt.tokens)
            stop_at = self._stops.get(prompt.id, NEVER)
            think_at = self._thoughts.get(prompt.id, NEVER)
            known[prompt.id] = _Known(tokens - prompt.generated, tokens, stop_at, think_at)
        iteration, counts, sampled = self._entries(batch)
        begin_s = max(now_s, self._free_s)
        self._begin_copies(batch, begin_s)
        run_s = self.device.seconds(iteration) if batch.ids else 0.0  # it has only to forget
        wait_s = begin_s - self._free_s
        self._free_s = begin_s + run_s
        if self._copies and not batch.ids:
            self._free_s = max(begin_s, self._copies[0][0])
            self.copies_s += self._free_s - begin_s
        self.busy_s += run_s
        self.saturated_s += self.device.saturated_seconds(iteration)
        result = StepResult(
            batch.step, batch.ids, counts, sampled, [], [], batch.copy_to, wait_s, run_s,
            self._take_copied(),
        )  # fmt: skip
        return self._free_s, result

    def _begin_copies(self, batch: Batch, begin_s: float) -> None:
        moves = [*zip(batch.out_ids, batch.out_counts, strict=True)]
        moves += zip(batch.in_ids, batch.in_counts, strict=True)
        for id, blocks in moves:
            self._copied_s = max(begin_s, self._copied_s) + blocks * self._block_s
            self._copies.append((self._copied_s, id))

    def forget_copies(self) -> None:
        """A new scheduler takes over: nobody is told any more of the copies so far."""
        self._copies.clear()

    def _take_copied(self) -> list[int]:
        """Whose copies are done when the iteration is."""
        done = []
        while self._copies and self._copies[0][0] <= self._free_s:
            done.append(self._copies.popleft()[1])
        return done

    def _entries(self, batch: Batch) -> tuple[Iteration, list[int], list[int]]:
        """What the entries ask for, how many tokens each samples, and which."""
        prefill = decodes = context = prior = 0
        work = 0.0
        counts: list[int] = []
        sampled: list[int] = []
        known = self._known
        for id, start, count in zip(batch.ids, batch.starts, batch.counts, strict=True):
            request = known[id]
            end = start + count
            assert end <= request.length, f"request {id}: token {end} of {request.length}"
            if count == 1 and start >= request.prompt:
                decodes += 1
                context += start
            else:
                prefill += count
                prior += start
                work += count * (start + count / 2)
            if end == request.length:
                request.length = end + 1
                counts.append(1)
                if end + 1 == request.think_at:
                    sampled.append(THINK_END)
                else:
                    sampled.append(TOKEN if end + 1 < request.stop_at else STOP)
            else:
                counts.append(0)
        self.prefill_tokens += prefill
        self.decode_tokens += decodes
        features = Work(prefill, decodes, context, work)
        return Iteration(features, prior, len(batch.ids)), counts, sampled
