"""A proxy that can spoil ZeroMQ messages on the link between two running processes, put there without their help.

The socket file of the bound side is renamed, which leaves it reachable under its new name, and the proxy binds the old
one. The connected side's connection is cut, so that its ZeroMQ connects again: to the proxy, which connects on. The
bytes of the handshake pass as they are, so that each side sees the other's identity; messages pass the rules. Neither
side can tell. Do it while the link is idle: what is on its way when a connection is cut is lost, which would be
another fault.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from accelgen.faults.connections import connections_to, cut, listener_of
from accelgen.faults.tamper import Delivery, Passing, Rule, Tamperer, Toward
from accelgen.faults.zmtp import Raw, Splitter, pack
from accelgen.proto.clocks import now_s

CONNECT_S = 5.0  # a ZeroMQ socket connects again after 20 ms to 0.5 s
SETTLE_S = 0.02  # for the bound side to act on the READY that has just been passed on: nothing says when it has
READ_BYTES = 256 * 1024


class ProxyError(RuntimeError):
    """The proxy could not be put on the link."""


@dataclass
class Handshake:
    """Both directions of one connection; `done` once both sides have said READY."""

    ways: dict[Toward, Splitter] = field(
        default_factory=lambda: {toward: Splitter() for toward in Toward}
    )
    done: bool = False


class Proxy:
    """A proxy at the socket file `path`. A thread of its own moves the messages; rules may change at any time."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.real = path.with_suffix(".real")
        self._tamperer = Tamperer(seed)
        self._lock = threading.Lock()  # for the tamperer, which both threads use
        self._loop = asyncio.new_event_loop()
        self._bound = threading.Event()
        self._over = asyncio.Event()
        self._due: list[tuple[float, int, Delivery, asyncio.StreamWriter]] = []  # a heap
        self._order = count()
        self._ready = 0  # connections whose handshake is done
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name=f"proxy {path.name}", daemon=True)

    def open(self, pids: Iterable[int]) -> None:
        """Puts the proxy on the links of the connected processes `pids`. Raises ProxyError if one of them has no
        connection there, or does not come back through the proxy in time."""
        self.path.rename(self.real)
        self._thread.start()
        assert self._bound.wait(CONNECT_S)
        self._inode = self.path.stat().st_ino
        try:
            self._pull_over(list(pids))
        except ProxyError:
            self.close()
            raise

    def close(self) -> None:
        """Takes the proxy off: the real socket gets its name back, and whoever was connected connects to it. If the
        process that had bound it is gone, its socket file goes, too; what another has bound meanwhile stays."""
        if self.path.exists() and self.path.stat().st_ino == self._inode:
            self.real.rename(self.path)
        else:
            self.real.unlink(missing_ok=True)
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def apply(self, *rules: Rule) -> None:
        """From now on these rules hold, and no others."""
        with self._lock:
            self._tamperer.rules = rules

    def counts(self) -> dict[str, int]:
        """What the rules have struck so far: `drop Plan` -> 3."""
        with self._lock:
            return {f"{e} {kind}": n for (e, kind), n in sorted(self._tamperer.touched.items())}

    @property
    def passed(self) -> int:
        """How many messages have come, struck or not."""
        with self._lock:
            return self._tamperer.passed

    def _pull_over(self, pids: Sequence[int]) -> None:
        for pid in pids:
            if not cut(pid, self.path):
                raise ProxyError(f"process {pid} is not connected to {self.path.name}")
        until_s = now_s() + CONNECT_S
        while (missing := [pid for pid in pids if not self._has(pid)]) or self._ready < len(pids):
            if now_s() > until_s:
                who = missing[0] if missing else pids[0]
                raise ProxyError(f"process {who} does not come back to {self.path.name}")
            time.sleep(0.005)
        time.sleep(SETTLE_S)

    def _has(self, pid: int) -> bool:
        """Whether `pid` is connected to us, and to nobody else at this path."""
        with suppress(OSError):  # a connection that goes while we look
            fds = connections_to(pid, self.path)
            return bool(fds) and all(listener_of(pid, fd) == os.getpid() for fd in fds)
        return False

    # --- in the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_unix_server(self._connected, self.path)
        self._bound.set()
        await self._over.wait()
        server.close()
        for writer in list(self._open):
            writer.close()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: both directions, until either side ends it."""
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(self.real)
        except OSError:  # the bound side is gone: so is the link
            writer.close()
            return
        link = Handshake()
        self._open |= {writer, back_writer}
        ways = [
            asyncio.create_task(self._move(reader, back_writer, link, Toward.BOUND)),
            asyncio.create_task(self._move(back_reader, writer, link, Toward.CONNECTED)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for end in (writer, back_writer):
            self._open.discard(end)
            end.close()
        await asyncio.wait(ways)

    async def _move(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: Handshake,
        toward: Toward,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(READ_BYTES):
                for unit in link.ways[toward].feed(data):
                    if isinstance(unit, Raw):
                        self._pass_raw(unit, writer, link)
                        continue
                    message = Passing(link.ways[Toward.BOUND].identity, toward, unit.frames)
                    with self._lock:
                        due = self._tamperer.judge(message, now_s())
                    for delivery in due:
                        entry = (delivery.due_s, next(self._order), delivery, writer)
                        heapq.heappush(self._due, entry)
                    self._deliver()

    def _pass_raw(self, unit: Raw, writer: asyncio.StreamWriter, link: Handshake) -> None:
        writer.write(unit.data)
        if not link.done and all(way.ready for way in link.ways.values()):
            link.done = True
            self._ready += 1

    def _deliver(self) -> None:
        """Sends what is due, in order, and comes back for the rest."""
        while self._due and self._due[0][0] <= now_s():
            _, _, delivery, writer = heapq.heappop(self._due)
            with self._lock:
                goes_on = self._tamperer.goes_on(delivery)
            if goes_on and not writer.is_closing():
                writer.write(pack(delivery.message.frames))
        if self._due:
            self._loop.call_later(max(0.0, self._due[0][0] - now_s()), self._deliver)
