"""More requests than this attain under no schedule: an upper bound from a relaxation over compute and KV.

1. *Work.* Whoever attains has tokens that must be computed wholly within an interval [s, t]: those whose iterations
   cannot begin before s and must have ended by t (`needs.py`). These iterations lie in [s, t], and on each of R
   replicas they follow one another. So for every interval, and every linear piece of the cost model (`theta`), the work
   of those who attain, the sum over such tokens of f * share + v, is at most R (t - s).

2. *Holding KV.* Under the rule "every gap" nobody who attains can be put off: from the first token on, which comes at a
   + F at the latest, a token follows within every G. Between two of them each full block stays where it is, or is
   computed again, `block_size` tokens at the price u. Take any `mu` in [0, 1] of the KV-time (share of blocks * time,
   of which there is R (t - s)) and 1 - mu of the work. A full block then costs at least k per second of gap, where k =
   min(mu / B, (1 - mu) block_size u / G): held, or computed again in a gap no longer than G. Of a request that arrives
   after s

   - either the last token comes by t: then all its work is done, and gaps are at least as long as its iterations;
   - or it does not: then gaps fill all of a + F .. t - G, at best while its context is as short as can be, the time
     from one token to the next being G; and the work that is due by t is done.

   The cheaper of the two is counted. With `mu` 0 this is the work alone. (Who can swap KV out to the host needs neither
   hold it nor compute it again: for schedulers that do, only the work counts.)

A set of requests that attains meets all of these. The most numerous set that does, with fractions of requests allowed,
is a linear program (`packing.py`); its value, rounded down, bounds the number of requests that attain by any schedule,
policy or choice of replicas. Intervals begin at arrivals and end at arrivals, deadlines of first and last tokens, and
evenly between; as many as `CELLS` allows: fewer make the bound weaker, never wrong.

Goodput divides by T, the time until the last token of all. Everybody is served in the end, so T is at least the work of
those who arrive after s, beyond s, and no request can end before its own iterations: (number that attain) / (least T)
bounds goodput. (A run of more than a day may refuse some: the least T is cut there.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct, structs

from accelgen.proto.config import Config
from accelgen.scheduler.table import Floats
from accelgen.simulator.device import Device
from accelgen.simulator.needs import DAY_S, Model, Needs, needs_of
from accelgen.simulator.packing import most_that_fit
from accelgen.simulator.scenarios import ScenarioError
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Workload

CELLS = 6_000_000  # intervals * requests
MIXES = (0.0, 0.1, 0.25, 0.5)  # mu
CLOSE_S = 1e-6  # that intervals are longer, and T shorter, for the sake of rounding


class Bound(Struct, frozen=True):
    """`attained`: the most requests of `sent` that can attain; `compute`: the same if KV had no limit. `least_s`: the
    least T in seconds."""

    sent: int
    attained: int
    compute: int
    least_s: float

    @property
    def attainment(self) -> float:
        return self.attained / max(self.sent, 1)

    @property
    def goodput(self) -> float:
        """Requests per second."""
        return self.attained / self.least_s


def bound_of(
    workload: Workload, device: Device, config: Config, rule: Rule, swapping: bool = False
) -> Bound:
    """The bound for this workload under `rule`; with `swapping` for schedulers that can swap KV out, too, which need
    neither hold it nor compute it again, and for DistServe, which runs a prompt whole whatever the limit of a batch.
    Raises ScenarioError if there are sessions."""
    check_known(workload)
    if swapping:
        config = structs.replace(config, max_num_batched_tokens=2**62)
    needs = needs_of(workload, device, config, rule)
    served = [need for need in needs if need is not None]
    able = [need for need in served if need.attainable]
    bounded = [need for need in able if np.isfinite(need.latest_s[-1])]
    free = len(able) - len(bounded)
    model = Model.of(device, config)
    pieces = [Piece(theta, mu) for theta in (0, 1) for mu in (MIXES[:1] if swapping else MIXES)]
    compute = free + _most(bounded, [Piece(1, 0.0, of_kv=False)], model, config.replicas)
    both = free + _most(bounded, pieces, model, config.replicas)
    return Bound(
        len(needs), min(compute, both), compute, least_time_s(needs, model, config.replicas)
    )


def check_known(workload: Workload) -> None:
    """Raises ScenarioError if arrivals depend on what the scheduler does."""
    if any(arrival.follow_up is not None for arrival in workload.arrivals):
        raise ScenarioError(
            f"{workload.name}: sessions arrive when answers end; a search with known arrivals"
            " and a bound on all schedules need requests without follow-ups"
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """A family of constraints, one per interval: `theta` (its index), `mu`, and whether KV counts."""

    theta: int
    mu: float
    of_kv: bool = True

    def work_s(self, need: Needs, model: Model) -> Floats:
        """f * share + v of each token, [n]."""
        found: Floats = need.work_s[self.theta]
        return found + model.fixed_s[self.theta] * need.share if self.of_kv else found

    def inside(self, need: Needs, model: Model, begins: Floats, ends: Floats) -> Floats:
        """What the request costs in each interval at least, [begins, ends]."""
        work_s = self.work_s(need, model)
        total = np.concatenate([[0.0], np.cumsum(work_s)])
        first = np.searchsorted(need.release_s, begins, side="left")
        after = np.searchsorted(need.latest_s, ends, side="right")
        done: Floats = np.maximum(total[after][None, :] - total[first][:, None], 0.0)
        found = (1 - self.mu) * done
        if self.mu and np.isfinite(need.gap_s) and np.isfinite(need.latest_s[0]):
            whole, held = self._held(need, model, ends)
            later = need.sent_s >= begins
            whole += (1 - self.mu) * total[-1]
            found[later] = np.minimum(whole, found[later] + held)
        return found

    def _held(self, need: Needs, model: Model, ends: Floats) -> tuple[float, Floats]:
        """The KV part of the two cases: all tokens come, [1]; or not by the end of the interval, [ends]."""
        again_s = model.block_size * float(model.token_s[self.theta]) * model.blocks
        rate = min(self.mu, (1 - self.mu) * again_s / need.gap_s)
        whole = float(need.kept[:-1] @ need.alone_s[1:])
        slow = np.concatenate([[0.0], need.gap_s * np.cumsum(need.kept[:-1])])
        gaps = np.maximum(ends - need.latest_s[0] - need.gap_s, 0.0) / need.gap_s
        return rate * whole, rate * np.interp(gaps, np.arange(len(slow)), slow)


def _most(needs: Sequence[Needs], pieces: Sequence[Piece], model: Model, replicas: int) -> int:
    """The most of `needs` that meet the constraints of all intervals."""
    if not needs:
        return 0
    begins, ends = _points(needs, len(pieces))
    limits = replicas * np.maximum(ends[None, :] - begins[:, None], 0.0) + CLOSE_S
    weights, binding = [], []
    for piece in pieces:
        rows = np.stack([piece.inside(need, model, begins, ends) for need in needs], axis=-1)
        binds = rows.sum(axis=-1) > limits
        weights.append(rows[binds])
        binding.append(limits[binds])
    return int(most_that_fit(np.concatenate(weights), np.concatenate(binding)) + CLOSE_S)


def _points(needs: Sequence[Needs], pieces: int) -> tuple[Floats, Floats]:
    """Beginnings and ends of intervals, ascending: thinned evenly if they are too many."""
    begins = np.unique([need.sent_s for need in needs])
    deadlines = [[need.latest_s[0], need.latest_s[-1]] for need in needs]
    evenly = np.linspace(begins[0], np.max(deadlines), len(needs) + 32)
    ends = np.unique(np.concatenate([evenly, begins, np.ravel(deadlines)]))
    excess = len(begins) * len(ends) * len(needs) * pieces / CELLS
    if excess > 1:
        begins, ends = _thinned(begins, excess**0.5), _thinned(ends, excess**0.5)
    return begins, ends


def _thinned(points: Floats, excess: float) -> Floats:
    keep = max(2, int(len(points) / excess))
    kept: Floats = points[np.unique(np.linspace(0, len(points) - 1, keep).round().astype(int))]
    return kept


def least_time_s(needs: Sequence[Needs | None], model: Model, replicas: int) -> float:
    """The least T: from the first request that is served to the last token of all."""
    served = [need for need in needs if need is not None]
    if not served:
        return CLOSE_S
    sent_s = np.array([need.sent_s for need in served])
    fixed_s = model.fixed_s[:, None]
    work_s = np.array([(fixed_s * need.share + need.work_s).sum(axis=1) for need in served])
    later_s = np.cumsum(work_s[::-1], axis=0)[::-1].max(axis=1) / replicas
    ends_s = sent_s + np.maximum(later_s, [need.residence_s for need in served])
    return max(min(float(ends_s.max() - sent_s[0]), DAY_S) - CLOSE_S, CLOSE_S)
