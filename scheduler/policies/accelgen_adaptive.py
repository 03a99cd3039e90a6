"""`accelgen-adaptive`: what AccelGen's authors leave for the future (arXiv 2503.13737, the limits they name;
docs/policies.md): a pivot that follows the device, and long prompts that give way. Nothing of this is published; the
rules are ours.

1. The pivot forward size and its time are estimated from executed iterations. Forward sizes are sorted into half
   octaves, each with a moving average of size and time; the pivot is the smallest whose throughput reaches 85 % of the
   highest. Until three sizes are known, it is that of the fitted model. No exploration is needed: a budget in
   proportion to SLO_min leads to larger batches as long as those known take less time than that.
2. A long prompt can be preempted at the end of a chunk by one that would be late if it waited for its end, if the one
   in progress can afford it. Its KV is kept if the other one fits in besides; else dropped, if it can afford the
   recomputation, too; else it goes on.

`learn_pivot` or `overtake` false leaves out the first or the second rule. Everything else is `accelgen`. (Swapping
does not exist yet; it would be a third price besides keeping and dropping.)
"""

from __future__ import annotations

import math

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.cost_model import SATURATED
from accelgen.scheduler.policies.accelgen import AccelGen, Memory
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.policies.slack import Pace
from accelgen.scheduler.policies.urgent import Candidates
from accelgen.scheduler.policy import StepStats, View
from accelgen.scheduler.table import Floats

KNOWN = 8  # iterations after which a size counts
SIZES = 3  # so many must be known
WEIGHT = 0.1  # of a new iteration, in the moving averages


class Size(Struct, frozen=True):
    """Iterations of about the same forward size: how many, and their averages in tokens and seconds."""

    count: int
    tokens: float
    seconds: float


class Learned(Memory, frozen=True):
    """AccelGen's memory, and the sizes by half octave."""

    sizes: dict[int, Size] = {}


class AccelGenAdaptive(AccelGen):
    name = "accelgen-adaptive"

    def __init__(
        self, gamma_s: float = 0.75, pivot_tokens: int = 0, raw_units: bool = False,
        learn_pivot: bool = True, overtake: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(gamma_s, pivot_tokens, raw_units)
        self.learn_pivot, self.overtake = learn_pivot, overtake

    def initial(self) -> Learned:
        return Learned()

    def observe(self, step: StepStats, state: Memory) -> Learned:
        state = super().observe(step, state)
        assert isinstance(state, Learned)
        tokens = step.work.prefill_tokens + step.work.decode_seqs
        if not tokens:
            return state
        octave = round(2 * math.log2(tokens))
        old = state.sizes.get(octave, Size(0, tokens, step.run_s))
        weight = max(WEIGHT, 1 / (old.count + 1))
        new = Size(
            old.count + 1,
            old.tokens + weight * (tokens - old.tokens),
            old.seconds + weight * (step.run_s - old.seconds),
        )
        return structs.replace(state, sizes=state.sizes | {octave: new})

    def _pivot(self, view: View, state: Memory) -> tuple[int, float]:
        assert isinstance(state, Learned)
        known = [size for size in state.sizes.values() if size.count >= KNOWN]
        if len(known) < SIZES or not self.learn_pivot:
            return super()._pivot(view, state)
        enough = SATURATED * max(size.tokens / size.seconds for size in known)
        pivot = min(
            (size for size in known if size.tokens / size.seconds >= enough),
            key=lambda size: size.tokens,
        )
        return max(1, round(pivot.tokens)), pivot.seconds

    def _take_similar(
        self, batch: Batch, state: Memory, found: Candidates, budget: int, pace: Pace
    ) -> None:
        size, seconds = self._pivot(batch.view, state)
        again_s = batch.view.table.computed[found.slots].astype(np.float64) * (seconds / size)
        overtaker = _overtaker(batch, found, budget, pace.mean_s, again_s) if self.overtake else -1
        if overtaker >= 0:
            batch.take(overtaker, batch.largest_chunk(overtaker, batch.pending(overtaker)))
        super()._take_similar(batch, state, found, budget, pace)


def _overtaker(batch: Batch, found: Candidates, budget: int, mean_s: float, again_s: Floats) -> int:
    """Slot of the long prompt that now begins although another one is in progress, or -1; room has been made for it.
    `again_s` is what the KV of each candidate would take to compute again, [n]."""
    prompts = ~found.decode & (found.pending > 0)
    begun = np.flatnonzero(prompts & found.running)
    new = np.flatnonzero(prompts & ~found.running & (found.pending > budget))
    if not len(begun) or not len(new) or batch.tokens < 1 or batch.preempted:
        return -1
    now = int(begun[found.remaining_s[begun].argmin()])
    other = int(new[found.remaining_s[new].argmin()])
    slot = int(found.slots[other])
    needs_s = np.ceil(found.pending[[now, other]] / budget) * mean_s
    would_be_late = found.remaining_s[other] < needs_s[0]
    if slot in batch.slots or not would_be_late or found.remaining_s[now] < needs_s[1]:
        return -1
    if batch.admits(slot):
        return slot
    victim = int(found.slots[now])
    blocks = int(batch.view.table.blocks[victim])
    promised = batch.block_demand(victim, batch.pending(victim))
    fits = batch.block_demand(slot, batch.pending(slot)) <= batch.room + blocks + promised
    if not fits or found.remaining_s[now] < needs_s[1] + again_s[now] or victim in batch.slots:
        return -1
    batch.preempt(victim)
    return slot
