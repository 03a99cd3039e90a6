"""How `accelgen trace` shows a history to people: a line for everything that happened, decodes in runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

import click

from accelgen.proto.epochs import epoch_name
from accelgen.scripts.logs import printable
from accelgen.scripts.trace_history import Call
from accelgen.scripts.trace_notes import Happening, History, Step

PAUSE = 4.0  # so many times the usual gap, and a run of decodes ends, so that it can be seen
LEAST_PAUSE_S = 0.1
LEAST_RUN = 3  # decodes shown as one line
_WIDTH = 21  # of what happened
_COLORS = {
    "preempted": "yellow", "swapped out": "yellow", "not swapped out": "yellow", "did not fit": "yellow",
    "unpinned": "yellow", "exit": "red", "kill": "red", "epoch": "cyan", "resync": "cyan", "submitted": "",
    "first token": "green", "aborted": "yellow", "client gone": "yellow", "call failed": "red", "not sent": "yellow",
    "pause": "yellow", "start": "cyan",
}  # fmt: skip

Line = tuple[float, str, str, str]  # moment, what, details, colour


def head(call: Call, wall_offset_s: float) -> str:
    """Who asked, when, for what."""
    if not call.answer:
        return f"request {call.ids[0]}: its call is not in the recorder any more"
    values = call.values
    names = click.style(call.answer, bold=True) + f"   x-request-id {printable(call.request)}"
    wall = time.gmtime(call.received_s + wall_offset_s)
    millis = int(1000 * ((call.received_s + wall_offset_s) % 1))
    prompts, limits = values.get("prompts", []), values.get("max_tokens", [])
    words = [f"{', '.join(map(_number, prompts))} prompt {_s('token', sum(prompts))}"]
    words.append(f"at most {', '.join(map(_number, dict.fromkeys(limits)))} new")
    if values.get("n", 1) > 1:
        words.append(f"{values['n']} choices")
    words.append(f"class {printable(str(values.get('slo_class', '?')))}")
    words.append("streamed" if values.get("stream") else "not streamed")
    when = f"{time.strftime('%Y-%m-%d %H:%M:%S', wall)}.{millis:03d} UTC"
    return f"{names}\n{when}, {call.process}: {', '.join(words)}"


def refusal(call: Call) -> str:
    """The whole history of a call that was refused at the door."""
    after_ms = 1e3 * (call.values["refused_s"] - call.received_s)
    cause = f", {call.values['cause']}" if call.values.get("cause") else ""
    return _shown((after_ms, "refused", f"by the frontend: {call.values['status']}{cause}", "red"))


def history(
    one: History, around: Iterable[Happening], zero_s: float, full: bool, received: bool
) -> str:
    """The lines of one choice, in ms after `zero_s`; `full`: every decode on a line of its own."""
    lines = [(zero_s, "received", "", "")] if received else []
    lines += list(_lines(one, full))
    lines += [line for other in around if (line := _around_line(other)) is not None]
    lines.sort(key=lambda line: line[0])
    title = click.style("       ms", dim=True)
    rest = [_shown((1e3 * (line[0] - zero_s), *line[1:])) for line in lines]
    return "\n".join([title, *rest])


def _shown(line: Line) -> str:
    after_ms, what, details, color = line
    event = f"{what:<{_WIDTH}}"
    styled = click.style(event, fg=color) if color else event
    return f"{click.style(f'{after_ms:>9,.1f}', dim=True)}  {styled}{details}".rstrip()


def _lines(one: History, full: bool) -> Iterator[Line]:
    first = True
    before_s: float | None = None  # the token before
    pace_s = _pace_s(one.steps)
    for part in _parts(one, full):
        if isinstance(part, Happening) and not isinstance(part, Step):
            yield _line(part, one)
            continue
        steps = [part] if isinstance(part, Step) else part
        if before_s is not None and _is_pause(before_s, steps[0], pace_s):
            gap_ms = 1e3 * (_time(steps[0]) - before_s)
            yield before_s, "pause", f"no token for {gap_ms:,.1f} ms", _COLORS["pause"]
        if first and steps[0].delivered_s is not None:
            first = False
            yield steps[0].delivered_s, "first token", "", "green"
        yield _step_line(steps[0], one) if len(steps) == 1 else _run_line(steps)
        before_s = before_s if steps[-1].delivered_s is None else steps[-1].delivered_s


def _parts(one: History, full: bool) -> Iterator[Happening | list[Step]]:
    """Happenings, with undisturbed decodes put together."""
    run: list[Step] = []
    pace_s = _pace_s(one.steps)
    for happening in one.happenings:
        if isinstance(happening, Step) and _is_plain(happening) and not full:
            if run and _is_pause(_time(run[-1]), happening, pace_s):
                yield from _closed(run)
                run = []
            run.append(happening)
        else:
            yield from _closed(run)
            run = []
            yield happening
    yield from _closed(run)


def _closed(run: list[Step]) -> Iterator[Happening | list[Step]]:
    if len(run) >= LEAST_RUN:
        yield run
    else:
        yield from run


def _is_plain(step: Step) -> bool:
    """A decode that brought its token."""
    delivered = step.delivered_s is not None and step.tokens > 0
    return step.count == 1 and delivered and not (step.dropped or step.cause or step.resumed)


def _time(step: Step) -> float:
    """When its token was there, else when it began."""
    return step.moment_s if step.delivered_s is None else step.delivered_s


def _pace_s(steps: Sequence[Step]) -> float:
    """The usual time between two tokens."""
    moments = [step.delivered_s for step in steps if step.delivered_s is not None]
    gaps = [after - before for before, after in pairwise(moments)]
    return median(gaps) if gaps else 0.0


def _is_pause(before_s: float, step: Step, pace_s: float) -> bool:
    if step.delivered_s is None:
        return False
    return step.delivered_s - before_s > max(PAUSE * pace_s, pace_s + LEAST_PAUSE_S)


def _run_line(steps: Sequence[Step]) -> Line:
    moments = [_time(step) for step in steps]
    gaps = [after - before for before, after in pairwise(moments)]
    tokens = sum(step.tokens for step in steps)
    details = f"{tokens:,} tokens, one every {1e3 * median(gaps):.1f} ms (longest {1e3 * max(gaps):.1f}), "
    details += f"batches of {_range([step.batch for step in steps])}"
    return moments[0], f"steps {steps[0].step}..{steps[-1].step}", details, ""


def _step_line(step: Step, one: History) -> Line:
    prompt, end = one.prompt_tokens, step.start + step.count
    what = f"step {step.step}" + (", resumed" if step.resumed else "")
    if step.start < 0:
        work = "its plan is not in the recorder"
    elif prompt is not None and step.start < prompt:
        work = f"prompt {step.start:,}..{end:,} of {prompt:,}" if end <= prompt else (
            f"{step.start:,}..{end:,}: prompt of {prompt:,} and what followed"
        )  # fmt: skip
    elif step.count == 1:
        work = f"token {step.start:,}"
    else:
        work = f"{step.start:,}..{end:,}"
    words = [work]
    if step.batch:
        words.append(
            f"batch of {step.batch:,} with {step.batch_tokens:,} {_s('token', step.batch_tokens)}"
        )
    if step.replica:
        words.append(f"replica {step.replica}")
    if step.dropped:
        return step.moment_s, what, f"{', '.join(words)}: did not fit, dropped", "yellow"
    if step.cause:
        return step.moment_s, what, f"{', '.join(words)}: failed: {printable(step.cause)}", "red"
    if step.run_s is not None:
        words.append(f"ran {1e3 * step.run_s:.1f} ms")
    elif step.start >= 0:
        words.append("no result")
    if step.tokens and step.delivered_s is None:
        words.append("its token was not delivered")
    return step.moment_s, what, ", ".join(words), ""


def _line(happening: Happening, one: History) -> Line:
    """Everything but steps."""
    values = happening.values
    what, details = happening.what, ""
    match what:
        case "submitted":
            what = "submitted again" if values["again"] else "submitted"
            details = f"epoch {epoch_name(happening.epoch)}"
            if values["generated"]:
                details += (
                    f", with {values['generated']:,} {_s('token', values['generated'])} generated"
                )
            if "sibling_of" in values:
                details += f", as a sibling of {values['sibling_of']}"
        case "looked up":
            details = f"on replica {values['replica']}" + (
                ", taken over" if values["adopt"] else ""
            )
        case "cached":
            details = f"{values['tokens']:,}" + _of_all(one, happening.moment_s) + " tokens"
        case "unpinned":
            details = "its cached tokens had to give way"
        case "admitted":
            predicted_ms = 1e3 * values["predicted_ttft_s"]
            details = (
                f"replica {values['replica']}, first token predicted after {predicted_ms:.1f} ms"
            )
        case "forked":
            details = f"from {values['parent']}, with {values['computed']:,} tokens"
        case "preempted":
            details = f"before step {values['step']}"
        case "swapped out" | "swapped in":
            way = "to the host" if what == "swapped out" else "from the host"
            details = f"its KV is copied {way} beside step {values['step']}"
        case "not swapped out":
            details = "no room on the host: its KV was dropped"
        case "aborted":
            details = "the frontend wants no more of it"
        case "ended":
            return _end_line(happening, one)
    return happening.moment_s, what, details, _COLORS.get(happening.what, "")


def _of_all(one: History, moment_s: float) -> str:
    """The tokens it had by then, if they are known."""
    return (
        "" if one.prompt_tokens is None else f" of {one.prompt_tokens + one.delivered(moment_s):,}"
    )


def _end_line(happening: Happening, one: History) -> Line:
    values, tokens = happening.values, one.delivered()
    words = [values["reason"].replace("_", " ")]
    if values.get("detail"):
        words[0] += f": {printable(values['detail'])}"
    words.append(f"{tokens:,} {_s('token', tokens)}")
    words.append(f"queued {1e3 * values.get('queue_s', 0.0):.1f} ms")
    if values.get("preemptions"):
        words.append(f"preempted {values['preemptions']} {_s('time', values['preemptions'])}")
    good = values["reason"] in ("stop", "length")
    return happening.moment_s, "ended", ", ".join(words), "green" if good else "red"


def _around_line(happening: Happening) -> Line | None:
    values, what = happening.values, happening.what
    child, details = values.get("child", ""), ""
    match what:
        case "epoch":
            what, details = f"epoch {epoch_name(happening.epoch)}", "a scheduler takes over"
        case "exit":
            what, details = f"{child} died", f"pid {values['pid']}, {_status(values['status'])}"
        case "kill":
            what, details = f"{child} killed", f"{values['signal']} by the supervisor"
        case "start":
            what, details = f"{child} started", f"pid {values['pid']}"
        case "resync":
            what, details = (
                "resync wanted",
                f"by {values['sender']}: {printable(str(values['cause']))}",
            )
        case "call failed":
            details = f"the client was told {values.get('status')} {values.get('cause') or ''}"
        case "not sent":
            details = f"a {values.get('kind')} by {values.get('process')}: {printable(str(values.get('cause')))}"
    return happening.moment_s, what, details, _COLORS.get(happening.what, "")


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "?"


def _s(word: str, count: int) -> str:
    return word + "s" * (count != 1)
