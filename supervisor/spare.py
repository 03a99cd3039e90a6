"""When a spare scheduler is started, and when one that has served makes room for one that has not. Sans I/O."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import structlog

from accelgen.supervisor.members import Occupant
from accelgen.supervisor.restarts import Restarts

QUIET_S = 1.0  # the server has been ready for so long without a swap: starting Python takes CPU from the streams
SPARE = "spare scheduler"  # its restarts count apart from those of the office

log = structlog.get_logger()


@dataclass
class Spare:
    """The server can do without: after too many deaths it does (`facts["no_spare"]` says why)."""

    restarts: Restarts
    facts: dict[str, Any]
    _due_s: float = 0.0  # back-off; infinite: given up
    _quiet_s: float = inf  # when it will have been quiet for long enough

    def wait(self) -> None:
        """Something else comes first."""
        self._quiet_s = inf

    def calm_down(self, now_s: float) -> None:
        """Nothing else does."""
        self._quiet_s = min(self._quiet_s, now_s + QUIET_S)

    def lose(self, why: str, now_s: float) -> None:
        """It has died by itself."""
        delay_s = self.restarts.delay_s(SPARE, now_s)
        if delay_s is None:
            log.error("there will be no spare scheduler until the next swap", why=why)
            self.facts["no_spare"] = why
        else:
            log.warning("spare scheduler lost", why=why)
        self._due_s = inf if delay_s is None else now_s + delay_s

    def forgive(self) -> None:
        """A process that is known to work stands by."""
        self._due_s = 0.0
        self.facts.pop("no_spare", None)

    def renewal_s(self, spare: Occupant | None, probation_s: float) -> float:
        """When to start one, or to send this one away; infinite for never."""
        if self._due_s == inf:
            return inf
        if spare is None:
            return max(self._quiet_s, self._due_s)
        has_served = spare.epoch > 0 and spare.phase == "standby"
        return max(self._quiet_s, probation_s) if has_served else inf
