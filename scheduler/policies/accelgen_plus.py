"""`accelgen-plus`: what the laboratory found wrong in each rule, left out (docs/findings.md, docs/policies.md).

1. Iterations (AccelGen's dynamic chunking, arXiv 2503.13737): as long as the first token that is due to any decode
   allows. Predicted by a line over the fitted model with what the host takes on top, so that they can be filled up to
   a few milliseconds (`fit`). By cumulative deadlines whoever is ahead of its line lends that time to prompts
   (`credit`); `pace` every_gap counts from token to token. An arrival has to wait for the iteration in flight and the
   one that is planned: they are no longer than a third of the tight TTFT objectives of late (`brief`), or
   twice what their decodes take.
2. Admission (SLOs-Serve, arXiv 2504.08784, which declines what cannot be kept): of prompts that cannot all be in time
   as many as possible are kept, by Moore and Hodgson's rule, in the order of deadlines (`shed`).
3. Who has missed an objective for good is best effort: it gets the time that is left over, at least one token in
   `patience_s`, starts only beside the KV that others have lately held at most (`headroom`), and gives way to them
   (`evict`).
4. While more arrives than can be served, whoever needs less than the price of what is short comes first (`price`).
5. Memory is on demand; `growth` keeps so much of what those who run will probably still need from newcomers
   (CacheOPT, arXiv 2503.13773). Victims: best effort, latest first, then who needs most of the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.plus.claims import due_s
from accelgen.scheduler.plus.filling import Filling
from accelgen.scheduler.plus.price import Arrivals
from accelgen.scheduler.plus.scene import BEHIND_S, Scene
from accelgen.scheduler.plus.shedding import keepable
from accelgen.scheduler.plus.timing import Fitted, Timing
from accelgen.scheduler.policies.shared import Batch, at_least, least_load
from accelgen.scheduler.policies.slack import NEAR_S
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import FAR_S, WAITING, Ints

PACES = ("cumulative", "every_gap")
FIRST_S = 0.05  # an iteration, before any has been seen
SMOOTH = 0.05  # weight of a new iteration in the moving averages
MOST_GAP_S = 0.02  # a longer time between iterations is none that belongs to them
FADE_S = 30.0  # after which the peak of KV use has fallen to a third
MOST_ENDED = 256  # ids of requests that have ended and are not yet forgotten
LEAST_PROMPT = 128  # tokens that best effort gets if nothing else is there


class Memory(Struct, frozen=True):
    """What the rule remembers: ids of who has missed an objective; the mean iteration, the last one and the time
    between iterations in seconds; how long iterations take; what has arrived; the peak of blocks held."""

    missed: frozenset[int] = frozenset()
    mean_s: float = 0.0
    run_s: float = 0.0
    begun_s: float = 0.0
    gap_s: float = 0.0
    timing: Timing = Timing()
    arrivals: Arrivals = Arrivals()
    peak: float = 0.0


class Terms(Struct, frozen=True):
    """Of one iteration: its begin, the time that lies before it, how long it may take at most, the load that is still
    favoured, and the blocks that are kept from best effort."""

    start_s: float
    gap_s: float
    longest_s: float
    price: float
    spare: int


class AccelGenPlus:
    name = "accelgen-plus"

    def __init__(
        self, pace: str = "cumulative", shed: bool = True, credit: bool = True, price: bool = True,
        evict: bool = True, fit: bool = True, brief: bool = True, headroom: float = 1.0, growth: float = 0.0,
        calm_s: float = 0.1, patience_s: float = 1.0, longest_s: float = 0.5,
    ) -> None:  # fmt: skip
        if pace not in PACES:
            raise ValueError(f"pace: {pace!r}, must be one of {', '.join(PACES)}")
        for name, value, unit in (
            ("headroom", headroom, ""), ("growth", growth, ""), ("calm_s", calm_s, "s"),
            ("patience_s", patience_s, "s"), ("longest_s", longest_s, "s"),
        ):  # fmt: skip
            at_least(name, value, 0, unit)
        self.every_gap = pace == "every_gap"
        self.shed, self.credit, self.price, self.evict = shed, credit, price, evict
        self.fit, self.brief = fit, brief
        self.headroom, self.growth = headroom, growth
        self.calm_s, self.patience_s, self.longest_s = calm_s, patience_s, longest_s

    def initial(self) -> Memory:
        return Memory()

    def order_key(self, view: View, slot: int, state: Memory) -> float:
        table = view.table
        if int(table.ids[slot]) in state.missed:
            return BEHIND_S + float(table.arrival_s[slot])
        due = due_s(table, np.array([slot]), self.every_gap, state.mean_s or FIRST_S)
        return float(due[0])

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Memory, start_s: float) -> tuple[Decision, Memory]:
        timing = state.timing.told(view.cost)
        fitted = timing.fitted(view.cost) if self.fit else Fitted.of(view.cost)
        gap_s = _gap_s(state, start_s)
        iteration_s = state.mean_s or FIRST_S
        scene = Scene.of(view, fitted, state.missed, self.every_gap, iteration_s, start_s)
        arrivals = _heard(state.arrivals, scene)
        held = int(view.table.blocks[scene.slots[scene.running & ~scene.missed]].sum())
        peak = max(held, state.peak * (1 - min(0.5, iteration_s / FADE_S)))
        filling = Filling(Batch(view, view.limits.max_num_batched_tokens), fitted)
        spare = int(self.headroom * (peak - held))
        price = arrivals.price(start_s) if self.price else np.inf
        longest_s = self._longest_s(fitted, arrivals)
        self._fill(filling, scene, Terms(start_s, gap_s, longest_s, price, spare))
        missed = _remembered(state.missed, scene)
        decision = filling.batch.decision()
        decision.requeue = _moved(scene, filling.batch)
        return decision, structs.replace(
            state, missed=missed, begun_s=start_s, gap_s=gap_s, timing=timing, arrivals=arrivals,
            peak=peak,
        )  # fmt: skip

    def observe(self, step: StepStats, state: Memory) -> Memory:
        first = state.mean_s == 0
        mean_s = step.run_s if first else state.mean_s + SMOOTH * (step.run_s - state.mean_s)
        timing = state.timing.hear(step.work, step.run_s)
        return structs.replace(state, mean_s=mean_s, run_s=step.run_s, timing=timing)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _fill(self, filling: Filling, scene: Scene, terms: Terms) -> None:
        table, slots, batch = scene.table, scene.slots, filling.batch
        claim, other = scene.decode & ~scene.missed, scene.decode & scene.missed
        victims, evictable = _victims(scene)
        filling.take_decodes(slots[claim][np.argsort(scene.due_s[claim], kind="stable")], victims)
        starved = other & (table.last_s[slots] + self.patience_s < terms.start_s)
        filling.take_decodes(slots[starved & ~np.isin(slots, batch.preempted)], victims)
        tight_s, limit_s = self._limits(filling, scene, terms)
        first, second, rest = self._ranked(filling, scene, max(tight_s, limit_s), terms)
        kept = self._growing(scene)
        filling.take_prompts(slots[first], limit_s, kept, evictable if self.evict else ())
        filling.take_prompts(slots[second], limit_s, kept)
        if not filling.is_full:
            filling.add_decodes(slots[other & ~starved], limit_s)
            least_s = filling.fitted.seconds(filling.work)
            least_s += filling.fitted.prompt_seconds(LEAST_PROMPT, 0)
            calm_s = limit_s if len(first) else max(self.calm_s, least_s)
            filling.take_prompts(slots[rest], min(limit_s, calm_s), kept + terms.spare)
        if batch.slots or batch.preempted:
            return
        if scene.running.any():
            batch.preempt(victims[0])
        else:  # nobody runs: whoever fits may start
            everybody = np.concatenate([first, second, rest])
            filling.take_prompts(slots[everybody], terms.longest_s)

    def _longest_s(self, fitted: Fitted, arrivals: Arrivals) -> float:
        """Of an iteration, decodes or none. Who arrives waits for the one in flight and the one that is planned, and
        then for its own; on a slow device at least half of it is to be of use."""
        longest_s = min(self.longest_s, arrivals.tight_s() / 3) if self.brief else self.longest_s
        return max(longest_s, 2 * fitted.seconds(Work(prefill_tokens=1)))

    def _limits(self, filling: Filling, scene: Scene, terms: Terms) -> tuple[float, float]:
        """The tightest TPOT of decodes with a claim, and how long this iteration may take."""
        claim = scene.decode & ~scene.missed
        paces_s = scene.table.tpot_s[scene.slots[claim]]
        tight_s = float(paces_s[paces_s < NEAR_S].min(initial=terms.longest_s))
        first_s = float(scene.due_s[claim].min(initial=FAR_S))
        slack_s = first_s - terms.start_s - terms.gap_s - filling.fitted.safety_s
        if not self.credit:
            slack_s = min(slack_s, tight_s - filling.fitted.safety_s)
        at_least_s = filling.fitted.seconds(filling.work)
        # However long decodes take: prompts get as much of an iteration, or they would wait for these to end.
        longest_s = max(terms.longest_s, 2 * at_least_s)
        return tight_s, min(max(slack_s, at_least_s), longest_s)

    def _ranked(
        self, filling: Filling, scene: Scene, full_s: float, terms: Terms
    ) -> tuple[Ints, Ints, Ints]:
        """Positions of prompts: who is kept and needs little, who is kept, and all others."""
        table, due = scene.table, scene.due_s
        at = np.flatnonzero(~scene.decode)
        at = at[np.lexsort((table.arrival_s[scene.slots[at]], due[at]))]
        takes_s = scene.takes_s(full_s, filling.work, filling.batch.tokens)
        can = ~scene.missed[at] & (terms.start_s + takes_s[at] <= due[at])
        first, rest = at[can], at[~can]
        if self.shed:
            keep = keepable(takes_s[first], due[first], terms.start_s)
            first, rest = first[keep], np.concatenate([first[~keep], rest])
        favoured = (scene.load_s[first] <= terms.price) | scene.running[first]
        begun = scene.running[rest]
        rest = rest[np.lexsort((table.arrival_s[scene.slots[rest]], ~begun))]
        return first[favoured], first[~favoured], rest

    def _growing(self, scene: Scene) -> int:
        """Blocks that are kept for those who run."""
        if not self.growth:
            return 0
        table, slots = scene.table, scene.slots[scene.running & ~scene.missed]
        likely = table.prompt_len[slots] + table.predicted_output[slots]
        final = np.minimum(np.maximum(likely, table.length[slots] + 1), table.limit[slots])
        blocks = -(-final // table.block_size) - table.blocks[slots]
        return int(self.growth * np.maximum(blocks, 0).sum())


def _heard(arrivals: Arrivals, scene: Scene) -> Arrivals:
    """With those that have come since. A TTFT objective that could not be kept on an idle device counts as none: it
    must not make everybody's iterations short."""
    table = scene.table
    new = np.flatnonzero(~scene.running & (table.arrival_s[scene.slots] > arrivals.seen_s))
    if not len(new):
        return arrivals
    arrived_s = table.arrival_s[scene.slots[new]]
    ttft_s = table.first_due_s[scene.slots[new]] - arrived_s
    alone_s = scene.fitted.prompt_seconds(scene.pending[new].astype(float), 0.0)
    alone_s += scene.fitted.seconds(Work(prefill_tokens=1))
    return arrivals.note(arrived_s, scene.load_s[new], np.where(ttft_s < alone_s, FAR_S, ttft_s))


def _remembered(missed: frozenset[int], scene: Scene) -> frozenset[int]:
    """With those who have missed one by now. Those who have ended are forgotten together: to look for them costs more
    than the rest of a plan."""
    new = [id for id in scene.ids(scene.missed) if id not in missed]
    missed = missed.union(new) if new else missed
    known = scene.table.slot_of
    if len(missed) <= len(known) + MOST_ENDED:
        return missed
    return frozenset(id for id in missed if id in known)


def _gap_s(state: Memory, start_s: float) -> float:
    """Moving average of the time between the end of an iteration and the begin of the next."""
    seen_s = start_s - state.begun_s - state.run_s
    if not state.run_s or not state.begun_s or not 0 <= seen_s < MOST_GAP_S:
        return state.gap_s
    return state.gap_s + SMOOTH * (seen_s - state.gap_s)


def _victims(scene: Scene) -> tuple[list[int], list[int]]:
    """Who gives way first, of all who run; and those of them who are best effort."""
    best_effort = np.flatnonzero(scene.running & scene.missed)
    claims = np.flatnonzero(scene.running & ~scene.missed)
    arrived_s = scene.table.arrival_s[scene.slots[best_effort]]
    evictable = scene.slots[best_effort[np.argsort(-arrived_s, kind="stable")]].tolist()
    costly = scene.slots[claims[np.argsort(-scene.load_s[claims], kind="stable")]].tolist()
    return [*evictable, *costly], evictable


def _moved(scene: Scene, batch: Batch) -> dict[int, float]:
    """Waiting requests that have missed an objective go behind all others."""
    table, busy = scene.table, set(batch.slots)
    late = scene.slots[scene.missed & ~scene.running]
    late = late[(table.key[late] < BEHIND_S / 2) & (table.state[late] == WAITING)]
    return {
        slot: BEHIND_S + float(table.arrival_s[slot]) for slot in late.tolist() if slot not in busy
    }
