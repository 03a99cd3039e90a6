"""ZeroMQ sockets as this system sets them, over the codec of `accelgen.proto.frame`.

Long-lived components bind a Router; whoever comes and goes connects a Dealer. Both are synchronous; the frontend's
event loop watches the same sockets by file descriptor.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from socket import AF_UNIX, SOCK_STREAM
from socket import socket as Stream

import zmq

from accelgen.proto.clocks import now_s
from accelgen.proto.frame import MAX_FRAME_BYTES, Codec, Header
from accelgen.proto.logs import warn_seldom
from accelgen.proto.messages import Body
from accelgen.proto.recorder import RECV, SEND, fact, note

# Messages taken at a time: whoever sends without end must not keep a process from all else.
ROUND_LIMIT = 256
HIGH_WATER_MARK = 20_000  # a bound, not flow control: credits keep links far below it
LOOK_S = 0.5  # between two looks whether the path is still there
LINGER_MS = 1000  # long enough for a last word to leave
IPC_PATH_LIMIT = 107
MAX_OPEN_FILES = 65_536


class EndpointError(ValueError):
    """An endpoint that must not or cannot be used; the text names it and the rule."""


def check_endpoint(endpoint: str) -> str:
    """Returns `endpoint` if it obeys the rules: ipc inside a 0700 directory, path at most 107 bytes.

    Raises EndpointError otherwise; tcp is refused until it comes with CURVE keys."""
    if not endpoint.startswith("ipc://"):
        raise EndpointError(
            f"{endpoint}: only ipc:// endpoints inside the run directory are allowed"
        )
    path = Path(endpoint.removeprefix("ipc://"))
    if len(os.fsencode(path)) > IPC_PATH_LIMIT:
        raise EndpointError(f"{path}: socket path is longer than {IPC_PATH_LIMIT} bytes")
    mode = stat.S_IMODE(path.parent.stat().st_mode)
    if mode != 0o700:
        raise EndpointError(f"{path.parent}: mode is {mode:04o}, must be 0700")
    return endpoint


def clear_path(path: Path) -> None:
    """Removes a socket file that nobody listens at: a process that was killed has left it. ZeroMQ would take over any
    path in silence, also that of a living process. Raises EndpointError for that, and for what is no socket."""
    if not path.exists():
        return
    with Stream(AF_UNIX, SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            if path.is_socket():
                path.unlink(missing_ok=True)
                return
        except OSError:
            pass  # a full backlog (EAGAIN) is a living listener, too
    raise EndpointError(f"ipc://{path}: another process has bound this path")


def raise_file_limit() -> None:
    """Takes as many descriptors as the system allows, up to 65,536: one for each connection. libzmq aborts the whole
    process when it cannot accept one for want of a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _log_malformed(cause: str, length: int, digest: str) -> None:
    warn_seldom("malformed message dropped", cause=cause, bytes=length, hash=digest)


def _refuse(codec: Codec, peer: bytes, body: Body) -> bool:
    codec.take_back(peer)
    return _warn_unsent(body, f"body exceeds {MAX_FRAME_BYTES} bytes, which would break the link")


def _lose(codec: Codec, body: Body, cause: str) -> bool:
    codec.note_unsent()
    return _warn_unsent(body, cause)


def _warn_unsent(body: Body, cause: str) -> bool:
    warn_seldom("message not sent", kind=type(body).__name__, cause=cause)
    if not body.periodic:
        fact("not sent", kind=type(body).__name__, cause=cause)
    return False


def _prepare(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, LINGER_MS)


class Router:
    """A bound socket with many peers. `send` to a peer that is gone returns False; if it comes back, it sees a gap.

    Should somebody remove its file, a cleaner of temporary folders for one, it is made again with the next look at what
    has come: nobody new could connect otherwise."""

    def __init__(self, endpoint: str, incarnation: int) -> None:
        self.endpoint = check_endpoint(endpoint)
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._look_s = 0.0  # at the path, next
        clear_path(self._path)
        self.codec = Codec(incarnation, _log_malformed)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        _prepare(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(endpoint)

    def send(self, peer: bytes, body: Body, epoch: int = 0) -> bool:
        """Queues `body` for `peer`; False if no such peer is connected, its queue is full or the body too large."""
        frames = self.codec.pack(peer, body, epoch)
        if len(frames[1]) > MAX_FRAME_BYTES:
            return _refuse(self.codec, peer, body)
        note(SEND, peer, body, frames)  # before: the peer may run, and note it, before this returns
        try:
            self.socket.send_multipart([peer, *frames], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return _lose(self.codec, body, str(error))
        return True

    def messages(self) -> Iterator[tuple[bytes, Header, Body]]:
        """The good ones of the next ROUND_LIMIT messages that have come; `pending` says whether that was all."""
        self._mind_path()
        for _ in range(ROUND_LIMIT):
            try:
                message = self._next()
            except zmq.Again:
                return
            if message is not None:
                yield message

    def _mind_path(self) -> None:
        now = now_s()
        if now < self._look_s:
            return
        self._look_s = now + LOOK_S
        if not self._path.exists():
            try:
                self.socket.bind(self.endpoint)  # besides: to unbind would end the connections
                warn_seldom("socket file was removed and is made again", path=str(self._path))
            except zmq.ZMQError as error:
                warn_seldom("socket file was removed", path=str(self._path), fault=str(error))

    @property
    def pending(self) -> bool:
        """Whether something waits to be received."""
        return self.socket.poll(0) != 0

    def recv(self) -> tuple[bytes, Header, Body] | None:
        """The next good message without waiting; None when there is none among the next ROUND_LIMIT."""
        return next(self.messages(), None)

    def _next(self) -> tuple[bytes, Header, Body] | None:
        """The next message, None for a bad one. Raises zmq.Again when there is none."""
        peer, *frames = self.socket.recv_multipart(flags=zmq.NOBLOCK)
        message = self.codec.unpack(peer, frames)
        if message is None:
            return None
        note(RECV, peer, message[1], frames)
        return peer, *message

    def close(self) -> None:
        self.socket.close()


class Dealer:
    """A socket connected to one Router. `identity` must be unique among its peers: role, index, incarnation.

    A connection that was cut is made again in silence; but a Router that has not yet seen the end of the old one
    ignores the new one for ever, because of the name. So who depends on an answer asks `was_cut`, if the Dealer was
    made `watched`, and makes another one, of another name."""

    def __init__(
        self, endpoint: str, identity: str, incarnation: int, watched: bool = False
    ) -> None:
        self.endpoint = check_endpoint(endpoint)
        self._peer = Path(endpoint).stem.encode()  # for the recorder
        self.codec = Codec(incarnation, _log_malformed)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        _prepare(self.socket)
        self.socket.setsockopt_string(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        self.events = self.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) if watched else None
        self.socket.connect(endpoint)

    def was_cut(self) -> bool:
        """Whether the connection has ended since this was asked last; `events` is readable then."""
        found = False
        while self.events is not None and self.events.poll(0):
            self.events.recv_multipart()
            found = True
        return found

    def send(self, body: Body, epoch: int = 0) -> bool:
        """Queues `body`; False if the queue is full or the body too large."""
        frames = self.codec.pack(b"", body, epoch)
        if len(frames[1]) > MAX_FRAME_BYTES:
            return _refuse(self.codec, b"", body)
        note(SEND, self._peer, body, frames)
        try:
            self.socket.send_multipart(frames, flags=zmq.NOBLOCK)
        except zmq.Again:
            return _lose(self.codec, body, "queue full")
        return True

    def recv(self) -> tuple[Header, Body] | None:
        """The next good message without waiting; None when there is none, or only bad ones for a while."""
        for _ in range(ROUND_LIMIT):
            try:
                frames = self.socket.recv_multipart(flags=zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = self.codec.unpack(b"", frames)
            if message is not None:
                note(RECV, self._peer, message[1], frames)
                return message
        return None

    def close(self) -> None:
        if self.events is not None:
            self.socket.disable_monitor()
            self.events.close()
        self.socket.close()
