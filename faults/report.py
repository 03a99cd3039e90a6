"""docs/reliability.md, made from rows: `python -m accelgen.faults.report ROWS... > docs/reliability.md`."""

from __future__ import annotations

import statistics
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from accelgen.faults.cases import COMPONENTS, MATRIX, Case, Moment
from accelgen.faults.contract import PROMISES
from accelgen.faults.link_faults import LINKS
from accelgen.faults.rows import KilledRow, Row, SwapsRow, read
from accelgen.faults.server import SUPERVISOR

Cells = Sequence[object]

HEAD = """# Reliability: what is promised, and what came of it

This page is generated: `make reliability` writes it from the rows in `benchmarks/results/`. Every figure is that of a
run; to make one, `accelgen chaos --rows FILE` (see [How it is tested](#how-it-is-tested))."""

METHOD = (
    "Requests with fixed seeds arrive at fixed times, whatever happens. Every event that a client sees is written down,"
    " and the contract is checked on these histories, against the texts of an undisturbed run. Faults inside a process"
    " are ordered by signal from an agent that Python loads at its start; faults of a link come from a proxy that is"
    " put between two running processes; limits and signals are the kernel's. The product has no hooks for any of this."
)

DYNAMO = {  # tests/fault_tolerance/README.md of ai-dynamo/dynamo: failed of 800, recovery in s
    "none": "0",
    "frontend": "144, 17.5",
    "frontend, 2 of them": "128, 16.7",
    "scheduler": "(processor) 216, 26.0",
    "worker": "280, 38.0",
    "worker, 2 replicas": "(4 workers) 4, 44.9",
}
"""NVIDIA's published figures for its own system: 8 L40, R1-Distill-8B, 8 clients x 100 requests, one kill at 30 s."""

ABSENCE = [  # what does not work while it is away; what goes on
    (
        "frontend-0",
        "its own connections: they end",
        "the other frontends' requests; new connections, if there is another frontend, else they wait in the kernel's"
        " queue until it is back",
    ),
    (
        "scheduler",
        "nothing is planned: tokens pause, new requests wait as long as their class may queue",
        "connections stay open; what was generated is in the frontends' journals, the KV cache stays",
    ),
    (
        "kvmanager-0",
        "the iterations of its replica",
        "other replicas; the KV cache stays, tables are rebuilt from the worker's inventory",
    ),
    (
        "worker-0",
        "its replica, until another worker has loaded the model; requests are computed again",
        "other replicas; with none, requests wait as long as their class may queue, then 503 with `retry-after`",
    ),
    (
        SUPERVISOR,
        "everything: all processes end with it (PDEATHSIG)",
        "nothing; the next start removes what is left",
    ),
]
MARK = {True: "kept", False: "**broken**", None: "not at stake"}


def table(head: Cells, rows: Iterable[Cells]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(str(cell).replace("|", "\\\\|") for cell in line) + " |" for line in lines
    ]


def paragraph(text: str) -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(text, 118, break_on_hyphens=False)


def report(rows: Sequence[Row | KilledRow | SwapsRow]) -> str:
    """The whole page. Sections without rows say so."""
    cases = [row for row in rows if isinstance(row, Row)]
    killed = [row for row in rows if isinstance(row, KilledRow)]
    swaps = [row for row in rows if isinstance(row, SwapsRow)]
    lines = [
        HEAD,
        *_promises(cases),
        *_killed(killed),
        *_swaps(swaps),
        *_absence(cases),
        *_matrix(cases),
        *_failures(cases),
        *_method(cases),
    ]
    return "\n".join(lines) + "\n"


def _promises(cases: Sequence[Row]) -> list[str]:
    found = []
    for promise, words in PROMISES.items():
        verdicts = [row.contract[promise] for row in cases if promise in row.contract]
        kept, broken = (sum(v.ok is wanted for v in verdicts) for wanted in (True, False))
        result = f"kept in {kept} of {kept + broken} cases" if kept + broken else "not at stake"
        found.append((promise, words, f"**{result}**" if broken else result))
    passed = sum(row.passed for row in cases)
    requests, may = sum(row.requests for row in cases), sum(row.allowed for row in cases)
    failed = sum(row.failed for row in cases) - may
    text = paragraph(
        f"{len(cases):,} cases with {requests:,} requests; {passed:,} cases passed. {failed} requests failed that"
        f" should not have; {may} ended with what they were connected to or with the whole server, which their cases"
        f" allow; {sum(row.different for row in cases)} got another text than undisturbed."
    )
    return ["", "## The contract", "", text, "", *table(("", "promise", "result"), found)]


def _killed(rows: Sequence[KilledRow]) -> list[str]:
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


def _swaps(rows: Sequence[SwapsRow]) -> list[str]:
    lines = ["", "## The policy replaced under load", ""]
    if not rows:
        return [*lines, "No rows: `python benchmarks/swaps.py --rows FILE`."]
    row = rows[-1]
    outcomes = ", ".join(f"{count:,} {name}" for name, count in row.outcomes.items())
    text = paragraph(
        f"{row.swaps:,} swaps through all policies under {row.streams} streams ({row.machine}, {row.when}):"
        f" {row.refused} refused; requests with the text that they have without swaps: {outcomes}."
    )
    lines.append(text)
    spreads = [
        ("gap between two chunks of a stream, no swaps", row.without),
        ("longest gap of any stream over each swap", row.over_a_swap),
        ("from the old scheduler's last plan to the new one's readiness", row.handover),
    ]
    body = [(n, *(f"{v:.1f}" for v in (s.p50, s.p90, s.p99, s.longest))) for n, s in spreads]
    return [*lines, "", *table(("ms", "p50", "p90", "p99", "max"), body)]


def _absence(cases: Sequence[Row]) -> list[str]:
    body = []
    for target, stops, goes_on in ABSENCE:
        silences = [
            row.recovery_s
            for row in cases
            if row.target == target
            and row.moment == Moment.LOAD
            and row.fault in ("sigkill", "exit-0", "raise")
        ]
        took = "-"
        if silences:
            took = f"{statistics.median(silences):.2f} (at most {max(silences):.2f}, {len(silences)} cases)"
        body.append((target, stops, goes_on, took))
    head = ("away", "what stops", "what goes on", "no client heard anything for s")
    lines = ["", "## What stops working while a process is away", ""]
    return [*lines, *table(head, body)]


# --- the matrix ----------------------------------------------------------------------------------------------------


def cell(rows: Sequence[Row]) -> str:
    """What came of one case: passed or not, how often, and the longest silence."""
    if not rows:
        return "not run"
    passed = sum(row.passed for row in rows)
    times = f" {passed}/{len(rows)}" if len(rows) > 1 else ""
    silence = f"{max(row.recovery_s for row in rows):.1f} s"
    return f"pass{times}, {silence}" if passed == len(rows) else f"**FAIL**{times}, {silence}"


def _matrix(cases: Sequence[Row]) -> list[str]:
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in cases:
        by_name[row.case].append(row)
    lines = ["", "## The matrix", ""]
    text = paragraph(
        "Each cell: whether the case passed (how often, if it was run more than once), and the longest time in which"
        " requests were open and no client heard anything. A case passes if the fault proved that it took effect, the"
        " same fault aimed at a wrong target was found out, and no promise was broken."
    )
    lines.append(text)
    for title, moments, targets in (
        ("Under load: a process", (Moment.LOAD,), (*COMPONENTS, "spare", SUPERVISOR)),
        ("Under load: a link", (Moment.LOAD,), LINKS),
        ("Under load: clients", (Moment.LOAD,), ("clients",)),
        ("At other moments: start, swap, drain, end", OTHER_MOMENTS, ()),
    ):
        lines += ["", f"### {title}", "", *_grid(by_name, moments, targets)]
    return [*lines, "", "### While recovering from another fault", "", *_pairs(by_name)]


OTHER_MOMENTS = (Moment.START, Moment.SWAP, Moment.DRAIN, Moment.END)


def _grid(
    by_name: dict[str, list[Row]], moments: Sequence[Moment], targets: Sequence[str]
) -> list[str]:
    """Faults down, targets across; without `targets`, those that occur."""
    cases = [c for c in MATRIX if c.moment in moments and (not targets or c.target in targets)]
    across = list(targets) or sorted({case.target for case in cases})
    body = []
    for fault, moment in dict.fromkeys((case.fault, case.moment) for case in cases):
        line = [fault if moment is Moment.LOAD else f"{fault} @{moment}"]
        for target in across:
            case = Case(fault, target, moment)
            line.append(cell(by_name[case.name]) if case in cases else "")
        body.append(line)
    return table(("fault", *across), body)


def _pairs(by_name: dict[str, list[Row]]) -> list[str]:
    cases = [case for case in MATRIX if case.first is not None]
    first = list(dict.fromkeys("/".join(case.first) for case in cases if case.first))
    then = list(dict.fromkeys(f"{case.fault}/{case.target}" for case in cases))
    known = {case.name for case in cases}
    body = [
        [one, *(cell(by_name[n]) if (n := f"{one}+{other}") in known else "" for other in then)]
        for one in first
    ]
    return table(("first, then", *then), body)


def _failures(cases: Sequence[Row]) -> list[str]:
    failed = [row for row in cases if not row.passed]
    lines = ["", "## What failed", ""]
    if not failed:
        return [*lines, "Nothing in these rows."]
    body = [(row.case, row.seed, row.when, "; ".join(row.broken)) for row in failed]
    return [*lines, *table(("case", "seed", "when", "what"), body)]


def _method(cases: Sequence[Row]) -> list[str]:
    machines = sorted({row.machine for row in cases})
    days = sorted({row.when[:10] for row in cases})
    where = f"These rows are from {', '.join(machines)}, {', '.join(days)}." if cases else ""
    slack = max((row.slack for row in cases), default=1.0)
    if slack > 1:
        where += f" The bounds of detection were multiplied by up to {slack:g}: the machine had other work."
    return [
        "",
        "## How it is tested",
        "",
        "    accelgen chaos --list                       # the cases",
        "    accelgen chaos --seed 7 --minutes 30        # some of them, the same ones for the same seed",
        "    accelgen chaos --cases 'sigkill/*' --once   # each of these once",
        "    make chaos MINUTES=60                       # the long lane; its rows go to benchmarks/results/",
        "    make reliability                            # this page, from all rows there",
        "",
        paragraph(" ".join([METHOD, where])),
    ]


def main(arguments: Sequence[str]) -> int:
    """Prints the page. Exit status 2 without files."""
    if not arguments:
        print("usage: python -m accelgen.faults.report ROWS...", file=sys.stderr)
        return 2
    print(report(read(map(Path, arguments))), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
