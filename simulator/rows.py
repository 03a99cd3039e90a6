"""The requests of a trace as columns: read from a file (`traces.py`) or drawn (`synthetic.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.table import Floats, Ints


@dataclass(frozen=True, slots=True)
class Stage:
    """One request of a session: lengths, how long its sender thinks before it, and how many leading tokens it shares
    with what came before."""

    prompt: int
    output: int
    think_s: float
    shared: int


@dataclass(frozen=True, slots=True)
class Rows:
    """The requests of a trace, columns [n]. `at_s` starts at 0 and ascends; None for a set of lengths without times.
    `prefixes` names each prompt's leading blocks of `prefix_block` tokens. `later` has the stages that follow each
    request in its session. `thinking`: how many of its output tokens are thinking, less than all."""

    name: str
    digest: str
    at_s: Floats | None
    prompt: Ints
    output: Ints
    prefixes: list[tuple[int, ...]] | None = None
    prefix_block: int = 0
    later: list[tuple[Stage, ...]] | None = None
    thinking: Ints | None = None

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, which: Ints) -> Rows:
        """The rows at the positions `which`, ascending; times start at 0 again."""
        at_s = None if self.at_s is None else self.at_s[which]
        return Rows(
            self.name,
            self.digest,
            at_s - at_s[0] if at_s is not None and len(at_s) else at_s,
            self.prompt[which],
            self.output[which],
            None if self.prefixes is None else [self.prefixes[i] for i in which],
            self.prefix_block,
            None if self.later is None else [self.later[i] for i in which],
            None if self.thinking is None else self.thinking[which],
        )

    def between(self, begin_s: float, length_s: float) -> Rows:
        """The requests that come from `begin_s` on, for `length_s`; there must be times."""
        assert self.at_s is not None
        inside = (self.at_s >= begin_s) & (self.at_s < begin_s + length_s)
        return self.take(np.flatnonzero(inside))

    def half(self, part: str) -> Rows:
        """`tune` and `report`: the first and the second half of the requests, of a set without times every other one;
        `all`: everything."""
        if part == "all":
            return self
        assert part in ("tune", "report")
        every = np.arange(len(self))
        if self.at_s is None:
            return self.take(every[(part == "report") :: 2])
        middle = len(self) // 2
        return self.take(every[middle:] if part == "report" else every[:middle])
