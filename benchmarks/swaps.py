"""Many swaps of the scheduling policy under load: nothing may fail, be lost or changed; how long tokens pause.

    python benchmarks/swaps.py [--swaps 1000] [--streams 32] [--tokens 120] [--pause 0] [--rows FILE]

Streams of seeded, sampled completions run all the time against an `accelgen up` with the bundled model in float32,
while one swap after another goes to another of the installed policies, drawn with a fixed seed. Each finished text is
compared with that of the same request before the first swap, and the number of tokens with what was asked for. Of the
gaps between two chunks of a stream, the longest over each swap, until the pause after it is over, is set beside the
longest over as long a time without a swap that follows; without a pause there is no such time, and the two processes
take turns. With a pause of more than the probation (10 s) the start of a fresh spare falls into it.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import sys
import time
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parent))
from streams import complete

from accelgen.faults.machine import machine
from accelgen.faults.rows import Spread, SwapsRow, append
from accelgen.faults.server import Server, Shape
from accelgen.proto.messages import Swap
from accelgen.proto.policies import known_policies
from accelgen.supervisor.client import ask_to_swap

QUIET_S = 10.0  # without swaps, to compare with


@dataclass
class Seen:
    """What the clients saw. `gaps`: (when the chunk came, seconds since the one before)."""

    texts: dict[int, str] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    gaps: list[tuple[float, float]] = field(default_factory=list)


async def one(http: httpx.AsyncClient, url: str, i: int, tokens: int, seen: Seen) -> None:
    """One stream; compared with the first text of the same request."""
    prompt = [5 + (i * 31 + j) % 4000 for j in range(20 + 7 * i)]
    last_s: list[float] = []

    def heard(now: float) -> None:
        seen.gaps += [(now, now - before) for before in last_s]
        last_s[:] = [now]

    try:
        found = await complete(http, url, prompt, tokens, i, heard)
    except httpx.HTTPError as error:
        seen.outcomes[f"failed: {error!r}"] += 1
        return
    if not found.whole:
        seen.outcomes[f"incomplete: {found.tokens} tokens, done {found.done}"] += 1
    elif seen.texts.setdefault(i, found.text) != found.text:
        seen.outcomes["different"] += 1
    else:
        seen.outcomes["same"] += 1


async def keep(http: Any, url: str, i: int, tokens: int, seen: Seen, over: asyncio.Event) -> None:
    """The same request again and again."""
    while not over.is_set():
        await one(http, url, i, tokens, seen)


@dataclass
class Swapping:
    """What came of the swaps: from when to when one and the pause after it lasted, and the time without a swap that
    followed; refusals by cause; seconds of the handovers."""

    windows_s: list[tuple[float, float]] = field(default_factory=list)
    controls_s: list[tuple[float, float]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    handovers: list[float] = field(default_factory=list)


async def swap_on(run_dir: Path, swaps: int, pause_s: float) -> Swapping:
    """One swap after another."""
    found, draw, policy = Swapping(), random.Random(0), ""
    for _ in range(swaps):
        policy = draw.choice([name for name in known_policies() if name != policy])
        begin_s = time.monotonic()
        answer = await asyncio.to_thread(ask_to_swap, run_dir, Swap(policy, {}), 60.0)
        if took := re.search(r"(\d+) ms after", answer.line):
            found.handovers.append(int(took[1]) / 1000)
        if not answer.done:
            found.refused[answer.line] += 1
        await asyncio.sleep(pause_s)
        end_s = time.monotonic()
        found.windows_s.append((begin_s, end_s))
        if pause_s:  # as long again, without a swap
            await asyncio.sleep(end_s - begin_s)
            found.controls_s.append((end_s, time.monotonic()))
    return found


async def drive(
    url: str, run_dir: Path, swaps: int, streams: int, tokens: int, pause_s: float
) -> SwapsRow:
    """Runs the load and the swaps; prints what came of it."""
    seen, over = Seen(), asyncio.Event()
    limits = httpx.Limits(max_connections=streams + 8)
    async with httpx.AsyncClient(timeout=120, limits=limits) as http:
        await asyncio.gather(*(one(http, url, i, tokens, seen) for i in range(streams)))
        seen.gaps.clear()
        tasks = [
            asyncio.create_task(keep(http, url, i, tokens, seen, over)) for i in range(streams)
        ]
        await asyncio.sleep(QUIET_S)
        quiet = [gap for _, gap in seen.gaps]
        seen.gaps.clear()
        done = await swap_on(run_dir, swaps, pause_s)
        over.set()
        await asyncio.gather(*tasks)
    row = SwapsRow(
        when=date.today().isoformat(),
        machine=machine(),
        swaps=swaps,
        refused=done.refused.total(),
        streams=streams,
        outcomes=dict(seen.outcomes),
        without=spread(quiet),
        over_a_swap=spread(_longest(seen.gaps, done.windows_s)),
        handover=spread(done.handovers),
        control=spread(_longest(seen.gaps, done.controls_s)) if done.controls_s else None,
        pause_s=pause_s,
    )
    report(row, done.refused)
    return row


def _longest(gaps: list[tuple[float, float]], windows_s: list[tuple[float, float]]) -> list[float]:
    """The longest gap that ended within each of these windows, which are in order."""
    found = [0.0] * len(windows_s)
    begins_s = [begin_s for begin_s, _ in windows_s]
    for at_s, gap_s in gaps:
        i = bisect_right(begins_s, at_s) - 1
        if i >= 0 and at_s < windows_s[i][1]:
            found[i] = max(found[i], gap_s)
    return found


def spread(values: list[float]) -> Spread:
    """Seconds as milliseconds."""
    cuts = statistics.quantiles(values, n=100)
    figures = (statistics.median(values), cuts[89], cuts[98], max(values))
    return Spread(*(1e3 * value for value in figures))


def report(row: SwapsRow, refused: Counter[str]) -> None:
    """Prints the figures."""
    print(f"{row.when}  {row.machine}")
    print(f"swaps {row.swaps}, refused {row.refused} {dict(refused)}")
    print(f"requests {sum(row.outcomes.values())}: {row.outcomes}")
    print(
        "ms: gaps between two chunks without swaps; longest gap over each swap, over as long without; handover"
    )
    spreads = {
        "without": row.without,
        "of a swap": row.over_a_swap,
        "control": row.control,
        "handover": row.handover,
    }
    for name, ms in spreads.items():
        if ms is None:
            continue
        print(
            f"  {name:12s}p50 {ms.p50:7.1f}  p90 {ms.p90:7.1f}  p99 {ms.p99:7.1f}  max {ms.longest:7.1f}"
        )


@click.command()
@click.option("--swaps", default=1000)
@click.option("--streams", default=32)
@click.option("--tokens", default=120)
@click.option("--pause", "pause_s", default=0.0, help="Seconds between swaps.")
@click.option("--rows", type=click.Path(path_type=Path), help="Append the figures as JSON.")
def main(swaps: int, streams: int, tokens: int, pause_s: float, rows: Path | None) -> None:
    """See the head of this file. Exit status 1 unless all is as it should be."""
    with Server(Shape(frontends=1)) as server:
        row = asyncio.run(drive(server.url, server.run_dir, swaps, streams, tokens, pause_s))
    if rows is not None:
        append(rows, row)
    if row.refused or set(row.outcomes) != {"same"}:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
