"""A World that looks at what is projected of drafts, and policies that state them."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from world import World

from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, View, is_decode

DRAFTS: dict[str, Any] = {"drafter": "ngram", "max_draft_tokens": 3, "draft_tokens": "fixed"}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, 97) for _ in range(length)]


class CheckedWorld(World):
    """After each event the table and the KV core are looked at."""

    def _flush(self) -> None:
        super()._flush()
        for kv in self.kvs:
            assert kv.check() == []
        for replica in self.core.replicas.values():
            table = replica.table
            used = np.array([*table.slot_of.values()], dtype=np.int64)
            assert (table.length[used] <= table.limit[used]).all()
            assert (table.computed[used] < table.length[used]).all()
            assert table.waiting_tokens >= 0
            if not replica.flights:  # nothing is projected: all is settled
                for slot in used.tolist():
                    request = table.request(slot)
                    assert table.length[slot] == len(request.prompt) + len(request.generated)


class Stating(Sarathi, ABC):
    """States the same drafts for all that may have any."""

    @abstractmethod
    def wanted(self, start_s: float) -> int:
        """How many."""

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        decision, _ = super().plan(view, state, start_s)
        slots = np.array(decision.slots, dtype=np.int64)
        able = is_decode(view.table, slots) & np.isin(slots, view.table.running)
        decision.drafts = np.where(able, self.wanted(start_s), 0).tolist()
        return decision, None
