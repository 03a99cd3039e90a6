"""Everybody whom one plan looks at, in columns."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.plus.claims import due_s, has_missed
from accelgen.scheduler.plus.timing import Fitted
from accelgen.scheduler.policy import View, is_decode
from accelgen.scheduler.table import FAR_S, Bools, Floats, Ints, RequestTable

BEHIND_S = 10 * FAR_S
"""Added to the place in the waiting order of who has missed an objective for good."""

MOST_CLAIMS, MOST_OTHERS = 512, 64  # waiting requests looked at, of each kind


@dataclass(frozen=True, slots=True)
class Scene:
    """All [n]: first those who run and have work (`running`), then waiting ones. `due_s` is the deadline of the next
    token, `load_s` the seconds of the whole device that the request needs from beginning to end, `missed` whether it
    cannot attain any more. `fitted` predicts iterations."""

    table: RequestTable
    slots: Ints
    running: Bools
    decode: Bools
    due_s: Floats
    missed: Bools
    load_s: Floats
    pending: Ints
    fitted: Fitted

    @classmethod
    def of(
        cls, view: View, fitted: Fitted, known: frozenset[int], every_gap: bool,
        iteration_s: float, start_s: float,
    ) -> Scene:  # fmt: skip
        """`known`: ids of those who have missed an objective before."""
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        slots = np.concatenate([ready, _waiting(table)])
        running = np.arange(len(slots)) < len(ready)
        due = due_s(table, slots, every_gap, iteration_s)
        best = due
        if table.drafted[slots].any():
            best = due_s(table, slots, every_gap, iteration_s, drafts=True)
        missed = has_missed(table, slots, best, start_s + fitted.seconds(Work(decode_seqs=1)))
        if known:
            ids = table.ids[slots].tolist()
            missed |= np.fromiter((id in known for id in ids), np.bool_, len(ids))
        return cls(
            table, slots, running, is_decode(table, slots) & running, due, missed,
            _load_s(view, slots, fitted, iteration_s), table.length[slots] - table.computed[slots],
            fitted,
        )  # fmt: skip

    def takes_s(self, full_s: float, work: Work, most: int) -> Floats:
        """How long the pending tokens of each take in iterations of `full_s` that also do `work`, [n]."""
        size = max(1, self.fitted.tokens_within(full_s, work, 0, most))
        fixed_s = max(0.0, full_s - self.fitted.prompt_seconds(size, 0)) / size
        prior = self.table.computed[self.slots].astype(float)
        own_s = self.fitted.prompt_seconds(self.pending.astype(float), prior)
        found: Floats = self.pending * fixed_s + own_s
        return found

    def ids(self, which: Bools) -> list[int]:
        found: list[int] = self.table.ids[self.slots[which]].tolist()
        return found


def _waiting(table: RequestTable) -> Ints:
    """The first ones of those who can still attain, and of those who cannot."""
    queue = table.waiting
    border = queue.bisect_left((BEHIND_S / 2, -1))
    # Slices: to iterate over a range of it takes five times as long.
    both = queue[: min(border, MOST_CLAIMS)] + queue[border : border + MOST_OTHERS]
    return np.fromiter(map(itemgetter(1), both), np.int64, len(both))


def _load_s(view: View, slots: Ints, fitted: Fitted, iteration_s: float) -> Floats:
    """The larger of the compute time and of the share of the KV cache times the time that it is held, [n]. The share is
    the mean over the answer, as long as it is predicted to be."""
    table = view.table
    prompt = table.prompt_len[slots].astype(float)
    most = table.limit[slots] - table.prompt_len[slots]
    output = np.minimum(table.predicted_output[slots], most).astype(float)
    compute_s = fitted.prompt_seconds(prompt, 0.0) + fitted.prompt_seconds(1, 0) * output
    share = (prompt + output / 2) / (view.total_blocks * table.block_size)
    found: Floats = np.maximum(compute_s, share * (compute_s + output * iteration_s))
    return found
