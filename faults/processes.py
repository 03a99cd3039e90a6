"""Faults that the kernel does to a process, and what /proc tells about whether they took effect."""

from __future__ import annotations

import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

import psutil

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def state_of(pid: int) -> str:
    """The letter of the process's state (R, S, D, T, Z, ...); "" if there is no such process."""
    with suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0]
    return ""


def is_gone(pid: int) -> bool:
    """It has ended, whether or not its parent has taken note."""
    return state_of(pid) in ("", "Z", "X")


def send(pid: int, number: int) -> None:
    """Sends a signal to exactly this process; a process that has ended is left alone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal; without one most signals would end it."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def limit_memory(pid: int, room_bytes: int) -> None:
    """The address space may grow by `room_bytes` from what it is now."""
    process = psutil.Process(pid)
    limit = process.memory_info().vms + room_bytes
    process.rlimit(psutil.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def limit_files(pid: int) -> None:
    """No further file descriptor: the limit is the lowest number that is not in use."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    limit = min(set(range(len(used) + 1)) - used)
    _, hard = psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)
    psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE, (limit, hard))


def limit_file_size(pid: int, size_bytes: int) -> None:
    """No file may grow beyond `size_bytes`: like a full disk, as EFBIG instead of ENOSPC."""
    psutil.Process(pid).rlimit(psutil.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def lift_limits(pid: int) -> None:
    """Memory and file size without limit again, and as many descriptors as the hard limit allows."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.rlimit(psutil.RLIMIT_AS, UNLIMITED)
        process.rlimit(psutil.RLIMIT_FSIZE, UNLIMITED)
        _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (hard, hard))


def freeze(pid: int) -> None:
    """Stops it; it does not notice."""
    send(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Lets it go on."""
    send(pid, signal.SIGCONT)
