"""`accelgen policies`: a line for each, from its docstring."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from accelgen.proto.policies import known_policies, known_routings
from accelgen.scripts.policies import about, command, docstring


def test_every_policy_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # no server
    done = CliRunner().invoke(command, standalone_mode=False)
    lines = done.output.splitlines()
    gap = lines.index("")
    lines, routings = lines[:gap], lines[gap + 2 :]
    assert done.output.splitlines()[gap + 1] == "Routing, which replica a request goes to:"
    assert [line.split()[0] for line in lines] == known_policies()
    assert [line.split()[0] for line in routings] == known_routings()
    lines += routings
    assert all(len(line) <= 80 and len(line.split()) > 1 for line in lines)
    phrases = [" ".join(line.split()[1:]) for line in lines]
    assert len(set(phrases)) == len(phrases)
    assert "(" not in done.output and "`" not in done.output


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
