"""Looks at a server again and again while a case runs: its Directory, its health routes, its metrics."""

from __future__ import annotations

import http.client
import threading
from contextlib import closing, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from accelgen.faults.processes import is_gone
from accelgen.faults.server import Server, name_of
from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Directory
from accelgen.supervisor.client import Onlooker
from accelgen.supervisor.errors import StartError

EVERY_S = 0.15
ANSWER_S = 2.0


@dataclass(frozen=True)
class Look:
    """What was to be seen at one time. `ready` is what the Directory said (None: nothing), `live_status` and
    `ready_status` what the routes answered (0: nothing), `ghosts` the seats of processes that the Directory calls alive
    and the kernel does not, with their pids."""

    at_s: float
    ready: bool | None
    live_status: int
    ready_status: int
    ghosts: frozenset[tuple[str, int]] = frozenset()
    metrics: dict[str, float] = field(default_factory=dict)


class Probe:
    """Looks from a thread of its own, from `start` to `stop`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.looks: list[Look] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        # One connection: libzmq ends a process that is without a descriptor when another one comes (README).
        with suppress(StartError), closing(Onlooker(self.server.run_dir)) as onlooker:
            while not self._over.is_set():
                self.looks.append(look(self.server, onlooker))
                self._over.wait(EVERY_S)


def look(server: Server, onlooker: Onlooker) -> Look:
    """One look."""
    at_s, directory = now_s(), None
    with suppress(StartError, OSError):
        directory = server.note(onlooker.directory(timeout_s=1.0))
    ghosts = _ghosts(directory)  # at once: the routes may take their time
    live, _ = get(server.url, "/live")
    ready, _ = get(server.url, "/ready")
    return Look(
        at_s,
        directory.ready if directory else None,
        live,
        ready,
        ghosts,
        read_metrics(server.url),
    )


def _ghosts(directory: Directory | None) -> frozenset[tuple[str, int]]:
    return frozenset(
        (name_of(member), member.pid)
        for member in (directory.members if directory else ())
        if member.phase != "dead" and is_gone(member.pid)
    )


def get(url: str, path: str) -> tuple[int, str]:
    """Status and body of a GET; 0 if there is no answer in time."""
    parts = urlsplit(url)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        link.request("GET", path, headers={"Connection": "close"})
        answer = link.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        link.close()


def read_metrics(url: str) -> dict[str, float]:
    """The samples of /metrics; none if it does not answer."""
    found = {}
    for line in get(url, "/metrics")[1].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found
