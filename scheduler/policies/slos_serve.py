"""`slos-serve`: SLOs-Serve's admission by planning, and its planned batches, drafts included (arXiv 2504.08784;
docs/policies.md, read in the authors' code, `gulang2019/SLOServe`, folder `SLOsServe/scheduler`).

1. Which new requests are admitted, and in which batches all admitted ones are processed, is planned together: every
   10 arrivals, every 6 finished requests, and every 0.1 s. `admission` dp is the paper's dynamic program over requests
   sorted by deadline, edf_sim the simulation that the authors use now. In between the plan is followed.
2. Those declined join a best-effort queue: they get what is left of batches and KV, and give both up when admitted ones
   need them. One that asks for that (`Objective.refuses`; `burst` refuse: all) is refused instead.
3. Several replicas: a request goes to the first one, round robin, whose plan has room for it; to the last of them as
   best effort. `routing` false: round robin alone.

Reconstructed: the rules of planning that the sources leave open (admission.py, survey.py, edf_sim.py, best_effort.py in
`scheduler/slos_serve`). Nobody waits for a round when no admitted request has work, or who has less than two of its
intervals to spare: at light load these would be the ones to be late. What prompts leave of a batch goes to decodes that
are not due, then to best effort. Output lengths are predicted, known in the paper; out of blocks, a best-effort
request, the last to have come, or else the admitted one with the latest deadline is recomputed. Whoever runs unknown to
the plan counts as admitted if it could keep its pace alone; who is missing (after a takeover frontends may claim theirs
late) stays for `MISSED_S` what he was. A request that states no objective is best effort. Who may
be refused is judged at arrival, by the state of that moment, and is else admitted. When admitted decodes alone cannot
keep their pace, each batch has all of them and at least `LEAST_PREFILL` tokens of prompts, admitted or best effort. A
round costs at most about 10 ms: it judges fewer than `MOST_NEW` where many prompts wait (the next
round follows at once), and where more than `MOST_PROMPTS` wait, nobody; then batches are made for the present decodes
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from msgspec import structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.memory.arrival_rate import heard
from accelgen.scheduler.policies.shared import at_least, least_load
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.slos_serve.admission import relaxed
from accelgen.scheduler.slos_serve.dynamic import MOST_NEW, choose
from accelgen.scheduler.slos_serve.edf_sim import admit as simulated_admission
from accelgen.scheduler.slos_serve.following import Follower
from accelgen.scheduler.slos_serve.order import keys, moved_keys, places
from accelgen.scheduler.slos_serve.plan import Plan, make_plan, overloaded_plan
from accelgen.scheduler.slos_serve.routing import can_be_kept, first_with_room, least_s, mixed
from accelgen.scheduler.slos_serve.standing import (
    Standing,
    admitted_places,
    is_stated,
    known,
    new_places,
    standing_of,
    still_missed,
)
from accelgen.scheduler.slos_serve.state import Memory
from accelgen.scheduler.slos_serve.survey import Rules, Survey, too_slow_for
from accelgen.scheduler.table import RequestTable

LEAST_PREFILL = 128  # tokens
MOST_EVENTS = 900  # of simulations per round, about: 5 microseconds each
MOST_STEPS = 600  # of walks per round, about: 10 microseconds each
MOST_PROMPTS = 160  # that a round walks along

ADMISSIONS, BURSTS = ("dp", "edf_sim"), ("soft", "refuse")


class SlosServe:
    name = "slos-serve"

    def __init__(
        self, admission: str = "dp", routing: bool = True, burst: str = "soft", credit: bool = True,
        offline_tpot_s: float = 0.4, replan_s: float = 0.1, replan_arrivals: int = 10, replan_finishes: int = 6,
    ) -> None:  # fmt: skip
        _one_of("admission", admission, ADMISSIONS)
        _one_of("burst", burst, BURSTS)
        at_least("offline_tpot_s", offline_tpot_s, 1e-3, "s")
        at_least("replan_s", replan_s, 0, "s")
        at_least("replan_arrivals", replan_arrivals, 1)
        at_least("replan_finishes", replan_finishes, 1)
        self.admission, self.routing, self.burst = admission, routing, burst
        self.rules = Rules(credit, offline_tpot_s)
        self.replan_s, self.replan_arrivals = replan_s, replan_arrivals
        self.replan_finishes = replan_finishes

    def initial(self) -> Memory:
        return Memory()

    def order_key(self, view: View, slot: int, state: Memory) -> float:
        return keys(view.table, [slot], state, self.rules, self._is_promised)[slot]

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        refuses = self._is_promised(request)
        plans = refuses or (self.routing and len(views) > 1)
        if not is_stated(request.objective) or (len(views) == 1 and not plans):
            return least_load(request, views)
        first, tries = mixed(request.id) % len(views), len(views) if self.routing else 1
        tried = [(first + i) % len(views) for i in range(tries)]
        if plans:
            found = first_with_room(request, views, tried, self.rules, now_s)
            if found is not None:
                return Verdict(*found)
        last = tried[-1]
        ttft_s = least_load(request, [views[last]]).predicted_ttft_s
        if not refuses:
            return Verdict(last, ttft_s)
        if any(can_be_kept(request, view) for view in views):
            words = f"no replica of {tries} can keep its objective beside those admitted before"
            return Verdict(last, ttft_s, words)
        return Verdict(last, ttft_s, _alone(request, views[last]), is_hopeless=True)

    def plan(self, view: View, state: Memory, start_s: float) -> tuple[Decision, Memory]:
        moved: dict[int, float] = {}
        rate = heard(state.rate, view.table) if view.speculation.most else state.rate
        state = structs.replace(state, position=state.position + bool(view.last), rate=rate)
        if self._is_due(view, state, start_s):
            state = self._replan(view, state, start_s)
            moved = moved_keys(view.table, state, self.rules, self._is_promised)
        batch, drafts = Follower(view, state, self.rules).follow(moved, start_s)
        decision = batch.decision()
        decision.requeue = moved
        decision.declined = self._declined(view.table, state)
        if batch.slots and drafts is not None:
            decision.drafts = [drafts.get(slot, 0) for slot in batch.slots]
        return decision, state

    def observe(self, step: StepStats, state: Memory) -> Memory:
        if not step.finished:
            return state
        return structs.replace(state, finished=state.finished + step.finished)

    def _is_promised(self, request: Request) -> bool:
        """Whether it is refused at arrival or else admitted."""
        refuses = self.burst == "refuse" or request.objective.refuses
        return refuses and is_stated(request.objective)

    def _declined(self, table: RequestTable, state: Memory) -> list[int]:
        """Slots of those that are best effort, and of whom the engine has not been told."""
        slots = [table.slot_of[id] for id in state.best_effort if id in table.slot_of]
        return sorted(slot for slot in slots if not table.request(slot).best_effort)

    # --- when and what to plan ---------------------------------------------------------------------------------------

    def _is_due(self, view: View, state: Memory, start_s: float) -> bool:
        since_s = start_s - state.made_s
        if state.made_s < 0 or not 0 <= since_s < self.replan_s or not state.plan.tail:
            return True
        if state.finished >= self.replan_finishes or state.has_more:
            return True
        news = [slot for _, slot in islice(new_places(view.table), self.replan_arrivals)]
        if len(news) >= self.replan_arrivals or self._is_urgent(view, news, start_s):
            return True
        return bool(news) and not self._has_admitted_work(view.table, state)

    def _is_urgent(self, view: View, news: list[int], start_s: float) -> bool:
        """Whether one of them would lose what time it has if it waited for the next round, and a batch after it."""
        table = view.table
        for slot, at_s in zip(news, places(table, news, self.rules), strict=True):
            begun, end = int(table.computed[slot]), int(table.length[slot])
            work = Work(end - begun, prefill_work=(end * end - begun * begun) / 2)
            if at_s - start_s - view.cost.predict(work) < 2 * self.replan_s:
                return True
        return False

    def _has_admitted_work(self, table: RequestTable, state: Memory) -> bool:
        if next(admitted_places(table), None) is not None:
            return True
        return any(id not in state.best_effort for id in table.ids[table.running].tolist())

    def _replan(self, view: View, state: Memory, start_s: float) -> Memory:
        """A new plan, and whom it admits."""
        table = view.table
        state = self._up_to_date(view, state, start_s)
        standing = standing_of(table, state.admitted, state.best_effort, self._is_promised)
        survey = Survey(view, standing, start_s, self.rules)
        fine, hopeless = survey.sifted()
        new = fine[: self._most_new(view, standing)]
        standing = replace(survey.standing, new=np.array(new, dtype=np.int64))
        if len(new) < len(survey.standing.new):
            survey = Survey(view, standing, start_s, self.rules)
        admitted, plan = self._admitted(survey)
        judged = frozenset(table.ids[standing.new].tolist())
        lost = frozenset(table.ids[np.array(hopeless, dtype=np.int64)].tolist())
        promised = frozenset(table.ids[standing.prompts].tolist())
        is_late = plan is None
        plan = self._overloaded(survey) if plan is None else plan
        return Memory(
            state.admitted | promised | (admitted & judged),
            state.best_effort | (judged - admitted) | lost,
            plan,
            tiers=survey.tiers_by_id(),
            calm=plan.at(0).size if is_late else self._calm(view, survey),
            made_s=max(0.0, start_s),
            has_more=len(new) < len(fine),
            missed=state.missed,
            rate=state.rate,
        )

    def _up_to_date(self, view: View, state: Memory, start_s: float) -> Memory:
        """Without those who ended a while ago, and with those who run and were never judged: who could not keep its
        pace even alone is best effort."""
        table = view.table
        judged = state.admitted | state.best_effort
        missed = still_missed(table, judged, state.missed, start_s)
        admitted, best_effort = known(table, state.admitted, state.best_effort)
        admitted |= state.admitted & missed.keys()
        best_effort |= state.best_effort & missed.keys()
        strange = [table.slot_of[id] for id in admitted - state.admitted]
        slow = too_slow_for(view, np.array(strange, dtype=np.int64), self.rules)
        late = frozenset(table.ids[slow].tolist())
        admitted, best_effort = admitted - late, best_effort | late
        return structs.replace(state, admitted=admitted, best_effort=best_effort, missed=missed)

    def _admitted(self, survey: Survey) -> tuple[frozenset[int], Plan | None]:
        """Ids of those that are admitted, and the plan for them and the old ones; None if the old ones' decodes alone
        are too many."""
        problem = survey.problem()
        if len(survey.standing.prompts) > self._most_prompts:
            problem = replace(problem, candidates=())
        if self.admission == "dp":
            feasible = relaxed(problem)
            if feasible is None:
                return frozenset(), None
            taken = choose(feasible)
            return frozenset(one.key for one in taken), make_plan(feasible, taken)
        found: list[int] = []
        if len(survey.standing.new):
            found, _ = simulated_admission(survey.demands(), survey.roofline, survey.room())
        chosen = relaxed(problem.promising(frozenset(found)))
        return frozenset(found), None if chosen is None else make_plan(chosen, chosen.candidates)

    def _most_new(self, view: View, standing: Standing) -> int:
        """How many a round judges: for each of them the walk goes along all prompts that follow; `edf_sim` simulates
        all requests."""
        prompts = len(standing.prompts)
        if prompts > self._most_prompts:
            return 0
        if self.admission == "dp":
            return max(1, min(MOST_NEW, (MOST_STEPS - 3 * prompts) // (prompts + 1)))
        events = 2 * len(standing.decoding) + 3 * (prompts + MOST_NEW)
        return max(1, min(MOST_NEW, MOST_EVENTS // events - 1))

    @property
    def _most_prompts(self) -> int:
        """That a round walks along; a simulation costs more than a walk."""
        return MOST_PROMPTS if self.admission == "dp" else MOST_PROMPTS // 2

    def _overloaded(self, survey: Survey) -> Plan:
        decodes = sum(survey.counts)
        size = survey.roofline.time_to_batch(survey.tiers[0], decodes=decodes)
        return overloaded_plan(survey.counts, size, LEAST_PREFILL)

    def _calm(self, view: View, survey: Survey) -> int:
        """A batch with best-effort requests in it is no longer than an arrival may have to wait for its judgement; it
        may always have as many tokens as the device needs to be used well."""
        size, _ = view.cost.pivot(view.limits.max_num_batched_tokens)
        decodes = sum(survey.counts)
        return max(size, survey.roofline.time_to_batch(self.replan_s, decodes=decodes))


def _alone(request: Request, view: View) -> str:
    """What an idle replica takes for it, in words."""
    first_s, next_s = least_s(request, view)
    return (
        "an idle replica could not keep this objective either: the first token takes at least about"
        f" {1e3 * first_s:.3g} ms, each one that follows {1e3 * next_s:.3g} ms"
    )


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: {value!r}, must be one of {', '.join(known)}")
