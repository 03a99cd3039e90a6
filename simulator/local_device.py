"""This machine as a simulated device, from the samples of `accelgen profile`."""

from __future__ import annotations

from pathlib import Path

from accelgen.proto.profiles import load_profile
from accelgen.scheduler.cost_model import fit
from accelgen.simulator.device import Device


def profiled_device(path: Path, kv_bytes: int, host_s: float) -> Device:
    """The device that a profile describes, with `host_s` of host time per iteration. A profile does not say what a
    token takes in the KV cache: state `kv_blocks` where its size matters. Raises ProfileError."""
    profile = load_profile(path)
    coefficients = fit(profile.samples)
    return Device(
        profile.model,
        f"{profile.device} {profile.dtype}",
        coefficients,
        kv_token_bytes=1,
        kv_bytes=kv_bytes or 1 << 40,
        host_s=host_s,
    )
