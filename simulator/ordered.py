"""The policy that the search for an upper reference steers: strict priority by a given order, with the future known.

It runs in the simulator only, on the live scheduler core, and knows what no policy can: when requests will arrive, how
long they will be, and what an iteration really takes on the device.

1. *Lost.* Whoever can meet its objectives no more, even alone on the device, counts as given up from then on.
2. *Residents.* Waiting requests, by rank, start if the KV of all that run and of them fits: now, or (`reserve`) at
   every moment until all of them have ended. A kept request takes the place of running ones of lower rank. Where
   nobody can start, they are looked at again when who runs or waits has changed.
3. *Batch.* All decodes that run (given-up ones only while the kept are in time). Prompts by rank, each as much as lets
   every kept decode, and every kept prompt that ends in this iteration, be in time; with `foresee` also so little that
   whoever arrives meanwhile can still be in time.

An object is made for one run: its order changes when requests are lost. Who comes first has no say as long as
everything that is asked for can be done at once; a `Script` is asked to decide when it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.shared import Batch, Memoryless, make_room, take_decodes
from accelgen.scheduler.policy import Decision, View, is_decode
from accelgen.scheduler.table import Floats, Ints, RequestTable
from accelgen.simulator.foresight import Facts, Filling
from accelgen.simulator.precedence import LAST, Order

SCAN = 8  # waiting requests that cannot start before no more are looked at


class Knobs(Struct, frozen=True):
    """See above."""

    reserve: bool
    foresee: bool

    def describe(self) -> str:
        return " and ".join(
            [
                "KV reserved to the end" if self.reserve else "KV taken as it is needed",
                "room left for arrivals" if self.foresee else "no room left for arrivals",
            ]
        )


@dataclass(slots=True)
class _Scene:
    """One moment: decodes, when their next tokens are due, prompts that have begun, and when all has to end."""

    view: View
    now_s: float
    decodes: Ints
    due_s: Floats
    begun: Ints
    until_s: float
    late: list[int] = field(default_factory=list)  # waiting requests found to be lost

    @property
    def table(self) -> RequestTable:
        return self.view.table


class Ordered(Memoryless):
    name = "oracle"

    def __init__(self, facts: Facts, order: Order, knobs: Knobs) -> None:
        self.facts, self.order, self.knobs = facts, order, knobs
        self._blocked: tuple[object, ...] = ()  # who ran and waited when nobody could start

    def order_key(self, view: View, slot: int, state: None) -> float:
        return float(self.order.ranks[view.table.ids[slot]])

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        scene = self._scene(view, start_s)
        self._lose(scene)
        self._decide(scene)
        limit_s, filling = self._limit(scene)
        most = view.limits.max_num_batched_tokens
        new, victims = self._newcomers(scene, filling.budget(limit_s, most))
        batch = Batch(view, most)
        for slot in victims:
            batch.preempt(slot)
        running = view.table.running
        stay = running if not victims else running[~np.isin(running, victims)]
        last_first = stay[np.argsort(-self._ranks(view.table, stay), kind="stable")]
        take_decodes(batch, scene.decodes[~np.isin(scene.decodes, victims)], lambda _: last_first)
        prompts = [slot for slot in scene.begun.tolist() if slot not in batch.preempted]
        self._take_prompts(batch, scene, prompts + new, limit_s)
        make_room(batch, stay, lambda _: last_first)
        decision = batch.decision()
        late = [slot for slot in scene.late if slot not in batch.slots]
        decision.requeue = {slot: self.order_key(view, slot, state) for slot in late}
        return decision, None

    def _ranks(self, table: RequestTable, slots: Ints) -> Floats:
        found: Floats = self.order.ranks[table.ids[slots]]
        return found

    def _scene(self, view: View, now_s: float) -> _Scene:
        """Decodes by rank."""
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        decodes = ready[decode]
        decodes = decodes[np.argsort(self._ranks(table, decodes), kind="stable")]
        until_s = self.facts.until_s(now_s) if self.knobs.foresee else np.inf
        due_s = self.facts.next_due_s(table, decodes)
        return _Scene(view, now_s, decodes, due_s, ready[~decode], until_s)

    def _lose(self, scene: _Scene) -> None:
        """Gives up those that run and are lost."""
        table, order, facts = scene.table, self.order, self.facts
        late = scene.decodes[scene.due_s < scene.now_s + facts.least_s]
        hopeless = [s for s in scene.begun.tolist() if facts.hopeless(table, s, scene.now_s)]
        for slot in [*late.tolist(), *hopeless]:
            id = int(table.ids[slot])
            if order.ranks[id] < LAST:
                order.lose(id)

    def _decide(self, scene: _Scene) -> None:
        """Has the order decided if not all can be done at once."""
        table, still_open = scene.table, self.order.open
        if not still_open:
            return
        waiting = [slot for _, slot in table.waiting]
        slots = np.concatenate([table.running, np.array(waiting, dtype=np.int64)])
        ids: list[int] = table.ids[slots].tolist()
        if not still_open.isdisjoint(ids) and not self._fits(scene, slots, waiting):
            self.order.decide(ids)
            ranks = self._ranks(table, scene.decodes)
            by_rank = np.argsort(ranks, kind="stable")
            scene.decodes, scene.due_s = scene.decodes[by_rank], scene.due_s[by_rank]

    def _fits(self, scene: _Scene, slots: Ints, waiting: list[int]) -> bool:
        """Whether everything can be done at once, and everybody be in time."""
        table, limits = scene.table, scene.view.limits
        pending = table.remaining(slots)
        if pending.sum() > limits.max_num_batched_tokens or len(slots) > limits.max_num_seqs:
            return False
        if self._blocks(table, slots) > scene.view.total_blocks:
            return False
        due_s = min(scene.until_s, float(scene.due_s.min(initial=np.inf)))
        filling = Filling.of(self.facts.device, table, scene.decodes)
        for slot in [*scene.begun.tolist(), *waiting]:
            computed = int(table.computed[slot])
            filling.add(computed, int(table.length[slot]) - computed)
            due_s = min(due_s, self.facts.due_s(table, slot))
        return scene.now_s + filling.seconds_with(0, 0) <= due_s

    def _limit(self, scene: _Scene) -> tuple[float, Filling]:
        """How long the iteration may take, and its decodes; leaves the given-up ones out if they take too long."""
        kept = self._ranks(scene.table, scene.decodes) < LAST
        due_s = float(scene.due_s[kept].min(initial=np.inf))
        filling = Filling.of(self.facts.device, scene.table, scene.decodes)
        if scene.now_s + filling.seconds_with(0, 0) > due_s and not kept.all():
            scene.decodes = scene.decodes[kept]
            filling = Filling.of(self.facts.device, scene.table, scene.decodes)
        return min(due_s, scene.until_s) - scene.now_s, filling

    # --- who starts --------------------------------------------------------------------------------------------------

    def _newcomers(self, scene: _Scene, budget: int) -> tuple[list[int], list[int]]:
        """Waiting requests that start, while prompts of better rank leave something of `budget` tokens; and running
        ones that give way to them."""
        table = scene.table
        now = (table.running, len(table.waiting), table.waiting[:1], self.order.lost)
        if not table.waiting or (self._blocked and _same(self._blocked, now)):
            return [], []
        begun = sorted((float(self.order.ranks[table.ids[s]]), s) for s in scene.begun.tolist())
        new: list[int] = []
        victims: list[int] = []
        seats = scene.view.limits.max_num_seqs
        misses, at = 0, 0
        for slot in self._prompts_waiting(scene):
            rank = float(self.order.ranks[table.ids[slot]])
            while at < len(begun) and begun[at][0] < rank:
                budget -= int(table.length[begun[at][1]] - table.computed[begun[at][1]])
                at += 1
            if budget <= 0 or misses > SCAN:
                break
            gone = self._room_for(scene, slot, rank, new, victims)
            if gone is None or len(table.running) + len(new) - len(victims) >= seats:
                misses += 1
                continue
            victims += gone
            new.append(slot)
            budget -= int(table.length[slot] - table.computed[slot])
        self._blocked = () if new or scene.late or budget <= 0 else now
        return new, victims

    def _prompts_waiting(self, scene: _Scene) -> list[int]:
        """Waiting requests by rank, so many as may be looked at; those that are lost come last."""
        table, kept, lost = scene.table, [], []
        for slot in self.order.waiting(table):
            id = int(table.ids[slot])
            if self.order.ranks[id] < LAST and self.facts.hopeless(table, slot, scene.now_s):
                self.order.lose(id)
                scene.late.append(slot)
                lost.append(slot)
            else:
                kept.append(slot)
            if len(kept) > 2 * SCAN:
                break
        return kept + lost

    def _room_for(
        self, scene: _Scene, slot: int, rank: float, new: list[int], gone: list[int]
    ) -> list[int] | None:
        """Who else must go so that the KV of `slot` fits beside that of those who stay; None if it does not."""
        table, total = scene.table, scene.view.total_blocks
        stay = [s for s in table.running.tolist() if s not in gone]
        ranks = self.order.ranks
        stay.sort(key=lambda s: float(ranks[table.ids[s]]))
        leave: list[int] = []
        while self._blocks(table, np.array([*stay, *new, slot])) > total:
            if rank >= LAST or not stay or ranks[table.ids[stay[-1]]] <= rank:
                return None
            leave.append(stay.pop())
        return leave

    def _blocks(self, table: RequestTable, slots: Ints) -> int:
        """Blocks that these hold together: with all they have by now, or at most until they end if each gets a token
        in every iteration."""
        length, size = table.length[slots], table.block_size
        now = int((-(-length // size)).sum())
        if not self.knobs.reserve or not len(slots):
            return now
        left = np.maximum(self.facts.ends[table.ids[slots]] - length, 1)
        held = -(-(length[None, :] + left[:, None] - 1) // size)
        there = left[None, :] >= left[:, None]
        return max(now, int((held * there).sum(axis=1).max()))

    # --- the batch ---------------------------------------------------------------------------------------------------

    def _take_prompts(
        self, batch: Batch, scene: _Scene, prompts: list[int], limit_s: float
    ) -> None:
        """As much of each as fits, by rank."""
        if not prompts:
            return
        table, ranks = scene.table, self.order.ranks
        filling = Filling.of(self.facts.device, table, np.array(batch.slots, dtype=np.int64))
        for slot in sorted(prompts, key=lambda slot: float(ranks[table.ids[slot]])):
            computed, id = int(table.computed[slot]), int(table.ids[slot])
            pending = int(table.length[slot]) - computed
            chunk = batch.largest_chunk(slot, filling.largest(computed, pending, limit_s))
            if chunk:
                batch.take(slot, chunk)
                filling.add(computed, chunk)
            if chunk < pending:
                return
            if ranks[id] < LAST:
                limit_s = min(limit_s, self.facts.due_s(table, slot) - scene.now_s)


def _same(before: tuple[object, ...], now: tuple[object, ...]) -> bool:
    return before[0] is now[0] and before[1:] == now[1:]
