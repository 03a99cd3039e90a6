"""One process killed under load: failed requests and recovery time, in the shape of NVIDIA Dynamo's fault table.

    python benchmarks/recovery.py [--clients 8] [--requests 100] [--only scheduler]

Each client sends its requests one after another (64 in, 32 out, streamed, seeded), without retries. When a third of all
have ended, the named process gets SIGKILL ("scheduler": the one in office; "spare": the one that stands by). Failed:
requests that did not get all their tokens. Different: those whose text is not that of the same request in the run
without a kill. Recovery: the longest time in which no client received anything, from the kill on. Every kill is checked
to have taken effect.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parent))
from iteration import processor

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
CASES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("none", (), ()),
    ("frontend", ("frontend-0",), ()),
    ("frontend, 2 of them", ("frontend-0",), ("--frontends", "2")),
    ("scheduler", ("scheduler",), ()),
    ("scheduler and its spare", ("spare", "scheduler"), ()),
    ("KV manager", ("kvmanager-0",), ()),
    ("worker", ("worker-0",), ()),
    ("worker, 2 replicas", ("worker-0",), ("--replicas", "2")),
]
PHASES = {"scheduler": "ready", "spare": "standby"}
PROMPT, TOKENS = 64, 32


@dataclass
class Run:
    """What the clients of one case saw."""

    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    ended: int = 0
    killed_s: float = 0.0


class Server:
    """`accelgen up` with the bundled model in float32."""

    def __init__(self, folder: Path, options: tuple[str, ...]) -> None:
        folder.chmod(0o700)
        self.run_dir = str(folder / "run")
        up = [*CLI, "up", "--port", "0", "--dtype", "float32", "--kv-blocks", "2048", "--detach"]
        subprocess.run(
            [*up, "--run-dir", self.run_dir, *options], check=True, stdout=subprocess.DEVNULL
        )
        self.url = self.status()["url"]
        while not self.pid("spare"):  # it is started when the server has been ready for a moment
            time.sleep(0.1)

    def status(self) -> dict[str, Any]:
        command = [*CLI, "status", "--json", "--run-dir", self.run_dir]
        found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True).stdout)
        return found

    def pid(self, name: str) -> int:
        """0 if there is none at the moment."""
        for m in self.status()["members"]:
            if name == f"{m['role']}-{m['index']}" or (
                m["role"] == "scheduler" and m["phase"] == PHASES.get(name)
            ):
                return int(m["pid"])
        return 0

    def close(self) -> None:
        subprocess.run([*CLI, "down", "--run-dir", self.run_dir], stdout=subprocess.DEVNULL)


async def ask(http: httpx.AsyncClient, url: str, client: int, i: int, run: Run) -> None:
    """One request."""
    body = {
        "model": "accelgen-demo", "prompt": [5 + (client * 131 + i * 17 + j) % 4000 for j in range(PROMPT)],
        "max_tokens": TOKENS, "temperature": 0.8, "seed": i, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    text, count, done = "", 0, False
    try:
        async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                done |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    run.arrivals.append(time.monotonic())
                    chunk = json.loads(line[6:])
                    text += "".join(choice["text"] for choice in chunk.get("choices", ()))
                    count = (chunk.get("usage") or {}).get("completion_tokens", count)
        if not done or count != TOKENS:
            run.failures[f"HTTP {response.status_code}, {count} tokens"] += 1
        else:
            run.texts[client, i] = text
    except httpx.HTTPError as error:
        run.failures[type(error).__name__] += 1
    run.ended += 1


async def drive(server: Server, victims: tuple[str, ...], clients: int, requests: int) -> Run:
    """All clients, and the kill."""
    run = Run()

    async def client(index: int) -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            for i in range(requests):
                await ask(http, server.url, index, i, run)

    async def killer() -> None:
        pids = [await asyncio.to_thread(server.pid, victim) for victim in victims]
        assert all(pids), dict(zip(victims, pids, strict=True))
        while run.ended < clients * requests // 3:
            await asyncio.sleep(0.01)
        run.killed_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for _ in range(1000):
            if await asyncio.to_thread(server.pid, victims[-1]) not in (0, *pids):
                return
        raise AssertionError(f"{victims[-1]} was not replaced")

    await asyncio.gather(*(client(i) for i in range(clients)), *([killer()] if victims else []))
    return run


def recovery_s(run: Run) -> float:
    """The longest silence over all clients from the kill on."""
    after = [run.killed_s, *(at for at in sorted(run.arrivals) if at >= run.killed_s)]
    return max((b - a for a, b in zip(after, after[1:], strict=False)), default=0.0)


@click.command()
@click.option("--clients", default=8)
@click.option("--requests", default=100)
@click.option(
    "--only",
    default="",
    help="Only the cases whose name contains this, and the one without a kill.",
)
def main(clients: int, requests: int, only: str) -> None:
    """See the head of this file."""
    print(f"{date.today()}  {processor()}; {clients} clients x {requests} requests, one SIGKILL")
    print("| killed | failed | different | recovery s |\n|---|---|---|---|")
    expected: dict[tuple[int, int], str] = {}
    for name, victims, options in CASES:
        if victims and only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="ag-") as folder:
            server = Server(Path(folder), options)
            try:
                run = asyncio.run(drive(server, victims, clients, requests))
            finally:
                server.close()
        expected = expected or run.texts
        different = sum(expected[key] != text for key, text in run.texts.items())
        failed = f"{run.failures.total()} {dict(run.failures) if run.failures else ''}"
        took = f"{recovery_s(run):.2f}" if victims else "-"
        print(f"| {name} | {failed} | {different} | {took} |", flush=True)


if __name__ == "__main__":
    main()
