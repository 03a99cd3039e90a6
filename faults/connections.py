"""The unix-socket connections of other processes, found, looked at and cut from outside.

pidfd_getfd(2) gives us a copy of a descriptor of a process that we may trace: a descendant, or any as root. A
shutdown(2) on the copy ends the connection for both sides, as if the link between them had been cut.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PIDFD_GETFD = 438  # the number of the system call, the same on all architectures
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def borrowed(pid: int, fd: int) -> Iterator[socket.socket]:
    """A copy of descriptor `fd` of process `pid`, which must be a socket. Raises OSError if it is gone or not ours to
    take (a kernel before 5.6, or a policy that forbids tracing)."""
    pidfd = os.pidfd_open(pid)
    try:
        own_fd = _libc.syscall(_PIDFD_GETFD, pidfd, fd, 0)
        if own_fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"descriptor {fd} of process {pid}: {os.strerror(number)}")
    finally:
        os.close(pidfd)
    with socket.socket(fileno=own_fd) as copy:
        yield copy


def socket_fds(pid: int) -> list[int]:
    """The descriptors of `pid` that are sockets; none if it is gone."""
    found = []
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    found.append(int(name))
    return found


def connections_to(pid: int, path: Path) -> list[int]:
    """The descriptors with which `pid` is connected to the unix socket bound as `path`."""
    found = []
    for fd in socket_fds(pid):
        with suppress(OSError), borrowed(pid, fd) as copy:
            if copy.family == socket.AF_UNIX and copy.getpeername() == str(path):
                found.append(fd)
    return found


def listener_of(pid: int, fd: int) -> int:
    """The process that listens at the other end of a connection of `pid` (SO_PEERCRED)."""
    with borrowed(pid, fd) as copy:
        credentials = copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    listener: int = struct.unpack("iii", credentials)[0]
    return listener


def cut(pid: int, path: Path) -> int:
    """Cuts every connection of `pid` to `path`; how many there were."""
    fds = connections_to(pid, path)
    for fd in fds:
        with borrowed(pid, fd) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    return len(fds)
