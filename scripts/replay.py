"""`accelgen replay`: what another policy would have decided in a recorded run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.proto.recording import RecordingError, read_recording
from accelgen.scheduler.comparison import PolicyFailed
from accelgen.scheduler.policy import Policy, UnknownPolicy, load_policy
from accelgen.scheduler.replay import recorded_policy, replay
from accelgen.scripts.replay_report import Report, as_dict, as_text
from accelgen.scripts.up import parse_params
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.policy_params import check_params, known_policies


@click.command(name="replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--policy", "name", help="Policy to compare with.  [default: the recorded one]")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter of the policy.")
@click.option("--show", "shown", type=click.IntRange(0), default=5, show_default=True,
              help="First differences to show.")  # fmt: skip
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary and all differences as JSON."
)
def command(
    file: Path, name: str | None, params: tuple[str, ...], shown: int, as_json: bool
) -> int:
    """Show where a policy decides differently from the one that was at work when FILE was recorded.

    FILE is the dump of a scheduler (`accelgen trace` and crashes leave some in RUN_DIR/recorder). Each decision is
    compared on the recorded state; what would have become of a different one is not simulated."""
    try:
        recording = read_recording(file)
        before, before_params = recorded_policy(recording)
        chosen, given = choose(name or before, parse_params(params), before, before_params)
        outcome = replay(recording, chosen)
    except (RecordingError, UnknownPolicy, PolicyFailed, StartError) as error:
        raise click.ClickException(str(error)) from error
    report = Report(recording, outcome, name or before, given)
    if as_json:
        click.echo(msgspec.json.encode(as_dict(report)))
    else:
        click.echo(as_text(report, shown))
    return 0


def choose(
    name: str, given: dict[str, Any], before: str, before_params: dict[str, Any]
) -> tuple[Policy, dict[str, Any]]:
    """The policy and its parameters. The recorded policy has its recorded ones where no others are given. Raises
    UnknownPolicy, StartError."""
    params = {**before_params, **given} if name == before else given
    if name in known_policies():
        check_params(name, params)
    return load_policy(name, params), params
