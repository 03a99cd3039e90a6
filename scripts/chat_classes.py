"""The service classes of a server, as far as a client knows them, and what an objective means beside them.

No endpoint lists them. Those of a server of this user on this machine stand in its run directory; of any other one, the
class of a request is named in its verdict, and a class that it does not have in a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from accelgen.proto.config import SloClass
from accelgen.scripts.chat_clean import clean_line
from accelgen.scripts.chat_objective import NAMES, Objective, ObjectiveError


@dataclass(frozen=True)
class Classes:
    """`named` is empty if they are not known here; `default` is the class of a request that names none, or empty."""

    named: Mapping[str, SloClass] = field(default_factory=dict)
    default: str = ""

    def check(self, objective: Objective) -> None:
        """Raises ObjectiveError for what the server would refuse, where that is known."""
        if not self.named:
            return
        name = objective.slo_class or self.default
        if name not in self.named:
            known = ", ".join(sorted(self.named))
            raise ObjectiveError(f"{clean_line(name, 60)} is no class of this server ({known})")
        low_ms, high_ms = self.named[name].bounds_ms
        for one in NAMES:
            limit_ms = getattr(objective, f"{one}_ms")
            if limit_ms is not None and not low_ms <= limit_ms <= high_ms:
                bounds = f"{low_ms:.10g} to {high_ms:.10g} ms"
                raise ObjectiveError(
                    f"{one}: {limit_ms:.10g} is outside of {bounds} (class {name})"
                )

    def describe(self, objective: Objective) -> str:
        """What holds for a request with `objective`: a class always applies to what it does not state."""
        name = objective.slo_class or self.default
        of_class = f"class {clean_line(name, 60)}" if name else "the server's default class"
        known = self.named.get(name)
        if known is not None:
            limits = Objective(None, known.ttft_ms, known.tpot_ms, known.e2e_ms)
            of_class += f" ({limits})"
        stated = objective.limits()
        return f"{stated}, else that of {of_class}" if stated else f"that of {of_class}"
