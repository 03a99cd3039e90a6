"""`accelgen up` and its options: the configuration's fields, all of them; one line for what cannot be."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelgen.proto.config import Config
from accelgen.scripts import cli, up


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, bool]]:
    """The configurations that would have been served."""
    configs: list[tuple[Config, bool]] = []

    def serve(config: Config, detached: bool) -> int:
        configs.append((config, detached))
        return 0

    monkeypatch.setattr(up, "serve", serve)
    return configs


def call(*arguments: str) -> int:
    """Exit status of `accelgen ARGUMENTS`."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def test_every_field_has_an_option_and_a_word() -> None:
    fields = {field.name for field in msgspec.structs.fields(Config)}
    assert set(up.HELP) == fields - {"policy_params", "memory_params", "slo_classes"}


def test_help_lists_policies_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("up", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    installed = ", ".join(sorted(entry.name for entry in entry_points(group="accelgen.policies")))
    assert f"Scheduling policy: {installed}. [default".replace(" ", "") in shown.replace(" ", "")
    words = "Memory policy beside it: cacheopt, on-demand; the policy's own if not given."
    assert words.replace(" ", "") in shown.replace(" ", "")
    words = (
        "goes to: least-load, planned, prefix-affinity, round-robin, parameters as NAME:key=value;"
    )
    assert words.replace(" ", "") in shown.replace(" ", "")
    assert "Port to listen on; 0: any free one. [default: 8000]" in shown
    assert "0: from free memory. [default: 0]" in shown
    assert "prompt beginnings. [default: on]" in shown and "{policies}" not in shown


def test_options_go_before_the_file(served: Any, tmp_path: Path) -> None:
    file = tmp_path / "accelgen.toml"
    file.write_text("port = 1234\nmax_num_seqs = 7\n[slo_classes.standard]\nttft_ms = 5\n")
    arguments = ["--port", "0", "--no-prefix-caching", "--shutdown-timeout", "2.5", "--detach"]
    params = ["--policy-param", "tau=0.1", "--policy-param", "n=3", "--policy-param", "who=me=you"]
    assert call("up", "--config", str(file), *arguments, *params) == 0
    config, detached = served[0]
    assert (config.port, config.max_num_seqs, config.prefix_caching) == (0, 7, False)
    assert config.shutdown_timeout_s == 2.5 and detached
    assert config.policy_params == {"tau": 0.1, "n": 3, "who": "me=you"}
    assert config.slo_classes["standard"].ttft_ms == 5
    memory = ["--memory", "cacheopt", "--memory-param", "pad=false", "--memory-param", "reserve=0"]
    assert call("up", *memory) == 0
    config, _ = served.pop()
    assert (config.memory, config.memory_params) == ("cacheopt", {"pad": False, "reserve": 0})
    assert call("up") == 0 and served[1] == (Config(), False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "70000"], "accelgen: --port: expected int <= 65535, got 70000\n"),
        (["--kv-blocks", "-1"], "accelgen: --kv-blocks: expected int >= 0, got -1\n"),
        (
            ["--dtype", "int3"],
            "accelgen: --dtype: 'int3' is not one of auto, float32, bfloat16, float16\n",
        ),
        (["--frontends", "many"], "Invalid value for '--frontends': 'many' is not a valid integer"),
        (["--prot", "1"], "No such option"),
        (["--policy-param", "tau"], "'tau' is not of the form name=value"),
        (["--policy", "sarati"], "did you mean sarathi?"),
        (["--config", "/none.toml"], "/none.toml"),
        (["--preemption", "swap", "--swap-gb", "0"], "accelgen: --swap-gb: 0 GB of host memory"),
        (["--memory", "cacheop"], "--memory: there is no memory policy 'cacheop'; did you mean"),
        (["--memory-param", "pad"], "'pad' is not of the form name=value"),
        (["--preemption", "swap", "--swap-gb", "900000"], "GB of swap space"),
        (["--preemption", "no"], "--preemption: 'no' is not one of recompute, swap"),
    ],
)
def test_what_cannot_be_costs_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert call("up", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and line in captured.err and captured.err.count("\n") == 1


def test_a_wrong_line_in_the_file_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "accelgen.toml"
    for text, says in (
        ("port = 'x'", "port: expected int, got str"),
        ("prot = 1", "prot"),
        (
            "[slo_classes.chat]\nttft_ms = -1",
            "accelgen.toml: slo_classes.chat.ttft_ms: expected float > 0",
        ),
        ("port = ", "accelgen.toml"),
    ):
        file.write_text(text)
        assert call("up", "--config", str(file)) == 2
        captured = capsys.readouterr().err
        assert says in captured and captured.count("\n") == 1


def test_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("upp") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert call("--help") == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in cli.VERBS)


def test_a_missing_model_ends_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("up", "--model", "/no/such/model", "--port", "0") == 1
    assert capsys.readouterr().err == (
        "accelgen: model not found: there is no folder /no/such/model\n"
    )
