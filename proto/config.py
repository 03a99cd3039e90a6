"""The server's configuration: one typed tree, read from TOML and the command line, checked once, by everyone."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field

from accelgen.proto.stages import PARTS, STAGES
from accelgen.proto.validation import find_misfit

Positive = Annotated[int, Meta(ge=1, le=2**62)]
Natural = Annotated[int, Meta(ge=0, le=2**62)]
Milliseconds = Annotated[float, Meta(gt=0, le=86_400_000)]

T = TypeVar("T")

NGRAM = "ngram"  # the drafter that is no model


class ConfigError(ValueError):
    """A setting that cannot be; the text names the field and the limit."""


class StageGoals(Struct, frozen=True, forbid_unknown_fields=True):
    """Objectives of one stage in milliseconds, None for those of the class. Thinking and response are parts of one
    answer, which has one first token: they have no `ttft_ms`."""

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None


class SloClass(Struct, frozen=True, forbid_unknown_fields=True):
    """A named class of service. Objectives in milliseconds, None for none; a request may state its own numbers
    inside `bounds_ms`. `max_queue_ms` is how long a request may wait before its first token is planned. `on_overload`:
    what becomes of one whose objectives the policy cannot promise, `best_effort` or `refuse`. `stages`: by name
    (thinking, response, tool, answer), where a stage has others."""

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None
    e2e_ms: Milliseconds | None = None
    bounds_ms: tuple[Milliseconds, Milliseconds] = (1.0, 3_600_000.0)
    max_queue_ms: Milliseconds = 600_000.0
    on_overload: Literal["best_effort", "refuse"] = "best_effort"
    stages: dict[str, StageGoals] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.bounds_ms
        if low > high:
            raise ValueError(
                f"bounds_ms: the lower bound {low:g} is above the upper bound {high:g}"
            )
        for name in ("ttft_ms", "tpot_ms", "e2e_ms"):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name}: {value:g} is outside bounds_ms {low:g} to {high:g}")
        for stage, goals in self.stages.items():
            self._check_stage(stage, goals)

    def _check_stage(self, stage: str, goals: StageGoals) -> None:
        low, high = self.bounds_ms
        if stage not in STAGES:
            raise ValueError(f"stages: there is no {stage!r}, only {', '.join(STAGES)}")
        if stage in PARTS and goals.ttft_ms is not None:
            raise ValueError(f"stages.{stage}.ttft_ms: an answer has one first token, ttft_ms")
        for name in ("ttft_ms", "tpot_ms"):
            value = getattr(goals, name)
            if value is not None and not low <= value <= high:
                raise ValueError(
                    f"stages.{stage}.{name}: {value:g} is outside bounds_ms {low:g} to {high:g}"
                )


def default_classes() -> dict[str, SloClass]:
    """chat: interactive; standard: what a request gets that says nothing; batch: finished some time."""
    return {
        "chat": SloClass(ttft_ms=1000, tpot_ms=100, max_queue_ms=30_000),
        "standard": SloClass(ttft_ms=5000, tpot_ms=250, max_queue_ms=120_000),
        "batch": SloClass(e2e_ms=600_000, max_queue_ms=600_000),
    }


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All settings. Field names are the option names of `accelgen up` (`max_model_len` is `--max-model-len`)."""

    # model
    model: str = ""  # a folder or hub name; "" is the bundled demo model
    served_model_name: str = ""  # "" is the model's last path component
    dtype: str = "auto"  # auto, float32, bfloat16, float16
    device: str = "auto"  # auto, cpu, cuda
    max_model_len: Natural = 0  # 0: what the model allows
    seed: Natural = 0
    think_tokens: str = ""  # texts that end thinking, by commas; "": the usual ones; "none"

    # KV cache
    kv_blocks: Natural = 0  # 0: from free memory
    block_size: Positive = 16  # tokens
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    kv_memory_bytes: Natural = 0  # 0: automatic; an upper bound for the KV cache otherwise
    prefix_caching: bool = True
    preemption: str = "recompute"  # what becomes of a victim's KV: recompute, swap
    swap_gb: Annotated[float, Meta(ge=0, le=1e6)] = 4.0  # host memory of each replica, with swap

    # speculative decoding
    drafter: str = ""  # a folder or hub name of a smaller model, or "ngram"; "": none
    max_draft_tokens: Annotated[int, Meta(ge=1, le=64)] = 4  # per request and iteration
    draft_tokens: str = "adaptive"  # how many are drafted: adaptive, fixed (always the most)
    draft_sampling: str = "coupled"  # of a drafter model: coupled, rejection

    # HTTP
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000  # 0: any free port
    frontends: Annotated[int, Meta(ge=1, le=64)] = 1
    api_key_file: str = ""  # one key per line; "" needs no key
    admin_key_file: str = ""  # likewise, for /admin; "" has no such routes
    max_body_bytes: Positive = 8 * 1024 * 1024
    max_choices: Positive = 64  # limit of `n`

    # scheduling
    policy: str = "accelgen-plus"
    policy_params: dict[str, float | int | str | bool] = field(default_factory=dict)
    memory: str = ""  # memory policy; "" is the policy's own, of most of them on-demand
    memory_params: dict[str, float | int | str | bool] = field(default_factory=dict)
    routing: str = ""  # NAME or NAME:key=value:...; "" leaves the choice of replicas to the policy
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    pipeline_depth: Annotated[int, Meta(ge=0, le=1)] = 1
    max_num_seqs: Positive = 256
    max_num_batched_tokens: Positive = 8192
    max_step_s: Annotated[float, Meta(gt=0)] = 10.0
    max_replays: Natural = 3  # workers that may die under a request before it is given up
    max_queued_requests: Positive = 4096
    max_queued_tokens: Positive = 4_000_000
    profile_file: str = ""  # measured cost model; "" is the cached one, else a rough fit at start
    slo_classes: dict[str, SloClass] = field(default_factory=default_classes)
    default_class: str = "standard"

    # operation
    run_dir: str = ""  # "" is a fresh private folder
    shutdown_timeout_s: Annotated[float, Meta(ge=0)] = 5.0
    log_level: str = "info"
    recorder_events: Natural = 50_000  # last events that each process remembers; 0: none
    recorder_bytes: Natural = 16 * 1024 * 1024  # and at most so much memory for them

    def __post_init__(self) -> None:
        if self.default_class not in self.slo_classes:
            raise ValueError(
                f"default_class: {self.default_class!r} is not in slo_classes"
                f" {', '.join(sorted(self.slo_classes))}"
            )
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
        if self.preemption == "swap" and not self.swap_gb:
            raise ValueError(
                "swap_gb: 0 GB of host memory leave no room for what preemption 'swap' is to keep;"
                " state more than 0, or preemption 'recompute'"
            )


_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda"),
    "preemption": ("recompute", "swap"),
    "draft_tokens": ("adaptive", "fixed"),
    "draft_sampling": ("coupled", "rejection"),
    "log_level": ("debug", "info", "warning", "error"),
}


def make_config(file: Path | None, overrides: dict[str, Any]) -> Config:
    """Configuration from a TOML file (or none) with `overrides` (command-line options) on top. Classes of the file
    are added to the built-in ones; one with a built-in name overrides the fields it states.

    Raises ConfigError that names the field and the limit, and the file if it is the file's; also for what has no effect
    as it is stated, unless the command line overrides what a file states it for."""
    settings: dict[str, Any] = {}
    if file is not None:
        try:
            settings = _read(file)
            _convert(settings, Config)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    config = _convert({**settings, **overrides}, Config)
    for name, (needed, fault_of) in _NEEDS.items():
        stated = name in overrides or (name in settings and needed not in overrides)
        if stated and (fault := fault_of(config)):
            where = "" if name in overrides else f"{file}: "
            raise ConfigError(f"{where}{name}: {getattr(config, name)!r} has no effect {fault}")
    return config


def _swap_fault(config: Config) -> str:
    return "" if config.preemption == "swap" else "without preemption 'swap'"


def _draft_fault(config: Config) -> str:
    return "" if config.drafter else "without a drafter"


def _sampling_fault(config: Config) -> str:
    if config.drafter == NGRAM and config.draft_sampling == "rejection":
        return f"with drafter {NGRAM!r}, which finds tokens and draws none"
    return _draft_fault(config)


_NEEDS: dict[str, tuple[str, Callable[[Config], str]]] = {
    "swap_gb": ("preemption", _swap_fault),
    "max_draft_tokens": ("drafter", _draft_fault),
    "draft_tokens": ("drafter", _draft_fault),
    "draft_sampling": ("drafter", _sampling_fault),
}
"""Settings that need another one: which, and why they have no effect, "" if they have."""


def _read(file: Path) -> dict[str, Any]:
    """The settings of a TOML file, its classes merged with the built-in ones."""
    try:
        settings = tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"not a text file (byte {error.start} is not UTF-8)") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    if "slo_classes" in settings:
        settings["slo_classes"] = _merge_classes(settings["slo_classes"])
    for params in ("policy_params", "memory_params"):
        for name, value in _table(settings.get(params, {}), params).items():
            if not isinstance(value, float | int | str | bool):
                raise ConfigError(
                    f"{params}.{name}: expected a number, a text or true/false, got {value!r}"
                )
    return settings


def _merge_classes(stated: Any) -> dict[str, SloClass]:
    classes = default_classes()
    for name, fields in _table(stated, "slo_classes").items():
        at = f"slo_classes.{name}"
        known = msgspec.structs.asdict(classes.get(name, SloClass()))
        try:
            classes[name] = _convert({**known, **_table(fields, at)}, SloClass, at)
        except ConfigError as error:
            culprit = str(error).removeprefix(f"{at}.").partition(":")[0]
            if culprit in known and culprit not in fields:
                hint = f"{error} ({culprit} is the built-in one; state another)"
                raise ConfigError(hint) from error
            raise
    return classes


def _table(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{at}: expected a table, got {value!r}")
    return value


def _convert(value: Any, kind: type[T], at: str = "") -> T:
    """`value` as a `kind`. Raises ConfigError with the field first; `at` is where the value itself stands."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(find_misfit(error, value, kind).below(at)) from error


def save_config(config: Config, path: Path) -> None:
    """Writes the effective configuration for the child processes (JSON, mode 0600)."""
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(config))


def load_config(path: Path) -> Config:
    """Reads what `save_config` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Config)
