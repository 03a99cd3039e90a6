"""Which frontends a scheduler serves, and whose requests it still waits for after it has taken over."""

from __future__ import annotations

import structlog

from accelgen.proto.messages import Directory, Role
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.links import Links

REPLAY_WAIT_S = 1.0  # what is inherited waits so long for a frontend that does not answer

log = structlog.get_logger()


class Frontends:
    """Follows the frontends that the Directory lists: new lives get connected, the requests of dead ones end."""

    def __init__(self, links: Links, core: SchedulerCore, credits: int) -> None:
        self._links, self._core, self._credits = links, core, credits
        self._alive: dict[int, int] = {}  # index -> incarnation
        self._replaying: set[int] | None = None  # have yet to submit what they had
        self._patient_until_s = float("inf")

    def replayed(self, index: int) -> None:
        """This one has; after the last one, what nobody claimed of the scheduler before is given back."""
        if self._replaying is not None:
            self._replaying.discard(index)
            if not self._replaying:
                self._core.release_unclaimed()

    def follow(self, directory: Directory, now: float) -> None:
        """Call with every new Directory."""
        members = [m for m in directory.members if m.role is Role.FRONTEND]
        serving = {m.index: m.incarnation for m in members if m.phase != "dead" and m.incarnation}
        for index in [i for i in self._alive if serving.get(i) != self._alive[i]]:
            log.warning("frontend lost", index=index)
            self._core.on_frontend_lost(index, now)
            self._links.disconnect(Role.FRONTEND, index)
            del self._alive[index]
            self.replayed(index)
        if self._replaying is None:
            self._replaying, self._patient_until_s = set(serving), now + REPLAY_WAIT_S
            if not serving:  # nobody is left who could claim anything
                self._core.release_unclaimed()
        for index, incarnation in serving.items():
            if index not in self._alive:
                self._links.connect(Role.FRONTEND, index, self._credits)
                self._alive[index] = incarnation

    def mind(self, now: float) -> None:
        """Call often: a frontend that is stuck holds up the requests of the others only for so long."""
        if now >= self._patient_until_s:
            self._patient_until_s = float("inf")
            if self._replaying:
                log.warning("frontends have not answered", indices=sorted(self._replaying))
                self._core.go_on()
