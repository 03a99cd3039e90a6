"""Tiny models with random weights, one per architecture that the worker promises, and a worker around each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from accelgen.proto.messages import Batch, Prompt, Sampling, StepResult

VOCAB = 97
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "opt", "gemma2")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.25,  # large weights: logits that differ clearly, attention that matters
}


def tiny_config(architecture: str) -> Any:
    import transformers as tf

    if architecture == "opt":
        sizes = {
            k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")
        }
        sizes["init_std"] = sizes.pop("initializer_range")
        return tf.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32)
    kind = {
        "llama": tf.LlamaConfig,
        "qwen2": tf.Qwen2Config,
        "qwen3": tf.Qwen3Config,
        "mistral": tf.MistralConfig,
        "gemma2": tf.Gemma2Config,
    }[architecture]
    extra: dict[str, Any] = {
        "qwen3": {"head_dim": 16},
        "mistral": {"sliding_window": 16},
        "gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    }.get(architecture, {})
    return kind(**SIZES, **extra)


def save_tiny(folder: Path, architecture: str, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a tiny random model; returns its folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture)).to(dtype)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@dataclass
class Bench:
    """A worker core on a tiny model, and the model as transformers loads it (the reference)."""

    folder: Path
    core: Any
    reference: Any


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(architecture, dtype) -> folder of a saved model."""

    @cache
    def make(architecture: str, dtype: torch.dtype = torch.float32) -> Path:
        return save_tiny(tmp_path_factory.mktemp(architecture), architecture, dtype)

    return make


@pytest.fixture(scope="session")
def bench(tiny: Callable[..., Path]) -> Callable[..., Bench]:
    """bench(architecture, dtype, block_size, blocks) -> Bench, made once."""
    from accelgen.proto.config import Config
    from accelgen.worker.engine import start_engine

    torch.set_num_threads(1)

    @cache
    def make(
        architecture: str, dtype: torch.dtype = torch.float32, block_size: int = 4, blocks: int = 96
    ) -> Bench:
        from transformers import AutoModelForCausalLM

        folder = tiny(architecture, dtype)
        config = Config(
            model=str(folder),
            block_size=block_size,
            kv_blocks=blocks,
            max_model_len=128,
            profile_file="none",
        )
        engine = start_engine(config)
        reference = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=dtype
        ).eval()
        return Bench(folder, engine.core, reference)

    return make


GREEDY = Sampling(temperature=0.0)


@dataclass
class Live:
    """One request as the driver sees it: what a scheduler and a KV manager would know."""

    id: int
    prompt: list[int]
    want: int  # tokens to generate
    sampling: Sampling = GREEDY
    parent: int = 0
    got: list[int] = field(default_factory=list)
    table: list[int] = field(default_factory=list)
    computed: int = 0
    settled: int = 0  # of `computed`, what earlier steps have done: only that can be shared
    met: bool = False
    preemptions: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.got

    @property
    def done(self) -> bool:
        return len(self.got) >= self.want


class Driver:
    """A scheduler and KV manager in miniature, that do whatever a random number tells them: chunks of any size, decodes
    beside them, preemption by recompute, shared prefixes, forks with copy-on-write, blocks in any order; decodes with
    up to `drafts` drafted tokens.

    `ledger` has (request, position) -> token and raises on a repeat; `logits` what the worker's model gave there."""

    def __init__(self, core: Any, random: Random, drafts: int = 0) -> None:
        self.core, self.random, self.drafts = core, random, drafts
        self.size = core.runner.cache.block_size
        self.free = list(range(core.runner.cache.num_blocks))
        random.shuffle(self.free)
        self.owners: Counter[int] = Counter()
        self.requests: dict[int, Live] = {}
        self.ledger: dict[tuple[int, int], int] = {}
        self.logits: dict[tuple[int, int], torch.Tensor] = {}
        self.events: Counter[str] = Counter()
        self._step = core.step
        self._pending: list[Prompt] = []
        self._release = list(core.requests)  # left by whoever used the core before

    def add(self, request: Live) -> None:
        self.requests[request.id] = request
        self._pending.append(
            Prompt(request.id, list(request.prompt), request.sampling, parent=request.parent)
        )

    def run(self, max_chunk: int = 11, preempt: float = 0.08) -> None:
        """Until every request has what it wants."""
        for _ in range(2000):
            live = [request for request in self.requests.values() if not request.done]
            if not live:
                return
            self.step(live, max_chunk, preempt)
        raise AssertionError("requests do not end")

    def step(self, live: list[Live], max_chunk: int, preempt: float) -> StepResult:
        self.random.shuffle(live)
        columns: list[tuple[int, int, int, int, list[int], int]] = []
        copies: list[tuple[int, int]] = []
        for request in live:
            if request.computed and request.preemptions < 3 and self.random.random() < preempt:
                self._drop(request)
                request.preemptions += 1
                self.events["preempted"] += 1
            if self.random.random() < 0.2:
                continue
            if not request.computed and not self._begin(request):
                continue
            left = len(request.tokens) - request.computed
            count = self.random.randint(1, min(left, max_chunk))
            ahead = 0
            if self.drafts and request.got and left == 1:
                most = min(self.drafts, request.want - len(request.got) - 1)
                ahead = self.random.randint(0, most)
            at, blocks = self._allocate(request, request.computed + count + ahead, copies)
            columns.append((request.id, request.computed, count, at, blocks, ahead))
            request.computed += count
        return self._send(columns, copies)

    def _begin(self, request: Live) -> bool:
        """A fresh start: from 0, from a shared prefix, or as a fork."""
        if request.parent:
            parent = self.requests[request.parent]
            if not (request.got or parent.done) and parent.settled < len(request.prompt):
                return False
        best, length = None, 0
        for other in self.requests.values():
            common = os.path.commonprefix([other.tokens[: other.settled], request.tokens])
            usable = min(len(common), len(request.tokens) - 1)
            if request.parent != other.id or request.got:
                usable -= usable % self.size  # only forks share a block that is not full
            if other is not request and usable > length:
                best, length = other, usable
        if best is not None:
            shared = best.table[: -(-length // self.size)]
            self.owners.update(shared)
            request.table = list(shared)
            self.events["forked" if length % self.size else "prefix hit"] += 1
        request.computed = request.settled = length
        request.met = False  # its table has not been sent
        return True

    def _allocate(
        self, request: Live, end: int, copies: list[tuple[int, int]]
    ) -> tuple[int, list[int]]:
        first = request.computed // self.size
        old = len(request.table)
        changed = old
        for at in range(first, old):
            if self.owners[request.table[at]] > 1:
                fresh = self._take()
                copies.append((request.table[at], fresh))
                self.owners[request.table[at]] -= 1
                request.table[at] = fresh
                changed = min(changed, at)
                self.events["copied"] += 1
        while len(request.table) * self.size < end:
            request.table.append(self._take())
        at = changed if request.met else 0
        request.met = True
        return at, request.table[at:]

    def _take(self) -> int:
        block = self.free.pop(self.random.randrange(len(self.free)))
        self.owners[block] += 1
        return block

    def _drop(self, request: Live) -> None:
        for block in request.table:
            self.owners[block] -= 1
            if not self.owners[block]:
                self.free.append(block)
        request.table, request.computed, request.settled = [], 0, 0

    def _send(
        self,
        columns: list[tuple[int, int, int, int, list[int], int]],
        copies: list[tuple[int, int]],
    ) -> StepResult:
        self._step += 1
        batch = Batch(
            self._step,
            self._pending,
            [column[0] for column in columns],
            [column[1] for column in columns],
            [column[2] for column in columns],
            [column[3] for column in columns],
            [len(column[4]) for column in columns],
            [block for column in columns for block in column[4]],
            [source for source, _ in copies],
            [target for _, target in copies],
            self._release,
            0.01,
            1.0,
            drafts=[column[5] for column in columns] if self.drafts else [],
        )
        self._pending, self._release = [], []
        captured: list[Any] = []
        forward = self.core.runner.forward

        def capture(spans: Any) -> Any:
            out = forward(spans)
            captured.append((out.rows.clone(), out.order))
            return out

        self.core.runner.forward = capture
        try:
            result: StepResult = self.core.execute(batch)
        finally:
            del self.core.runner.forward
        self._settle(result, columns, captured)
        return result

    def _settle(self, result: StepResult, columns: list[Any], captured: list[Any]) -> None:
        assert not result.failed, result.causes
        assert result.step == self._step and result.ids == [column[0] for column in columns]
        rows: dict[int, list[torch.Tensor]] = {}
        for values, order in captured:
            rows = {}
            for row, at in enumerate(order):
                rows.setdefault(columns[at][0], []).append(values[row])
        tokens = iter(result.tokens)
        for column, count in zip(columns, result.counts, strict=True):
            id, ahead = column[0], column[5]
            request = self.requests[id]
            assert (count > 0) == (request.computed == len(request.tokens)) and count <= 1 + ahead
            for i in range(count):
                where = (id, len(request.tokens))
                assert where not in self.ledger
                self.ledger[where] = next(tokens)
                self.logits[where] = rows[id][i]
                request.got.append(self.ledger[where])
            if count:
                request.computed = len(request.tokens) - 1
            request.settled = request.computed
            if request.done:
                self._drop(request)
                self._release.append(id)
        self.events["drafted"] += sum(result.drafted)
        self.events["accepted"] += sum(result.accepted)
        assert next(tokens, None) is None


@pytest.fixture(scope="session")
def drive() -> tuple[type[Driver], type[Live]]:
    """The driver and the request class, for the tests (tests are no package)."""
    return Driver, Live
