"""Would a replica take one more request? What SLOs-Serve's controller asks one replica after the other (arXiv
2504.08784, several replicas)."""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.slos_serve.admission import Problem, greedy, relaxed
from accelgen.scheduler.slos_serve.standing import Standing, standing_by_key
from accelgen.scheduler.slos_serve.survey import Rules, Survey
from accelgen.scheduler.slos_serve.tiers import joined

MOST_WORK = 300  # per arrival, over all replicas: units of about 20 microseconds
DOUBT = 2.0  # by which the model of a device may be wrong for a while
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / the golden ratio


def mixed(id: int) -> int:
    """A number that request ids at any regular distance give evenly: calls with n choices take n ids each."""
    return (id * _GOLDEN % 2**64) >> 33


def first_with_room(
    request: Request, views: Sequence[View], tried: Sequence[int], rules: Rules, now_s: float
) -> tuple[int, float] | None:
    """The first of the replicas `tried` that would take a request which arrives at `now_s`, and when it would have its
    first token there, seconds from then; None if there is none. Of many busy ones only so many are asked as cost
    `MOST_WORK`: the others have the most prompts waiting."""
    left = MOST_WORK
    for index in tried:
        view = views[index]
        standing = standing_by_key(view.table)
        work = 25 + len(standing.decoding) // 8 + len(standing.prompts)
        work += work // 2 if view.speculation.most else 0
        if work > left:
            continue
        left -= work
        ttft_s = ttft_if_admitted(request, view, standing, rules, now_s)
        if ttft_s is not None:
            return index, ttft_s
    return None


def ttft_if_admitted(
    request: Request, view: View, standing: Standing, rules: Rules, now_s: float
) -> float | None:
    """When a request that arrives at `now_s` would have its first token, in seconds from then, if its objective and all
    those promised before can be kept; None if they cannot.

    Who has not been judged yet counts as admitted. Planned is from when the iteration in flight is over."""
    table = view.table
    running = table.running
    start_s = max(now_s, float(table.last_s[running].max(initial=0.0)))
    wait_s = _wait_s(Survey(view, standing, start_s, rules, request, now_s).problem())
    return None if wait_s is None else start_s - now_s + wait_s


def least_s(request: Request, view: View) -> tuple[float, float]:
    """What an idle replica takes at least until a request's first token, all but the last of its prompt being in the
    prefix cache; and for each of the others, all drafts being accepted."""
    first_s = view.cost.predict(Work(prefill_tokens=1))
    next_s = view.cost.predict(Work(decode_seqs=1, decode_context=len(request.prompt)))
    return first_s, next_s / (1 + view.speculation.most)


def can_be_kept(request: Request, view: View) -> bool:
    """Whether a replica could keep the objective of a request if it had nothing else to do: in doubt it could."""
    first_s, next_s = least_s(request, view)
    objective, thinking = request.objective, request.objective.thinking
    goals = [(objective.ttft_s, first_s), (objective.e2e_s, first_s), (objective.tpot_s, next_s)]
    goals += [(thinking.tpot_s, next_s)] if thinking is not None else []
    return all(goal_s is None or takes_s <= DOUBT * goal_s for goal_s, takes_s in goals)


def _wait_s(problem: Problem) -> float | None:
    """When the one new request of a problem has its first token if all are kept; None if they cannot be."""
    if not _may_have_room(problem):
        return None
    feasible = relaxed(problem)
    if feasible is None:
        return None
    admitted = greedy(feasible)  # of a single new one it knows everything
    at = next((i for i, one in enumerate(admitted) if one.is_new), None)
    if at is None:
        return None
    place = feasible.walk(admitted[:at])
    assert place is not None, "the walk is feasible"
    needed = admitted[at].tokens - place.spare
    return place.finish_s + feasible.planner.reach(needed, place.counts)


def _may_have_room(problem: Problem) -> bool:
    """What can be said without a walk: memory, seats, and whether all together can decode."""
    steady = problem.steady
    for one in problem.candidates:
        steady = joined(steady, one.tier, one.decodes)
        if one.is_new and (one.blocks > problem.blocks or one.decodes > problem.seats):
            return False
    return problem.planner.is_steady(steady)
