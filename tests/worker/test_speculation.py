"""Speculation on the whole way through the worker: the same tokens as without, or the same distribution; no KV of a
rejected draft is ever used; a drafter that does not fit is refused at the start."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec import structs
from structlog.testing import capture_logs

from accelgen.proto.config import Config
from accelgen.proto.messages import Batch, Prompt, Sampling
from accelgen.worker.core import WorkerCore
from accelgen.worker.drafting.drafter import ModelDrafter
from accelgen.worker.drafting.ngram import NgramDrafter
from accelgen.worker.drafting.proposal import NOTHING, Proposal
from accelgen.worker.engine import start_engine
from accelgen.worker.faults import LoadError
from accelgen.worker.kvcache import KvCache
from accelgen.worker.model import load_model
from accelgen.worker.packing import Span
from accelgen.worker.request import Request
from accelgen.worker.runner import Logits, Runner
from accelgen.worker.sampler import Draw, probabilities

VOCAB = 97
GREEDY = Sampling(temperature=0.0)
TOLERANCE = 1e-4
ALARM_7 = 29.88  # upper 1e-4 quantile of chi-squared with 7 degrees of freedom


def model_drafter(made: Any, blocks: int = 96, coupled: bool = True) -> ModelDrafter:
    """A drafter of an engine's model, with a cache of its own."""
    loaded = made.core.runner.loaded
    cache = KvCache(loaded.shapes, blocks, 4, loaded.dtype, loaded.device)
    return ModelDrafter(Runner(loaded, cache), coupled)


class Oracle:
    """A drafter that is told what will come, and errs now and then: drafts of any quality at any place."""

    def __init__(self, texts: dict[int, list[int]], random: Random) -> None:
        self.texts, self.random = texts, random

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
        found = []
        for request, count in zip(requests, most, strict=True):
            have = len(request.tokens)
            coming = self.texts[request.id][have : have + self.random.randint(0, count)]
            wrong = [(t + 1) % VOCAB if self.random.random() < 0.2 else t for t in coming]
            found.append(Proposal(tuple(wrong)))
        return found

    def forget(self, id: int) -> None:
        pass


def drafter_of(kind: str, bench: Any) -> Any:
    if kind == "ngram":
        return NgramDrafter()
    name, _, blocks = kind.partition("/")
    return model_drafter(bench(name), int(blocks or 96))


def check_greedy(driver: Any, reference: Any) -> None:
    """Each token is the best one by logits that agree with the reference's, given all tokens before it."""
    for request in driver.requests.values():
        assert len(request.got) == request.want
        begin = len(request.prompt)
        with torch.inference_mode():
            logits = reference(torch.tensor([request.tokens])).logits[0].float()
        for i, token in enumerate(request.got):
            ours = driver.logits[request.id, begin + i]
            torch.testing.assert_close(ours, logits[begin + i - 1], atol=TOLERANCE, rtol=0)
            assert token == int(ours.argmax())
    assert len(driver.ledger) == sum(request.want for request in driver.requests.values())


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "opt"])
@pytest.mark.parametrize("kind", ["ngram", "llama", "qwen2", "llama/9"])
@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.integers(0, 2**31), st.sampled_from([3, 11, 60]), st.integers(1, 6))
def test_greedy_is_what_it_is_without(
    bench: Any, drive: Any, architecture: str, kind: str, seed: int, max_chunk: int, most: int
) -> None:
    """Amid chunks, preemption, shared prefixes and forks; the last drafter has room for a part of the requests only."""
    made, (Driver, Live), random = bench(architecture), drive, Random(seed)
    drafter = drafter_of(kind, bench)
    driver = Driver(WorkerCore(made.core.runner, drafter=drafter), random, most)
    stem = [random.randrange(VOCAB) for _ in range(12)]
    for id in (1, 3, 5):
        prompt = stem[: random.randint(0, 12)] + [random.randrange(VOCAB)]
        driver.add(Live(id, prompt, random.randint(2, 24)))
        if random.random() < 0.5:
            driver.add(Live(id + 1, list(prompt), random.randint(2, 12), parent=id))
    driver.run(max_chunk)
    check_greedy(driver, made.reference)
    assert all(not owners for owners in driver.owners.values())
    if isinstance(drafter, ModelDrafter):
        assert drafter.check() == []


def test_the_runs_above_accept_and_reject(bench: Any, drive: Any) -> None:
    """A drafter that is the model itself is always right; a foreign one now and then; a repetition is found."""
    made, (Driver, Live) = bench("llama"), drive
    shares = {}
    for kind in ("ngram", "llama", "qwen2"):
        driver = Driver(WorkerCore(made.core.runner, drafter=drafter_of(kind, bench)), Random(1), 4)
        for id in range(1, 7):
            driver.add(Live(id, [id * 7 % VOCAB, 3, id], 40))
        driver.run(60, preempt=0.02)
        check_greedy(driver, made.reference)
        shares[kind] = driver.events["accepted"] / max(1, driver.events["drafted"])
        assert driver.events["drafted"] > 20, kind
    assert shares["llama"] > 0.98
    assert shares["qwen2"] < 0.5
    assert shares["ngram"] > 0.05


SAMPLED = Sampling(
    temperature=0.9, top_p=0.95, top_k=30, min_p=0.01, presence_penalty=0.6,
    frequency_penalty=0.4, repetition_penalty=1.2,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["ngram", "llama", "qwen2", "oracle"])
def test_coupled_drafts_leave_sampled_tokens_as_they_are(bench: Any, drive: Any, kind: str) -> None:
    """Every rule of the sampler and a seed: token for token what is said without drafts."""
    made, (Driver, Live) = bench("llama"), drive

    def run(core: WorkerCore, drafts: int) -> Any:
        driver = Driver(core, Random(3), drafts)
        for id in range(1, 9):
            sampling = structs.replace(SAMPLED if id % 2 else Sampling(temperature=1.1), seed=id)
            driver.add(Live(id, [id, 5, id * 3], 30, sampling))
        driver.run(60)
        return driver

    plain = run(WorkerCore(made.core.runner), 0)
    texts = {id: request.tokens for id, request in plain.requests.items()}
    drafter = Oracle(texts, Random(9)) if kind == "oracle" else drafter_of(kind, bench)
    drafted = run(WorkerCore(made.core.runner, drafter=drafter), 5)
    assert {id: request.tokens for id, request in drafted.requests.items()} == texts
    assert kind == "ngram" or drafted.events["accepted"] > 0
    if kind == "llama":  # the same model with the same numbers: as good as always right
        assert drafted.events["accepted"] > 0.95 * drafted.events["drafted"]
    if kind == "oracle":
        assert 0.4 < drafted.events["accepted"] / drafted.events["drafted"] < 0.95


TWO = Sampling(temperature=3.0, top_k=2)  # hot: both candidates are likely


def neighbour_drafter(folder: Path) -> ModelDrafter:
    """The same model with a little noise on its weights: often right, often not."""
    loaded = load_model(config_of(folder))
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data + 0.04 * torch.randn_like(parameter)
    cache = KvCache(loaded.shapes, 96, 4, loaded.dtype, loaded.device)
    return ModelDrafter(Runner(loaded, cache), coupled=False)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", ["neighbour", pytest.param("llama", marks=SLOW), pytest.param("qwen2", marks=SLOW)]
)
def test_rejection_sampling_leaves_the_distribution_as_it_is(
    bench: Any, drive: Any, tiny: Any, kind: str
) -> None:
    """The first three tokens of 1,200 requests with seeds 1 to 1,200, two candidates for each: eight texts, by their
    exact probabilities from transformers' logits. Chi-squared with 7 degrees of freedom; a false alarm for one choice
    of seeds in 10,000."""
    made, (Driver, Live), prompt = bench("llama"), drive, [9, 4, 77, 30]
    counts: dict[tuple[int, ...], int] = {}
    drafted = accepted = 0
    near = kind == "neighbour"
    drafter = (
        neighbour_drafter(tiny("llama")) if near else model_drafter(bench(kind), coupled=False)
    )
    for begin in range(1, 1200, 40):
        driver = Driver(WorkerCore(made.core.runner, drafter=drafter), Random(begin), 3)
        for id in range(begin, begin + 40):
            driver.add(Live(id, list(prompt), 4, structs.replace(TWO, seed=id)))
        driver.run(60, preempt=0.0)
        for id, request in driver.requests.items():
            first = tuple(request.got[:3])
            counts[first] = counts.get(first, 0) + 1
            drafter.forget(id)
        drafted += driver.events["drafted"]
        accepted += driver.events["accepted"]
    expected = _probabilities_of_three(made.reference, prompt)
    assert sum(expected.values()) == pytest.approx(1) and set(counts) <= set(expected)
    total = sum(counts.values())
    squares = [(counts.get(t, 0) - total * p) ** 2 / (total * p) for t, p in expected.items()]
    assert sum(squares) < ALARM_7
    assert drafter.check() == [] and drafted > 500
    if near:
        assert 0.2 < accepted / drafted < 0.95
    elif kind == "llama":
        assert accepted > 0.98 * drafted


def _probabilities_of_three(model: Any, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Of each text of three tokens that top_k = 2 allows."""

    def after(tokens: list[int]) -> dict[int, float]:
        with torch.inference_mode():
            row = model(torch.tensor([tokens])).logits[0, -1:].float().clone()
        chances, _ = probabilities(row, [Draw(TWO, 0)])
        return {i: float(chances[0, i]) for i in torch.nonzero(chances[0]).flatten().tolist()}

    found: dict[tuple[int, ...], float] = {}
    for one, p in after(prompt).items():
        for two, q in after([*prompt, one]).items():
            for three, r in after([*prompt, one, two]).items():
                found[one, two, three] = p * q * r
    return found


def test_a_drafters_own_draws_are_its_distribution(bench: Any) -> None:
    """In rejection mode: the distribution that goes along is the one by the request's own parameters, penalties over
    drafts included; at temperature 0 there is none, and drafts are the best tokens."""
    drafter = model_drafter(bench("llama"), coupled=False)
    sampled = Request(Prompt(1, [5, 6, 7], structs.replace(SAMPLED, seed=4)), VOCAB)
    greedy = Request(Prompt(2, [5, 6, 7], GREEDY), VOCAB)
    one, two = drafter.propose([sampled, greedy], [3, 2])
    assert two.chances is None and len(two.tokens) == 2
    assert one.chances is not None and one.chances.shape == (3, VOCAB)
    reference = bench("llama").reference
    for at, token in enumerate(one.tokens):
        before = [5, 6, 7, *one.tokens[:at]]
        with torch.inference_mode():
            row = reference(torch.tensor([before])).logits[0, -1:].float().clone()
        want, _ = probabilities(row, [sampled.draw(one.tokens[:at])])
        torch.testing.assert_close(one.chances[at], want[0], atol=1e-4, rtol=0)
        assert one.chances[at, token] > 0


# --- entries -------------------------------------------------------------------------------------------------------


def batch(step: int, start: int, count: int, blocks: list[int], drafts: int, *new: Prompt) -> Batch:
    """One entry of request 1; the blocks come with the request."""
    return Batch(
        step=step, new=list(new), ids=[1], starts=[start], counts=[count],
        table_at=[0 if new else len(blocks)], table_counts=[len(blocks) if new else 0],
        table_blocks=blocks if new else [], copy_from=[], copy_to=[], release=[],
        predicted_s=0.01, bound_s=1.0, drafts=[drafts],
    )  # fmt: skip


@pytest.fixture
def text(bench: Any) -> list[int]:
    """A prompt of four tokens and 30 greedy ones."""
    reference = bench("llama").reference
    with torch.inference_mode():
        out = reference.generate(torch.tensor([[5, 9, 30, 61]]), max_new_tokens=30, do_sample=False)
    return out[0].tolist()


class Fixed(Oracle):
    """Proposes what comes, of which the first `right` are right."""

    right = 0

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
        [request], [count] = requests, most
        have = len(request.tokens)
        coming = self.texts[1][have : have + count]
        wrong = [(t + (i >= self.right)) % VOCAB for i, t in enumerate(coming)]
        return [Proposal(tuple(wrong))]


@pytest.mark.parametrize("right", range(5))
def test_an_entry_planned_behind_drafts_starts_where_the_request_is(
    bench: Any, text: list[int], right: int
) -> None:
    drafter = Fixed({1: text}, Random(0))
    core = WorkerCore(bench("llama").core.runner, drafter=drafter)
    blocks = list(range(20, 30))
    prompt = Prompt(1, text[:4], GREEDY)
    first = core.execute(batch(0, 0, 4, blocks, 0, prompt))
    drafter.right = right
    second = core.execute(batch(1, 4, 1, blocks, 4))
    assert (second.drafted, second.accepted, second.counts) == ([4], [right], [1 + right])
    drafter.right = 2
    third = core.execute(batch(2, 9, 1, blocks, 2))  # as if all four had been accepted
    assert third.failed == [] and third.counts == [3]
    said = [*first.tokens, *second.tokens, *third.tokens]
    assert said == text[4 : 4 + len(said)]
    assert core.inventory().held[0].computed == len(text[:4]) + len(said) - 1
    settled = core.execute(batch(3, 4 + len(said) - 1, 1, blocks, 0))
    assert settled.tokens == [text[4 + len(said)]] and settled.accepted == [0]
    assert (core.drafted, core.accepted) == (6, right + 2)


@pytest.mark.parametrize("start", [7, 8, 10, 11])
def test_nothing_else_may_start_elsewhere(bench: Any, text: list[int], start: int) -> None:
    """One of four drafts was accepted: the next entry is at 6, or as planned at 9."""
    drafter = Fixed({1: text}, Random(0))
    drafter.right = 1
    core = WorkerCore(bench("llama").core.runner, drafter=drafter)
    blocks = list(range(20, 30))
    core.execute(batch(0, 0, 4, blocks, 0, Prompt(1, text[:4], GREEDY)))
    core.execute(batch(1, 4, 1, blocks, 4))
    result = core.execute(batch(2, start, 1, blocks, 0))
    assert result.failed == [1] and "only 6 tokens are computed" in result.causes[0]


def test_blocks_for_all_drafts_are_asked_for(bench: Any, text: list[int]) -> None:
    core = WorkerCore(bench("llama").core.runner, drafter=NgramDrafter())
    core.execute(batch(0, 0, 4, [3, 4], 0, Prompt(1, text[:4], GREEDY)))
    result = core.execute(batch(1, 4, 1, [3, 4], 4))
    assert "2 blocks does not cover 5 tokens and 4 drafts" in result.causes[0]


def test_drafts_without_a_drafter_are_none(bench: Any, text: list[int]) -> None:
    core = WorkerCore(bench("llama").core.runner)
    core.execute(batch(0, 0, 4, [3, 4, 5], 0, Prompt(1, text[:4], GREEDY)))
    result = core.execute(batch(1, 4, 1, [3, 4, 5], 4))
    assert result.tokens == [text[5]] and (result.drafted, result.accepted) == ([0], [0])
    assert core.execute(batch(2, 9, 1, [3, 4, 5], 0)).tokens == [text[6]]


def test_a_drafter_that_fails_is_done_without(bench: Any, text: list[int]) -> None:
    class Broken(Oracle):
        def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
            raise RuntimeError("out of ideas")

    core = WorkerCore(bench("llama").core.runner, drafter=Broken({}, Random(0)))
    core.execute(batch(0, 0, 4, [3, 4, 5], 0, Prompt(1, text[:4], GREEDY)))
    with capture_logs() as logs:
        result = core.execute(batch(1, 4, 1, [3, 4, 5], 4))
    assert result.tokens == [text[5]] and result.failed == []
    assert any("out of ideas" in str(line.get("cause")) for line in logs)
    assert core.drafter is None


# --- the drafter's cache -------------------------------------------------------------------------------------------


def test_a_drafter_follows_what_was_accepted(bench: Any) -> None:
    """What it proposes is what it would propose from nothing, whatever it had drafted before; blocks come back."""
    drafter, random = model_drafter(bench("llama")), Random(2)
    requests = [Request(Prompt(i, [i, 5, 8 * i], GREEDY), VOCAB) for i in range(1, 5)]
    for _ in range(12):
        asked = [request for request in requests if random.random() < 0.8]
        most = [random.randint(1, 5) for _ in asked]
        found = drafter.propose(asked, most)
        fresh = model_drafter(bench("llama")).propose(asked, most)
        assert [one.tokens for one in found] == [one.tokens for one in fresh]
        assert [len(one.tokens) for one in found] == most
        assert drafter.check() == []
        for request, proposal in zip(asked, found, strict=True):
            right = random.randint(0, len(proposal.tokens))
            request.extend([*proposal.tokens[:right], random.randrange(VOCAB)], 0)
    for request in requests:
        drafter.forget(request.id)
    assert drafter.check() == [] and len(drafter._free) == 96


def test_a_long_prompt_is_caught_up_with_in_portions(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelgen.worker.drafting.drafter.CATCH_UP", 10)
    drafter = model_drafter(bench("llama"))
    long = Request(Prompt(1, [i % VOCAB for i in range(25)], GREEDY), VOCAB)
    short = Request(Prompt(2, [4, 5], GREEDY), VOCAB)
    counts = []
    for _ in range(5):
        found = drafter.propose([long, short], [3, 3])
        counts.append([len(one.tokens) for one in found])
        short.extend([7], 0)
    # 2 tokens of the short one, then 1 each time; 8 + 9 + 8 of the long one
    assert counts == [[0, 3], [0, 3], [3, 3], [3, 3], [3, 3]]
    fresh = model_drafter(bench("llama"))
    monkeypatch.undo()
    assert fresh.propose([long], [3])[0].tokens == drafter.propose([long], [3])[0].tokens


def test_positions_that_the_drafter_does_not_have(bench: Any) -> None:
    drafter = model_drafter(bench("llama"), blocks=140)
    request = Request(Prompt(1, [3] * 510, GREEDY), VOCAB)  # the model has 512
    assert len(drafter.propose([request], [3])[0].tokens) == 3
    assert drafter.propose([request], [4])[0].tokens == ()


def test_a_full_cache_forgets_who_is_not_asked_for(bench: Any) -> None:
    drafter = model_drafter(bench("llama"), blocks=6)
    requests = [Request(Prompt(i, [i] * 9, GREEDY), VOCAB) for i in range(1, 5)]
    for request in requests:
        assert len(drafter.propose([request], [2])[0].tokens) == 2  # three blocks each
        assert drafter.check() == []
    found = drafter.propose(requests[:3], [2, 2, 2])
    assert sum(len(one.tokens) == 2 for one in found) == 2 and drafter.check() == []


@pytest.mark.parametrize("coupled", [True, False])
def test_numbers_that_are_none_stay_with_their_request(bench: Any, coupled: bool) -> None:
    """A request for which the drafter has no numbers gets no drafts any more; who gets its blocks inherits nothing."""
    drafter = model_drafter(bench("llama"), blocks=3, coupled=coupled)
    forward, cache = drafter.runner.forward, drafter.runner.cache

    def broken(spans: Sequence[Span]) -> Logits:
        logits = forward(spans)
        for tensor in (*cache.keys, *cache.values):
            tensor[:] = float("nan")
        return Logits(torch.full_like(logits.rows, float("nan")), logits.order)

    sampling = SAMPLED if not coupled else GREEDY
    ill, well = (Request(Prompt(id, [3] * 9, sampling), VOCAB) for id in (1, 2))
    drafter.runner.forward = broken
    assert drafter.propose([ill], [2]) == [NOTHING]
    drafter.runner.forward = forward
    assert drafter.check() == [] and len(drafter._free) == 3
    [found] = drafter.propose([well], [2])
    [wanted] = model_drafter(bench("llama"), blocks=3, coupled=coupled).propose([well], [2])
    assert found.tokens == wanted.tokens and len(found.tokens) == 2
    drafter.forget(2)
    assert drafter.propose([ill], [2]) == [NOTHING]
    drafter.forget(1)
    assert len(drafter.propose([ill], [2])[0].tokens) == 2


# --- at the start ----------------------------------------------------------------------------------------------------


def config_of(folder: Path, **options: Any) -> Config:
    return Config(
        model=str(folder),
        block_size=4,
        kv_blocks=32,
        max_model_len=64,
        profile_file="none",
        **options,
    )


def with_tokenizer(folder: Path, target: Path, vocab: Any, **others: Any) -> Path:
    shutil.copytree(folder, target)
    raw = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, **others}
    (target / "tokenizer.json").write_text(json.dumps(raw))
    return target


def test_an_engine_with_a_drafter_model_accepts_its_own_drafts(tiny: Any) -> None:
    folder = tiny("llama")
    plain = start_engine(config_of(folder))
    engine = start_engine(config_of(folder, drafter=str(folder)))
    assert isinstance(engine.core.drafter, ModelDrafter) and engine.core.drafter.coupled
    assert engine.facts.kv_bytes == 2 * plain.facts.kv_bytes
    assert engine.facts.weights_bytes > 1.5 * plain.facts.weights_bytes
    core, blocks = engine.core, list(range(8))
    core.execute(batch(0, 0, 4, blocks, 0, Prompt(1, [5, 9, 30, 61], GREEDY)))
    result = core.execute(batch(1, 4, 1, blocks, 4))
    assert (result.counts, result.drafted, result.accepted) == ([5], [4], [4])


def test_an_engine_with_prompt_lookup(tiny: Any) -> None:
    engine = start_engine(config_of(tiny("llama"), drafter="ngram"))
    assert isinstance(engine.core.drafter, NgramDrafter)
    core, blocks = engine.core, list(range(8))
    core.execute(batch(0, 0, 4, blocks, 0, Prompt(1, [5, 9, 5, 9], GREEDY)))
    assert core.execute(batch(1, 4, 1, blocks, 4)).drafted in ([0], [4])


def test_another_number_of_tokens_is_refused(tiny: Any, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    drafter = tmp_path / "larger"
    LlamaForCausalLM(config).save_pretrained(drafter)
    with pytest.raises(LoadError, match="another vocabulary than .*: 101 token ids, not 97"):
        start_engine(config_of(tiny("llama"), drafter=str(drafter)))


@pytest.mark.parametrize(
    ("vocab", "others", "words"),
    [
        ({"a": 0, "c": 1}, {}, r"1 of 2 tokens differ, first id 1: 'c', not 'b'"),
        ({"a": 0}, {}, r"1 of 2 tokens differ, first id 1: no token, not 'b'"),
        ({"b": 0, "a": 1}, {}, r"2 of 2 tokens differ, first id 0: 'b', not 'a'"),
        ([["a", -1.0], ["x", -2.0]], {}, r"1 of 2 tokens differ, first id 1: 'x', not 'b'"),
        (
            {"a": 0, "b": 1},
            {"added_tokens": [{"id": 2, "content": "<|end|>"}]},
            r"1 of 3 tokens differ, first id 2: '<\|end\|>', not no token",
        ),
    ],
)
def test_other_tokens_are_refused(
    tiny: Any, tmp_path: Path, vocab: Any, others: Any, words: str
) -> None:
    model = with_tokenizer(tiny("llama"), tmp_path / "model", {"a": 0, "b": 1})
    drafter = with_tokenizer(tiny("qwen2"), tmp_path / "drafter", vocab, **others)
    with pytest.raises(LoadError, match=words) as refused:
        start_engine(config_of(model, drafter=str(drafter)))
    assert "\n" not in str(refused.value) and str(drafter) in str(refused.value)


def test_the_same_tokens_are_taken(tiny: Any, tmp_path: Path) -> None:
    """Whatever the kind of tokenizer: what counts is which token an id is."""
    model = with_tokenizer(tiny("llama"), tmp_path / "model", {"a": 0, "b": 1})
    drafter = with_tokenizer(tiny("qwen2"), tmp_path / "drafter", [["a", 0.0], ["b", 0.0]])
    engine = start_engine(config_of(model, drafter=str(drafter), draft_sampling="rejection"))
    assert isinstance(engine.core.drafter, ModelDrafter) and not engine.core.drafter.coupled


def padded(folder: Path, target: Path, rows: int) -> Path:
    """The same model with more, or fewer, rows of embeddings."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows, mean_resizing=False)
    model.save_pretrained(target)
    return target


@pytest.mark.parametrize("mode", ["coupled", "rejection"])
@pytest.mark.parametrize("rows", [90, 112])
def test_rows_that_stand_for_no_token(tiny: Any, tmp_path: Path, rows: int, mode: str) -> None:
    """Tables of other lengths, the same tokens: a drafter of 112 rows proposes none of those the model does not have,
    one of 90 is not asked about those that it does not."""
    vocab = {str(id): id for id in range(90)}
    model = with_tokenizer(tiny("llama"), tmp_path / "model", vocab)
    other = with_tokenizer(padded(model, tmp_path / "rows", rows), tmp_path / "drafter", vocab)
    config = config_of(model, drafter=str(other), draft_sampling=mode)
    drafter = start_engine(config).core.drafter
    assert isinstance(drafter, ModelDrafter)
    bias = drafter.runner.forward

    def tempted(spans: Sequence[Span]) -> Logits:
        logits = bias(spans)
        tempting = logits.rows.clone()
        tempting[:, min(rows, VOCAB) :] = 1e4
        return Logits(tempting, logits.order)

    drafter.runner.forward = tempted
    hot = Sampling(temperature=1.0, seed=5)
    known, strange = (Request(Prompt(id, [4, 5, 60 + 18 * id], hot), VOCAB) for id in (1, 2))
    found, other = drafter.propose([known, strange], [3, 3])
    assert len(found.tokens) == 3 and max(found.tokens) < min(rows, VOCAB)
    assert mode == "coupled" or (found.chances is not None and found.chances.shape == (3, VOCAB))
    assert len(other.tokens) == (0 if rows < VOCAB else 3)  # it has the token 96


def test_rows_that_a_token_needs(tiny: Any, tmp_path: Path) -> None:
    vocab = {str(id): id for id in range(91)}
    model = with_tokenizer(tiny("llama"), tmp_path / "model", vocab)
    other = with_tokenizer(padded(model, tmp_path / "rows", 90), tmp_path / "drafter", vocab)
    with pytest.raises(LoadError, match="another vocabulary than .*: 90 token ids, not 97"):
        start_engine(config_of(model, drafter=str(other)))


def test_a_vocabulary_that_cannot_be_compared_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = with_tokenizer(tiny("llama"), tmp_path / "model", {"a": 0})
    with pytest.raises(LoadError, match="cannot be compared .* has no tokenizer.json"):
        start_engine(config_of(model, drafter=str(tiny("qwen2"))))
    broken = with_tokenizer(tiny("qwen2"), tmp_path / "broken", {"a": "x"})
    with pytest.raises(LoadError, match="tokenizer.json: cannot be read: ValueError"):
        start_engine(config_of(model, drafter=str(broken)))


def test_a_drafter_that_is_not_there(tiny: Any) -> None:
    with pytest.raises(LoadError, match="drafter: model /nowhere: no such folder"):
        start_engine(config_of(tiny("llama"), drafter="/nowhere"))
