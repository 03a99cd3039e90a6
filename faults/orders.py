"""The other end of the agent: writes orders for the processes of a server and reads their proofs."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from accelgen.faults.agent import SIGNAL
from accelgen.faults.processes import catches, send
from accelgen.proto.clocks import now_s

ARMED_S = 3.0  # a process that has just been started needs some time to get there

_HOOK = """from accelgen.faults.agent import arm
arm({folder!r})
"""


class NotArmed(RuntimeError):
    """The process does not listen for orders; the signal would end it."""


class Orders:
    """Orders for the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        (folder / "sitecustomize.py").write_text(_HOOK.format(folder=str(folder)))

    def environment(self, inherited: dict[str, str]) -> dict[str, str]:
        """`inherited`, so that Python loads the agent in every process that gets it."""
        paths = [str(self._folder), *filter(None, [inherited.get("PYTHONPATH")])]
        return {**inherited, "PYTHONPATH": ":".join(paths)}

    def give(self, pid: int, do: str, armed_s: float = ARMED_S, **details: Any) -> int:
        """Orders process `pid` to `do` something; the number under which it proves that it has. Raises NotArmed if it
        does not listen within `armed_s`."""
        until_s = now_s() + armed_s
        while not catches(pid, SIGNAL):
            if now_s() > until_s:
                raise NotArmed(f"process {pid} has no agent")
            time.sleep(0.01)
        number = next(self._numbers)
        order = {"number": number, "do": do, **details}
        with (self._folder / f"{pid}.order").open("r+") as file:  # the file that the agent has open
            file.truncate()
            file.write(json.dumps(order))
        send(pid, SIGNAL)
        return number

    def give_at_start(self, role: str, do: str, **details: Any) -> int:
        """The same for every process of this role that starts from now on, until `forget`."""
        number = next(self._numbers)
        order = {"number": number, "do": do, **details}
        (self._folder / f"{role}.start").write_text(json.dumps(order))
        return number

    def forget(self) -> None:
        """Those who start from now on have no orders."""
        for waiting in self._folder.glob("*.start"):
            waiting.unlink()

    def proofs(self, number: int, pid: int | None = None) -> list[str]:
        """What was done upon order `number`, by process `pid` or by whichever there was."""
        found = []
        for path in sorted(self._folder.glob(f"{pid or '*'}.proof")):
            for line in path.read_text().rstrip("\0").splitlines():
                with suppress(json.JSONDecodeError):  # being written just now
                    proof = json.loads(line)
                    if proof["number"] == number:
                        found.append(str(proof["what"]))
        return found
