"""Random numbers from (seed, position): the same wherever, whenever and beside whomever a token is sampled.

Counter-based: the pair is hashed, nothing is carried from one token to the next, so a replay after a crash continues
with the same numbers. The hash is two rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014), first over the
seed, then over the seed's hash plus the position times the golden-ratio increment. What a drafter draws with, and what
decides on its tokens, comes from streams of its own, whose number is hashed in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SAMPLE, DRAFT, ACCEPT = 0, 1, 2  # streams
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: Sequence[int], positions: Sequence[int], stream: int = SAMPLE) -> np.ndarray:
    """float64 in [0, 1), one for each pair; 53 random bits each. Those of different streams are independent."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        seed = _mix(np.asarray(seeds, dtype=np.uint64) + _GOLDEN)
        if stream != SAMPLE:
            seed = _mix(seed + np.uint64(stream) * _FIRST)
        mixed = _mix(seed + (np.asarray(positions, dtype=np.uint64) + np.uint64(1)) * _GOLDEN)
    out: np.ndarray = (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    mixed: np.ndarray = value ^ (value >> np.uint64(31))
    return mixed
