"""`accelgen replay` on the command line: what it prints, and one line for every wrong call."""

from __future__ import annotations

import json
from pathlib import Path

import msgpack
import pytest
from click.testing import CliRunner, Result
from recorded_world import RecordedWorld, recording_to

from accelgen.proto.messages import Objective
from accelgen.scripts.replay import command


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two long prompts, cut by `sarathi` with a chunk size of its own; one of them decodes under an objective."""
    path = tmp_path_factory.mktemp("recorder") / "scheduler-0-1.msgpack"
    with recording_to(path):
        world = RecordedWorld(
            "sarathi", policy_params={"chunk_size": 16}, params={"chunk_size": 16}
        )
        world.submit(1, list(range(1, 30)), max_tokens=12, objective=Objective(tpot_s=0.0045))
        world.submit(2, list(range(40, 90)), at_s=0.02, max_tokens=3)
        world.run()
    return path


def replay(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.mark.parametrize("options", [(), ("--policy", "sarathi")])
def test_the_recorded_policy_with_its_recorded_parameters(dump: Path, options: tuple[str]) -> None:
    done = replay(dump, *options)
    assert done.exit_code == 0, done.output
    assert "recorded with  sarathi chunk_size=16\n" in done.output
    assert "replayed with  sarathi chunk_size=16\n" in done.output
    assert "        0 different\n" in done.output and "skipped" not in done.output
    assert "difference" not in done.output


def test_another_policy(dump: Path) -> None:
    done = replay(dump, "--policy", "vllm", "--show", "2")
    assert done.exit_code == 0, done.output
    assert "the first 2 differences" in done.output
    first = done.output.split("the first 2 differences")[1].split("\n\n")[1].splitlines()
    assert first[0].strip().startswith("step 0, ")
    words = " ".join(first[1].split())
    assert words == "sarathi 1 request, 16 tokens (16 of prompts, 0 decodes), 3.6 ms predicted"
    assert first[2].split()[:4] == ["vllm", "1", "request,", "29"]
    assert first[3].split() == ["request", "1", "16", "->", "29", "tokens"]
    rows = {line[:36].strip(): line.split()[-2:] for line in done.output.splitlines()}
    assert rows["most tokens in one"] == ["16", "50"]
    assert rows["longer than a decode in it may wait"] == ["4", "0"]


def test_other_parameters(dump: Path) -> None:
    done = replay(dump, "--policy", "sarathi", "--param", "chunk_size=8")
    assert "replayed with  sarathi chunk_size=8" in done.output
    assert "different  (" in done.output and "    recorded    replayed\n" in done.output


def test_as_json(dump: Path) -> None:
    said = json.loads(replay(dump, "--policy", "vllm", "--json").output)
    assert said["same"] + said["different"] == said["compared"] > said["same"]
    assert said["recorded"] == {"policy": "sarathi", "params": {"chunk_size": 16}}
    assert said["replayed"] == {"policy": "vllm", "params": {}} and said["skipped"] == {}
    first = said["differences"][0]
    assert (first["recorded"]["tokens"], first["replayed"]["tokens"]) == ({"1": 16}, {"1": 29})
    assert len(said["differences"]) == said["different"]


def test_wrong_calls_cost_one_line(dump: Path, tmp_path: Path) -> None:
    wrong, cut, other, frontend = (tmp_path / name for name in ("wrong", "cut", "other", "fe"))
    wrong.write_text("hello")
    cut.write_bytes(dump.read_bytes()[:-20])
    records = list(msgpack.Unpacker(dump.open("rb")))
    other.write_bytes(msgpack.packb({**records[0], "accelgen recorder": 7}))
    frontend.write_bytes(msgpack.packb(records[0]) + msgpack.packb([1.0, "end", 0]))
    calls = {
        ("nothing.msgpack",): "nothing.msgpack: No such file or directory",
        (wrong,): "not a dump of the flight recorder",
        (cut,): "cut off after",
        (other,): "a dump of version 7, this accelgen reads version 1",
        (frontend,): "scheduler-0 has recorded no scheduling decision",
        (dump, "--policy", "sarati"): "there is no policy 'sarati'; did you mean sarathi?",
        (dump, "--param", "chunk=3"): "sarathi has no parameter 'chunk'",
        (dump, "--param", "chunk_size=0"): "chunk_size: 0 tokens, must be at least 1",
        (dump, "--param", "chunk_size"): "not of the form name=value",
    }
    for arguments, line in calls.items():
        done = replay(*arguments)
        assert done.exit_code in (1, 2) and line in done.output, (arguments, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit), arguments
