"""Measured iterations on disk: what `accelgen profile` writes and the scheduler fits. JSON, one file per model and
device."""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec
from msgspec import Struct

from accelgen.proto.messages import Sample, SwapSample


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """Samples of one model on one device; `taken` is the date. `swaps` came later: older files have none."""

    model: str
    device: str
    dtype: str
    taken: str
    samples: list[Sample]
    swaps: list[SwapSample] = []  # msgspec copies it


class ProfileError(ValueError):
    """A profile file that cannot be used; the text names the file and the cause."""


def profile_path(model: str, device: str, dtype: str) -> Path:
    """Where the profile of a model on a device is cached."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", f"{model}-{device}-{dtype}")
    return home / "accelgen" / "profiles" / f"{name}.json"


def save_profile(profile: Profile, path: Path) -> None:
    """Writes `path`, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1))


def load_profile(path: Path) -> Profile:
    """Reads what `save_profile` wrote. Raises ProfileError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except (OSError, msgspec.MsgspecError) as error:
        raise ProfileError(f"profile {path}: {error}") from error
