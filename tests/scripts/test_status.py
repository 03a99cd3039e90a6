"""`accelgen status`: what it says about memory, beside a line for each process."""

from __future__ import annotations

import json

import msgspec
import pytest
from click.testing import CliRunner

from accelgen.proto.messages import Directory, Facts, Member, Role
from accelgen.scripts import status

FACTS = Facts("/m", "MForCausalLM", "cpu", "float32", "torch", 4096, 1000, 16, 64, 2**20, 2**21)
ABOUT = {"url": "http://127.0.0.1:8000", "model": "m", "policy": "vllm", "memory": ""}


def directory(host_blocks: int) -> Directory:
    facts = msgspec.structs.replace(FACTS, host_blocks=host_blocks)
    brought = {'accelgen:scheduler_memory_info{memory="on-demand"}': 1.0}
    members = [Member(Role.SCHEDULER, 0, 1, "", 2, 4, "ready", 0, 2.0, 0.0, 0, None, brought)]
    for index in range(2):
        used = {f'accelgen:kv_host_blocks_used{{replica="{index}"}}': 12.0 + index}
        members += [
            Member(Role.WORKER, index, 1, "", 0, 1, "ready", 0, 2.0, 0.0, 2**29, facts, {}),
            Member(Role.KVMANAGER, index, 1, "", 0, 1, "ready", 0, 2.0, 0.0, 2**29, None, used),
        ]
    return Directory(members, True, False, dict(ABOUT))


def test_swap_space_and_memory_policy() -> None:
    table = status.as_table(directory(1024))
    assert table.splitlines()[0].endswith("policy vllm  memory on-demand")
    assert table.splitlines()[-2:] == [
        "swap space of replica 0: 12 of 1,024 blocks in use (32 MiB of the host's memory)",
        "swap space of replica 1: 13 of 1,024 blocks in use (32 MiB of the host's memory)",
    ]
    assert "swap space" not in status.as_table(directory(0))


def test_the_drafter() -> None:
    told = directory(0)
    assert "drafter" not in status.as_table(told)
    told.config.update(drafter="ngram")
    head = status.as_table(told).splitlines()[0]
    assert head.endswith("memory on-demand  drafter ngram")


def test_the_memory_policy_while_the_scheduler_takes_over_again() -> None:
    told = directory(0)
    told.members[0] = msgspec.structs.replace(told.members[0], phase="waiting for workers")
    assert "policy vllm  memory on-demand" in status.as_table(told)
    told.members[0] = msgspec.structs.replace(told.members[0], phase="dead")
    assert "memory" not in status.as_table(told).splitlines()[0]


def test_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "find_live", lambda _: None)
    monkeypatch.setattr(status, "ask_directory", lambda _: directory(1024))
    told = json.loads(CliRunner().invoke(status.command, ["--json"]).output)
    assert told["memory"] == "on-demand"
    assert told["members"][1]["facts"]["host_blocks"] == 1024
