"""The result of a benchmark as text: the table that vLLM's `bench serve` prints, with a section on objectives."""

from __future__ import annotations

import math

import numpy as np

from accelgen.scripts.bench_metrics import Attainment, Rule, Share, Spread, per_second
from accelgen.scripts.bench_report import Report, generator, reasons, verdicts

WIDTH, LABEL_WIDTH = 50, 40
TITLES = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
}
RULES = {
    Rule.EVERY_GAP: "every gap",
    Rule.CUMULATIVE: "cumulative deadline",
    Rule.MEAN: "request mean",
}
MAX_REASONS = 10
NO_DATA = "-"


def table(report: Report) -> str:
    """The whole result as text."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}", *_failures(report), *_totals(report)]
    for name in report.setting.sections:
        short, title = TITLES[name]
        lines += [f"{title:-^{WIDTH}}", *_latencies(short, report.summary.spreads[name])]
        if name == "tpot" and report.summary.clumped:
            lines.append(_row("Not measurable: tokens came at once", report.summary.clumped))
    if report.judged or verdicts(report.run.outcomes):
        lines += _slo_section(report)
    lines += [f"{'Load Generator':-^{WIDTH}}", *_generator(report)]
    return "\n".join([*lines, "=" * WIDTH])


def _failures(report: Report) -> list[str]:
    """How many requests failed and why, before any figure: they decide what the others are worth."""
    failures = reasons(report.run.outcomes)
    if not failures:
        return []
    lines = [f"{report.summary.failed} of {len(report.run.outcomes)} requests FAILED"]
    lines += [f"  {count} x {reason}" for reason, count in failures[:MAX_REASONS]]
    if len(failures) > MAX_REASONS:
        lines.append(f"  other reasons: {len(failures) - MAX_REASONS}")
    return [*lines, "-" * WIDTH]


def _row(label: str, value: float | str | None) -> str:
    """One line. A figure without data is a dash: None, or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        value = NO_DATA
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label + ':':<{LABEL_WIDTH}} {shown:<10}".rstrip()


def _totals(report: Report) -> list[str]:
    summary, setting = report.summary, report.setting
    rows = [_row("Successful requests", summary.completed), _row("Failed requests", summary.failed)]
    if report.run.not_sent:
        rows.append(_row("Not sent (interrupted)", report.run.not_sent))
    if setting.max_concurrency is not None:
        rows.append(_row("Maximum request concurrency", setting.max_concurrency))
    if math.isfinite(setting.request_rate):
        rows.append(_row("Request rate configured (RPS)", setting.request_rate))
    rows += [
        _row("Benchmark duration (s)", summary.duration_s),
        _row("Total input tokens", _came(report, summary.input_tokens)),
        _row("Total generated tokens", _came(report, summary.output_tokens)),
        _row("Request throughput (req/s)", _rate(report, summary.completed)),
    ]
    if setting.goodput.stated or report.judged:
        rows.append(_row("Request goodput (req/s)", report.goodput[Rule.MEAN]))
    tokens = summary.input_tokens + summary.output_tokens
    peak = float(summary.peak_output_tokens_per_s)
    return rows + [
        _row("Output token throughput (tok/s)", _rate(report, summary.output_tokens)),
        _row("Peak output token throughput (tok/s)", _came(report, peak)),
        _row("Peak concurrent requests", float(summary.peak_concurrency)),
        _row("Total token throughput (tok/s)", _rate(report, tokens)),
    ]


def _came(report: Report, figure: float) -> float | None:
    """`figure`, unless no request succeeded: then it says nothing."""
    return figure if report.summary.completed else None


def _rate(report: Report, count: float) -> float | None:
    return _came(report, per_second(count, report.summary.duration_s))


def _latencies(short: str, values: Spread) -> list[str]:
    rows = [
        _row(f"Mean {short} (ms)", 1000 * values.mean_s),
        _row(f"Median {short} (ms)", 1000 * values.median_s),
    ]
    for percentile, value_s in values.percentiles_s.items():
        rows.append(_row(f"P{percentile:g} {short} (ms)", 1000 * value_s))
    return rows


def _slo_section(report: Report) -> list[str]:
    """Percentages of the requests sent, for the objectives that were stated."""
    rows = [f"{'SLO Attainment (of requests sent)':-^{WIDTH}}"]
    rows.append(_row("Requests sent", report.summary.attainment.sent))
    if report.judged:
        rows += _stated_rows(report)
    judgements = verdicts(report.run.outcomes)
    rows += _stage_rows(report)
    if judgements:
        kept_share = sum(judgements) / report.summary.attainment.sent
        rows.append(_row("By the server's own verdict (%)", 100 * kept_share))
    return rows


def _stated_rows(report: Report) -> list[str]:
    kept = report.summary.attainment
    rows = _attained("All objectives", kept)
    if kept.ttft.stated:
        rows.append(_row("TTFT (%)", _percent(kept.ttft)))
    if kept.by_rule:
        rows += [_row(f"TPOT, {RULES[rule]} (%)", _percent(kept.tpot[rule])) for rule in Rule]
        if kept.unmeasured:
            rows.append(_row("TPOT not judged: tokens came at once", kept.unmeasured))
    if kept.e2e.stated:
        rows.append(_row("E2EL (%)", _percent(kept.e2e)))
    if report.goodput_by_rule:
        rows += [
            _row(f"Goodput, {RULES[rule]} (req/s)", report.goodput[rule])
            for rule in (Rule.EVERY_GAP, Rule.CUMULATIVE)
        ]
    if len(report.summary.by_label) > 1:
        for label, part in report.summary.by_label.items():
            rows.append(_row(f"{label}: requests sent", part.sent))
            rows += _attained(label, part)
    return rows


def _stage_rows(report: Report) -> list[str]:
    """Parts of answers, calls of sessions, sessions; nothing without stages."""
    rows = []
    for name, part in report.stages.parts.items():
        rows.append(_row(f"{name}: answers", part.requests))
        rows.append(_row(f"{name}: tokens", part.tokens))
        rows.append(_row(f"{name}: mean TPOT (ms)", 1000 * part.tpot.mean_s))
        for percentile, value_s in part.tpot.percentiles_s.items():
            rows.append(_row(f"{name}: P{percentile:g} TPOT (ms)", 1000 * value_s))
        if part.kept.stated:
            rows.append(_row(f"{name}: TPOT kept (%)", _percent(part.kept)))
    for name, kept in report.stages.calls.items():
        rows.append(_row(f"stage {name}: requests sent", kept.sent))
        rows += _attained(f"stage {name}", kept)
    for rule, share in report.stages.sessions.items():
        rows.append(_row(f"Sessions, {RULES[rule]} (%)", _percent(share)))
    return rows


def _attained(name: str, kept: Attainment) -> list[str]:
    """One row for each rule, one in all where they cannot differ, none where no objective is stated."""
    if not kept.overall[Rule.MEAN].stated:
        return []
    if not kept.by_rule:
        return [_row(f"{name} (%)", _percent(kept.overall[Rule.MEAN]))]
    return [_row(f"{name}, {RULES[rule]} (%)", _percent(kept.overall[rule])) for rule in Rule]


def _percent(share: Share) -> float | None:
    return None if share.fraction is None else 100 * share.fraction


def _generator(report: Report) -> list[str]:
    figures = generator(report.run)
    held_s = [outcome.held_s for outcome in report.run.outcomes]
    cost_ms = figures["cpu_ms_per_chunk"]
    shown = NO_DATA if math.isnan(cost_ms) else f"{cost_ms:.3f}"
    rows = [_row("Processor time per chunk (ms)", shown)]
    rows.append(
        _row("Processor use (% of a core)", _share(report.run.cpu_s, report.summary.duration_s))
    )
    rows.append(_row("P99 dispatch delay (ms)", figures["p99_dispatch_delay_ms"]))
    if report.setting.max_concurrency is not None:
        rows.append(_row("Mean wait for concurrency (ms)", 1000 * float(np.mean(held_s or [0.0]))))
    if figures["tokens_per_chunk"] > 1.005:
        rows.append(_row("Tokens per chunk", figures["tokens_per_chunk"]))
    return rows


def _share(cpu_s: float, duration_s: float) -> float:
    return 100 * per_second(cpu_s, duration_s)
