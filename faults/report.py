"""docs/reliability.md, made from rows: `python -m accelgen.faults.report ROWS... > docs/reliability.md`."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from accelgen.faults.cases import COMPONENTS, MATRIX, Case, Moment
from accelgen.faults.contract import PROMISES
from accelgen.faults.figures import killed_section, slow_section, swaps_section
from accelgen.faults.link_faults import LINKS
from accelgen.faults.markdown import paragraph, table
from accelgen.faults.rows import AnyRow, KilledRow, Row, SlowRow, SwapsRow, read
from accelgen.faults.server import SUPERVISOR

HEAD = """# Reliability: what is promised, and what came of it

This page is generated: `make reliability` writes it from the rows in `benchmarks/results/`. Every figure is that of a
run; to make one, `accelgen chaos --rows FILE` (see [How it is tested](#how-it-is-tested))."""

METHOD = (
    "Requests with fixed seeds arrive at fixed times, whatever happens. Every event that a client sees is written down,"
    " and the contract is checked on these histories, against the texts of an undisturbed run. Faults inside a process"
    " are ordered by signal from an agent that Python loads at its start; faults of a link come from a proxy that is"
    " put between two running processes; limits and signals are the kernel's. The product has no hooks for any of this."
)

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


def report(rows: Sequence[AnyRow]) -> str:
    """The whole page. Sections without rows say so."""
    cases = [row for row in rows if isinstance(row, Row)]
    lines = [
        HEAD,
        *_promises(cases),
        *killed_section([row for row in rows if isinstance(row, KilledRow)]),
        *swaps_section([row for row in rows if isinstance(row, SwapsRow)]),
        *slow_section([row for row in rows if isinstance(row, SlowRow)]),
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
