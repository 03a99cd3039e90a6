"""Simulations side by side, and how far they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from threading import Event, Lock, Thread
from time import monotonic
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
from accelgen.simulator.experiment import ORACLE, Result, Setting
from accelgen.simulator.oracle import EXHAUSTIVE

LINE_S = 5.0  # between two lines, at first
A = TypeVar("A")
B = TypeVar("B")


class Bars:
    """Progress on stderr: bars on a terminal, elsewhere a line every few seconds; nothing if nobody wants it."""

    def __init__(self, progress: Progress, quiet: bool) -> None:
        self._progress, self._quiet = progress, quiet
        self._all: TaskID | None = None
        self._ran, self._ran_s = 0, 0.0  # simulations that were not there already
        self._lock = Lock()

    def say(self, words: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self._progress.console.print(words, markup=False, highlight=False, soft_wrap=True)

    def expect(self, what: str, simulations: int | None) -> None:
        """A bar for all simulations; None where nobody knows how many there will be."""
        self._all = self._progress.add_task(what, total=simulations)

    @contextmanager
    def one(self, what: str, worth: int = 1) -> Iterator[Callable[[int, int], None]]:
        """A bar for one simulation, or for a search that is `worth` many, as long as it runs. Its value is to be told
        how many requests, or schedules, have ended, of how many."""
        task = self._progress.add_task(what, total=None)
        begin_s, counted, told = monotonic(), 0, False

        def count(now: int) -> None:
            nonlocal counted
            if self._all is not None:
                self._progress.advance(self._all, now - counted)
            counted = now

        def tell(ended: int, of: int) -> None:
            nonlocal told
            told = True
            self._progress.update(task, completed=ended, total=of)
            count(worth * ended // max(1, of))

        try:
            yield tell
        finally:
            self._progress.remove_task(task)
            count(worth)
            if told:  # who says nothing was there already, or was over at once
                with self._lock:
                    self._ran += worth
                    self._ran_s += monotonic() - begin_s

    def line(self) -> str:
        """How far it is, in words."""
        tasks = {task.id: task for task in self._progress.tasks}
        words = []
        if self._all is not None:
            whole = tasks.pop(self._all)
            of = "" if whole.total is None else f" of {whole.total:.0f}"
            words.append(f"{whole.description}: {whole.completed:.0f}{of} simulations")
            if whole.total is not None and self._ran:
                each_s = self._ran_s / self._ran / max(1, len(tasks))
                words.append(f"about {clock((whole.total - whole.completed) * each_s)} left")
        for task in [*tasks.values()][:1]:
            of = "" if task.total is None else f" ({task.completed:.0f} of {task.total:.0f})"
            words.append(f"{task.description}{of}")
        return ", ".join(words)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


@contextmanager
def bars(quiet: bool) -> Iterator[Bars]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    disabled = quiet or not sys.stderr.isatty()
    with Progress(*columns, console=console, disable=disabled, transient=True) as progress:
        shown = Bars(progress, quiet)
        with _telling(shown) if disabled and not quiet else nullcontext():
            yield shown


@contextmanager
def _telling(shown: Bars) -> Iterator[None]:
    """A line now and then, until the end; less often after some minutes, since some commands run for days."""
    begin_s, ended = monotonic(), Event()

    def tell() -> None:
        past_s = 0.0
        while not ended.wait(max(LINE_S, min(past_s / 60, 60.0))):
            past_s = monotonic() - begin_s
            shown.say(f"{clock(past_s)} {shown.line()}")

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def schedules_of(setting: Setting) -> int:
    """How many simulations it amounts to: a search tries many schedules."""
    if setting.policy == ORACLE and setting.requests > EXHAUSTIVE:
        return int(setting.params["evaluations"])
    return 1


def run_all(crew: Crew, settings: Sequence[Setting], shown: Bars) -> list[Result]:
    """The results, in the order of `settings`. Raises CrewError."""

    def one(setting: Setting) -> Result:
        what = f"{setting.policy} at {setting.rate:g}/s, seed {setting.seed}"
        with shown.one(what, schedules_of(setting)) as progress:
            return crew.run(setting, progress)

    return side_by_side(crew, one, settings, crew.size)


def side_by_side(crew: Crew, do: Callable[[A], B], items: Sequence[A], threads: int) -> list[B]:
    """`do` for all items in up to so many threads; the first error ends all."""
    with ThreadPoolExecutor(max_workers=max(1, min(len(items), threads))) as pool:
        futures = [pool.submit(do, item) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:  # what others say once the crew is closed is not the reason
                if future.done():
                    future.result()
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            crew.close()
            raise
