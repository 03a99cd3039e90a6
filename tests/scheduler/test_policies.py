"""What holds for every installed policy: name, documentation, parameters with limits, a state to hand over."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from world import POLICIES, World

from accelgen.proto.messages import Objective
from accelgen.scheduler.policy import UnknownPolicy, load_policy
from accelgen.scheduler.snapshot import Experience, unpacked

ROOT = Path(__file__).resolve().parents[2]
POINTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "entry-points"
]["accelgen.policies"]


def test_all_of_them_are_run_through_random_loads() -> None:
    """None is missing because this package was installed before it was written."""
    assert sorted(POINTS) == POLICIES


@pytest.mark.parametrize("name", POINTS)
def test_it_bears_its_name_and_says_where_it_comes_from(name: str) -> None:
    kind = type(load_policy(name, {}))
    assert kind.name == name
    module = __import__(kind.__module__, fromlist=["__doc__"])
    assert f"`{name}`" in (module.__doc__ or "")
    assert "docs/policies.md" in (module.__doc__ or "")


def test_the_table_in_the_docs_has_each_once() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", (ROOT / "docs" / "policies.md").read_text(), re.M)
    assert sorted(set(rows)) == sorted([*POINTS, "distserve"])


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("accelgen", {"gamma_s": -1.0}, "gamma_s: -1.0 s, must be at least 0"),
        ("accelgen-adaptive", {"pivot_tokens": -1}, "pivot_tokens: -1 tokens, must be at least 0"),
        ("cacheopt", {"patience": -1.0}, "patience: -1.0, must be at least 0"),
        ("edf", {"chunk_size": 0}, "chunk_size: 0 tokens, must be at least 1"),
        ("edf", {"offline_tpot_s": float("inf")}, "offline_tpot_s: inf s, must be at least 0"),
        ("edf", {"offline_tpot_s": float("nan")}, "offline_tpot_s: nan s, must be at least 0"),
        ("fastgen", {"forward_size": 0}, "forward_size: 0 tokens, must be at least 1"),
        ("fastgen", {"max_sequences": -1}, "max_sequences: -1, must be at least 1"),
        ("fastserve", {"quantum_s": 0.0}, "quantum_s: 0.0 s, must be above 0"),
        ("fastserve", {"max_batch_size": -1}, "max_batch_size: -1, must be at least 0"),
        ("fastserve", {"max_tokens_per_batch": 0}, "max_tokens_per_batch: 0 tokens, must be"),
        ("fastserve", {"starvation_period": 0}, "starvation_period: 0 iterations, must be at least 1"),
        ("fastserve", {"starvation_s": -1.0}, "starvation_s: -1.0 s, must be at least 0"),
        ("orca", {"max_model_len": -1}, "max_model_len: -1 tokens, must be at least 0"),
        ("qoserve", {"alpha_s": -0.1}, "alpha_s: -0.1 s per token, must be at least 0"),
        ("qoserve", {"chunk_size": 0}, "chunk_size: 0 tokens, must be at least 1"),
        ("qoserve", {"prefill_tokens_s": 0.0}, "prefill_tokens_s: 0.0 tokens/s, must be at least 1"),
        ("sarathi", {"chunk_size": 0}, "chunk_size: 0 tokens, must be at least 1"),
        ("slidingserve", {"step": 0}, "step: 0 tokens, must be at least 1"),
        ("slidingserve", {"urgency_s": 0.0}, "urgency_s: 0.0 s, must be at least 1e-06"),
        ("slos-serve", {"admission": "ilp"}, "admission: 'ilp', must be one of dp, edf_sim"),
        ("slos-serve", {"burst": "drop"}, "burst: 'drop', must be one of soft, refuse"),
        ("slos-serve", {"offline_tpot_s": 0.0}, "offline_tpot_s: 0.0 s, must be at least 0.001"),
        ("slos-serve", {"replan_arrivals": 0}, "replan_arrivals: 0, must be at least 1"),
        ("slos-serve", {"replan_finishes": 0}, "replan_finishes: 0, must be at least 1"),
        ("slos-serve", {"replan_s": -0.1}, "replan_s: -0.1 s, must be at least 0"),
        ("srpf", {"chunk_size": -5}, "chunk_size: -5 tokens, must be at least 1"),
        ("vllm", {"chunk_size": 5}, "takes no arguments"),
    ],
)  # fmt: skip
def test_parameters_are_judged_by_name_and_limit(
    name: str, params: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnknownPolicy, match=re.escape(words)):
        load_policy(name, params)


@pytest.mark.parametrize("name", POINTS)
def test_what_it_remembers_can_be_handed_over(name: str) -> None:
    """Under way, under pressure: packed, unpacked, the same; and it goes on with it to the same decision."""
    world = World(name, blocks=30, max_num_seqs=6)
    for id in range(1, 12):
        slo = Objective(0.05, 0.02) if id % 3 else Objective(None, None, 1.0)
        world.submit(id, [id] * (5 + 3 * id), max_tokens=25, at_s=id / 100, objective=slo)
    world.run(until_s=0.25)
    replica = world.core.replicas[0]
    experience = Experience()
    experience.take_from(world.core)
    state = unpacked(experience.packed(world.core.policy), world.core.policy).states[0]
    assert state == replica.state and type(state) is type(replica.state)
    view, policy = replica.view(), world.core.policy
    assert policy.plan(view, state, 0.3) == policy.plan(view, replica.state, 0.3)
