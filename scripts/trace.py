"""`accelgen trace`: what has become of one request, from the flight recorders of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.proto.dumps import FOLDER
from accelgen.proto.epochs import epoch_name
from accelgen.proto.recording import Recording, RecordingError, read_recording
from accelgen.scripts import trace_text
from accelgen.scripts.logs import printable
from accelgen.scripts.trace_history import Call, find_calls, history_of, reach, surroundings
from accelgen.scripts.trace_notes import Happening, History, Step
from accelgen.supervisor.client import DUMP_S, ask_to_dump
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live


@click.command(name="trace")
@click.argument("name", metavar="REQUEST_ID")
@click.option("--full", is_flag=True, help="Every decode on a line of its own.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--folder", type=click.Path(path_type=Path), help="Read the dumps in this folder.")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(name: str, full: bool, as_json: bool, folder: Path | None, run_dir: str) -> int:
    """Show the history of one request of a running server, in ms after its receipt.

    REQUEST_ID is the id of the answer, its x-request-id, or the number of a request. Exit status 1 if no process
    remembers it."""
    try:
        recordings = read_all(folder or dumped(run_dir))
    except StartError as error:
        raise click.ClickException(str(error)) from error
    calls = find_calls(recordings, name)
    if not calls:
        raise click.ClickException(unknown(name, recordings))
    traces = [Trace(call, recordings) for call in calls]
    if as_json:
        click.echo(msgspec.json.encode([trace.as_dict() for trace in traces]))
    else:
        click.echo("\n\n".join(trace.as_text(full) for trace in traces))
    return 0


def dumped(run_dir: str) -> Path:
    """The folder with fresh dumps of the living server. Raises StartError."""
    path = find_live(run_dir)
    answers, silent = ask_to_dump(path)
    faults = [answer for answer in answers if answer.fault]
    if faults and len(faults) == len(answers):
        raise StartError(f"nothing is recorded: {faults[0].fault}")
    for answer in faults:
        click.echo(f"accelgen: {answer.process}: {answer.fault}", err=True)
    if silent:
        click.echo(f"accelgen: no answer from {', '.join(silent)} in {DUMP_S:g} s", err=True)
    return path / FOLDER


def read_all(folder: Path) -> list[Recording]:
    """Every dump in `folder`; of damaged ones what is there, and what is wrong with them on stderr. Raises StartError
    if there is none."""
    recordings = []
    for path in sorted(folder.glob("*.msgpack")):
        try:
            recording = read_recording(path, whole=False)
        except RecordingError as error:
            click.echo(f"accelgen: {error}", err=True)
            continue
        if recording.damage:
            click.echo(f"accelgen: {path}: {recording.damage}", err=True)
        recordings.append(recording)
    if not recordings:
        raise StartError(f"there is no dump of a flight recorder in {folder}")
    return recordings


def unknown(name: str, recordings: Sequence[Recording]) -> str:
    """One line: nobody remembers it, and how far back they remember."""
    reaches = ", ".join(f"{process} {_ago(back_s)}" for process, back_s in reach(recordings))
    return f"no process remembers {printable(name)!r}; what they remember goes back: {reaches}"


def _ago(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.1f} s"


class Trace:
    """One call and the histories of its choices."""

    def __init__(self, call: Call, recordings: Sequence[Recording]) -> None:
        self.call = call
        self.histories = [history_of(recordings, id) for id in call.ids]
        moments = [h.moment_s for one in self.histories for h in one.happenings]
        self.zero_s = call.received_s if call.answer else min(moments)
        self.around: list[Happening] = []
        if moments:
            found = surroundings(recordings, self.zero_s, max(moments), call.answer)
            first = min(h.epoch for one in self.histories for h in one.happenings)
            self.around = [h for h in found if h.what != "epoch" or h.epoch > first]
        self.wall_offset_s = recordings[0].wall_s - recordings[0].monotonic_s

    def as_text(self, full: bool) -> str:
        """For people."""
        parts = [trace_text.head(self.call, self.wall_offset_s)]
        if "refused_s" in self.call.values:
            parts.append(trace_text.refusal(self.call))
        for index, one in enumerate(self.histories):
            if len(self.histories) > 1:
                parts.append(f"choice {index}, request {one.id}")
            known = bool(self.call.answer)
            parts.append(trace_text.history(one, self.around, self.zero_s, full, known))
        return "\n\n".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """For programs: moments in ms after the receipt, numbers of requests as texts."""
        call = self.call
        values = {name: value for name, value in call.values.items() if name != "refused_s"}
        return {
            "id": call.answer,
            "request_id": call.request,
            "frontend": call.process,
            "received_s": self.zero_s + self.wall_offset_s,
            "refused": "refused_s" in call.values,
            **values,
            "choices": [self._choice(one) for one in self.histories],
            "around": [self._happening(one) for one in self.around],
        }

    def _choice(self, one: History) -> dict[str, Any]:
        return {
            "request": str(one.id),
            "prompt_tokens": one.prompt_tokens,
            "history": [self._happening(happening) for happening in one.happenings],
        }

    def _happening(self, one: Happening) -> dict[str, Any]:
        shown: dict[str, Any] = {"at_ms": self._ms(one.moment_s), "what": one.what}
        if one.epoch:
            shown["epoch"] = epoch_name(one.epoch)
        if not isinstance(one, Step):
            return {**shown, **one.values}
        for field in fields(Step)[len(fields(Happening)) :]:
            value = getattr(one, field.name)
            if field.name in ("planned_s", "began_s", "delivered_s"):
                shown[f"{field.name.removesuffix('_s')}_ms"] = self._ms(value)
            else:
                shown[field.name] = value
        return shown

    def _ms(self, moment_s: float | None) -> float | None:
        return None if moment_s is None else round(1e3 * (moment_s - self.zero_s), 3)
