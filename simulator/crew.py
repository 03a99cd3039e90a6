"""Simulations side by side: one process per core, fed with JSON lines (nothing is pickled).

`python -m accelgen.simulator.crew` is such a process: a Setting per line comes in, and per Setting go out any number of
`{"ended": n, "of": m}` and then a Result, or `{"error": words}`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any, TextIO

import msgspec

from accelgen.proto.profiles import ProfileError
from accelgen.scheduler.policy import UnknownPolicy
from accelgen.simulator.device import UnknownDevice
from accelgen.simulator.experiment import ORACLE, Result, Setting, Store, key_of, run_setting
from accelgen.simulator.oracle import run_oracle
from accelgen.simulator.scenarios import ScenarioError
from accelgen.simulator.traces import TraceError

FAULTS = (TraceError, ScenarioError, UnknownDevice, UnknownPolicy, ProfileError)
"""What is wrong with what was asked for, in one line."""

_TELL_S = 0.2  # between two words of progress


class CrewError(RuntimeError):
    """A simulation could not be made; one line."""


class CrewDied(CrewError):
    """The process of a simulation died in it: a fault of the policy's code, or of ours."""


class Crew:
    """Up to `size` simulations at a time; those that are in `store` already cost nothing."""

    def __init__(self, size: int, store: Store | None = None, anew: bool = False) -> None:
        assert size >= 1
        self.size, self.store, self.anew = size, store, anew
        self._seats: SimpleQueue[subprocess.Popen[str] | None] = SimpleQueue()
        for _ in range(size):
            self._seats.put(None)  # a process is started when it is needed first
        self._processes: list[subprocess.Popen[str]] = []
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what still runs."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, []
        for process in processes:
            process.kill()
            process.wait()

    def run(self, setting: Setting, progress: Callable[[int, int], None] | None = None) -> Result:
        """Waits for a seat, simulates, keeps the result. Any thread may call it. Raises CrewError."""
        key = key_of(setting)
        if self.store is not None and not self.anew:
            found = self.store.load(key)
            if found is not None:
                return found
        process = self._seats.get()
        try:
            process = process or self._start()
            result = _ask(process, setting, progress)
        finally:
            alive = process is not None and process.poll() is None
            self._seats.put(process if alive else None)
        if self.store is not None:
            self.store.save(result)
        return result

    def _start(self) -> subprocess.Popen[str]:
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with self._lock:
            if self._closed:
                raise CrewError("interrupted")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "accelgen.simulator.crew"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **one_thread},
            )
            self._processes.append(process)
        return process


def _ask(
    process: subprocess.Popen[str],
    setting: Setting,
    progress: Callable[[int, int], None] | None,
) -> Result:
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    try:
        process.stdin.write(msgspec.json.encode(setting).decode() + "\n")
        process.stdin.flush()
        for line in process.stdout:
            said = msgspec.json.decode(line)
            if "ended" in said:
                if progress is not None:
                    progress(said["ended"], said["of"])
            elif "error" in said:
                raise CrewError(said["error"])
            else:
                return msgspec.convert(said, Result)
    except BrokenPipeError:
        pass
    process.wait()
    words = process.stderr.read().strip().splitlines() or ["it ended without a word"]
    raise CrewDied(f"the simulation of {setting.policy} died: {words[-1]}")


def main() -> None:
    """Runs one Setting after the other until stdin ends. What a policy prints goes nowhere: stdout is for messages."""
    say = partial(_say, sys.stdout)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        _serve(say)


def _serve(say: Callable[[Any], None]) -> None:
    for line in sys.stdin:
        setting = msgspec.json.decode(line, type=Setting)
        told_s = monotonic()

        def progress(ended: int, of: int) -> None:
            nonlocal told_s
            if monotonic() - told_s >= _TELL_S:
                told_s = monotonic()
                say({"ended": ended, "of": of})

        try:
            run = run_oracle if setting.policy == ORACLE else run_setting
            say(run(setting, progress))
        except FAULTS as error:
            say({"error": str(error)})


def _say(out: TextIO, what: Any) -> None:
    out.write(msgspec.json.encode(what).decode() + "\n")
    out.flush()


if __name__ == "__main__":
    main()
