"""`accelgen bench`: measure a running server. Options that mean the same as in vLLM's `bench serve` have its names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from accelgen.scripts.bench_params import (
    MixParam,
    NumbersParam,
    ObjectParam,
    PairParam,
    RateParam,
)

COUNT = click.IntRange(1, 10_000_000)
NATURAL = click.IntRange(0, 10_000_000)
SCALE = click.FloatRange(0, 1e9, min_open=True)


@click.group(name="bench")
def command() -> None:
    """Measure a running server."""


@command.command("serve", context_settings={"show_default": True})
@click.option(
    "--base-url",
    "--url",
    "url",
    envvar="ACCELGEN_URL",
    show_default="the one running here, else http://127.0.0.1:8000",
    help="Server.",
)
@click.option("--model", show_default="the server's first", help="Model.")
@click.option(
    "--api-key",
    envvar=["ACCELGEN_API_KEY", "OPENAI_API_KEY"],
    show_default="none",
    help="Key; better given in ACCELGEN_API_KEY.",
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    type=PairParam(),
    metavar="K=V",
    help="Header; repeatable.",
)
@click.option(
    "--extra-body", type=ObjectParam(), metavar="JSON", help="Fields added to every request."
)
@click.option(
    "--ready-check-timeout-sec",
    type=click.FloatRange(0),
    default=0.0,
    help="Wait so long for the server.",
)
@click.option(
    "--dataset-name",
    type=click.Choice(["random", "trace"]),
    show_default="trace with --trace, else random",
    help="Where lengths come from.",
)
@click.option(
    "--num-prompts",
    type=COUNT,
    show_default="1000; of a trace or scenario: all",
    help="Requests to send; of sessions, how many.",
)
@click.option("--random-input-len", type=COUNT, default=1024, help="Tokens in.")
@click.option("--random-output-len", type=COUNT, default=128, help="Tokens out.")
@click.option(
    "--random-range-ratio",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Lengths vary by this part.",
)
@click.option(
    "--random-prefix-len", type=NATURAL, default=0, help="Leading tokens that all prompts share."
)
@click.option(
    "--mix",
    type=MixParam(),
    metavar="MIX",
    help="label=share:in:out,...: short=0.65:64:128,long=0.35:2048:64",
)
@click.option(
    "--trace",
    metavar="FILE",
    help="CSV(.gz): prompt_tokens, output_tokens, arrived_at (s); or its name in ACCELGEN_TRACES.",
)
@click.option(
    "--trace-scale", type=SCALE, default=1.0, help="Replay the trace this many times as fast."
)
@click.option(
    "--trace-length-scale", type=SCALE, default=1.0, help="Multiply the trace's lengths by this."
)
@click.option(
    "--scenario",
    metavar="NAME",
    help="The requests of a scenario of `accelgen sim list`, its objectives, stages and sessions included.",
)
@click.option(
    "--scenarios",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="the project's",
    help="TOML file of scenarios.",
)
@click.option(
    "--scale", type=SCALE, default=1.0, help="Multiply the scenario's lengths, for small machines."
)
@click.option("--slo-scale", type=SCALE, default=1.0, help="Multiply the scenario's objectives.")
@click.option("--synthetic", is_flag=True, help="Stand-ins in place of the scenario's traces.")
@click.option(
    "--profile-file",
    type=click.Path(dir_okay=False),
    show_default="the scenario's device",
    help="Of `accelgen profile`: TTFT objectives that are multiples of a prompt's time alone.",
)
@click.option(
    "--max-model-len",
    type=COUNT,
    show_default="what the server says",
    help="Pass over longer rows of a trace; cut a scenario's.",
)
@click.option(
    "--request-rate",
    type=RateParam(),
    default=None,
    show_default="inf; of a trace: its own times; of a scenario: its middle one",
    help="Requests per second, or inf: all at once.",
)
@click.option(
    "--burstiness",
    type=SCALE,
    default=1.0,
    help="1: Poisson arrivals; below: burstier.",
)
@click.option(
    "--max-concurrency",
    type=COUNT,
    show_default="no limit",
    help="Hold requests back beyond so many at a time.",
)
@click.option("--num-warmups", type=NATURAL, default=0, help="Requests sent before, not measured.")
@click.option(
    "--ignore-eos/--no-ignore-eos",
    default=True,
    help="Generate exactly the tokens asked for.",
)
@click.option(
    "--temperature", type=click.FloatRange(0, 2), default=0.0, help="0 takes the likeliest token."
)
@click.option(
    "--vocab-size",
    type=click.IntRange(2, 2**31),
    show_default="what the server says, else 1000",
    help="Prompts are random ids below this.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    help="Same seed, same requests at the same times.",
)
@click.option(
    "--request-timeout", type=SCALE, default=600.0, help="Seconds until a request counts as failed."
)
@click.option(
    "--slo",
    "slos",
    multiple=True,
    metavar="[LABEL:]OBJECTIVE",
    show_default="none stated",
    help="Sent with requests: ttft=300,tpot=40,e2e=9000 (ms).",
)
@click.option(
    "--slo-class",
    "classes",
    multiple=True,
    metavar="[LABEL:]CLASS",
    show_default="the server's default class",
    help="Class sent with requests.",
)
@click.option(
    "--goodput",
    multiple=True,
    metavar="ttft:MS tpot:MS e2el:MS",
    show_default="what the requests state",
    help="Count a request as good within these; not sent.",
)
@click.option(
    "--percentile-metrics",
    default="ttft,tpot,itl,e2el",
    help="Sections of the table.",
)
@click.option(
    "--metric-percentiles",
    type=NumbersParam(),
    default="99",
    help="For example 50,90,99.",
)
@click.option("--label", default="", show_default="none", help="Name of this run in the result.")
@click.option(
    "--metadata",
    multiple=True,
    type=PairParam(),
    metavar="K=V",
    help="Kept in the result; repeatable.",
)
@click.option("--save-result", is_flag=True, help="Write the result as JSON.")
@click.option(
    "--save-detailed", is_flag=True, help="And the times of every token of every request."
)
@click.option(
    "--result-dir", type=click.Path(file_okay=False), default=".", help="Where to write it."
)
@click.option(
    "--result-filename", show_default="from rate, model and date", help="Name of the file."
)
@click.option("--disable-tqdm", "quiet", is_flag=True, help="No progress bar.")
@click.argument("more_goodput", nargs=-1, metavar="")
def serve(goodput: tuple[str, ...], more_goodput: tuple[str, ...], **given: Any) -> None:
    """Send requests to a server at their times, whether or not it keeps up, and report how it answered.

    Requests are token ids of exact length to /v1/completions. Without --request-rate all are sent at once; a trace with
    arrival times is replayed. Attainment is judged by three rules and divided by the requests sent."""
    from accelgen.scripts.bench_params import parse_goodput
    from accelgen.scripts.bench_serve import Options, run_serve

    if more_goodput and not goodput:
        raise click.UsageError(f"unexpected argument: {more_goodput[0]}")
    limits = parse_goodput((*goodput, *more_goodput))
    click.get_current_context().exit(run_serve(Options(goodput=limits, **given)))
