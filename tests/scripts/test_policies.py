"""`accelgen policies`: a line for each, from its docstring."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from accelgen.proto.messages import Directory, Member, Role
from accelgen.proto.policies import known_memories, known_policies, known_routings
from accelgen.scripts import policies
from accelgen.scripts.policies import about, command, docstring


def test_every_policy_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # no server
    done = CliRunner().invoke(command, standalone_mode=False)
    upper, memory, middle = done.output.partition(
        "\nMemory policies, beside any of them (--memory):\n"
    )
    middle, routing, lower = middle.partition(
        "\nRouting, which replica a request goes to (--routing):\n"
    )
    assert memory and routing
    lines = [line for part in (upper, middle, lower) for line in part.splitlines()]
    assert [line.split()[0] for line in lines] == [
        *known_policies(), *known_memories(), *known_routings()
    ]  # fmt: skip
    assert all(len(line) <= 80 and len(line.split()) > 1 for line in lines)
    phrases = [" ".join(line.split()[1:]) for line in lines]
    assert len(set(phrases)) == len(phrases)
    assert "(" not in upper + lower and "`" not in done.output


def test_what_is_active_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy that was chosen, the memory policy that it has brought along, or was chosen, too, and the routing."""
    gauges = {'accelgen:scheduler_memory_info{memory="cacheopt"}': 1.0}
    serving = Member(Role.SCHEDULER, 0, 1, "", 5, 3, "ready", 1, 9.0, 0.0, 1, None, gauges)
    facts = {"policy": "cacheopt", "policy_params": {"chunk_size": 256}, "policy_s": 12.0}
    monkeypatch.setattr(policies, "find_live", lambda _: Path())
    for chosen, params in (("", {}), ("on-demand", {}), ("cacheopt", {"reserve": 7})):
        config = {**facts, "memory": chosen, "memory_params": params}
        directory = Directory([serving], True, False, config)
        monkeypatch.setattr(policies, "ask_directory", lambda _, found=directory: found)
        lines = CliRunner().invoke(command, standalone_mode=False).output.splitlines()
        marked = [line.split()[1] for line in lines if line.startswith("*")]
        assert marked == ["cacheopt", chosen or "cacheopt", "planned"]
        assert sum("chunk_size=256 active for 12 s, epoch 3" in line for line in lines) == 1
        assert ("reserve=7" in [line.strip() for line in lines]) is bool(params)


def test_what_is_said_about_a_policy() -> None:
    text = "`one`: first (paper 3,\nsection 2), then more. And more.\n\n`two`: second, at length"
    assert about("one", text, 40) == "first, then more"
    assert about("one", text, 15) == "first"
    assert about("two", text, 40) == "second, at length"
    assert about("three", "Several policies of ours, in a file.", 20) == "Several policies ..."
    assert about("three", "", 20) == ""


def test_a_module_that_cannot_be_read_says_nothing() -> None:
    assert docstring("nobodys.policies") == docstring("zmq.nothing") == ""
    assert docstring("accelgen.scheduler.policies.vllm").startswith("`vllm`:")
