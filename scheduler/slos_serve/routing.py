"""Would a replica take one more request? What SLOs-Serve's controller asks one replica after the other (arXiv
2504.08784, several replicas)."""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.slos_serve.admission import greedy, relaxed
from accelgen.scheduler.slos_serve.standing import standing_by_key
from accelgen.scheduler.slos_serve.survey import Rules, Survey


def ttft_if_admitted(request: Request, view: View, rules: Rules) -> float | None:
    """When a request that has just arrived would have its first token, in seconds, if its objective and all those
    promised before can be kept; None if they cannot.

    Who has not been judged yet counts as admitted. Nobody says what time it is at an arrival: it is taken to be that of
    the newest token, or arrival, of the replica, tokens in flight included."""
    table = view.table
    used = np.array([*table.slot_of.values()], dtype=np.int64)
    now_s = float(table.last_s[used].max(initial=0.0))
    survey = Survey(view, standing_by_key(table), now_s, rules, request)
    problem = relaxed(survey.problem())
    if problem is None:
        return None
    admitted = greedy(problem)  # of a single new one it knows everything
    at = next((i for i, one in enumerate(admitted) if one.is_new), None)
    if at is None:
        return None
    place = problem.walk(admitted[:at])
    assert place is not None, "the walk is feasible"
    needed = admitted[at].tokens - place.spare
    return place.finish_s + problem.planner.reach(needed, place.counts)
