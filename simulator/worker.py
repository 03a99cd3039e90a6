"""A worker without a model: it runs Batches strictly in order, knows lengths only, and says when it will be done."""

from __future__ import annotations

from dataclasses import dataclass

from accelgen.proto.messages import Batch, StepResult
from accelgen.scheduler.cost_model import Work
from accelgen.simulator.device import Device, Iteration

TOKEN = 0  # what every request samples


@dataclass(slots=True)
class _Known:
    """A request here: its prompt tokens, and all tokens so far."""

    prompt: int
    length: int


class SimulatedWorker:
    """`busy_s`, `idle_s`, `prefill_tokens`, `decode_tokens`: what it has done so far."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.busy_s = self.idle_s = 0.0
        self.steps = self.prefill_tokens = self.decode_tokens = 0
        self._known: dict[int, _Known] = {}
        self._free_s = 0.0  # when it has run everything it was given

    def run(self, batch: Batch, now_s: float) -> tuple[float, StepResult]:
        """When the batch will be done, and its result."""
        known = self._known
        for id in batch.release:
            known.pop(id, None)
        for prompt in batch.new:
            tokens = len(prompt.tokens)
            known[prompt.id] = _Known(tokens - prompt.generated, tokens)
        iteration, counts = self._entries(batch)
        begin_s = max(now_s, self._free_s)
        run_s = self.device.seconds(iteration)
        wait_s = begin_s - self._free_s
        self._free_s = begin_s + run_s
        self.steps += 1
        self.busy_s += run_s
        self.idle_s += wait_s
        sampled = [TOKEN] * sum(counts)
        result = StepResult(
            batch.step, batch.ids, counts, sampled, [], [], batch.copy_to, wait_s, run_s
        )
        return self._free_s, result

    def _entries(self, batch: Batch) -> tuple[Iteration, list[int]]:
        """What the entries ask for, and how many tokens each samples."""
        prefill = decodes = context = prior = 0
        work = 0.0
        sampled = []
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
                sampled.append(1)
            else:
                sampled.append(0)
        self.prefill_tokens += prefill
        self.decode_tokens += decodes
        features = Work(prefill, decodes, context, work)
        return Iteration(features, prior, len(batch.ids)), sampled
