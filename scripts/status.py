"""`accelgen status`: who runs, in which life, and how far."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from accelgen.proto.messages import Directory, Member, Role
from accelgen.proto.policies import in_office
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live

_COLUMNS = ("process", "pid", "epoch", "phase", "uptime", "progress", "heard", "RSS MiB")


@click.command(name="status")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(run_dir: str, as_json: bool) -> int:
    """Show the processes of a running server. Exit status 1 if there is none."""
    try:
        directory = ask_directory(find_live(run_dir))
    except StartError as error:
        raise click.ClickException(str(error)) from error
    click.echo(msgspec.json.encode(as_dict(directory)) if as_json else as_table(directory))
    return 0


def as_dict(directory: Directory) -> dict[str, Any]:
    """The Directory with names, as JSON shows it; roles in lower case."""
    members = [
        {
            **msgspec.structs.asdict(member),
            "role": member.role.name.lower(),
            "facts": None if member.facts is None else msgspec.structs.asdict(member.facts),
        }
        for member in directory.members
    ]
    return {
        **directory.config,
        "memory": in_office(directory).memory,
        "ready": directory.ready,
        "draining": directory.draining,
        "members": members,
    }


def as_table(directory: Directory) -> str:
    """A line about the server and a line for each process."""
    facts = directory.config
    state = "draining" if directory.draining else "ready" if directory.ready else "starting"
    rows = [_COLUMNS, *(_row(member) for member in directory.members)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    office = in_office(directory)
    head = f"{facts['url']}  {state}  model {facts['model']}  policy {office.policy}"
    head += f"  memory {office.memory}" if office.memory else ""
    head += f"  routing {facts['routing']}" if facts.get("routing") else ""
    head += f"  drafter {facts['drafter']}" if facts.get("drafter") else ""
    lines = [head, ""]
    for row in rows:
        cells = [
            cell.ljust(width) if column in (0, 3) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    if spaces := [
        space for member in directory.members if (space := swap_space(member, directory))
    ]:
        lines += ["", *spaces]
    if why := facts.get("no_spare"):
        lines += ["", f"no spare scheduler: {why}"]
    return "\n".join(lines)


def swap_space(worker: Member, directory: Directory) -> str:
    """What a worker keeps of the host's memory for KV that is swapped out, and how much of that is in use; "" if it
    keeps none."""
    facts = worker.facts
    if facts is None or not facts.host_blocks:
        return ""
    managers = [m for m in directory.members if m.role is Role.KVMANAGER]
    name = f'accelgen:kv_host_blocks_used{{replica="{worker.index}"}}'
    used = next((m.gauges[name] for m in managers if name in m.gauges), 0.0)
    size = facts.host_blocks * (facts.kv_bytes // facts.num_blocks)
    return (
        f"swap space of replica {worker.index}: {used:,.0f} of {facts.host_blocks:,} blocks in use"
        f" ({size / 2**20:,.0f} MiB of the host's memory)"
    )


def _row(member: Member) -> tuple[str, ...]:
    return (
        f"{member.role.name.lower()}-{member.index}",
        str(member.pid),
        str(member.epoch),
        member.phase,
        _duration(member.uptime_s),
        f"{member.progress:,}",
        f"{member.heard_s:.1f} s",
        f"{member.rss_bytes / 2**20:,.0f}",
    )


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 1:
        return f"{seconds:.1f} s"
    if hours < 1:
        return f"{minutes:.0f} min {seconds % 60:.0f} s"
    if days < 1:
        return f"{hours:.0f} h {minutes % 60:.0f} min"
    return f"{days:.0f} d {hours % 24:.0f} h"
