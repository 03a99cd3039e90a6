"""What `accelgen sim` is asked: options that its verbs share, and the scenario they amount to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from accelgen.proto.policies import known_policies
from accelgen.scripts.sim_params import (
    ListParam,
    MemoryParam,
    PolicyParam,
    RoutingParam,
    SloParam,
    memory_params,
)
from accelgen.simulator.groups import words_of
from accelgen.simulator.mix import own_rate, stand_in_of
from accelgen.simulator.scenarios import (
    SYNTHETIC,
    Goal,
    Part,
    Scenario,
    ScenarioError,
    find_scenario,
    make_scenario,
)
from accelgen.simulator.settings import Policy
from accelgen.simulator.synthetic import STAND_INS
from accelgen.simulator.traces import find_trace, read_trace

F = TypeVar("F", bound=Callable[..., Any])

_OVERRIDES = (
    "model", "hardware", "kv_gb", "kv_blocks", "block_size", "host_ms", "profile_file", "replicas", "tensor_parallel",
    "max_num_seqs", "max_num_batched_tokens", "pipeline_depth", "preemption", "swap_gb_s", "memory", "routing",
    "acceptance", "max_draft_tokens", "draft_ms",
    "arrivals", "cv", "max_tokens", "cut_tokens", "rule",
)  # fmt: skip
RATE = click.FloatRange(0, 1e6, min_open=True)
_NATURAL = click.IntRange(0, 2**62)
_COUNT = click.IntRange(1, 2**31)

_WORKLOAD = (
    click.option("--scenario", show_default="accelgen, unless --trace is given", help="Frozen workload; `sim list`."),
    click.option("--scenarios", "file", type=click.Path(dir_okay=False, path_type=Path), show_default="the project's",
                 help="TOML file of scenarios."),
    click.option("--trace", metavar="NAME|FILE",
                 help="A trace instead: file, name in ACCELGEN_TRACES, or synthetic:NAME."),
    click.option("--slo", type=SloParam(), metavar="ttft=MS,tpot=MS,e2e=MS", show_default="ttft=1000,tpot=100",
                 help="Objectives, with --trace."),
    click.option("--model", show_default="the scenario's, else llama-3-8b", help="Fitted model."),
    click.option("--hardware", show_default="the scenario's, else a100", help="Device that it is fitted on."),
    click.option("--profile-file", help="This device instead: samples of `accelgen profile`."),
    click.option("--kv-gb", type=click.FloatRange(0), help="KV cache of a device in GB."),
    click.option("--kv-blocks", type=_NATURAL, help="KV cache in blocks."),
    click.option("--block-size", type=_COUNT, help="Tokens per block."),
    click.option("--host-ms", type=click.FloatRange(0), help="Time of the host in each iteration."),
    click.option("--replicas", type=click.IntRange(1, 64), help="Devices that each serve whole requests."),
    click.option("--tensor-parallel", type=click.IntRange(1, 64), help="Devices that each replica is spread over."),
    click.option("--max-num-seqs", type=_COUNT, help="Most requests in one iteration."),
    click.option("--max-num-batched-tokens", type=_COUNT, help="Most tokens in one iteration."),
    click.option("--pipeline-depth", type=click.IntRange(0, 1), help="Plans made ahead."),
    click.option("--preemption", type=click.Choice(["recompute", "swap"]), help="What becomes of a victim's KV."),
    click.option("--swap-gb-s", type=RATE, help="To the host and back."),
    click.option("--acceptance", type=click.FloatRange(0, 1), show_default="no drafter",
                 help="A drafter of which a token, those before it being right, is accepted with this probability."),
    click.option("--max-draft-tokens", type=click.IntRange(1, 64), help="Most drafted for a request in one iteration."),
    click.option("--draft-ms", type=click.FloatRange(0), help="The drafter's time per token of the longest draft."),
    click.option("--memory", type=MemoryParam(), metavar="NAME", show_default="the policy's own",
                 help="Memory policy beside every policy."),
    click.option("--memory-param", "memory_params", multiple=True, metavar="K=V",
                 help="Parameter of that of --memory, else of the one that every policy brings along."),
    click.option("--routing", type=RoutingParam(), metavar="NAME[:K=V...]", show_default="planned",
                 help="Which of the replicas a request goes to."),
    click.option("--arrivals", type=click.Choice(["poisson", "gamma", "trace", "thinned"]),
                 help="Arrival process; trace: the times of the trace, scaled."),
    click.option("--cv", type=RATE, help="Of the gaps, with --arrivals gamma."),
    click.option("--max-tokens", type=_COUNT, help="What clients ask for; outputs are cut to it."),
    click.option("--cut-tokens", type=_NATURAL, help="Most of prompt + max_tokens; prompts are cut. 0: the KV cache."),
    click.option("--rule", type=click.Choice(["every_gap", "cumulative_deadline", "request_mean"]),
                 help="Rule of goodput and capacity."),
    click.option("--requests", type=_COUNT, help="Requests sent."),
    click.option("--seeds", type=ListParam(click.IntRange(0, 2**31)), metavar="N,...",
                 show_default="the scenario's; sim run: the first of them", help="One run for each."),
    click.option("--half", type=click.Choice(["tune", "report", "all"]), help="Part of a trace."),
)  # fmt: skip
_RESULTS = (
    click.option("--synthetic", is_flag=True, help="Stand-ins with published statistics in place of traces."),
    click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("sim-results"),
                 show_default=True, help="Folder of results; what is there is not run again."),
    click.option("--anew", is_flag=True, help="Run again what is there already."),
    click.option("--quiet", is_flag=True, help="No progress."),
)  # fmt: skip


def workload_options(command: F) -> F:
    """The options that say what is simulated, and where results go."""
    for option in reversed((*_WORKLOAD, *_RESULTS)):
        command = option(command)
    return command


def results_options(command: F) -> F:
    """Where results go, and what need not be there."""
    for option in reversed(_RESULTS):
        command = option(command)
    return command


def policies_option(command: F) -> F:
    return click.option(
        "--policies", type=ListParam(PolicyParam()), default=known_policies, metavar="P,...",
        show_default="all installed", help="Policies; NAME:key=value sets parameters.",
    )(command)  # fmt: skip


def rate_option(command: F) -> F:
    return click.option(
        "--rate", type=RATE, show_default="the middle one of the scenario", help="Requests/s."
    )(command)


def jobs_option(command: F) -> F:
    return click.option(
        "--jobs", type=click.IntRange(1, 1024), show_default="cores", help="Simulations at a time."
    )(command)


def pick_scenario(given: dict[str, Any], policies: Sequence[Policy]) -> tuple[str, Scenario]:
    """Its name, and the scenario with what the options change, for `policies`. Raises ScenarioError, TraceError,
    UsageError."""
    trace, slo = given["trace"], given["slo"]
    if trace is None:
        if slo is not None:
            raise click.UsageError("--slo belongs to --trace; a scenario has its own objectives")
        name = given["scenario"] or "accelgen"
        scenario = find_scenario(name, given["file"])
    else:
        if given["scenario"] is not None:
            raise click.UsageError("either --trace or --scenario")
        name, scenario = _of_trace(trace, slo)
    changed = {key: given[key] for key in _OVERRIDES if given[key] is not None}
    if given["memory_params"]:
        memory = given["memory"] or scenario.memory
        chosen = memory_params(memory, given["memory_params"], policies)
        changed["memory"], changed["memory_params"] = chosen
    elif given["memory"] is not None:
        changed["memory_params"] = {}  # those of the scenario are of another one
    if given["half"] is not None:
        changed["part_of_trace"] = given["half"]
    if given["requests"] is not None:
        changed["requests"] = given["requests"]
    if given["seeds"] is not None:
        changed["seeds"] = given["seeds"]
    if changed.get("arrivals") in ("poisson", "gamma"):  # nobody's times are used
        changed |= {"arrivals_of": "", "slice_s": None}
    if changed:
        fields = {**msgspec.structs.asdict(scenario), **changed}
        scenario = make_scenario(msgspec.to_builtins(fields))
    return name, scenario


def _of_trace(trace: str, slo: dict[str, Goal] | None) -> tuple[str, Scenario]:
    """A scenario of one trace, all requests of one class, at the trace's own rate or one request per second."""
    goals = slo if slo is not None else {"ttft": Goal(base_s=1.0), "tpot": Goal(base_s=0.1)}
    name = trace.removeprefix(SYNTHETIC)
    if name != trace:
        if name not in STAND_INS:
            raise ScenarioError(f"there is no {trace!r}; there is {', '.join(sorted(STAND_INS))}")
        rate, requests = STAND_INS[name].rate, 1000
    else:
        path = find_trace(trace)
        rows = read_trace(path)
        rate = own_rate(rows) if rows.at_s is not None else 0.0
        requests = len(rows) if rate else min(1000, len(rows))
        name = rows.name
    scenario = Scenario(
        about=f"{trace}, one class",
        model="llama-3-8b",
        hardware="a100",
        parts=[Part("standard", trace, **goals)],  # type: ignore[arg-type]
        rates=[rate or 1.0],
        seeds=[0],
        requests=requests,
        arrivals="trace" if rate else "poisson",
        max_num_batched_tokens=16384,
    )
    return name, scenario


def label(policy: Policy) -> str:
    """As it is written on the command line; what a search has found is called that."""
    return words_of(*policy)


def title_of(name: str, scenario: Scenario) -> str:
    """What is simulated, in a line."""
    spread = f"{scenario.tensor_parallel} x " if scenario.tensor_parallel > 1 else ""
    where = scenario.profile_file or f"{scenario.model} on {spread}{scenario.hardware}"
    size = f"{scenario.replicas} x " if scenario.replicas > 1 else ""
    beside = (
        f", memory {words_of(scenario.memory, scenario.memory_params)}" if scenario.memory else ""
    )
    to = f", routing {scenario.routing}" if scenario.routing else ""
    return f"{name}: {scenario.about}; {size}{where}, {scenario.requests} requests{beside}{to}"


def requests_of(scenario: Scenario, stand_ins: bool) -> str:
    """Whose lengths and arrivals the requests have: those of traces, or of what stands in for them."""
    timed = [scenario.timed_by] if scenario.timed_by else []
    lengths = dict.fromkeys(part.source for part in scenario.parts)
    kind = f"{scenario.arrivals} arrivals" + (" of " if timed else "")
    return f"lengths of {_listed(lengths, stand_ins)}; {kind}{_listed(timed, stand_ins)}"


def _listed(sources: Iterable[str], stand_ins: bool) -> str:
    made = {source: stand_in_of(source, stand_ins) for source in sources}
    real = [source for source, stand_in in made.items() if stand_in is None]
    other = [stand_in for stand_in in made.values() if stand_in is not None]
    kind = "synthetic stand-ins" if len(other) > 1 else "a synthetic stand-in"
    words = f"{kind} for {', '.join(other)}"
    return " and ".join([*([", ".join(real)] if real else []), *([words] if other else [])])


def asked_of(scenario: Scenario, stand_ins: bool, rate: float | None = None) -> str:
    """What a table is about, below its title: rate (None: in the table itself), seeds, and whose requests these are."""
    at = "" if rate is None else f"{rate:g} requests/s; "
    plural = "s" if len(scenario.seeds) > 1 else ""
    seeds = f"seed{plural} {', '.join(map(str, scenario.seeds))}"
    return f"{at}{seeds}; {requests_of(scenario, stand_ins)}"
