"""What block allocation costs: one plan of 256 requests (budget: p99 <= 0.3 ms).

`pytest benchmarks/bench_kvmanager.py` prints the distribution. A round is `KvCore.on_plan`, from the decoded Plan to
the Batch and KvReport. What the KV manager does after these have left (`settle`: hashing full blocks) is timed on its
own, and so is the wire (decoding the Plan, encoding both answers).
"""

from __future__ import annotations

import gc
from typing import Any

import msgspec
import numpy as np
import pytest

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Batch, KvReport, Lookup, Plan, Prompt

BLOCKS, BLOCK_SIZE, RUNNING = 100_000, 16, 256
ROUNDS = 1000


def make_plan(step: int, ids: list[int], starts: list[int], counts: list[int]) -> Plan:
    """A plan that confirms one token for each decode that is not the first."""
    told = ids if step > 1 else []
    tokens = [step % 1000] * len(told)
    return Plan(
        step, ids, starts, counts, told, [1] * len(told), tokens, [], [], [], [], 0.01, 0.05
    )


class Decoding:
    """256 requests that all decode, with prompts of the given lengths."""

    def __init__(self, lengths: list[int]) -> None:
        self.core = KvCore(BLOCKS, BLOCK_SIZE)
        self.ids = list(range(1, RUNNING + 1))
        self.lengths = lengths
        self.core.on_lookup(
            Lookup(
                [Prompt(id, [id] * length) for id, length in zip(self.ids, lengths, strict=True)]
            )
        )
        self.step = 0
        self.core.on_plan(make_plan(0, list(self.ids), [0] * RUNNING, list(lengths)))
        self.core.settle()
        gc.collect()
        gc.freeze()  # as the process does

    def next_plan(self) -> Plan:
        self.step += 1
        starts = [length + self.step - 1 for length in self.lengths]
        return make_plan(self.step, list(self.ids), starts, [1] * RUNNING)


def percentiles(benchmark: Any, what: str) -> None:
    times_ms = np.array(benchmark.stats.stats.data) * 1000
    p50, p99 = np.percentile(times_ms, [50, 99])
    benchmark.extra_info.update(p50_ms=round(float(p50), 3), p99_ms=round(float(p99), 3))
    print(f"\n{what}: p50 {p50:.3f} ms, p99 {p99:.3f} ms")


def time_plans(benchmark: Any, life: Decoding, rounds: int, what: str) -> None:
    def setup() -> tuple[tuple[Plan], dict[str, Any]]:
        life.core.settle()
        return (life.next_plan(),), {}

    def allocate(plan: Plan) -> None:
        _, report = life.core.on_plan(plan)
        assert not report.dropped

    benchmark.pedantic(allocate, setup=setup, rounds=rounds, warmup_rounds=20)
    percentiles(benchmark, what)
    assert life.core.check() == []


def test_decodes(benchmark: Any) -> None:
    """As under load: prompts of different lengths, in each round 16 of 256 requests begin a new block."""
    life = Decoding([500 + i % BLOCK_SIZE for i in range(RUNNING)])
    time_plans(benchmark, life, ROUNDS, "256 decodes, 16 new blocks")


def test_decodes_without_new_blocks(benchmark: Any) -> None:
    """All requests are far from the next block border."""
    life = Decoding([512 * 4] * RUNNING)
    life.core.on_plan(life.next_plan())  # everyone begins a block
    time_plans(benchmark, Rewinding(life), ROUNDS, "256 decodes, no new block")


def test_decodes_that_all_need_a_block(benchmark: Any) -> None:
    """The worst step: all requests cross a block border at once (it can happen once in 16 steps)."""
    life = Decoding([512] * RUNNING)
    crossing = Crossing(life)
    time_plans(benchmark, crossing, 200, "256 decodes, 256 new blocks")


class Rewinding(Decoding):
    """Decodes within one block: before its border the requests go round 16 tokens, untimed."""

    def __init__(self, life: Decoding) -> None:
        self.core, self.ids, self.lengths, self.step = life.core, life.ids, life.lengths, life.step

    def next_plan(self) -> Plan:
        plan = super().next_plan()
        if (plan.starts[0] % BLOCK_SIZE) == 0:
            self.core.on_plan(plan)
            self.core.settle()
            plan = super().next_plan()
        return plan


class Crossing(Rewinding):
    """Only the steps in which everyone begins a block; the 15 steps between are not timed."""

    def next_plan(self) -> Plan:
        while (plan := Decoding.next_plan(self)).starts[0] % BLOCK_SIZE:
            self.core.on_plan(plan)
            self.core.settle()
        return plan


def test_settle_after_a_crossing(benchmark: Any) -> None:
    """Hashing 256 full blocks into the prefix index, after the Batch has left."""
    crossing = Crossing(Decoding([512] * RUNNING))

    def setup() -> None:
        for _ in range(2 * BLOCK_SIZE):  # one of these steps confirms the last token of a block
            plan = Decoding.next_plan(crossing)
            crossing.core.on_plan(plan)
            if crossing.core.tables.ripe:
                return
        raise AssertionError("no block became full")

    benchmark.pedantic(crossing.core.settle, setup=setup, rounds=200)
    percentiles(benchmark, "settling 256 full blocks")


@pytest.mark.parametrize("hit", [False, True])
def test_lookup_of_a_long_prompt(benchmark: Any, hit: bool) -> None:
    """A prompt of 4,000 tokens at arrival: without a hit, and with 249 blocks in the prefix cache."""
    core = KvCore(BLOCKS, BLOCK_SIZE)
    tokens = list(range(4000))
    if hit:
        core.on_lookup(Lookup([Prompt(1, tokens)]))
        core.on_plan(make_plan(0, [1], [0], [4000]))
        core.settle()
    last = [1]

    def setup() -> tuple[tuple[Lookup], dict[str, Any]]:
        core.on_plan(
            Plan(0, [], [], [], [], [], [], [], [last[0]] if last[0] > 1 else [], [], [], 0, 0)
        )
        last[0] += 1
        return (Lookup([Prompt(last[0], tokens)]),), {}

    def look_up(lookup: Lookup) -> None:
        assert (core.on_lookup(lookup).hit_tokens[0] > 0) == hit

    benchmark.pedantic(look_up, setup=setup, rounds=ROUNDS, warmup_rounds=20)
    percentiles(benchmark, f"lookup of 4,000 tokens, {'249 blocks hit' if hit else 'no hit'}")


def test_prefill_of_a_long_prompt(benchmark: Any) -> None:
    """250 blocks for a prompt of 4,000 tokens in one entry."""
    core = KvCore(BLOCKS, BLOCK_SIZE)
    last = [0]

    def setup() -> tuple[tuple[Plan], dict[str, Any]]:
        core.settle()
        core.on_plan(Plan(0, [], [], [], [], [], [], [], [last[0]], [], [], 0, 0))
        last[0] += 1
        core.on_lookup(Lookup([Prompt(last[0], [last[0]] * 4000)]))
        return (make_plan(0, [last[0]], [0], [4000]),), {}

    benchmark.pedantic(core.on_plan, setup=setup, rounds=ROUNDS, warmup_rounds=20)
    percentiles(benchmark, "prompt of 4,000 tokens, 250 new blocks")


def test_wire_of_a_decode_plan(benchmark: Any) -> None:
    """Decoding a Plan of 256 decodes and encoding Batch and KvReport."""
    life = Decoding([500 + i % BLOCK_SIZE for i in range(RUNNING)])
    life.core.on_plan(life.next_plan())
    plan = life.next_plan()
    batch, report = life.core.on_plan(plan)
    decode = msgspec.msgpack.Decoder(Plan).decode
    encode = msgspec.msgpack.Encoder().encode
    wire = encode(plan)

    def pass_on() -> tuple[Plan, bytes, bytes]:
        return decode(wire), encode(batch), encode(report)

    assert isinstance(batch, Batch) and isinstance(report, KvReport)
    benchmark.pedantic(pass_on, rounds=ROUNDS, warmup_rounds=20)
    percentiles(benchmark, "wire of a plan of 256 decodes")
