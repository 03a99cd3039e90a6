"""Configuration: what is refused, and that the refusal names the field and the limit."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelgen.proto.config import (
    Config,
    ConfigError,
    SloClass,
    default_classes,
    load_config,
    make_config,
    save_config,
)


def refusal(settings: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        make_config(None, settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"swap_gb": 8.0}, "swap_gb: 8.0 has no effect without preemption 'swap'"),
        ({"swap_gb": 4.0, "preemption": "recompute"}, "swap_gb: 4.0 has no effect"),
        ({"max_draft_tokens": 4}, "max_draft_tokens: 4 has no effect without a drafter"),
        ({"draft_tokens": "fixed"}, "draft_tokens: 'fixed' has no effect without a drafter"),
        (
            {"draft_sampling": "coupled"},
            "draft_sampling: 'coupled' has no effect without a drafter",
        ),
        (
            {"drafter": "ngram", "draft_sampling": "rejection"},
            "draft_sampling: 'rejection' has no effect with drafter 'ngram', which finds tokens and draws none",
        ),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, Any], line: str, tmp_path: Path) -> None:
    """Wherever it is stated, unless the command line overrides what a file needs it for."""
    file = tmp_path / "server.toml"
    file.write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
    with pytest.raises(ConfigError) as refused:
        make_config(None, settings)
    assert str(refused.value).startswith(line)
    with pytest.raises(ConfigError) as refused:
        make_config(file, {})
    assert str(refused.value).startswith(f"{file}: {line}")


@pytest.mark.parametrize(
    ("stated", "overrides"),
    [
        ("swap_gb = 8.0", {"preemption": "swap"}),
        ("swap_gb = 8.0\npreemption = 'swap'", {"preemption": "recompute"}),
        ("drafter = 'small'\ndraft_sampling = 'rejection'", {"drafter": "ngram"}),
        ("drafter = 'small'\ndraft_sampling = 'rejection'", {"drafter": ""}),
        ("drafter = 'ngram'\ndraft_sampling = 'coupled'\nmax_draft_tokens = 2", {}),
        ("drafter = 'small'", {"draft_sampling": "rejection"}),
    ],
)
def test_the_command_line_may_take_the_effect_of_what_a_file_says(
    stated: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "server.toml"
    file.write_text(stated)
    config = make_config(file, overrides)
    assert all(getattr(config, name) == value for name, value in overrides.items())


def test_defaults_are_valid() -> None:
    config = make_config(None, {})
    assert config == Config()
    assert config.slo_classes[config.default_class].max_queue_ms > 0


def test_options_go_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "accelgen.toml"
    file.write_text("""
        port = 9000
        policy = "sarathi"
        policy_params = {chunk = 512, eager = true}
        default_class = "fast"
        [slo_classes.fast]
        ttft_ms = 300
        bounds_ms = [10, 5000.0]
    """)
    config = make_config(file, {"port": 9001})
    assert (config.port, config.policy) == (9001, "sarathi")
    assert config.policy_params == {"chunk": 512, "eager": True}
    assert config.slo_classes["fast"].bounds_ms == (10.0, 5000.0)
    assert config.slo_classes["fast"].tpot_ms is None


def test_classes_of_the_file_join_the_built_in_ones(tmp_path: Path) -> None:
    file = tmp_path / "accelgen.toml"
    file.write_text("""
        [slo_classes.interactive]
        ttft_ms = 300
        [slo_classes.chat]
        ttft_ms = 700
    """)
    config, built_in = make_config(file, {}), default_classes()
    assert set(config.slo_classes) == {*built_in, "interactive"}
    assert config.slo_classes["interactive"] == SloClass(ttft_ms=300)
    assert config.slo_classes["chat"] == msgspec.structs.replace(built_in["chat"], ttft_ms=700)
    assert config.slo_classes["standard"] == built_in["standard"]
    assert config.default_class == "standard"
    assert make_config(file, {"default_class": "interactive"}).default_class == "interactive"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "[slo_classes.fast]\nttft_ms = -1",
            "slo_classes.fast.ttft_ms: expected float > 0.0, got -1",
        ),
        (
            "[slo_classes.fast]\nttft_ms = 'x'",
            "slo_classes.fast.ttft_ms: expected float | null, got str",
        ),
        (
            "[slo_classes.fast]\nttft_s = 1",
            "slo_classes.fast.ttft_s: unknown field; did you mean ttft_ms?",
        ),
        (
            "[slo_classes.fast]\nttft_ms = 5\nbounds_ms = [10, 20]",
            "slo_classes.fast.ttft_ms: 5 is outside bounds_ms 10 to 20",
        ),
        (
            "[slo_classes.chat]\nbounds_ms = [10, 200]",
            "slo_classes.chat.ttft_ms: 1000 is outside bounds_ms 10 to 200"
            " (ttft_ms is the built-in one; state another)",
        ),
        (
            "[slo_classes.fast.stages.answer]\ntpot_ms = 5\n[slo_classes.fast.stages.tool]\nttft_ms = -1",
            "slo_classes.fast.stages.tool.ttft_ms: expected float > 0.0, got -1",
        ),
        (
            "[slo_classes.fast.stages.tool]\nttft = 1",
            "slo_classes.fast.stages.tool.ttft: unknown field; did you mean ttft_ms?",
        ),
        (
            "[slo_classes.fast.stages.thinking]\nttft_ms = 1",
            "slo_classes.fast.stages.thinking.ttft_ms: an answer has one first token, ttft_ms",
        ),
        (
            "[slo_classes.fast]\nbounds_ms = [5, 10]\n[slo_classes.fast.stages.tool]\nttft_ms = 1",
            "slo_classes.fast.stages.tool.ttft_ms: 1 is outside bounds_ms 5 to 10",
        ),
        (
            "[slo_classes.fast]\non_overload = 'refus'",
            "slo_classes.fast.on_overload: 'refus' is not one of best_effort, refuse",
        ),
        ("slo_classes = 3", "slo_classes: expected a table, got 3"),
        ("[slo_classes]\nchat = 3", "slo_classes.chat: expected a table, got 3"),
        ("policy_params = 3", "policy_params: expected a table, got 3"),
        ("prot = 1", "prot: unknown field; did you mean port?"),
        ("port = 70000", "port: expected int <= 65535, got 70000"),
        (
            "default_class = 'gold'",
            "default_class: 'gold' is not in slo_classes batch, chat, standard",
        ),
        ("preemption = 'swop'", "preemption: 'swop' is not one of recompute, swap"),
        ("swap_gb = -1", "swap_gb: expected float >= 0.0, got -1"),
        (
            "preemption = 'swap'\nswap_gb = 0",
            "swap_gb: 0 GB of host memory leave no room for what preemption 'swap' is to keep;"
            " state more than 0, or preemption 'recompute'",
        ),
    ],
)
def test_an_error_of_the_file_begins_with_file_and_field(
    tmp_path: Path, text: str, line: str
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        make_config(file, {})
    assert str(caught.value) == f"{file}: {line}"


@pytest.mark.parametrize(
    "text, words",
    [
        ("port = 70000", ["port", "65535"]),
        ("port = '8000'", ["port", "int"]),
        ("port = true", ["port", "int"]),
        ("block_size = 0", ["block_size", "1"]),
        ("kv_blocks = -1", ["kv_blocks", "0"]),
        ("seed = 99999999999999999999", ["seed", str(2**62)]),
        ("gpu_memory_utilization = 1.5", ["gpu_memory_utilization", "1.0"]),
        ("gpu_memory_utilization = nan", ["gpu_memory_utilization"]),
        ("max_step_s = 0", ["max_step_s", "0"]),
        ("pipeline_depth = 2", ["pipeline_depth", "1"]),
        ("dtype = 'int3'", ["dtype", "int3", "bfloat16"]),
        ("log_level = 'loud'", ["log_level", "loud", "warning"]),
        ("device = 'abacus'", ["device", "abacus", "cuda"]),
        ("default_class = 'gold'", ["default_class", "gold", "standard"]),
        ("prefix_cashing = true", ["prefix_cashing", "unknown"]),
        ("[slo_classes.standard]\nttft_s = 1", ["ttft_s", "unknown", "slo_classes"]),
        ("[slo_classes.standard]\nttft_ms = 0", ["ttft_ms", "0"]),
        ("[slo_classes.standard]\nttft_ms = -1", ["ttft_ms", "0"]),
        ("[slo_classes.standard]\ntpot_ms = 1e18", ["tpot_ms", "86400000"]),
        ("[slo_classes.standard]\nbounds_ms = [5, 1]", ["bounds_ms", "5", "1"]),
        ("[slo_classes.standard]\nbounds_ms = [1]", ["bounds_ms"]),
        ("[slo_classes.standard]\nbounds_ms = [0, 9]", ["bounds_ms", "0"]),
        ("[slo_classes.fast]\nbounds_ms = [10, 20]\ntpot_ms = 3", ["tpot_ms", "10", "20"]),
        ("[slo_classes.fast]\nbounds_ms = [10, 20]\ne2e_ms = 30", ["e2e_ms", "10", "20"]),
        ("policy_params = {a = [1]}", ["policy_params.a: ", "got [1]"]),
        ("port = 80 80", ["accelgen.toml", "line 1"]),
    ],
)
def test_a_refused_file_says_where_and_why(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "accelgen.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        make_config(file, {})
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for file in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError) as caught:
            make_config(file, {})
        assert str(caught.value).startswith(f"{file}: ")
        assert str(caught.value).count(str(file)) == 1
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="binary.toml"):
        make_config(binary, {})


def test_options_are_checked_like_the_file() -> None:
    assert "frontends" in refusal({"frontends": 65})
    assert "max_choices" in refusal({"max_choices": 0})
    assert "no_such_option" in refusal({"no_such_option": 1})


def test_it_reaches_the_children_unchanged(tmp_path: Path) -> None:
    config = make_config(None, {"port": 0, "seed": 2**62, "policy_params": {"x": 1.5, "y": "z"}})
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    assert stat.S_IMODE((tmp_path / "config.json").stat().st_mode) == 0o600


def test_every_integer_has_a_limit_that_json_can_carry() -> None:
    for name, value in msgspec.structs.asdict(Config()).items():
        if type(value) is int:
            assert name in refusal({name: 2**70})
