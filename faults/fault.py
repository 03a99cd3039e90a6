"""What every fault is: something that is done to one victim, and evidence that it took effect on the target."""

from __future__ import annotations

import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from accelgen.faults.contract import Allowance
from accelgen.faults.history import Request
from accelgen.faults.load import Load
from accelgen.faults.server import Server
from accelgen.proto.clocks import now_s

DEADLINE_S = 5.0  # until the evidence must be there
CONTROL_S = (
    1.2  # a control is given that long to show evidence that must not come: two heartbeats and more
)


@dataclass
class Site:
    """Where a fault happens. `target`: a seat, or a link `scheduler-worker-0`."""

    server: Server
    load: Load
    target: str
    chance: Random

    def request(self) -> Request:
        """A request of the pool that streams its answer."""
        return self.chance.choice([one for one in self.load.pool if one.streamed])


class Fault(ABC):
    """One fault. `inject` does it; `proof` says what shows that it took effect on the *target* of the site, "" as long
    as nothing does; `lift` ends it, if it does not end by itself.

    A negative control injects the same fault into a decoy; then the evidence must stay away."""

    lasts_s = 0.0  # how long it is left in place before it is lifted
    proof_s = DEADLINE_S
    ends_target = False  # the target dies of it and is replaced

    def __init__(self, site: Site) -> None:
        self.site = site

    @abstractmethod
    def inject(self, decoy: Decoy | None = None) -> None:
        """Does it, to the target of the site or to the wrong one."""

    @abstractmethod
    def proof(self) -> str:
        """The evidence."""

    def lift(self) -> None:  # noqa: B027  # many end by themselves
        """Undoes it, and everything that was set up for it."""

    def prepare(self) -> None:  # noqa: B027
        """Sets up what must be there before the load begins."""

    def remove(self) -> None:  # noqa: B027
        """Takes away what `prepare` has set up, after the load."""

    def watch(self) -> None:  # noqa: B027
        """Called again and again while it is in place."""

    def harm(self) -> str:
        """What it has done that it must not be able to do, "" for nothing."""
        return ""

    def allowance(self) -> Allowance:
        """What it may cost the clients, known once it has been injected."""
        return Allowance()

    def await_proof(self, limit_s: float) -> str:
        """Waits for the evidence, at most `limit_s`."""
        until_s = now_s() + limit_s
        while not (found := self.proof()) and now_s() < until_s:
            self.watch()
            time.sleep(0.005)
        return found


class Decoy(AbstractContextManager["Decoy"]):
    """A wrong target: a process with an agent that belongs to no server."""

    def __init__(self, server: Server) -> None:
        environment = server.orders.environment({"PATH": "/usr/bin:/bin"})
        self._process = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it is up, and its agent with it
        self.pid = self._process.pid
        self.folder = Path(server.folder)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
