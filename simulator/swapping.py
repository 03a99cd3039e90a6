"""Preemption by swap, simulated: the KV of who is preempted goes to host memory, and comes back when it goes on.

The live KV manager cannot do this yet, and its messages have no word for it; so the KV core is extended here, and
policies stay as they are. A policy preempts; here that means swap, for every victim. What then waits has its tokens
computed and holds no block: it asks for blocks for all of them, and for one token of the batch (or what was left of its
prompt) instead of all. When an entry of it is planned, its KV is copied back; if that does not fit, the entry is
dropped, and the KV stays on the host. What the prefix cache still has of it is of use to others only.

Copies take bytes / bandwidth of the host's link (`Device.swap_bytes_s`), both ways one after the other, and the
iteration waits for them: nothing overlaps, as in vLLM's first engine. Host memory has no limit.
"""

from __future__ import annotations

from accelgen.kvmanager.core import KvCore
from accelgen.kvmanager.request import Request
from accelgen.kvmanager.tables import Work
from accelgen.proto.messages import Batch, KvReport, Lookup, Plan
from accelgen.scheduler.table import WAITING, RequestTable


class SwappingKv(KvCore):
    """`moved`: blocks copied, out and in, for the last plan."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        super().__init__(num_blocks, block_size, prefix_caching)
        self.moved = 0
        self._away: dict[int, int] = {}  # request id -> tokens with KV on the host

    def on_lookup(self, lookup: Lookup) -> KvReport:
        here = [prompt for prompt in lookup.prompts if prompt.id not in self._away]
        away = [prompt.id for prompt in lookup.prompts if prompt.id in self._away]
        report = super().on_lookup(Lookup(here, lookup.adopt))
        report.hit_ids.extend(away)
        report.hit_tokens.extend(self._away[id] for id in away)
        return report

    def on_plan(self, plan: Plan) -> tuple[Batch, KvReport]:
        self.moved = 0
        for id in plan.release:
            self._away.pop(id, None)
        for id in plan.preempt:
            request = self._requests.get(id)
            if request is not None and request.computed:
                self._away[id] = request.computed
                self.moved += len(request.table)
        return super().on_plan(plan)

    def hide(self, table: RequestTable) -> None:
        """After a report: who is away holds no block, whatever the scheduler concludes from its computed tokens."""
        for id in self._away:
            slot = table.slot_of.get(id)
            if slot is not None and table.state[slot] == WAITING:
                table.blocks[slot] = 0

    def _place_entries(
        self, plan: Plan, work: Work
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        for id, count in zip(plan.ids, plan.counts, strict=True):
            if id in self._away and self._bring_back(self._requests[id], count, work):
                del self._away[id]
        return super()._place_entries(plan, work)

    def _bring_back(self, request: Request, count: int, work: Work) -> bool:
        """Gets blocks for what is on the host and `count` more tokens; False, and nothing changed, without room."""
        tokens = self._away[request.id]
        if not self._place(request, tokens + count, work):
            return False
        self.moved += -(-tokens // self.block_size)
        request.computed = tokens
        return True
