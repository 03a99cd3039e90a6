"""Simulations side by side with a progress bar for each, and one for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from accelgen.simulator.crew import Crew
from accelgen.simulator.experiment import Result, Setting

A = TypeVar("A")
B = TypeVar("B")


class Bars:
    """Progress on stderr; nothing where stderr is no terminal, or nobody wants it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._all: TaskID | None = None

    def expect(self, what: str, simulations: int | None) -> None:
        """A bar for all simulations; None where nobody knows how many there will be."""
        self._all = self._progress.add_task(what, total=simulations)

    @contextmanager
    def one(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for one simulation, as long as it runs. Its value is to be told how many requests have ended, of how
        many."""
        task = self._progress.add_task(what, total=None)
        try:
            yield lambda ended, of: self._progress.update(task, completed=ended, total=of)
        finally:
            self._progress.remove_task(task)
            if self._all is not None:
                self._progress.advance(self._all)


@contextmanager
def bars(quiet: bool) -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    disabled = quiet or not sys.stderr.isatty()
    with Progress(
        *columns, console=Console(stderr=True), disable=disabled, transient=True
    ) as progress:
        yield Bars(progress)


def run_all(crew: Crew, settings: Sequence[Setting], shown: Bars) -> list[Result]:
    """The results, in the order of `settings`. Raises CrewError."""

    def one(setting: Setting) -> Result:
        what = f"{setting.policy} at {setting.rate:g}/s, seed {setting.seed}"
        with shown.one(what) as progress:
            return crew.run(setting, progress)

    return side_by_side(crew, one, settings, crew.size)


def side_by_side(crew: Crew, do: Callable[[A], B], items: Sequence[A], threads: int) -> list[B]:
    """`do` for all items in up to so many threads; the first error ends all."""
    with ThreadPoolExecutor(max_workers=max(1, min(len(items), threads))) as pool:
        futures = [pool.submit(do, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            crew.close()
            raise
