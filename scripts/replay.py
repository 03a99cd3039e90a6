"""`accelgen replay`: what another policy would have decided in a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.proto.dumps import FOLDER
from accelgen.proto.messages import Directory, Role
from accelgen.proto.policies import params_fault, unknown_policy
from accelgen.proto.recording import RecordingError, read_recording
from accelgen.scheduler.comparison import PolicyFailed
from accelgen.scheduler.policy import Policy, UnknownPolicy, load_policy
from accelgen.scheduler.replay import recorded_policy, replay
from accelgen.scripts.replay_report import Report, as_dict, as_text
from accelgen.scripts.up import parse_params
from accelgen.supervisor.client import ask_directory, ask_to_dump
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live


@click.command(name="replay")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--policy", "name", help="Policy to compare with.  [default: the recorded one]")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter of the policy.")
@click.option("--show", "shown", type=click.IntRange(0), default=5, show_default=True,
              help="First differences to show.")  # fmt: skip
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
@click.option("--json", "as_json", is_flag=True, help="Print summary and differences as JSON.")
def command(
    file: Path | None,
    name: str | None,
    params: tuple[str, ...],
    shown: int,
    run_dir: str,
    as_json: bool,
) -> int:
    """Show where a policy decides differently from the one that was at work when FILE was recorded.

    FILE is a scheduler's dump; without it, a running server is asked for one. Each decision is compared on the recorded
    state; what would have become of a different one is not simulated."""
    try:
        recording = read_recording(file or fresh_dump(run_dir))
        before, before_params = recorded_policy(recording)
        chosen, given = choose(name or before, parse_params(params), before, before_params)
        outcome = replay(recording, chosen)
    except UnknownPolicy as error:
        raise click.UsageError(str(error)) from error
    except (RecordingError, PolicyFailed, StartError) as error:
        raise click.ClickException(str(error)) from error
    report = Report(recording, outcome, name or before, given)
    if as_json:
        click.echo(msgspec.json.encode(as_dict(report)))
    else:
        click.echo(as_text(report, shown))
    return 0


def fresh_dump(run_dir: str) -> Path:
    """What the scheduler of a running server remembers. Raises StartError."""
    path = find_live(run_dir)
    name = scheduler_in_office(ask_directory(path))
    answers, _ = ask_to_dump(path)
    answer = next((one for one in answers if one.process == name), None)
    if answer is None or answer.fault:
        raise StartError(f"{name}: {answer.fault if answer else 'no answer'}")
    return path / FOLDER / answer.file


def scheduler_in_office(directory: Directory) -> str:
    """The one of the newest epoch that is ready. Raises StartError."""
    ready = [m for m in directory.members if m.role is Role.SCHEDULER and m.phase == "ready"]
    if not ready:
        raise StartError("no scheduler is ready")
    return f"scheduler-{max(ready, key=lambda member: member.epoch).index}"


def choose(
    name: str, given: dict[str, Any], before: str, before_params: dict[str, Any]
) -> tuple[Policy, dict[str, Any]]:
    """The policy and its parameters. The recorded policy has its recorded ones where no others are given. Raises
    UnknownPolicy."""
    params = {**before_params, **given} if name == before else given
    if fault := unknown_policy(name) or params_fault(name, params):
        raise UnknownPolicy(fault)
    return load_policy(name, params), params
