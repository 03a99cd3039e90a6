"""What the scheduler tells the world about itself: Prometheus samples for the next heartbeat."""

from __future__ import annotations

from collections import deque

from accelgen.proto.policies import MEMORY_INFO
from accelgen.scheduler.core import SchedulerCore

PREFIX = "accelgen:"


class Stopwatch:
    """Durations of decisions, seconds: a sum, a count, and the largest of the last 512."""

    def __init__(self) -> None:
        self.total_s, self.count = 0.0, 0
        self._recent: deque[float] = deque([0.0], maxlen=512)

    def add(self, duration_s: float) -> None:
        self.total_s += duration_s
        self.count += 1
        self._recent.append(duration_s)

    def p99_s(self) -> float:
        """99th percentile of the last 512."""
        ordered = sorted(self._recent)
        return ordered[int(0.99 * (len(ordered) - 1))]


def gauges_of(core: SchedulerCore, decisions: Stopwatch) -> dict[str, float]:
    """Samples by name. Counters end in `_total`."""
    found = {
        f'{PREFIX}scheduler_policy_info{{policy="{core.policy.name}"}}': 1.0,
        f'{PREFIX}scheduler_routing_info{{routing="{core.placement.routing.name}"}}': 1.0,
        f'{MEMORY_INFO}{{memory="{core.memory.name}"}}': 1.0,
        f"{PREFIX}scheduler_step_seconds_sum": decisions.total_s,
        f"{PREFIX}scheduler_step_seconds_count": float(decisions.count),
        f"{PREFIX}scheduler_step_p99_seconds": decisions.p99_s(),
        f"{PREFIX}requests_admitted_total": float(core.admitted),
        f"{PREFIX}admission_rejections_total": float(core.refused),
        f"{PREFIX}requests_finished_total": float(core.finished),
    }
    for index, replica in core.replicas.items():
        label = f'{{replica="{index}"}}'
        running = len(replica.table.running)
        found |= {
            f"{PREFIX}requests_routed_total{label}": float(core.placement.routed[index]),
            f"{PREFIX}num_requests_running{label}": float(running),
            f"{PREFIX}num_requests_waiting{label}": float(len(replica.table) - running),
            f"{PREFIX}num_tokens_waiting{label}": float(replica.table.waiting_tokens),
            f"{PREFIX}num_preemptions_total{label}": float(replica.preemptions),
            f"{PREFIX}num_swapped_out_total{label}": float(replica.moves.swapped_out),
            f"{PREFIX}num_swapped_in_total{label}": float(replica.moves.swapped_in),
            f"{PREFIX}num_unswapped_total{label}": float(replica.moves.unswapped),
            f"{PREFIX}scheduler_steps_total{label}": float(replica.steps),
            f"{PREFIX}scheduler_dropped_entries_total{label}": float(replica.dropped),
            f"{PREFIX}cost_model_scale{label}": replica.cost.scale,
        }
        found |= replica.speculation.gauges(PREFIX, label)
    return found
