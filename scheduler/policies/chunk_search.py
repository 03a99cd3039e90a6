"""QoServe's dynamic chunking: the largest batch of a grid that is predicted to end in time (ASPLOS'26)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from accelgen.scheduler.cost_model import CostModel, Work


def largest_within(grid: Sequence[int], takes_s: Callable[[int], float], slack_s: float) -> int:
    """The largest of the ascending `grid` that takes at most `slack_s`, by binary search; the smallest if none does or
    there is no slack."""
    best, low, high = 0, 0, len(grid) - 1
    while slack_s > 0 and low <= high:
        middle = (low + high) // 2
        if takes_s(grid[middle]) <= slack_s:
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return grid[best]


def published_s(cost: CostModel, prefill: int, prior: int, decodes: int, context: int) -> float:
    """The predictor in QoServe's code, in seconds: two linear pieces fitted to Llama-3-8B on an A100. `prior` computed
    tokens of the first prompt, `context` of all decodes."""
    tokens = prefill + decodes
    if tokens <= 512:
        seconds = 0.014936 + 5.882475e-5 * tokens + 2.247956e-5 * prefill + 3.634519e-5 * decodes
        return seconds + 1.111258e-7 * context + 7.554773e-7 * prior
    seconds = 0.005004 + 2.719050e-5 * tokens + 6.863043e-5 * prefill - 4.143993e-5 * decodes
    return seconds + 1.663409e-7 * context + 2.727223e-6 * prior


def fitted_s(cost: CostModel, prefill: int, prior: int, decodes: int, context: int) -> float:
    """The same from the fitted model of the device."""
    return cost.predict(Work(prefill, decodes, context, prefill * (prior + prefill / 2)))
