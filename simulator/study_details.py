"""Reads what runs say of single requests and iterations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from accelgen.simulator.detail import Detail, Requests
from accelgen.simulator.study import Found

Pick = Callable[[Requests, int], bool]


def details(found: Found, workload: str, arm: str, rate: float) -> list[Detail]:
    """Of all seeds that succeeded."""
    return [r.detail for r in found.group(workload, arm, rate).results if r.detail is not None]


def requests_of(found: Found, workload: str, arm: str, rate: float) -> list[Requests]:
    """One per seed that succeeded."""
    return [detail.requests for detail in details(found, workload, arm, rate)]


def share(parts: Sequence[Requests], wanted: Pick, of: Pick) -> float | None:
    """Of the requests that `of` picks, the share that `wanted` picks, too."""
    picked = [(one, i) for one in parts for i in range(len(one.prompt)) if of(one, i)]
    return sum(wanted(*each) for each in picked) / len(picked) if picked else None


def percentile(parts: Sequence[Requests], column: str, of: Pick, q: float) -> float | None:
    """Of a column of times; a request that has none counts as infinite: None if that is the answer."""
    values = [
        getattr(one, column)[i] for one in parts for i in range(len(one.prompt)) if of(one, i)
    ]
    if not values:
        return None
    found = float(np.percentile([np.inf if v is None else v for v in values], q, method="higher"))
    return found if np.isfinite(found) else None


def in_class(name: str) -> Pick:
    return lambda one, i: one.slo_class[i] == name


def attained(one: Requests, i: int) -> bool:
    return one.attained[i]


def percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
