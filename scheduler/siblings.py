"""Choices of one prompt: they wait until the whole prompt has been planned, then fork from it (copy-on-write)."""

from __future__ import annotations

from accelgen.proto.messages import Fork
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import ARRIVING, Ints, RequestTable


class Siblings:
    """`ripe`: prompts whose siblings fork in the next plan."""

    def __init__(self) -> None:
        self._parents: dict[int, Request] = {}  # have siblings, and a prompt not planned to its end
        self.ripe: dict[int, Request] = {}

    def await_prompt(self, request: Request) -> None:
        """The request is queued."""
        if request.children:
            self._parents[request.id] = request

    def note_planned(self, table: RequestTable, sampled: Ints) -> None:
        """The requests in these slots have been planned to the end of their prompts."""
        for id in [id for id in self._parents if table.slot_of[id] in sampled]:
            self.ripe[id] = self._parents.pop(id)

    def take_back(self, id: int) -> None:
        """What was planned of it did not fit."""
        if id in self.ripe:
            self._parents[id] = self.ripe.pop(id)

    def forget(self, request: Request) -> bool:
        """The request is over: whether its siblings still wait for it (they can no longer fork)."""
        self._parents.pop(request.id, None)
        return bool(request.children) and request.id not in self.ripe

    def take_forks(self, table: RequestTable) -> list[Fork]:
        """Siblings of planned prompts start with all but the last prompt token computed."""
        forks: list[Fork] = []
        for parent in self.ripe.values():
            computed = len(parent.prompt) - 1
            for child in parent.children:
                slot = table.slot_of.get(child.id)
                if slot is None or table.state[slot] != ARRIVING:
                    continue
                table.hit(slot, computed)
                table.start(slot)
                child.started_s = parent.started_s  # with the prompt that it shares
                forks.append(Fork(child.id, parent.id, computed))
            parent.children = []
        self.ripe = {}
        return forks
