"""A request that ran under the scheduler before, in the table of its successor."""

from __future__ import annotations

import numpy as np
import pytest
from world import World

from accelgen.proto.messages import Objective, Sampling, Thinking
from accelgen.scheduler.policies.slack import next_token_due_s
from accelgen.scheduler.request import Request

TPOT_S, TOKENS, NOW_S = 0.1, 200, 100.0


@pytest.mark.parametrize("tpot_s", [TPOT_S, None])
def test_it_has_neither_credit_nor_debt(tpot_s: float | None) -> None:
    """By a cumulative deadline the next token is due at the pace of the objective, not 200 tokens later."""
    replica = World("qoserve").core.replicas[0]
    request = Request(
        1, 0, [5] * 16, Sampling(), 400, frozenset(), Objective(5.0, tpot_s), "standard"
    )
    request.generated = [7] * TOKENS
    slot = replica.table.add(request, NOW_S - TPOT_S * TOKENS - 5.0)
    replica.take_up(slot, NOW_S)
    if tpot_s is None:
        assert replica.table.first_s[slot] == NOW_S
    else:
        due_s = float(next_token_due_s(replica.table, np.array([slot]), 1.0)[0])
        assert NOW_S < due_s <= NOW_S + 3 * TPOT_S


@pytest.mark.parametrize("thinking_s", [0.02, 0.5, None])
def test_neither_has_one_whose_thinking_is_over(thinking_s: float | None) -> None:
    """150 of its tokens were thinking, at another pace or at none: that is over."""
    replica = World("qoserve").core.replicas[0]
    goal = Objective(5.0, TPOT_S, None, Thinking(thinking_s, [9]))
    request = Request(1, 0, [5] * 16, Sampling(), 400, frozenset(), goal, "standard")
    request.generated = [7] * 149 + [9] + [7] * 50
    assert request.ends_thinking(0)
    slot = replica.table.add(request, NOW_S - 100.0)
    replica.take_up(slot, NOW_S)
    due_s = float(next_token_due_s(replica.table, np.array([slot]), 1.0)[0])
    assert NOW_S < due_s <= NOW_S + 3 * TPOT_S
