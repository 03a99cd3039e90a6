"""What models of the KV core's rules share: a request, who can fork, and dice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import hypothesis.strategies as st

# Rules draw a seed and then roll their own dice: a few draws instead of hundreds for each plan.
DICE = st.integers(0, 2**32 - 1).map(Random)


@dataclass
class Modelled:
    """What the rules say about one request."""

    tokens: list[int]
    salt: bytes
    length: int
    computed: int = 0
    parent: int = 0
    fresh: bool = True  # has never run


def ready_forks(requests: Mapping[int, Modelled]) -> list[tuple[int, int, int]]:
    """Forks (child, parent, computed) of those whose parent has computed the prompt; they have no parent any more."""
    forks = []
    for id, expected in requests.items():
        parent, prompt = requests.get(expected.parent), len(expected.tokens)
        if parent and parent.computed >= prompt and not expected.computed and expected.fresh:
            forks.append((id, expected.parent, prompt - 1))
    for child, _, _ in forks:
        requests[child].parent = 0
    return forks
