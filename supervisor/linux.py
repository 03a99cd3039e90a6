"""What AccelGen asks of the kernel: pidfd (a death is seen at once) and PDEATHSIG (no orphans). Linux has both."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

from accelgen.supervisor.errors import StartError


def check_platform() -> None:
    """Raises StartError where AccelGen cannot run: not Linux, or a kernel without pidfd_open (before 5.3)."""
    system = platform.system()
    if system != "Linux":
        raise StartError(
            f"AccelGen runs on Linux only (it needs pidfd and PDEATHSIG); this is {system}"
        )
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as error:
        raise StartError(
            f"this kernel ({platform.release()}) has no pidfd_open, which came with Linux 5.3: {error}"
        ) from error


def usable_cores() -> int:
    """Physical cores that this process may run on, at least 1 (affinity mask and cgroup quota respected)."""
    allowed = len(os.sched_getaffinity(0))
    cores = min(psutil.cpu_count(logical=False) or allowed, allowed)
    quota = _cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def available_memory_bytes() -> int:
    """Memory that can still be had without swapping: the machine's, or less if a cgroup limits us."""
    available = int(psutil.virtual_memory().available)
    for limit_file, usage_file in _CGROUP_MEMORY:
        limit, usage = _read_int(limit_file), _read_int(usage_file)
        if limit is not None and usage is not None:
            available = min(available, max(0, limit - usage))
    return available


def has_cuda_driver() -> bool:
    """There is a driver that torch could use as CUDA: NVIDIA's, WSL's, or ROCm's. Costs no import of torch."""
    return any(map(os.path.exists, _CUDA_DEVICES))


def oom_kills() -> int:
    """How often the kernel's out-of-memory killer has struck since boot (0 where that is not counted)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


_CUDA_DEVICES = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg", "/dev/kfd")
_CGROUP_MEMORY = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _cpu_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None
