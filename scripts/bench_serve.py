"""`accelgen bench serve`, run: options to requests, requests to a run, the run to a report."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from accelgen.proto.clocks import now_s
from accelgen.scripts.bench_http import HttpError
from accelgen.scripts.bench_json import as_json, dump
from accelgen.scripts.bench_load import Outcome, Run, Target, run_load
from accelgen.scripts.bench_metrics import Limits
from accelgen.scripts.bench_params import parse_objectives
from accelgen.scripts.bench_report import Report, Setting, make_report
from accelgen.scripts.bench_scenario import Draw, draw_requests, rate_of
from accelgen.scripts.bench_table import TITLES, table
from accelgen.scripts.bench_workload import (
    DEFAULT_VOCAB_SIZE,
    Part,
    Prompts,
    Request,
    Shape,
    WorkloadError,
    draw_shapes,
    find_trace,
    poisson_arrivals,
    read_trace,
    select,
    trace_arrivals,
)
from accelgen.scripts.chat_client import Client, Server, ServerError, find_url, make_server
from accelgen.scripts.chat_objective import Objective
from accelgen.scripts.chat_options import as_click
from accelgen.scripts.chat_stats import counted

DEFAULT_NUM_PROMPTS = 1000
READY_POLL_S = 0.5
SPARE_FILES = 64  # descriptors beside one per connection


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; names as its options."""

    url: str | None
    model: str | None
    api_key: str | None
    headers: tuple[tuple[str, str], ...]
    extra_body: dict[str, Any] | None
    ready_check_timeout_sec: float
    dataset_name: str | None
    num_prompts: int | None
    random_input_len: int
    random_output_len: int
    random_range_ratio: float
    random_prefix_len: int
    mix: tuple[Part, ...] | None
    trace: str | None
    trace_scale: float
    trace_length_scale: float
    scenario: str | None
    scenarios: Path | None
    scale: float
    slo_scale: float
    synthetic: bool
    profile_file: str | None
    max_model_len: int | None
    request_rate: float | None
    burstiness: float
    max_concurrency: int | None
    num_warmups: int
    ignore_eos: bool
    temperature: float
    vocab_size: int | None
    seed: int
    request_timeout: float
    slos: tuple[str, ...]
    classes: tuple[str, ...]
    goodput: Limits
    percentile_metrics: str
    metric_percentiles: tuple[float, ...]
    label: str
    metadata: tuple[tuple[str, str], ...]
    save_result: bool
    save_detailed: bool
    result_dir: str
    result_filename: str | None
    quiet: bool


def run_serve(options: Options) -> int:
    """The whole verb; its exit status: 1 if no request succeeded, 130 if it was interrupted."""
    sections = _sections(options.percentile_metrics)
    try:
        server = make_server(options.url or find_url(), options.api_key)
        model = _ask_model(server, options)
        requests = make_requests(options, model)
    except ServerError as error:
        raise as_click(error) from error
    except WorkloadError as error:  # what was asked for cannot be made
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from error
    _allow_files(min(len(requests), options.max_concurrency or len(requests)))
    setting = _setting(options, server, model["id"], requests, sections)
    run = _run(options, server, model, requests)
    report = make_report(setting, run)
    click.echo(table(report))
    if options.save_result or options.save_detailed:
        click.echo(f"result: {save(report, options)}", err=True)
    if run.not_sent or any(outcome.error == "interrupted" for outcome in run.outcomes):
        return 130
    return 0 if report.summary.completed else 1


def _ask_model(server: Server, options: Options) -> dict[str, Any]:
    """The entry of /v1/models for the model to measure, once the server answers. Raises ServerError."""
    until_s = now_s() + options.ready_check_timeout_sec
    while True:
        try:
            with Client(server) as client:
                models = client.models()
            break
        except ServerError:
            if now_s() >= until_s:
                raise
            time.sleep(READY_POLL_S)
    if options.model is None:
        return models[0]
    return next((one for one in models if one["id"] == options.model), {"id": options.model})


def make_requests(options: Options, model: dict[str, Any]) -> list[Request]:
    """Every request with its time, by the seed. Raises WorkloadError."""
    if options.dataset_name == "random" and options.trace is not None:
        raise WorkloadError("--trace: belongs to --dataset-name trace")
    if options.dataset_name == "trace" and options.trace is None:
        raise WorkloadError("--trace: name the file of the trace")
    if options.scenario is not None:
        return _scenario_requests(options, model)
    for name, neutral in (("scale", 1.0), ("slo_scale", 1.0), ("synthetic", False)):
        if getattr(options, name) != neutral:
            raise WorkloadError(f"--{name.replace('_', '-')}: belongs to --scenario")
    shapes = _trace_shapes(options, model) if options.trace else _random_shapes(options)
    if _arrivals(options, shapes) == "trace":
        arrivals = trace_arrivals(shapes, options.trace_scale)
    else:
        rate = math.inf if options.request_rate is None else options.request_rate
        arrivals = poisson_arrivals(len(shapes), rate, options.burstiness, options.seed)
    labels = sorted({shape.label for shape in shapes} | {part.label for part in options.mix or ()})
    objectives = parse_objectives(options.slos, options.classes, labels)
    return [
        Request(index, arrival_s, shape, objectives[shape.label])
        for index, (arrival_s, shape) in enumerate(zip(arrivals, shapes, strict=True))
    ]


def _scenario_requests(options: Options, model: dict[str, Any]) -> list[Request]:
    """Raises WorkloadError."""
    foreign = {
        "--trace": options.trace,
        "--mix": options.mix,
        "--slo": options.slos,
        "--dataset-name": options.dataset_name,
    }
    for name, given in foreign.items():
        if given:
            raise WorkloadError(f"{name}: a scenario has its own")
    if options.request_rate is not None and math.isinf(options.request_rate):
        raise WorkloadError("--request-rate: inf: a scenario's requests come at their times")
    requests, rate = draw_requests(_draw(options, model))
    calls = sum(request.calls for request in requests)
    click.echo(
        f"scenario {options.scenario}: {counted(calls, 'request')} at {rate:g}/s"
        + (f" in {counted(len(requests), 'session')}" if calls > len(requests) else ""),
        err=True,
    )
    classes = parse_objectives((), options.classes, sorted({r.shape.label for r in requests}))
    return [_of_class(request, classes) for request in requests]


def _of_class(request: Request, classes: Mapping[str, Objective]) -> Request:
    """The request, and those that follow it, with the class that --slo-class gives its label."""
    named = classes[request.shape.label].slo_class
    later = request.follow_up
    return replace(
        request,
        objective=replace(request.objective, slo_class=named),
        follow_up=None if later is None else _of_class(later, classes),
    )


def _draw(options: Options, model: dict[str, Any]) -> Draw:
    assert options.scenario is not None
    return Draw(
        options.scenario,
        options.scenarios,
        options.scale,
        options.slo_scale,
        options.request_rate,
        options.num_prompts,
        options.seed,
        options.synthetic,
        options.profile_file or "",
        _max_len(options, model),
    )


def _max_len(options: Options, model: dict[str, Any]) -> int | None:
    """Most tokens of prompt and answer; None if nobody says."""
    said = model.get("max_model_len")
    return options.max_model_len or (said if isinstance(said, int) else None)


def _arrivals(options: Options, shapes: Sequence[Shape]) -> str:
    """Where the times come from: a rate wins over the times of a trace."""
    if options.scenario is not None:
        return "scenario"
    if options.request_rate is None and all(shape.arrived_s is not None for shape in shapes):
        return "trace"
    if options.request_rate is None or math.isinf(options.request_rate):
        return "at once"
    return "poisson" if options.burstiness == 1 else "gamma"


def _random_shapes(options: Options) -> list[Shape]:
    one = Part("", 1.0, options.random_input_len, options.random_output_len)
    count = options.num_prompts or DEFAULT_NUM_PROMPTS
    return draw_shapes(options.mix or [one], count, options.random_range_ratio, options.seed)


def _trace_shapes(options: Options, model: dict[str, Any]) -> list[Shape]:
    assert options.trace is not None
    if options.mix:
        raise WorkloadError("--mix: a trace has lengths of its own")
    path = find_trace(options.trace)
    max_len = _max_len(options, model)
    rows = read_trace(path, options.trace_length_scale)
    shapes, too_long = select(rows, options.num_prompts, max_len)
    if too_long:
        click.echo(
            f"{path.name}: left out for being longer than {max_len} tokens: "
            f"{counted(too_long, 'row')}",
            err=True,
        )
    if not shapes:
        raise WorkloadError(f"{path}: no row can be sent")
    return shapes


def _run(options: Options, server: Server, model: dict[str, Any], requests: list[Request]) -> Run:
    said = model.get("vocab_size")
    vocab_size = options.vocab_size or (said if isinstance(said, int) and said > 1 else None)
    prompts = Prompts(options.seed, vocab_size or DEFAULT_VOCAB_SIZE, options.random_prefix_len)
    target = Target(
        url=server.url,
        model=model["id"],
        headers={**server.headers(), **dict(options.headers)},
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
        seed=options.seed,
        timeout_s=options.request_timeout,
        max_concurrency=options.max_concurrency,
        extra=options.extra_body or {},
    )
    warmups = [
        Request(-1 - index, 0.0, requests[index % len(requests)].shape)
        for index in range(options.num_warmups)
    ]
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        refresh_per_second=2,  # each refresh takes time from the streams
        disable=options.quiet or not sys.stderr.isatty(),
    )
    with progress:
        total = sum(request.calls for request in requests)
        bar = progress.add_task("requests", total=total)

        def on_outcome(outcome: Outcome) -> None:
            progress.advance(bar)

        try:
            run: Run = uvloop.run(run_load(requests, warmups, target, prompts, on_outcome))
        except HttpError as error:
            raise click.ClickException(str(error)) from error
    return run


def _allow_files(connections: int) -> None:
    """Raises the limit of open files so that every connection can have one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + SPARE_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in TITLES:
            hint = "--percentile-metrics"
            raise click.BadParameter(f"{name!r} is not one of {', '.join(TITLES)}", param_hint=hint)
    return names


def _setting(
    options: Options,
    server: Server,
    model: str,
    requests: Sequence[Request],
    sections: tuple[str, ...],
) -> Setting:
    rate = options.request_rate
    if options.scenario is not None:
        rate = rate_of(options.scenario, options.scenarios, rate)
    return Setting(
        date=datetime.now().strftime("%Y%m%d-%H%M%S"),
        label=options.label,
        url=server.url,
        model=model,
        dataset=options.scenario or options.trace or ("mix" if options.mix else "random"),
        num_prompts=sum(request.calls for request in requests),
        arrivals=_arrivals(options, [request.shape for request in requests]),
        request_rate=math.inf if rate is None else rate,
        burstiness=options.burstiness,
        max_concurrency=options.max_concurrency,
        seed=options.seed,
        goodput=options.goodput,
        percentiles=options.metric_percentiles,
        sections=sections,
        metadata=dict(options.metadata),
    )


def save(report: Report, options: Options) -> Path:
    """Writes the JSON result; its path."""
    setting = report.setting
    model = re.sub(r"[^A-Za-z0-9._-]+", "-", setting.model.rpartition("/")[2])
    rate = "trace" if setting.arrivals == "trace" else f"{setting.request_rate:g}qps"
    name = options.result_filename or f"accelgen-{rate}-{model}-{setting.date}.json"
    path = Path(options.result_dir) / name
    try:
        os.makedirs(path.parent, exist_ok=True)
        path.write_text(dump(as_json(report, options.save_detailed)))
    except OSError as error:
        raise click.ClickException(
            f"--result-dir: cannot write {path}: {error.strerror}"
        ) from error
    return path
