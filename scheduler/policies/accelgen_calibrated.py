"""`accelgen-calibrated`: AccelGen with a token budget from the device's fitted model (docs/policies.md).

The literal rule S_b = S_pf * SLO_min / T_pf is a line through the origin; below the pivot an iteration takes almost
the same time whatever its size, so that line promises too little time there, and it knows nothing of the contexts of
the decodes. Here S_b is the largest number of tokens that the model predicts to end within SLO_min, with all decodes
and their contexts in the batch, and the prompt in progress at the place where it is. Everything else is `accelgen`.
"""

from __future__ import annotations

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policies.accelgen import AccelGen, Memory, bounded
from accelgen.scheduler.policies.urgent import Candidates
from accelgen.scheduler.policy import View


class AccelGenCalibrated(AccelGen):
    name = "accelgen-calibrated"

    def _budget(self, view: View, state: Memory, found: Candidates, tightest_s: float) -> int:
        computed = view.table.computed[found.slots]
        decodes = int(found.decode.sum())
        work = Work(decode_seqs=decodes, decode_context=int(computed[found.decode].sum()))
        begun = found.running & ~found.decode
        prior = int(computed[begun].max(initial=0))
        return bounded(view, found, decodes + view.cost.invert(tightest_s, work, prior))
