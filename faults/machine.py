"""What a measurement was made on."""

from __future__ import annotations

import platform
from pathlib import Path


def machine() -> str:
    """For people: processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len([line for line in lines if line.startswith("processor")])
    return f"{models[0] if models else platform.machine()}, {cores} cores"
