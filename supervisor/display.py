"""What people see while a server starts: its phases, a bar while weights load, and a last block with the address."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

from accelgen.proto.messages import Directory, Facts, Member
from accelgen.supervisor.members import Seat

LOAD_GAUGE = "accelgen:worker_load_progress"  # a worker's gauge, 0..1, while it loads weights


class LineDisplay:
    """One line per change of phase: for logs, pipes and `--detach`."""

    detached = False  # no terminal holds the server: Ctrl-C does not reach it

    def __init__(self, out: TextIO) -> None:
        self._out: TextIO | None = out
        self._phases: dict[Seat, str] = {}

    def show(self, directory: Directory) -> None:
        uptime_s = directory.members[0].uptime_s
        for member in directory.members[1:]:
            seat = Seat(member.role, member.index)
            if self._phases.get(seat) != member.phase:
                self._phases[seat] = member.phase
                self._print(f"{uptime_s:6.1f} s  {seat.name:<12} {member.phase}")

    def ready(self, directory: Directory, took_s: float) -> None:
        self._print(ready_block(directory, took_s, self.detached))

    def end(self, status: int, line: str, logs: Path | None) -> None:
        self._print(f"accelgen: {line}")
        if logs is not None:
            self._print(f"accelgen: the logs are in {logs}")

    def _print(self, text: str) -> None:
        if self._out is None:
            return
        try:
            print(text, file=self._out, flush=True)
        except OSError:  # whoever read it is gone; the server is not
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self._out.fileno())  # or the interpreter fails at its end
            self._out = None


class BarDisplay(LineDisplay):
    """For a terminal: one moving line per process that is not ready yet."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            TextColumn("{task.fields[name]:<12}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(file=out),
            transient=True,
        )
        self._tasks: dict[Seat, TaskID] = {}
        self._bars.start()

    def show(self, directory: Directory) -> None:
        for member in directory.members[1:]:
            seat = Seat(member.role, member.index)
            if seat not in self._tasks:
                self._tasks[seat] = self._bars.add_task("starting", total=None, name=seat.name)
            task = self._tasks[seat]
            if member.phase == "ready":
                self._bars.update(task, description="ready", total=1, completed=1)
            else:
                loaded = member.gauges.get(LOAD_GAUGE)
                total = None if loaded is None else 1
                self._bars.update(
                    task, description=member.phase, total=total, completed=loaded or 0
                )

    def ready(self, directory: Directory, took_s: float) -> None:
        self._bars.stop()
        super().ready(directory, took_s)

    def end(self, status: int, line: str, logs: Path | None) -> None:
        self._bars.stop()
        super().end(status, line, logs)


def display_for(out: TextIO) -> LineDisplay:
    """Bars on a terminal, lines elsewhere."""
    return BarDisplay(out) if out.isatty() else LineDisplay(out)


def ready_block(directory: Directory, took_s: float, detached: bool = False) -> str:
    """Address, model, policy, memory, and what to try next."""
    facts = directory.config
    workers = [member for member in directory.members if member.facts is not None]
    lines = [
        "",
        f"AccelGen is ready after {took_s:.1f} s.",
        f"  URL      {facts['url']}/v1",
        f"  model    {facts['model']}{_model_facts(workers)}",
        f"  policy   {facts['policy']}{_routing(facts)}",
    ]
    lines += [f"  memory   {_memory(member)}" for member in workers]
    lines.append(f"  logs     {facts['run_dir']}/logs")
    lines += [f"  WARNING  {line}" for line in _warnings(facts, workers)]
    lines += ["", "Try:", *_example(facts)]
    command = _command()
    stop = f"`{command} down`" if detached else f"Ctrl-C or `{command} down`"
    lines += [f"  {command} chat", "", f"Stop it with {stop}.", ""]
    return "\n".join(lines)


def _routing(facts: dict[str, Any]) -> str:
    return f", routing {facts['routing']}" if facts.get("routing") else ""


def _warnings(facts: dict[str, Any], workers: list[Member]) -> list[str]:
    lines = []
    known = workers[0].facts if workers else None
    if known is not None:
        room, wanted = known.num_blocks * known.block_size, facts.get("context_tokens", 0)
        if known.max_model_len == room < wanted:
            lines.append(
                f"requests are limited to {room:,} tokens by the KV cache (the model allows {wanted:,});"
                " --kv-blocks or --kv-memory-bytes sets its size"
            )
    if facts.get("open_to_others"):
        lines.append("whoever reaches this address may use it; --api-key-file asks for keys")
    return lines


def _model_facts(workers: list[Member]) -> str:
    if not workers or workers[0].facts is None:
        return ""
    known: Facts = workers[0].facts
    return (
        f" ({known.architecture}, {known.dtype}, {known.backend} on {known.device},"
        f" context {known.max_model_len:,} tokens)"
    )


def _memory(member: Member) -> str:
    assert member.facts is not None
    facts = member.facts
    return (
        f"{Seat(member.role, member.index).name}: {_size(facts.weights_bytes)} weights"
        f" + {_size(facts.kv_bytes)} KV cache"
        f" ({facts.num_blocks:,} blocks of {facts.block_size} tokens){_swap_space(facts)};"
        f" {_size(member.rss_bytes)} resident"
    )


def _swap_space(facts: Facts) -> str:
    if not facts.host_blocks:
        return ""
    size = facts.host_blocks * (facts.kv_bytes // facts.num_blocks)
    return f" + {_size(size)} swap space ({facts.host_blocks:,} blocks)"


def _size(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB"


def _example(facts: dict[str, Any]) -> list[str]:
    body = (
        f'{{"model": "{facts["model"]}", '
        '"messages": [{"role": "user", "content": "What is AccelGen?"}]}'
    )
    key = '-H "Authorization: Bearer $KEY" ' if facts.get("needs_key") else ""
    return [
        f"  curl {facts['url']}/v1/chat/completions {key}-H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
    ]


def _command() -> str:
    """How this person calls the command: by name if that leads here, else by its path in this environment."""
    own, on_path = Path(sys.executable).with_name("accelgen"), shutil.which("accelgen")
    if not own.exists() or (on_path and os.path.samefile(on_path, own)):
        return "accelgen"
    return os.path.relpath(own)
