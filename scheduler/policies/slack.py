"""Remaining time: how long may a request still stay out of a batch without missing its objective?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from accelgen.scheduler.table import FAR_S, Floats, Ints, RequestTable

NEAR_S = FAR_S / 2  # a deadline nearer than this is a real one


@dataclass(frozen=True, slots=True)
class Pace:
    """What recent iterations were like: mean chunk in tokens; longest and mean iteration in seconds; the share of
    requests that get preempted."""

    chunk: float
    longest_s: float
    mean_s: float
    preempted: float


@dataclass(frozen=True, slots=True)
class Slack:
    """Per request, [n]: T_r in seconds (`remaining_s`), the iterations that its pending tokens need, and the objective
    of its next iteration in seconds (`iteration_s`)."""

    remaining_s: Floats
    iterations: Floats
    iteration_s: Floats


def slack(table: RequestTable, slots: Ints, start_s: float, pace: Pace) -> Slack:
    """T_r of `slots` at `start_s`.

    Online: T_r = objective - time already waited - iterations * longest iteration, the objective being TTFT until the
    first token and TPOT from token to token. With an end-to-end objective: the time left beyond the predicted
    execution, spread evenly over the iterations still to come, so that being early or late carries over."""
    pending = table.length[slots] - table.computed[slots]
    iterations = np.ceil(np.maximum(pending, 1) / pace.chunk)
    decoding = table.length[slots] > table.prompt_len[slots]
    tpot_s = table.tpot_s[slots]
    due_s = np.where(decoding, table.last_s[slots] + tpot_s, table.first_due_s[slots])
    remaining_s = due_s - start_s - iterations * pace.longest_s
    each_s = np.where(
        decoding, tpot_s, np.maximum(due_s - start_s, pace.mean_s * iterations) / iterations
    )
    end_due_s = table.end_due_s[slots]
    offline = end_due_s < NEAR_S
    if offline.any():
        spread_s = _spread(table, slots, start_s, pace, iterations)
        remaining_s = np.where(offline, np.minimum(remaining_s, spread_s), remaining_s)
        each_offline_s = np.maximum(spread_s, 0) + pace.mean_s
        each_s = np.where(offline, np.minimum(each_s, each_offline_s), each_s)
    return Slack(remaining_s, iterations, each_s)


def first_token_due_s(table: RequestTable, slots: Ints, offline_tpot_s: float) -> Floats:
    """When the first token must be there, [n]: arrival + TTFT objective. A request with an end-to-end objective must
    have it so early that its predicted output can follow at `offline_tpot_s` per token (QoServe's code)."""
    due_s: Floats = table.first_due_s[slots]
    end_s = table.end_due_s[slots]
    started_s = end_s - table.predicted_output[slots] * offline_tpot_s
    return np.where(end_s < NEAR_S, np.minimum(due_s, started_s), due_s)


def next_token_due_s(table: RequestTable, slots: Ints, offline_tpot_s: float) -> Floats:
    """Deadline of the next token of decodes, [n], as in QoServe's code: cumulative, arrival + max(time the prompt took,
    TTFT deadline) + (generated + 1) * TBT. Where thinking had another pace than the response that is now, its tokens
    count at that (`shift_s`)."""
    first_s = table.first_s[slots]
    came_s = np.where(first_s < FAR_S, first_s, table.last_s[slots])
    due_s = first_token_due_s(table, slots, offline_tpot_s)
    first_due_s = np.where(due_s < NEAR_S, np.maximum(due_s, came_s), came_s)
    generated = table.generated(slots)
    due: Floats = first_due_s + (generated + 1) * tbt_s(table, slots, offline_tpot_s)
    return due + table.shift_s[slots]


def tbt_s(table: RequestTable, slots: Ints, offline_tpot_s: float) -> Floats:
    """Time from token to token, [n]: the TPOT objective, or `offline_tpot_s` if only an end-to-end one is stated."""
    stated_s = table.tpot_s[slots]
    offline = (table.end_due_s[slots] < NEAR_S) & (stated_s > NEAR_S)
    return np.where(offline, offline_tpot_s, stated_s)


def _spread(
    table: RequestTable, slots: Ints, start_s: float, pace: Pace, iterations: Floats
) -> NDArray[np.float64]:
    """Waiting time that the next iteration of a request with an end-to-end objective may use up, [n]."""
    generated = table.generated(slots)
    output_left = np.maximum(table.predicted_output[slots] - generated, 1)
    rounds = iterations + output_left
    execution_s = rounds * pace.mean_s * (1 + pace.preempted)
    spread: Floats = (table.end_due_s[slots] - start_s - execution_s) / rounds
    return spread
