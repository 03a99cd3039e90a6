"""One row per case, as a line of JSON."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import Struct

from accelgen.faults.contract import Verdict


class Attainment(Struct, frozen=True):
    """The part of the requests sent before, during and after the fault that kept their objectives; None without any."""

    before: float | None = None
    during: float | None = None
    after: float | None = None


class Row(Struct, frozen=True, kw_only=True, tag_field="kind", tag="case"):
    """What one case has shown.

    `verified`: the evidence that the fault took effect, "" if there is none. `control`: "caught", or what the negative
    control took for evidence. `failed`: requests that did not get all their tokens, those that the fault may cost
    (`allowed`) among them. `recovery_s`: the longest time after the fault in which requests were open and no client
    heard anything. `max_gap_ms`: the longest gap between two chunks of one stream after it. `slack`: the bounds of
    detection (C3, C4, C10) were multiplied by it."""

    case: str
    fault: str
    target: str
    moment: str
    seed: int
    when: str
    machine: str
    shape: str
    verified: str
    control: str
    slack: float = 1.0
    requests: int = 0
    failed: int = 0
    allowed: int = 0
    different: int = 0
    recovery_s: float = 0.0
    back_s: float | None = None  # until every process served again; None: nothing had to come back
    max_gap_ms: float = 0.0
    leaked_blocks: int = 0
    orphans: int = 0
    exit_status: int | None = None
    restarts: int = 0
    attainment: Attainment = Attainment()
    contract: dict[str, Verdict] = {}
    note: str = ""

    @property
    def broken(self) -> list[str]:
        """What is wrong with the case: promises broken, no evidence, a control that was not found out."""
        found = [
            f"{promise}: {verdict.why}"
            for promise, verdict in self.contract.items()
            if verdict.ok is False
        ]
        if not self.verified:
            found.insert(0, "the fault did not take effect")
        if self.control != "caught":
            found.append(f"negative control: {self.control}")
        return [*found, *([self.note] if self.note else [])]

    @property
    def passed(self) -> bool:
        """Every promise was kept, and it is known that they were at stake."""
        return not self.broken


class KilledRow(Struct, frozen=True, kw_only=True, tag_field="kind", tag="killed"):
    """One process killed under `clients` that ask one request after another (benchmarks/recovery.py). `connections`:
    those of a killed frontend, which end with it."""

    when: str
    machine: str
    killed: str
    requests: int
    clients: int
    failed: int
    causes: dict[str, int]
    different: int
    recovery_s: float | None
    connections: int = 0


class Spread(Struct, frozen=True):
    """Milliseconds at the percentiles 50, 90 and 99, and the longest."""

    p50: float
    p90: float
    p99: float
    longest: float


class SwapsRow(Struct, frozen=True, kw_only=True, tag_field="kind", tag="swaps"):
    """Many swaps of the policy under concurrent streams (benchmarks/swaps.py). `outcomes` of requests by name; gaps
    between two chunks of a stream without swaps, the longest of all streams over each swap, and over as long a time
    without one right after it (`control`; None where swaps follow each other at once), and the handover itself."""

    when: str
    machine: str
    swaps: int
    refused: int
    streams: int
    outcomes: dict[str, int]
    without: Spread
    over_a_swap: Spread
    handover: Spread
    control: Spread | None = None
    pause_s: float = 0.0


class SlowRow(Struct, frozen=True, kw_only=True, tag_field="kind", tag="slow"):
    """Something that is slow and in order (benchmarks/slow_prefill.py): who was `restarted` all the same."""

    when: str
    machine: str
    what: str
    took_s: float
    longest_step_s: float
    restarted: list[str]


AnyRow = Row | KilledRow | SwapsRow | SlowRow


def append(path: Path, row: AnyRow) -> None:
    """Adds a line to a file of rows."""
    with path.open("ab") as file:
        file.write(msgspec.json.encode(row) + b"\n")


def read(paths: Iterable[Path]) -> list[AnyRow]:
    """All rows of some files. Raises msgspec.ValidationError for anything else."""
    decoder = msgspec.json.Decoder(AnyRow)
    return [
        decoder.decode(line)
        for path in paths
        for line in path.read_bytes().splitlines()
        if line.strip()
    ]
