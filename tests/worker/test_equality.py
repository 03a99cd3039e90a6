"""The worker against transformers' own `generate`, by this rule.

Whatever the mixture of chunks, decodes, preemptions, shared prefixes and forks: logits agree within 1e-4 (float32), and
greedy tokens are equal up to a first difference at which the reference itself was undecided by less than 1e-4.
"""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

TOLERANCE = 1e-4
VOCAB = 97
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "opt", "gemma2")
RELAXED = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking a whole run takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

PROMPTS = st.lists(
    st.tuples(
        st.integers(0, 2),  # which stem it begins with: shared prefixes
        st.integers(0, 30),  # how much of the stem
        st.integers(1, 25),  # tokens of its own
        st.integers(1, 10),  # tokens to generate
        st.booleans(),  # has a fork
    ),
    min_size=1,
    max_size=5,
)


def make_requests(
    shapes: list[tuple[int, int, int, int, bool]], random: Random, Live: Any
) -> list[Any]:
    stems = [[random.randrange(VOCAB) for _ in range(40)] for _ in range(3)]
    requests: list[Any] = []
    for stem, shared, own, want, forked in shapes:
        prompt = stems[stem][:shared] + [random.randrange(VOCAB) for _ in range(own)]
        parent = Live(len(requests) + 1, prompt, want)
        requests.append(parent)
        if forked:
            requests.append(Live(len(requests) + 1, list(prompt), want + 1, parent=parent.id))
    return requests


def reference_tokens(model: Any, prompt: list[int], want: int) -> list[int]:
    with torch.inference_mode():
        out = model.generate(torch.tensor([prompt]), max_new_tokens=want, do_sample=False)
    return out[0][len(prompt) :].tolist()


def check(driver: Any, reference: Any, tolerance: float = TOLERANCE) -> None:
    for request in driver.requests.values():
        assert len(request.got) == request.want
        begin = len(request.prompt)
        assert [(request.id, begin + i) in driver.ledger for i in range(request.want)] == [
            True
        ] * request.want
        with torch.inference_mode():
            logits = reference(torch.tensor([request.tokens])).logits[0].float()
        for i, token in enumerate(request.got):
            ours, theirs = driver.logits[request.id, begin + i], logits[begin + i - 1]
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
            assert token == int(ours.argmax())
        expected = reference_tokens(reference, request.prompt, request.want)
        for i, (mine, other) in enumerate(zip(request.got, expected, strict=True)):
            if mine != other:
                top = logits[begin + i - 1].topk(2).values
                assert float(top[0] - top[1]) < tolerance, f"request {request.id} token {i}"
                break
    assert len(driver.ledger) == sum(request.want for request in driver.requests.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@RELAXED
@given(PROMPTS, st.integers(0, 2**31), st.sampled_from([1, 3, 11, 60]))
def test_any_mixture_equals_generate(
    bench: Any, drive: Any, architecture: str, shapes: Any, seed: int, max_chunk: int
) -> None:
    made = bench(architecture)
    Driver, Live = drive
    random = Random(seed)
    driver = Driver(made.core, random)
    for request in make_requests(shapes, random, Live):
        driver.add(request)
    driver.run(max_chunk)
    check(driver, made.reference)
    assert all(not owners for owners in driver.owners.values())


def test_the_driver_really_does_all_of_it(bench: Any, drive: Any) -> None:
    """The mixtures above would prove little if preemption, hits, forks and copies never happened."""
    made = bench("llama")
    Driver, Live = drive
    random = Random(5)
    driver = Driver(made.core, random)
    shapes = [(0, 30, 5, 8, True), (0, 30, 9, 8, True), (1, 20, 3, 9, True)]
    for request in make_requests(shapes, random, Live):
        driver.add(request)
    driver.run(6, preempt=0.1)
    check(driver, made.reference)
    assert {"preempted", "prefix hit", "forked", "copied"} <= set(driver.events)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_context_far_beyond_the_window(bench: Any, drive: Any, architecture: str) -> None:
    made = bench(architecture)
    Driver, Live = drive
    for max_chunk in (7, 100):
        driver = Driver(made.core, Random(max_chunk))
        driver.add(Live(1, [i * 7 % VOCAB for i in range(90)], 20))
        driver.add(Live(2, [i * 5 % VOCAB for i in range(60)], 6))
        driver.run(max_chunk)
        check(driver, made.reference)


@pytest.mark.parametrize("block_size", [1, 16])
def test_other_block_sizes(bench: Any, drive: Any, block_size: int) -> None:
    made = bench("llama", torch.float32, block_size, 640 // block_size)
    Driver, Live = drive
    random = Random(block_size)
    driver = Driver(made.core, random)
    for request in make_requests([(0, 30, 7, 6, True), (0, 30, 1, 6, False)], random, Live):
        driver.add(request)
    driver.run()
    check(driver, made.reference)


def test_long_iterations_run_in_several_passes(
    bench: Any, drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = bench("mistral")
    monkeypatch.setattr(made.core.runner, "_limit", 13)
    Driver, Live = drive
    random = Random(8)
    driver = Driver(made.core, random)
    for request in make_requests([(0, 30, 9, 5, True), (0, 0, 30, 5, True)], random, Live):
        driver.add(request)
    driver.run(40)
    check(driver, made.reference)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_bfloat16_stays_near_its_reference(bench: Any, drive: Any, architecture: str) -> None:
    """No token rule here: rounding decides ties. Logits agree to a few units of bfloat16's rounding."""
    made = bench(architecture, torch.bfloat16)
    Driver, Live = drive
    random = Random(3)
    driver = Driver(made.core, random)
    for request in make_requests([(0, 20, 9, 6, False), (1, 0, 30, 6, True)], random, Live):
        driver.add(request)
    driver.run()
    for request in driver.requests.values():
        with torch.inference_mode():
            logits = made.reference(torch.tensor([request.tokens])).logits[0].float()
        for i in range(request.want):
            at = len(request.prompt) + i
            ours, theirs = driver.logits[request.id, at], logits[at - 1]
            error = float(
                (ours - theirs).pow(2).mean().sqrt() / (theirs - theirs.mean()).pow(2).mean().sqrt()
            )
            assert error < 0.05
