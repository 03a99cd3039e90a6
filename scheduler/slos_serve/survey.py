"""The problem that one replica poses: who decodes at which pace, whose prompt is to be processed by when, what memory
there is. From a View, for SLOs-Serve's planner (arXiv 2504.08784).

The demand of a request with a TTFT and a TPOT objective: token n is due at max(TTFT deadline, first token) + (n - 1) *
TPOT; tokens of a thinking with a pace of its own count at that. The pace that a request can afford at present is that
of its next `LOOK_AHEAD` tokens: what it has lost it makes good over them, what it is ahead it may lose over them (as
many tokens as lie between two checks of the authors' code, which does not say how it gets the pace). In the long run it
needs its own pace again: while it thinks the tighter of those of thinking and response, because nobody knows when the
one ends. Only `edf_sim` is told of both, one after the other. Batches end exactly at deadlines, so that
first tokens have the same margin as the others, a millisecond.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf

import numpy as np

from accelgen.proto.messages import Objective
from accelgen.scheduler.policies.slack import NEAR_S, first_token_due_s, next_token_due_s, tbt_s
from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.slos_serve.admission import Candidate, Problem
from accelgen.scheduler.slos_serve.edf_sim import Demand
from accelgen.scheduler.slos_serve.kv import end_tokens, missing_blocks, whole_blocks
from accelgen.scheduler.slos_serve.roofline import Roofline, fitted
from accelgen.scheduler.slos_serve.slices import Planner
from accelgen.scheduler.slos_serve.speculating import planner_for
from accelgen.scheduler.slos_serve.stages import in_parts
from accelgen.scheduler.slos_serve.standing import Standing, is_stated
from accelgen.scheduler.slos_serve.tiers import MARGIN_S, Counts, reduced_s, tier_of, tiers_of
from accelgen.scheduler.table import RUNNING, Floats, Ints, RequestTable

LOOK_AHEAD = 10  # tokens
HORIZON_S = 3600.0  # later deadlines are as good as this one
PATIENCE_S = 60.0  # for a first token where only the pace of those after it is stated


@dataclass(frozen=True)
class Rules:
    """Whether tokens ahead of their demand slow a request down later, and the time per token of requests that state an
    end-to-end objective alone."""

    credit: bool
    offline_tpot_s: float


def due_s(table: RequestTable, slots: Ints, rules: Rules) -> Floats:
    """When the next token of each is due, [n]; FAR_S or more if nothing says so. A first token of which nothing is said
    but the pace of those after it is due after `PATIENCE_S`, and before the request expires: a stream of others with
    earlier deadlines must not keep it waiting for ever (reconstructed)."""
    far = rules.offline_tpot_s
    next_s = next_token_due_s(table, slots, far) - tbt_s(table, slots, far)
    has_begun = table.length[slots] > table.prompt_len[slots]
    due = np.where(has_begun, next_s, first_token_due_s(table, slots, far))
    for at in np.flatnonzero(~has_begun & (due >= NEAR_S) & (table.tightest_s[slots] < NEAR_S)):
        slot = int(slots[at])
        due[at] = min(table.arrival_s[slot] + PATIENCE_S, table.request(slot).expires_s)
    return due


def lasting_s(table: RequestTable, slots: Ints, rules: Rules) -> Floats:
    """The time per token that each needs to its end, [n]: the tightest of its present stage and those that follow."""
    lasting: Floats = np.minimum(tbt_s(table, slots, rules.offline_tpot_s), table.tightest_s[slots])
    return lasting


def too_slow_for(view: View, slots: Ints, rules: Rules) -> Ints:
    """Those of `slots` whose pace a batch with nothing but their own token in it would not keep."""
    found = []
    for slot, pace_s in zip(slots.tolist(), lasting_s(view.table, slots, rules), strict=True):
        alone = fitted(view.cost, float(view.table.length[slot]))
        if pace_s < NEAR_S and alone.time_to_batch(reduced_s(pace_s), decodes=1) < 1:
            found.append(slot)
    return np.array(found, dtype=np.int64)


class Survey:
    """Of `view` at `start_s`. `newcomer` arrived at `arrived_s` and has no slot yet: its key is 0."""

    def __init__(
        self, view: View, standing: Standing, start_s: float, rules: Rules,
        newcomer: Request | None = None, arrived_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.view, self.standing, self.start_s, self.rules = view, standing, start_s, rules
        self.newcomer, self._waited_s = newcomer, start_s - arrived_s
        self._far = rules.offline_tpot_s
        admitted = np.concatenate([standing.decoding, standing.prompts, standing.new])
        now_s, later_s = tbt_s(view.table, admitted, self._far), self._lasting_s(admitted)
        stated_s = np.concatenate([now_s, later_s])
        tpots_s = np.unique(stated_s[stated_s < NEAR_S]).tolist()
        if newcomer is not None and (own_s := self._tpot_s(newcomer.objective)) < NEAR_S:
            tpots_s.append(own_s)
        self.tiers = tiers_of(tpots_s, MARGIN_S)

    @cached_property
    def roofline(self) -> Roofline:
        """The replica's cost model for batches like those of the admitted requests."""
        table, limits = self.view.table, self.view.limits
        standing = self.standing
        prompts = np.concatenate([standing.prompts, standing.new])
        both = np.concatenate([standing.decoding, prompts])
        left = table.length[prompts] - table.computed[prompts]
        tokens = int(left.sum())
        position = table.computed[prompts] + left / 2
        prior = float((left * position).sum()) / tokens if tokens else 0.0
        context = float(table.length[both].mean()) if len(both) else 0.0
        found = fitted(self.view.cost, context, prior)
        return found.within(limits.max_step_s, limits.max_num_batched_tokens)

    @cached_property
    def planner(self) -> Planner:
        return planner_for(self.view.speculation, self.roofline, self.tiers)

    @cached_property
    def own_tiers(self) -> list[int]:
        """Tiers that the decodes have in the long run."""
        return [self._tier(one) for one in self._lasting_s(self.standing.decoding).tolist()]

    @cached_property
    def present_tiers(self) -> list[int]:
        """Tiers of the decodes at present. With drafts some looser paces cannot be planned beside the others' where the
        own ones can (`plan.py`): then nobody has a looser one."""
        found = self._present_tiers()
        steady = [*map(min, found, self.own_tiers)]
        if found == steady or self.planner.is_steady(self._count(found)):
            return found
        return steady if self.planner.is_steady(self._count(steady)) else found

    @property
    def counts(self) -> Counts:
        return self._count(self.present_tiers)

    @property
    def steady(self) -> Counts:
        """As many in each tier in the long run: what lags behind has a tighter one also then."""
        return self._count([*map(min, self.present_tiers, self.own_tiers)])

    def tiers_by_id(self) -> dict[int, int]:
        """Present tiers of decodes, own tiers of prompts."""
        table = self.view.table
        prompts = np.concatenate([self.standing.prompts, self.standing.new])
        own_s = self._lasting_s(prompts).tolist()
        found = dict(
            zip(table.ids[prompts].tolist(), (self._tier(one) for one in own_s), strict=True)
        )
        decoding = table.ids[self.standing.decoding].tolist()
        return found | dict(zip(decoding, self.present_tiers, strict=True))

    def sifted(self) -> tuple[list[int], list[int]]:
        """Slots of new requests that have to be judged, earliest deadline first; and of those that need not be: they
        state no objective, or the prompt would be late if there were nothing else to do."""
        table, new = self.view.table, self.standing.new
        left_s = (due_s(table, new, self.rules) - self.start_s).tolist()
        left = (table.length[new] - table.computed[new]).tolist()
        idle = (0,) * len(self.tiers)
        fine, hopeless = [], []
        for slot, due_in_s, tokens in zip(new.tolist(), left_s, left, strict=True):
            is_late = self.planner.reach(tokens, idle) > due_in_s
            if is_late or not is_stated(table.request(slot).objective):
                hopeless.append(slot)
            else:
                fine.append(slot)
        return fine, hopeless

    def problem(self) -> Problem:
        """Whom to admit: keys of candidates are request ids."""
        table, standing = self.view.table, self.standing
        candidates = self._candidates(standing.prompts, False)
        seats = self.view.limits.max_num_seqs - len(standing.decoding)
        seats -= sum(one.decodes for one in candidates)
        running = standing.prompts[table.state[standing.prompts] == RUNNING]
        blocks = self.view.free_blocks + int(table.blocks[standing.best_effort].sum())
        blocks -= missing_blocks(table, np.concatenate([standing.decoding, running]))
        waits = set(table.ids[standing.prompts].tolist()) - set(table.ids[running].tolist())
        blocks -= sum(one.blocks for one in candidates if one.key in waits)
        candidates += self._candidates(standing.new, True)
        if self.newcomer is not None:
            candidates.append(self._newcomer(self.newcomer))
        return Problem.of(self.planner, candidates, self.counts, self.steady, blocks, seats)

    def demands(self) -> list[Demand]:
        """The same for `edf_sim`."""
        table, slots = self.view.table, self.standing.decoding
        left = (end_tokens(table, slots) - table.length[slots]).tolist()
        ids, held = table.ids[slots].tolist(), table.computed[slots].tolist()
        paces_s = [self.tiers[k] for k in map(min, self.present_tiers, self._tiers_now(slots))]
        waste = table.block_size - 1  # of the last block
        found = [
            part
            for slot, id, output, tokens, pace_s in zip(
                slots.tolist(), ids, left, held, paces_s, strict=True
            )
            for part in self._parts(
                Demand(id, False, 0.0, 0, pace_s, output, held=tokens + waste), table.request(slot)
            )
        ]
        for slots, is_new in ((self.standing.prompts, False), (self.standing.new, True)):
            outputs = (end_tokens(table, slots) - table.length[slots]).tolist()
            computed = table.computed[slots].tolist()
            candidates, tiers = self._candidates(slots, is_new), self._tiers_now(slots)
            parts = zip(slots.tolist(), candidates, tiers, outputs, computed, strict=True)
            for slot, one, tier, output, tokens in parts:
                demands = _demands_of(one, self.tiers[tier], output, tokens + waste)
                request = table.request(slot)
                found += [part for demand in demands for part in self._parts(demand, request)]
        if self.newcomer is not None:
            one = self._newcomer(self.newcomer)
            output = max(1, self.newcomer.max_tokens // 2)
            tier = self._tier(self._tpot_s(self.newcomer.objective, now=True))
            demands = _demands_of(one, self.tiers[tier], output, waste)
            found += [part for demand in demands for part in self._parts(demand, self.newcomer)]
        return found

    def room(self) -> int:
        """Tokens of KV for admitted and new requests together."""
        table, standing = self.view.table, self.standing
        running = np.concatenate([standing.decoding, standing.prompts, standing.best_effort])
        running = running[table.state[running] == RUNNING]
        return (self.view.free_blocks + int(table.blocks[running].sum())) * table.block_size

    # --- inside ------------------------------------------------------------------------------------------------------

    def _count(self, tiers: list[int]) -> Counts:
        return tuple(
            np.bincount(np.array(tiers, dtype=np.int64), minlength=len(self.tiers)).tolist()
        )

    def _present_tiers(self) -> list[int]:
        """The loosest that each can afford over its next tokens, drafts in flight being accepted as often as they are:
        the batch that they are in was planned so."""
        table, slots = self.view.table, self.standing.decoding
        own_s = tbt_s(table, slots, self._far)
        more = self.view.speculation.in_flight(table, slots)
        ahead_s = next_token_due_s(table, slots, self._far) + (LOOK_AHEAD - 2 + more) * own_s
        allowed_s = (ahead_s - self.start_s) / LOOK_AHEAD
        if not self.rules.credit:
            allowed_s = np.minimum(allowed_s, own_s)
        return [tier_of(self.tiers, one) for one in allowed_s.tolist()]

    def _lasting_s(self, slots: Ints) -> Floats:
        return lasting_s(self.view.table, slots, self.rules)

    def _tiers_now(self, slots: Ints) -> list[int]:
        """Tiers of the stages that requests are in."""
        return [self._tier(one) for one in tbt_s(self.view.table, slots, self._far).tolist()]

    def _parts(self, demand: Demand, request: Request) -> list[Demand]:
        """Of a request that thinks: its thinking, then its response."""
        thinking = request.objective.thinking
        if thinking is None or request.thought:
            return [demand]
        response_s = request.objective.tpot_s
        pace_s = self.tiers[-1] if response_s is None else reduced_s(response_s)
        return in_parts(demand, thinking, len(request.generated), pace_s)

    def _tier(self, tpot_s: float) -> int:
        return tier_of(self.tiers, tpot_s)

    def _candidates(self, slots: Ints, is_new: bool) -> list[Candidate]:
        table = self.view.table
        due = due_s(table, slots, self.rules) - self.start_s - MARGIN_S
        due = np.clip(due, 0.0, HORIZON_S).tolist()
        left = (table.length[slots] - table.computed[slots]).tolist()
        own_s = self._lasting_s(slots).tolist()
        whole, ends = whole_blocks(table, slots).tolist(), end_tokens(table, slots).tolist()
        found = []
        for i, slot in enumerate(slots.tolist()):
            request = table.request(slot)
            children = len(request.children)
            own_blocks = -(-(ends[i] - len(request.prompt)) // table.block_size) + 1
            blocks = min(whole[i] + children * own_blocks, self.view.total_blocks)
            tier = self._tier(own_s[i])
            found.append(
                Candidate(request.id, is_new, due[i], left[i], tier, blocks, decodes=1 + children)
            )
        return found

    def _newcomer(self, request: Request) -> Candidate:
        """One that has just arrived. Its prefix hits are not known yet, nor is its output predicted: half of what is
        allowed, as the predictor says who has seen nothing."""
        objective, output = request.objective, max(1, request.max_tokens // 2)
        due = PATIENCE_S if objective.ttft_s is None else objective.ttft_s
        if objective.e2e_s is not None:
            due = min(due, objective.e2e_s - output * self._far)
        due -= self._waited_s
        tokens = len(request.prompt) + len(request.generated)
        size, choices = self.view.table.block_size, 1 + len(request.children)
        blocks = -(-(tokens + output) // size) + (choices - 1) * (-(-output // size) + 1)
        return Candidate(
            0, True, min(max(due - MARGIN_S, 0.0), HORIZON_S), tokens,
            self._tier(self._tpot_s(objective)), min(blocks, self.view.total_blocks), decodes=choices,
        )  # fmt: skip

    def _tpot_s(self, objective: Objective, now: bool = False) -> float:
        """The time per token that it needs to its end, or `now`: of its first stage."""
        far_s = inf if objective.e2e_s is None else self._far
        response_s = far_s if objective.tpot_s is None else objective.tpot_s
        if objective.thinking is None:
            return response_s
        first_s = far_s if objective.thinking.tpot_s is None else objective.thinking.tpot_s
        return first_s if now else min(first_s, response_s)


def _demands_of(one: Candidate, pace_s: float, output: int, held: int) -> list[Demand]:
    """Of a request and its further choices, which decode without a prompt of their own."""
    first = Demand(one.key, one.is_new, one.due_s, one.tokens, pace_s, output, held=held)
    choice = Demand(one.key, one.is_new, one.due_s, 0, pace_s, output)
    return [first, *[choice] * (one.decodes - 1)]
