"""Clients that misbehave."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from accelgen.faults.client import SLOW_S, Manner
from accelgen.faults.contract import Allowance
from accelgen.faults.fault import Decoy, Fault, Site
from accelgen.faults.history import History, Kind
from accelgen.faults.load import Load
from accelgen.proto.messages import Role

CLIENTS = 6
IDLE = 1000
_ESTABLISHED, _CLOSE_WAIT = "01", "08"


class ClientFault(Fault):
    """Some clients of this manner. What they leave unfinished is theirs; the evidence is what the server counts, or
    the kernel shows of their connections. A control's clients talk to a server of ours that does not listen."""

    lasts_s = SLOW_S

    def __init__(self, site: Site, manner: Manner) -> None:
        super().__init__(site)
        self._manner = manner
        self._sent: list[History] = []
        self._deaf: socket.socket | None = None
        self._aborted = 0.0

    def inject(self, decoy: Decoy | None = None) -> None:
        self._aborted = self._aborts()
        load = self.site.load
        if decoy is not None:
            self._deaf = socket.create_server(("127.0.0.1", 0), backlog=64)
            load = Load(f"http://127.0.0.1:{self._deaf.getsockname()[1]}", load.pool, 0, 1e-6)
            load.start()
        self._sent = [load.send(self.site.request(), self._manner) for _ in range(CLIENTS)]
        if decoy is not None:
            load.stop(0.2)

    def proof(self) -> str:
        match self._manner:
            case Manner.SLOW:
                waiting = sum(map(self._unread, self._sent))
                return f"{waiting} bytes wait for slow readers" if waiting else ""
            case Manner.HALF_CLOSED:
                ended = [one for one in self._sent if one.first(Kind.ADMIT, Kind.CUT)]
                return f"{len(ended)} half-closed requests were heard" if ended else ""
            case _:
                more = self._aborts() - self._aborted
                return f"{more:g} requests aborted" if more else ""

    def lift(self) -> None:
        if self._deaf is not None:
            self._deaf.close()

    def allowance(self) -> Allowance:
        return Allowance(left=frozenset(history.id for history in self._sent))

    def _aborts(self) -> float:
        return sum(
            value
            for member in self.site.server.see().members
            if member.role is Role.FRONTEND
            for name, value in member.gauges.items()
            if 'finished_reason="abort"' in name
        )

    def _unread(self, history: History) -> int:
        """Bytes that wait in the kernel because the client does not read, at either end of its connection."""
        return (
            sum(queued for ports, _, queued in tcp_connections() if history.port in ports)
            if history.port
            else 0
        )


def tcp_connections() -> list[tuple[tuple[int, int], str, int]]:
    """The two ports, the state, and the bytes queued for sending or reading, of each TCP connection (IPv4)."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = tuple(int(field.rpartition(":")[2], 16) for field in fields[1:3])
        sending, reading = (int(part, 16) for part in fields[4].split(":"))
        found.append(((ports[0], ports[1]), fields[3], sending + reading))
    return found


class IdleConnections(Fault):
    """A thousand connections that say nothing."""

    lasts_s = 2.0

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._port = urlsplit(site.server.url).port or 0
        self._links: list[socket.socket] = []
        self._before = 0

    def inject(self, decoy: Decoy | None = None) -> None:
        self._before = self._taken()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        port = self._port
        if decoy is not None:
            deaf = socket.create_server(("127.0.0.1", 0), backlog=IDLE)
            self._links.append(deaf)
            port = deaf.getsockname()[1]
        for _ in range(IDLE):
            self._links.append(socket.create_connection(("127.0.0.1", port), timeout=5.0))

    def proof(self) -> str:
        taken = self._taken() - self._before
        return f"{taken} connections more at the frontends" if taken >= IDLE else ""

    def lift(self) -> None:
        while self._links:
            self._links.pop().close()

    def _taken(self) -> int:
        """Descriptors of the frontends: a connection that only the kernel has accepted does not count."""
        found = 0
        for member in self.site.server.see().members:
            with suppress(OSError):
                if member.role is Role.FRONTEND:
                    found += len(list(Path(f"/proc/{member.pid}/fd").iterdir()))
        return found
