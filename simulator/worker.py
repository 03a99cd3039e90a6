"""A worker without a model: it runs Batches strictly in order, knows lengths only, and says when it will be done.

Drafts are always made, cost no time of their own, and are each accepted with the same probability (SLOs-Serve's alpha,
arXiv 2504.08784), decided by a number from (request id, position): a run is a function of its arguments.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType

from accelgen.proto.messages import Batch, StepResult
from accelgen.scheduler.cost_model import Work
from accelgen.simulator.device import Device, Iteration

NEVER = 1 << 62  # tokens
TOKEN, STOP = 0, 1  # what every request samples, and with what it ends if it has tokens left
THINK_END = 2  # the mark that ends its thinking
_GOLDEN, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


@dataclass(slots=True)
class _Known:
    """A request here: its prompt tokens, all tokens so far, and how many it has when it samples STOP, and THINK_END;
    drafts of its last entry that were not accepted."""

    prompt: int
    length: int
    stop_at: int
    think_at: int
    rejected: int = 0

    def sample(self) -> int:
        """Its next token."""
        self.length += 1
        if self.length == self.think_at:
            return THINK_END
        return TOKEN if self.length < self.stop_at else STOP


class SimulatedWorker:
    """`busy_s`, `copies_s`, `prefill_tokens`, `decode_tokens`: what it has done so far. `saturated_s` is what the same
    work takes at best (`Device.saturated_seconds`). `stops` says, by request, after how many tokens (prompt included)
    it ends by itself, `thoughts` after how many its thinking does; the caller fills them in. `drafted` tokens were
    verified, `accepted` of them accepted, each with probability `acceptance` if those before it were; the drafter takes
    `draft_s` for each token of an iteration's longest draft.

    A block of KV takes `block_s` to the host, and as long back. Copies begin with the iteration that they came with and
    run beside it and those that follow, one after the other; only without anything to compute the oldest one is waited
    for, and that is what `copies_s` counts."""

    def __init__(
        self,
        device: Device,
        stops: Mapping[int, int] = MappingProxyType({}),
        thoughts: Mapping[int, int] = MappingProxyType({}),
        block_s: float = 0.0,
        acceptance: float = 0.6,
        draft_s: float = 0.0,
    ) -> None:
        self.device, self._block_s, self.acceptance = device, block_s, acceptance
        self._draft_s = draft_s
        self._stops, self._thoughts = stops, thoughts
        self.drafted = self.accepted = 0
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
        drafted = list(batch.drafts)
        accepted = [max(0, count - 1) for count in counts] if drafted else []
        self.drafted += sum(drafted)
        self.accepted += sum(accepted)
        begin_s = max(now_s, self._free_s)
        self._begin_copies(batch, begin_s)
        draft_s = self._draft_s * max(drafted, default=0)
        run_s = self.device.seconds(iteration) if batch.ids else 0.0  # it has only to forget
        run_s += draft_s
        wait_s = begin_s - self._free_s
        self._free_s = begin_s + run_s
        if self._copies and not batch.ids:
            self._free_s = max(begin_s, self._copies[0][0])
            self.copies_s += self._free_s - begin_s
        self.busy_s += run_s
        self.saturated_s += self.device.saturated_seconds(iteration)
        result = StepResult(
            batch.step, batch.ids, counts, sampled, [], [], batch.copy_to, wait_s, run_s,
            self._take_copied(), drafted, accepted, draft_s,
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
        prefill = decodes = context = prior = verified = 0
        work = 0.0
        counts: list[int] = []
        sampled: list[int] = []
        known = self._known
        drafts = batch.drafts or repeat(0)
        columns = zip(batch.ids, batch.starts, batch.counts, drafts, strict=False)
        for id, start, count, ahead in columns:
            request = known[id]
            if request.rejected and count == 1 and start == request.length - 1 + request.rejected:
                start -= request.rejected  # the scheduler did not know yet
            end = start + count
            assert end <= request.length, f"request {id}: token {end} of {request.length}"
            if ahead:
                work += self._verify(request, id, ahead, counts, sampled)
                verified += 1 + ahead
                prior += start
                continue
            if count == 1 and start >= request.prompt:
                decodes += 1
                context += start
            else:
                prefill += count
                prior += start
                work += count * (start + count / 2)
            if end == request.length:
                request.rejected = 0
                counts.append(1)
                sampled.append(request.sample())
            else:
                counts.append(0)
        self.prefill_tokens += prefill
        self.decode_tokens += decodes + verified
        features = Work(prefill + verified, decodes, context, work)
        return Iteration(features, prior, len(batch.ids)), counts, sampled

    def _verify(
        self, request: _Known, id: int, drafts: int, counts: list[int], sampled: list[int]
    ) -> float:
        """A decode with drafts: what it samples, and the attention work of its 1 + drafts tokens."""
        start, chunk = request.length - 1, 1 + drafts
        numbers = uniforms(id, range(request.length, request.length + drafts))
        accepted = next((at for at, u in enumerate(numbers) if u >= self.acceptance), drafts)
        sampled += [request.sample() for _ in range(1 + accepted)]
        request.rejected = drafts - accepted
        counts.append(1 + accepted)
        return chunk * (start + chunk / 2)


def uniforms(seed: int, positions: Sequence[int]) -> list[float]:
    """Numbers in [0, 1), one for each position: two rounds of the splitmix64 finaliser, as the worker has them."""
    base = _mix(seed + _GOLDEN)
    return [(_mix(base + (at + 1) * _GOLDEN) >> 11) * 2.0**-53 for at in positions]


def _mix(value: int) -> int:
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
