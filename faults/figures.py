"""Sections of the reliability page that are made from the rows of benchmarks: kills, swaps, what is merely slow."""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.faults.markdown import paragraph, table
from accelgen.faults.rows import KilledRow, SlowRow, Spread, SwapsRow

DYNAMO = {  # tests/fault_tolerance/README.md of ai-dynamo/dynamo: failed of 800, recovery in s
    "none": "0",
    "frontend": "144, 17.5",
    "frontend, 2 of them": "128, 16.7",
    "scheduler": "(processor) 216, 26.0",
    "worker": "280, 38.0",
    "worker, 2 replicas": "(4 workers) 4, 44.9",
}
"""NVIDIA's published figures for its own system: 8 L40, R1-Distill-8B, 8 clients x 100 requests, one kill at 30 s."""


def killed_section(rows: Sequence[KilledRow]) -> list[str]:
    """Of benchmarks/recovery.py: the last run of each case."""
    lines = ["", "## One process killed under load", ""]
    if not rows:
        return [*lines, "No rows: `python benchmarks/recovery.py --rows FILE`."]
    last = {row.killed: row for row in rows}
    one = rows[-1]
    text = paragraph(
        f"{one.clients} clients, {one.requests} requests (64 tokens in, 32 out, sampled with seeds), one SIGKILL after"
        f" a third of them, no retries; bundled model, float32, {one.machine}, {one.when}. Different: texts that are"
        " not those of the run without a kill. Recovery: the longest time in which no client heard anything. Beside it"
        " NVIDIA Dynamo's published figures for its own system on its own hardware: 8 x L40, an 8B model, 8 clients x"
        " 100 requests. The models are of another size, so compare the failed requests, not the seconds."
    )
    lines.append(text)
    body = [
        (
            row.killed,
            f"{row.failed}, its {row.connections} connections" if row.connections else row.failed,
            row.different,
            "-" if row.recovery_s is None else f"{row.recovery_s:.2f}",
            DYNAMO.get(row.killed, "-"),
        )
        for row in last.values()
    ]
    head = ("killed", f"failed of {one.requests}", "different", "recovery s")
    return [*lines, "", *table((*head, "Dynamo: failed of 800, recovery s"), body)]


def swaps_section(rows: Sequence[SwapsRow]) -> list[str]:
    """Of benchmarks/swaps.py: the last run of each pause."""
    lines = ["", "## The policy replaced under load", ""]
    if not rows:
        return [*lines, "No rows: `python benchmarks/swaps.py --rows FILE`."]
    for row in {row.pause_s: row for row in rows}.values():
        lines += [_swaps_text(row), "", *_swaps_table(row), ""]
    return lines[:-1]


def _swaps_text(row: SwapsRow) -> str:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in row.outcomes.items())
    pace = f"{row.pause_s:g} s after the one before" if row.pause_s else "one after another"
    text = (
        f"{row.swaps:,} swaps among all policies, {pace}, under {row.streams} streams ({row.machine}, {row.when}):"
        f" {row.refused} refused; requests whose text was compared with that without swaps: {outcomes}."
    )
    if row.control is not None:
        more_ms = row.over_a_swap.p99 - row.control.p99
        text += (
            " A window without a swap, as long and under the same policy, follows each: the longest gap at the 99th"
            f" percentile is {more_ms:.0f} ms longer with a swap than without."
        )
    return paragraph(text)


def _swaps_table(row: SwapsRow) -> list[str]:
    spreads: list[tuple[str, Spread | None]] = [
        ("gap between two chunks of a stream, no swaps", row.without),
        ("longest gap of any stream over each swap", row.over_a_swap),
        ("longest gap of any stream over as long without a swap", row.control),
        ("from the old scheduler's last plan to the new one's readiness", row.handover),
    ]
    body = [
        (name, *(f"{value:.1f}" for value in (ms.p50, ms.p90, ms.p99, ms.longest)))
        for name, ms in spreads
        if ms is not None
    ]
    return table(("ms", "p50", "p90", "p99", "max"), body)


def slow_section(rows: Sequence[SlowRow]) -> list[str]:
    """Of benchmarks/slow_prefill.py: every run."""
    lines = ["", "## Not killed, though slow", ""]
    if not rows:
        return [*lines, "No rows: `python benchmarks/slow_prefill.py --rows FILE`."]
    body = [
        (row.what, f"{row.longest_step_s:.1f}", ", ".join(row.restarted) or "nobody", row.when)
        for row in rows
    ]
    text = paragraph(
        "A slow model load and a slow start of each process are cases of the matrix (`slow-start`, at start). A single"
        f" iteration that takes longer than any usual bound ({rows[-1].machine}):"
    )
    head = ("what", "longest iteration s", "started again", "when")
    return [*lines, text, "", *table(head, body)]
