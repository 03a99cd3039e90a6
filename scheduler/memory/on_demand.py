"""`on-demand`: a block when it is needed, from those that are free (PagedAttention, SOSP'23, section 4.3).

Who gives way is the scheduling policy's own business, and how (recompute or swap) that of the server's settings. This
is what policies are written for, so nothing is changed: neither what they see, nor what they have decided.
"""

from __future__ import annotations

from accelgen.scheduler.policy import Decision, StepStats, View


class OnDemand:
    name = "on-demand"

    def initial(self) -> None:
        return None

    def inherited(self, state: None) -> None:
        return None

    def before(self, view: View, state: None, start_s: float) -> tuple[View, None]:
        return view, None

    def after(
        self, view: View, decision: Decision, state: None, start_s: float
    ) -> tuple[Decision, None]:
        return decision, None

    def observe(self, step: StepStats, state: None) -> None:
        return None


ON_DEMAND = OnDemand()
