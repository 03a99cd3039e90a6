"""Clients that misbehave."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
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
                waiting = sum(unread(one.port) for one in self._sent if one.port)
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


@dataclass(frozen=True)
class TcpEnd:
    """One end of a TCP connection (IPv4): ports, and bytes that wait there, to be sent or to be read."""

    port: int
    peer_port: int
    sending: int
    reading: int


def tcp_ends() -> list[TcpEnd]:
    """All that the kernel lists; of a connection within this machine both."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        port, peer_port = (int(field.rpartition(":")[2], 16) for field in fields[1:3])
        sending, reading = (int(part, 16) for part in fields[4].split(":"))
        found.append(TcpEnd(port, peer_port, sending, reading))
    return found


def unread(client_port: int) -> int:
    """Bytes on their way to the client of this port, which it does not read. What it has said itself does not count."""
    ends = tcp_ends()
    at_client = sum(end.reading for end in ends if end.port == client_port)
    return at_client + sum(end.sending for end in ends if end.peer_port == client_port)


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
