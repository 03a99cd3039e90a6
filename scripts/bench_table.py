"""The result of a benchmark as text: the table that vLLM's `bench serve` prints, with a section on objectives."""

from __future__ import annotations

import math

import numpy as np

from accelgen.scripts.bench_metrics import Attainment, Rule, Spread, per_second
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


def table(report: Report) -> str:
    """The whole result as text."""
    lines = [f"{' Serving Benchmark Result ':=^{WIDTH}}", *_totals(report)]
    for name in report.setting.sections:
        short, title = TITLES[name]
        lines += [f"{title:-^{WIDTH}}", *_latencies(short, report.summary.spreads[name])]
    if report.judged or verdicts(report.run.outcomes):
        lines += _slo_section(report)
    lines += [f"{'Load Generator':-^{WIDTH}}", *_generator(report)]
    failures = reasons(report.run.outcomes)
    if failures:
        lines.append(f"{'Failures':-^{WIDTH}}")
        lines += [f"{count} x {reason}" for reason, count in failures[:MAX_REASONS]]
        if len(failures) > MAX_REASONS:
            lines.append(f"and {len(failures) - MAX_REASONS} other reasons")
    return "\n".join([*lines, "=" * WIDTH])


def _row(label: str, value: float | str) -> str:
    shown = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label + ':':<{LABEL_WIDTH}} {shown:<10}".rstrip()


def _totals(report: Report) -> list[str]:
    summary, setting = report.summary, report.setting
    rate = per_second(summary.completed, summary.duration_s)
    rows = [_row("Successful requests", summary.completed), _row("Failed requests", summary.failed)]
    if report.run.not_sent:
        rows.append(_row("Not sent (interrupted)", report.run.not_sent))
    if setting.max_concurrency is not None:
        rows.append(_row("Maximum request concurrency", setting.max_concurrency))
    if math.isfinite(setting.request_rate):
        rows.append(_row("Request rate configured (RPS)", setting.request_rate))
    rows += [
        _row("Benchmark duration (s)", summary.duration_s),
        _row("Total input tokens", summary.input_tokens),
        _row("Total generated tokens", summary.output_tokens),
        _row("Request throughput (req/s)", rate),
    ]
    if setting.goodput.stated or report.judged:
        rows.append(_row("Request goodput (req/s)", report.goodput[Rule.MEAN]))
    tokens = summary.input_tokens + summary.output_tokens
    return rows + [
        _row(
            "Output token throughput (tok/s)", per_second(summary.output_tokens, summary.duration_s)
        ),
        _row("Peak output token throughput (tok/s)", float(summary.peak_output_tokens_per_s)),
        _row("Peak concurrent requests", float(summary.peak_concurrency)),
        _row("Total token throughput (tok/s)", per_second(tokens, summary.duration_s)),
    ]


def _latencies(short: str, values: Spread) -> list[str]:
    rows = [
        _row(f"Mean {short} (ms)", 1000 * values.mean_s),
        _row(f"Median {short} (ms)", 1000 * values.median_s),
    ]
    for percentile, value_s in values.percentiles_s.items():
        rows.append(_row(f"P{percentile:g} {short} (ms)", 1000 * value_s))
    return rows


def _slo_section(report: Report) -> list[str]:
    """Percentages of the requests sent, each rule with its goodput."""
    rows = [f"{'SLO Attainment (of requests sent)':-^{WIDTH}}"]
    rows.append(_row("Requests sent", report.summary.attainment.sent))
    if report.judged:
        kept = report.summary.attainment
        rows += _attained("All objectives", kept)
        rows.append(_row("TTFT (%)", 100 * kept.ttft))
        rows += [_row(f"TPOT, {RULES[rule]} (%)", 100 * kept.tpot[rule]) for rule in Rule]
        rows.append(_row("E2EL (%)", 100 * kept.e2e))
        rows += [
            _row(f"Goodput, {RULES[rule]} (req/s)", report.goodput[rule])
            for rule in (Rule.EVERY_GAP, Rule.CUMULATIVE)
        ]
        if len(report.summary.by_label) > 1:
            for label, part in report.summary.by_label.items():
                rows.append(_row(f"{label}: requests sent", part.sent))
                rows += _attained(label, part)
    judgements = verdicts(report.run.outcomes)
    if judgements:
        kept_share = sum(judgements) / report.summary.attainment.sent
        rows.append(_row("By the server's own verdict (%)", 100 * kept_share))
    return rows


def _attained(name: str, kept: Attainment) -> list[str]:
    return [_row(f"{name}, {RULES[rule]} (%)", 100 * kept.overall[rule]) for rule in Rule]


def _generator(report: Report) -> list[str]:
    figures = generator(report.run)
    held_s = [outcome.held_s for outcome in report.run.outcomes]
    rows = [_row("Processor time per chunk (ms)", f"{figures['cpu_ms_per_chunk']:.3f}")]
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
