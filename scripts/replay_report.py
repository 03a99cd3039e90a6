"""What `accelgen replay` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from accelgen.proto.recording import Recording
from accelgen.scheduler.comparison import Choice, Comparison
from accelgen.scheduler.replay import Outcome

MOST_REQUESTS = 6  # shown of one difference


@dataclass(frozen=True)
class Report:
    """A replay with `policy` (its parameters `params`), and the recording it was made of."""

    recording: Recording
    outcome: Outcome
    policy: str
    params: dict[str, Any]

    @property
    def names(self) -> tuple[str, str]:
        """How the two sides are called: by policy, or, if that is the same, by role."""
        before = self.outcome.recorded_policy
        return (before, self.policy) if before != self.policy else ("recorded", "replayed")

    @property
    def differences(self) -> list[Comparison]:
        return [one for one in self.outcome.comparisons if not one.same]

    def sides(self) -> tuple[list[Choice], list[Choice]]:
        """The iterations that each side wanted; decisions to run nothing are none."""
        compared = self.outcome.comparisons
        others = [one.other for one in compared if one.other is not None]
        return [one.recorded for one in compared if one.recorded.counts], [
            choice for choice in others if choice.counts
        ]


def as_text(report: Report, shown: int) -> str:
    """For people: what was compared, the first `shown` differences, both policies side by side."""
    lines = [*_head(report), "", *_counts(report)]
    differences = report.differences
    if differences and shown:
        lines += ["", _differences_title(len(differences), shown)]
        for one in differences[:shown]:
            lines += _difference(report, one)
    if report.outcome.comparisons:
        lines += ["", *_table(summary(report), report.names)]
    return "\n".join(lines)


def as_dict(report: Report) -> dict[str, Any]:
    """For programs. Request ids are texts: they have more digits than a JSON number keeps."""
    outcome, recording = report.outcome, report.recording
    return {
        "file": str(recording.path),
        "process": recording.process,
        "pid": recording.pid,
        "recorded": {"policy": outcome.recorded_policy, "params": outcome.recorded_params},
        "replayed": {"policy": report.policy, "params": report.params},
        "compared": len(outcome.comparisons),
        "same": len(outcome.comparisons) - len(report.differences),
        "different": len(report.differences),
        "skipped": dict(outcome.skipped),
        "arrivals": outcome.arrivals,
        "elsewhere": outcome.elsewhere,
        "summary": summary(report),
        "differences": [_difference_dict(report, one) for one in report.differences],
    }


def summary(report: Report) -> dict[str, tuple[float, float]]:
    """Figures of both sides, by what they are."""
    left, right = report.sides()
    rows: dict[str, tuple[float, float]] = {}

    def row(name: str, figure: Any) -> None:
        rows[name] = (figure(left), figure(right))

    limit_s, limit = report.outcome.max_step_s, report.outcome.max_batched_tokens
    row("iterations", len)
    row("requests per iteration", lambda side: _mean([len(c.counts) for c in side]))
    row("tokens per iteration", lambda side: _mean([c.tokens for c in side]))
    row("  of prompts", lambda side: _mean([c.prefill_tokens for c in side]))
    row("  of decodes", lambda side: _mean([c.decodes for c in side]))
    row("most tokens in one", lambda side: max((c.tokens for c in side), default=0))
    row(f"at the limit of {limit} tokens", lambda side: sum(c.tokens >= limit for c in side))
    row("predicted ms per iteration", lambda side: 1e3 * _mean([c.predicted_s for c in side]))
    row("  99 of 100 below", lambda side: 1e3 * _quantile([c.predicted_s for c in side], 0.99))
    row("  longest", lambda side: 1e3 * max((c.predicted_s for c in side), default=0.0))
    row(
        f"longer than the limit of {limit_s:g} s",
        lambda side: sum(c.predicted_s > limit_s for c in side),
    )
    row(
        "longer than a decode in it may wait",
        lambda side: sum(c.predicted_s > c.tightest_s for c in side),
    )
    rows["requests preempted"] = (
        sum(len(one.recorded.preempt) for one in report.outcome.comparisons),
        sum(len(one.other.preempt) for one in report.outcome.comparisons if one.other),
    )
    return rows


def _head(report: Report) -> list[str]:
    recording, outcome = report.recording, report.outcome
    span_s = recording.monotonic_s - recording.begins_s
    before = _called(outcome.recorded_policy, outcome.recorded_params)
    return [
        f"{recording.process} (pid {recording.pid}), the last {_duration(span_s)} before it was dumped",
        f"recorded with  {before}",
        f"replayed with  {_called(report.policy, report.params)}",
    ]


def _called(policy: str, params: dict[str, Any]) -> str:
    return " ".join([policy, *(f"{name}={value}" for name, value in params.items())])


def _counts(report: Report) -> list[str]:
    outcome = report.outcome
    compared, different = len(outcome.comparisons), len(report.differences)
    skipped = sum(outcome.skipped.values())
    share = f"  ({different / compared:.1%} of those compared)" if different else ""
    lines = [
        f"{compared + skipped:>9,} decisions recorded",
        f"{compared:>9,} compared",
        f"{compared - different:>9,} the same",
        f"{different:>9,} different{share}",
    ]
    for cause, count in outcome.skipped.most_common():
        lines.append(f"{count:>9,} skipped: {cause}")
    if outcome.elsewhere:
        lines.append(
            f"{outcome.elsewhere:>9,} of {outcome.arrivals:,} requests would have gone to another replica"
        )
    return lines


def _differences_title(count: int, shown: int) -> str:
    return "the difference" if count == 1 else f"the first {min(count, shown)} differences"


def _difference(report: Report, one: Comparison) -> list[str]:
    recording = report.recording
    step = f"step {one.step}" if one.step >= 0 else "no step"
    where = f", replica {one.replica}" if one.replica else ""
    width = max(map(len, report.names))
    left, right = report.names
    lines = [
        "",
        f"  {step}{where}, {_duration(recording.monotonic_s - one.moment_s)} before the dump",
        f"    {left:<{width}}  {_choice(one.recorded)}",
        f"    {right:<{width}}  {_choice(one.other) if one.other else one.fault}",
    ]
    return lines + (_requests(one, report.names) if one.other else [])


def _choice(choice: Choice) -> str:
    if not choice.counts and not choice.preempt:
        return "nothing"
    words = (
        f"{_plural(len(choice.counts), 'request')}, {_plural(choice.tokens, 'token')}"
        f" ({choice.prefill_tokens} of prompts, {_plural(choice.decodes, 'decode')}),"
        f" {1e3 * choice.predicted_s:.1f} ms predicted"
    )
    for count, what in (
        (len(choice.preempt), "preempted"),
        (len(choice.swap), "of them swapped out"),
        (len(choice.blocks), "given or cut blocks"),
        (len(choice.hosts), "lent blocks"),
        (sum(choice.drafts.values()), "drafted at most"),
    ):
        words += f", {count} {what}" if count else ""
    return words


def _requests(one: Comparison, names: tuple[str, str]) -> list[str]:
    """The requests that were given something else, largest difference first."""
    assert one.other is not None
    left, right = one.recorded, one.other
    ids = [
        id
        for id in {**left.counts, **right.counts}
        if left.counts.get(id, 0) != right.counts.get(id, 0)
    ]
    ids.sort(key=lambda id: -abs(left.counts.get(id, 0) - right.counts.get(id, 0)))
    lines = []
    for id in ids[:MOST_REQUESTS]:
        before, after = left.counts.get(id, 0), right.counts.get(id, 0)
        lines.append(f"      request {id:<19}  {before:>6,} -> {after:,} tokens")
    if len(ids) > MOST_REQUESTS:
        lines.append(f"      and {len(ids) - MOST_REQUESTS} more")
    for name, mine, theirs in (
        (names[0], left.preempt, right.preempt),
        (names[1], right.preempt, left.preempt),
    ):
        for id in sorted(mine - theirs)[:MOST_REQUESTS]:
            lines.append(f"      request {id:<19}  preempted by {name} only")
    return lines


def _difference_dict(report: Report, one: Comparison) -> dict[str, Any]:
    return {
        "replica": one.replica,
        "step": one.step,
        "age_s": report.recording.monotonic_s - one.moment_s,
        "recorded": _choice_dict(one.recorded),
        "replayed": None if one.other is None else _choice_dict(one.other),
        "fault": one.fault,
    }


def _choice_dict(choice: Choice) -> dict[str, Any]:
    return {
        "tokens": {str(id): count for id, count in choice.counts.items()},
        "drafts": {str(id): count for id, count in choice.drafts.items()},
        "preempt": [str(id) for id in sorted(choice.preempt)],
        "prefill_tokens": choice.prefill_tokens,
        "decodes": choice.decodes,
        "predicted_s": choice.predicted_s,
    }


def _table(rows: dict[str, tuple[float, float]], names: tuple[str, str]) -> list[str]:
    width = max(map(len, rows))
    columns = [max(10, len(name)) for name in names]
    lines = [" " * width + "".join(f"  {n:>{w}}" for n, w in zip(names, columns, strict=True))]
    for name, values in rows.items():
        cells = (f"  {_figure(v):>{w}}" for v, w in zip(values, columns, strict=True))
        lines.append(f"{name:<{width}}" + "".join(cells))
    return lines


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + "s" * (count != 1)


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"{minutes} min {seconds % 60:.0f} s" if minutes else f"{seconds:.3f} s"
