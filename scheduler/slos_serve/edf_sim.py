"""`edf_sim`: admission by simulation, with which the authors of SLOs-Serve later replaced their dynamic program (their
public code `gulang2019/SLOServe`, folders `csrc/adm_ctrl*` and `router`; arXiv 2504.08784 does not have it).

All old requests are kept. New ones are added one by one, earliest deadline first, and stay if a simulation finds that
everybody keeps their objective. It goes from event to event: a prompt arrives, must be complete, a request finishes.
Between events all decodes take steps as long as the tightest pace among them; tokens that a step has left over are
banked under the arrival before it (the *epoch*), since a prompt cannot use what was left before it came. When a prompt
is due it takes from the bank, oldest epoch first, then a last batch in the time that has made no step; if that is not
enough the rejection is CMP, and MEM if KV runs out.

Reconstructed: paces other than the tightest take their share of the tokens of a step, not a token in each; a rest of
time is banked as one batch when the epoch ends; an old request that is late anyway is due as early as it can be.
Steps have a token of each decode: on drafts, which the plan made afterwards may have, nobody counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from heapq import heappop, heappush
from math import ceil

from msgspec import Struct, structs

from accelgen.scheduler.slos_serve.roofline import Roofline

_CLOSE = 1e-9


class Rejection(StrEnum):
    """Why a request is not admitted: too much computation, or too much memory."""

    CMP = "CMP"
    MEM = "MEM"


class Demand(Struct, frozen=True):
    """A prompt and what it generates. From now, `ready_s` is its arrival and `due_s` its deadline; `tokens` of it are
    left (0: it decodes from `due_s` on), then come `output` tokens, one in `tpot_s`. `held` tokens of KV come in
    addition. Several demands may have one key: the stages of a request, its choices."""

    key: int
    is_new: bool
    due_s: float
    tokens: int
    tpot_s: float
    output: int
    ready_s: float = 0.0
    held: int = 0


class _Kind(IntEnum):
    """Events of one moment in this order: what ends gives room to what begins."""

    FINISH = 0
    DUE = 1
    READY = 2


class Simulation:
    """One run over a set of demands; `room` tokens of KV. `events` have been handled so far.

    A `lenient` run has no rejection: old requests that are late are due later, as `due_s` then says."""

    def __init__(
        self, demands: Sequence[Demand], roofline: Roofline, room: int, lenient: bool = False
    ) -> None:
        self._demands, self._roofline, self._room = demands, roofline, room
        self._lenient = lenient
        self.due_s = [max(0.0, one.due_s) for one in demands]
        self.events = 0
        self._clock_s = self._rest_s = 0.0
        self._bank: list[list[float]] = [[0.0, 0]]  # epoch and tokens
        self._paces: Counter[float] = Counter()  # of active decodes
        self._active, self._rate = 0, 0.0  # decodes, and their tokens per second
        self._used = 0.0  # tokens of KV
        self._heap: list[tuple[float, int, int]] = []

    def run(self) -> Rejection | None:
        """The first rejection, None if everybody keeps their objective."""
        for i, one in enumerate(self._demands):
            heappush(self._heap, (self.due_s[i], _Kind.DUE, i))
            if one.tokens and one.ready_s > 0:
                heappush(self._heap, (one.ready_s, _Kind.READY, i))
        while self._heap:
            at_s, kind, i = heappop(self._heap)
            self.events += 1
            rejection = self._advance(at_s)
            if kind == _Kind.DUE and (rejection is None or self._lenient):
                rejection = self._load(i)
            elif kind == _Kind.READY:
                self._open_epoch(at_s)
            elif kind == _Kind.FINISH:
                self._finish(self._demands[i])
            if rejection is not None and not self._lenient:
                return rejection
        return None

    def _advance(self, at_s: float) -> Rejection | None:
        """Decodes go on, and what their steps leave is banked."""
        passed_s = at_s - self._clock_s
        self._clock_s = at_s
        self._used += self._rate * passed_s
        time_s = self._rest_s + passed_s
        if self._active:
            step_s = min(self._paces)
            steps = int(time_s / step_s + _CLOSE)
            self._rest_s = max(0.0, time_s - steps * step_s)
            size = self._roofline.time_to_batch(step_s, decodes=self._active)
            left = steps * size - ceil(steps * step_s * self._rate - _CLOSE)
        else:
            size = self._roofline.most
            full_s = self._roofline.seconds(size)
            steps = int(time_s / full_s + _CLOSE)
            self._rest_s = max(0.0, time_s - steps * full_s)
            left = steps * size
        self._bank[-1][1] += max(0, left)
        if left < 0:
            return Rejection.CMP
        return Rejection.MEM if self._used > self._room + _CLOSE else None

    def _load(self, i: int) -> Rejection | None:
        """A prompt is due: it takes its tokens, and decodes from now on."""
        one = self._demands[i]
        short = self._take(one)
        if short and self._lenient and self._put_off(i, short):
            return None
        self._used += one.held + one.tokens
        self._active, self._rate = self._active + 1, self._rate + 1 / one.tpot_s
        self._paces[one.tpot_s] += 1
        heappush(self._heap, (self._clock_s + one.output * one.tpot_s, _Kind.FINISH, i))
        if short:
            return Rejection.CMP
        return Rejection.MEM if self._used > self._room + _CLOSE else None

    def _take(self, one: Demand) -> int:
        """From the bank, or from what the rest of time makes. Returns how many tokens are missing; then nothing has
        been taken."""
        open_to = [epoch for epoch in self._bank if epoch[0] >= one.ready_s - _CLOSE]
        short = one.tokens - sum(int(epoch[1]) for epoch in open_to)
        if short > 0:
            extra = self._last_batch()
            if extra < short:
                return short - extra
            self._bank[-1][1] += extra
            self._rest_s = 0.0
        wanted = one.tokens
        for epoch in open_to:
            taken = min(wanted, int(epoch[1]))
            epoch[1] -= taken
            wanted -= taken
        return 0

    def _put_off(self, i: int, short: int) -> bool:
        """A late one becomes due when steps will have made what it lacks; False if they make nothing."""
        step_s = min(self._paces) if self._active else self._roofline.seconds(short)
        made = self._roofline.time_to_batch(step_s, decodes=self._active)
        made -= ceil(step_s * self._rate - _CLOSE)
        if made < 1 or step_s <= 0:
            return False
        self.due_s[i] = self._clock_s + ceil(short / made) * step_s
        heappush(self._heap, (self.due_s[i], _Kind.DUE, i))
        return True

    def _last_batch(self) -> int:
        """Prompt tokens that fit into the rest of time, with a token of each decode beside them."""
        size = self._roofline.time_to_batch(self._rest_s, decodes=self._active)
        return max(0, size - self._active)

    def _open_epoch(self, at_s: float) -> None:
        self._bank[-1][1] += self._last_batch()
        self._rest_s = 0.0
        self._bank.append([at_s, 0])

    def _finish(self, one: Demand) -> None:
        self._used -= one.held + one.tokens + one.output
        self._active, self._rate = self._active - 1, self._rate - 1 / one.tpot_s
        self._paces[one.tpot_s] -= 1
        if not self._paces[one.tpot_s]:
            del self._paces[one.tpot_s]
        if not self._active:
            self._rate = 0.0  # sums of floats leave a little


def admit(
    demands: Iterable[Demand], roofline: Roofline, room: int
) -> tuple[list[int], dict[int, Rejection]]:
    """Keys of the new requests that are admitted, earliest deadline first (then the earlier arrival), and why the
    others are not."""
    old: list[Demand] = []
    new: dict[int, list[Demand]] = {}
    for one in demands:
        if one.is_new:
            new.setdefault(one.key, []).append(one)
        else:
            old.append(one)
    kept = _put_off_late(old, roofline, room)
    order = sorted(new, key=lambda key: min((d.due_s, d.ready_s) for d in new[key]))
    admitted, rejected = [], {}
    for key in order:
        rejection = Simulation([*kept, *new[key]], roofline, room).run()
        if rejection is None:
            kept.extend(new[key])
            admitted.append(key)
        else:
            rejected[key] = rejection
    return admitted, rejected


def _put_off_late(old: list[Demand], roofline: Roofline, room: int) -> list[Demand]:
    """With deadlines that they can keep."""
    if not any(one.tokens for one in old):  # decodes have nothing to be put off
        return old
    simulation = Simulation(old, roofline, room, lenient=True)
    simulation.run()
    return [
        structs.replace(one, due_s=due_s) for one, due_s in zip(old, simulation.due_s, strict=True)
    ]
