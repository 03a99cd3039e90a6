"""One process killed under load: failed requests and recovery time, in the shape of NVIDIA Dynamo's fault table.

    python benchmarks/recovery.py [--clients 8] [--requests 100] [--only scheduler] [--rows FILE]

Each client sends its requests one after another (64 in, 32 out, streamed, seeded), without retries. When a third of
all have ended, the named process gets SIGKILL ("scheduler": the one in office; "spare": the one that stands by;
"frontend": the one with the most connections), or all links between processes are cut. Failed: requests that did not
get all their tokens. Different: those whose text is not that of the same request in the run without a kill. Recovery:
the longest time in which no client received anything, from the kill on. Every kill is checked to have taken effect.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import click
import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))
from streams import complete

from accelgen.faults.connections import cut
from accelgen.faults.link_faults import LINKS, ends_of
from accelgen.faults.machine import machine
from accelgen.faults.rows import KilledRow, append
from accelgen.faults.server import Server, Shape

ALL_LINKS = ("links",)
FRONTEND = ("frontend",)
CASES = [
    ("none", (), Shape(frontends=1)),
    ("frontend", FRONTEND, Shape(frontends=1)),
    ("frontend, 2 of them", FRONTEND, Shape(frontends=2)),
    ("scheduler", ("scheduler",), Shape(frontends=1)),
    ("scheduler and its spare", ("spare", "scheduler"), Shape(frontends=1)),
    ("KV manager", ("kvmanager-0",), Shape(frontends=1)),
    ("worker", ("worker-0",), Shape(frontends=1)),
    ("worker, 2 replicas", ("worker-0",), Shape(frontends=1, replicas=2)),
    ("all links cut", ALL_LINKS, Shape(frontends=1)),
]
PROMPT, TOKENS = 64, 32


@dataclass
class Run:
    """What the clients of one case saw."""

    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    ended: int = 0
    killed_s: float = 0.0
    connections: int = 0  # of the frontend that was killed


async def ask(http: httpx.AsyncClient, url: str, client: int, i: int, run: Run) -> None:
    """One request."""
    prompt = [5 + (client * 131 + i * 17 + j) % 4000 for j in range(PROMPT)]
    try:
        found = await complete(http, url, prompt, TOKENS, i, run.arrivals.append)
    except httpx.HTTPError as error:
        run.failures[type(error).__name__] += 1
    else:
        if found.whole:
            run.texts[client, i] = found.text
        else:
            run.failures[f"HTTP {found.status}, {found.tokens} tokens"] += 1
    run.ended += 1


async def drive(server: Server, victims: tuple[str, ...], clients: int, requests: int) -> Run:
    """All clients, and the kill."""
    run = Run()

    async def client(index: int) -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            for i in range(requests):
                await ask(http, server.url, index, i, run)

    async def killer() -> None:
        while run.ended < clients * requests // 3:
            await asyncio.sleep(0.01)
        if victims == ALL_LINKS:
            run.killed_s = time.monotonic()
            assert all([await asyncio.to_thread(cut_link, server, link) for link in LINKS])
            return
        names = victims
        if victims == FRONTEND:
            names, run.connections = busiest_frontend(server)
        pids = [await asyncio.to_thread(server.await_pid, name) for name in names]
        run.killed_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        while await asyncio.to_thread(server.await_pid, names[-1]) in pids:
            await asyncio.sleep(0.05)

    await asyncio.gather(*(client(i) for i in range(clients)), *([killer()] if victims else []))
    return run


def busiest_frontend(server: Server) -> tuple[tuple[str], int]:
    """Whoever of them has the most clients connected, and how many."""
    count = {
        name: sum(
            connection.status == psutil.CONN_ESTABLISHED
            for connection in psutil.Process(server.pid(name)).net_connections("tcp")
        )
        for name in (f"frontend-{i}" for i in range(server.shape.frontends))
    }
    name = max(count, key=lambda name: count[name])
    return (name,), count[name]


def cut_link(server: Server, link: str) -> int:
    """Cuts what connects two processes; how many connections there were."""
    connecting, bound = ends_of(link)
    return cut(server.pid(connecting), server.socket_path(bound))


def recovery_s(run: Run) -> float:
    """The longest silence over all clients from the kill on."""
    after = [run.killed_s, *(at for at in sorted(run.arrivals) if at >= run.killed_s)]
    return max((b - a for a, b in zip(after, after[1:], strict=False)), default=0.0)


@click.command()
@click.option("--clients", default=8)
@click.option("--requests", default=100)
@click.option(
    "--only", default="", help="Cases whose name contains this, and the one without a kill."
)
@click.option("--rows", type=click.Path(path_type=Path), help="Append a line of JSON per case.")
def main(clients: int, requests: int, only: str, rows: Path | None) -> None:
    """See the head of this file."""
    print(f"{date.today()}  {machine()}; {clients} clients x {requests} requests, one SIGKILL")
    print("| killed | failed | different | recovery s |\n|---|---|---|---|")
    expected: dict[tuple[int, int], str] = {}
    for name, victims, shape in CASES:
        if victims and only not in name:
            continue
        with Server(shape) as server:
            run = asyncio.run(drive(server, victims, clients, requests))
        expected = expected or run.texts
        row = KilledRow(
            when=date.today().isoformat(),
            machine=machine(),
            killed=name,
            requests=clients * requests,
            clients=clients,
            failed=run.failures.total(),
            connections=run.connections,
            causes=dict(run.failures),
            different=sum(expected[key] != text for key, text in run.texts.items()),
            recovery_s=recovery_s(run) if victims else None,
        )
        took = "-" if row.recovery_s is None else f"{row.recovery_s:.2f}"
        causes = row.causes or ""
        if row.connections:
            name += f" (with {row.connections} connections)"
        print(f"| {name} | {row.failed} {causes} | {row.different} | {took} |", flush=True)
        if rows is not None:
            append(rows, row)


if __name__ == "__main__":
    main()
