"""`accelgen up`: every field of the configuration is an option; a TOML file holds what the command line does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.proto.config import Config, ConfigError, make_config
from accelgen.proto.policies import known_memories, known_policies, known_routings
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.launch import serve

HELP = {
    "model": "Folder or hub name of the model; the bundled demo model if not given.",
    "served_model_name": "Name of the model in the API; the last part of --model if not given.",
    "dtype": "auto (as stored), float32, bfloat16 or float16.",
    "device": "auto, cpu or cuda.",
    "max_model_len": "Longest prompt + answer in tokens; 0: what the model allows.",
    "seed": "Seed of requests that state none.",
    "think_tokens": "Tokens that end a reasoning model's thinking, by commas; </think> and the like if not given.",
    "kv_blocks": "Blocks of the KV cache; 0: from free memory.",
    "block_size": "Tokens of a KV block.",
    "gpu_memory_utilization": "Part of the device's memory that may be used.",
    "kv_memory_bytes": "Upper bound of the KV cache; 0: automatic.",
    "prefix_caching": "Reuse the KV of common prompt beginnings.",
    "preemption": "What becomes of a victim's KV: recompute (dropped) or swap (kept in the host's memory).",
    "swap_gb": "Host memory of each replica for swapped KV in GB, with --preemption swap.",
    "drafter": "Speculative decoding: folder or hub name of a smaller model with the same vocabulary, or ngram.",
    "max_draft_tokens": "Most tokens drafted for a request in one iteration.",
    "draft_tokens": "How many are drafted: adaptive (by acceptance and load) or fixed (always the most).",
    "draft_sampling": "How a drafter model draws: coupled (the same tokens as without it) or rejection.",
    "host": "Address to listen on.",
    "port": "Port to listen on; 0: any free one.",
    "frontends": "Number of HTTP processes.",
    "api_key_file": "File with one API key per line; without it no key is needed.",
    "admin_key_file": "File with one admin key per line; without it there are no admin routes.",
    "max_body_bytes": "Largest accepted request body.",
    "max_choices": "Largest accepted `n`.",
    "policy": "Scheduling policy: {policies}.",
    "memory": "Memory policy beside it: {memories}; the policy's own if not given.",
    "routing": "Which replica a request goes to: {routings}, parameters as NAME:key=value; planned if not given.",
    "replicas": "Number of copies of the model, each with KV manager and worker.",
    "pipeline_depth": "Plans made ahead of the worker: 0 or 1.",
    "max_num_seqs": "Most requests in one iteration.",
    "max_num_batched_tokens": "Most tokens in one iteration.",
    "max_step_s": "Longest iteration that may be planned, in seconds.",
    "max_replays": "Times that a request is computed again because a worker died.",
    "max_queued_requests": "Requests that may wait before new ones get 429.",
    "max_queued_tokens": "Prompt tokens that may wait before new requests get 429.",
    "profile_file": "Measured cost model; the one of `accelgen profile` if not given.",
    "default_class": "Class of requests that name none.",
    "run_dir": "Private folder for sockets and logs; a fresh one if not given.",
    "shutdown_timeout_s": "Seconds that running requests get to finish at the end.",
    "log_level": "debug, info, warning or error.",
    "recorder_events": "Last events that each process remembers for `accelgen trace`; 0: none.",
    "recorder_bytes": "Most memory of a process for them; 0: none.",
}
"""Every field of Config but `policy_params` (--policy-param), `memory_params` (--memory-param) and `slo_classes` (file
only)."""

_TYPES: dict[type, Any] = {int: int, float: float, bool: bool, str: str}


def options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command one option per field of Config that has a line in HELP."""
    defaults = Config()
    kinds = {"policies": known_policies, "memories": known_memories, "routings": known_routings}
    lists = {kind: ", ".join(names()) for kind, names in kinds.items()}
    for name in reversed(HELP):
        default = getattr(defaults, name)
        words = HELP[name].format(**lists)
        option = "--" + name.replace("_", "-")
        names = [name, f"{option}/--no-{option[2:]}" if isinstance(default, bool) else option]
        if name.endswith("_s"):
            names.append(option.removesuffix("-s"))
        shown = f"  [default: {_shown(default)}]" if default != "" else ""
        add = click.option(*names, type=_TYPES[type(default)], default=None, help=words + shown)
        function = add(function)
    return function


def _shown(default: Any) -> str:
    return (
        "on" if default is True else f"{default:g}" if isinstance(default, float) else str(default)
    )


def parse_params(given: tuple[str, ...], option: str = "--policy-param") -> dict[str, Any]:
    """`k=v` options as a table; a value is a number or true/false where it looks like one, else text."""
    params: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{text!r} is not of the form name=value", param_hint=option)
        try:
            params[name] = msgspec.json.decode(value, type=float | int | bool | str)
        except msgspec.DecodeError:
            params[name] = value
    return params


@click.command(name="up")
@options
@click.option(
    "--policy-param",
    multiple=True,
    metavar="NAME=VALUE",
    help="Parameter of the policy; repeatable. A wrong name lists those there are.",
)
@click.option(
    "--memory-param",
    multiple=True,
    metavar="NAME=VALUE",
    help="Parameter of the memory policy of --memory, else of the policy's own; repeatable.",
)
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="TOML file with these settings, and [slo_classes.NAME].",
)
@click.option("--detach", is_flag=True, help="Return when the server is ready; it goes on.")
def command(
    policy_param: tuple[str, ...],
    memory_param: tuple[str, ...],
    file: Path | None,
    detach: bool,
    **given: Any,
) -> int:
    """Start a server: all its processes, and the model.

    What an option says goes before what the file of --config says."""
    overrides = {name: value for name, value in given.items() if value is not None}
    if policy_param:
        overrides["policy_params"] = parse_params(policy_param)
    if memory_param:
        overrides["memory_params"] = parse_params(memory_param, "--memory-param")
    try:
        return serve(make_config(file, overrides), detach)
    except ConfigError as error:
        raise BadSetting(as_option(str(error), overrides)) from error
    except StartError as error:
        kind = BadSetting if error.status == 2 else click.ClickException
        raise kind(str(error)) from error


def as_option(line: str, overrides: dict[str, Any]) -> str:
    """A line about a field, in the words of the option that set it: `--port: expected int <= 65535, ...`."""
    field, colon, rest = line.partition(":")
    option = field.replace("_", "-")
    if option in ("policy-params", "memory-params"):  # stated one by one
        option = option.removesuffix("s")
    return f"--{option}{colon}{rest}" if field in overrides else line


class BadSetting(click.ClickException):
    """One line about a setting that cannot be."""

    exit_code = 2
