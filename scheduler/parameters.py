"""Checks of what a user may set."""

from __future__ import annotations

from math import inf


def within(name: str, value: float, least: float, most: float = inf, unit: str = "") -> None:
    """Raises ValueError unless the parameter `name` is a finite number from `least` to `most`."""
    if least <= value <= most and value < inf:
        return
    limit = f"at least {least}" if most == inf else f"from {least} to {most}"
    raise ValueError(f"{name}: {value}{unit and ' ' + unit}, must be {limit}")
