"""KV on the host: what has been there and back is what it was, the model's answers are the same, and nothing is said to
be done that is not."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from msgspec import structs

from accelgen.proto.config import Config
from accelgen.proto.messages import Batch, Held, Prompt, Sampling
from accelgen.worker import hostcache, memory
from accelgen.worker.core import MAX_FAILURES, WorkerCore
from accelgen.worker.engine import host_bytes, start_engine
from accelgen.worker.faults import LoadError
from accelgen.worker.hostcache import Copies, HostCache, pin, portions, runs, stage
from accelgen.worker.kvcache import KvCache, LayerShape
from accelgen.worker.memory import size_host
from accelgen.worker.swap_timing import measure_swaps

GREEDY = Sampling(temperature=0.0)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    ),
]


def filled(device: str, blocks: int = 32) -> KvCache:
    """A cache of two layers, every block of which holds something else."""
    shapes = [LayerShape(2, 8, 8), LayerShape(1, 8, 4)]
    cache = KvCache(shapes, blocks, 4, torch.float32, torch.device(device))
    for at, tensor in enumerate((*cache.keys, *cache.values)):
        numbers = torch.arange(tensor.numel(), dtype=torch.float32, device=device)
        tensor.copy_(numbers.view_as(tensor) + at / 8)
    return cache


def contents(cache: KvCache, blocks: list[int]) -> list[torch.Tensor]:
    return [tensor[blocks].cpu() for tensor in (*cache.keys, *cache.values)]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_runs() -> None:
    assert [*runs([4, 5, 6, 2, 3, 9])] == [(0, 4, 3), (3, 2, 2), (5, 9, 1)]
    assert [*runs([7])] == [(0, 7, 1)] and [*runs([])] == [] and [*runs(range(3))] == [(0, 0, 3)]


@pytest.mark.parametrize("device", DEVICES)
def test_there_and_back(device: str) -> None:
    cache = filled(device)
    host = HostCache(cache, 8)
    before = contents(cache, [3, 4, 9, 1])
    others = [block for block in range(32) if block not in (3, 4, 9, 1, 20, 30, 21, 22)]
    untouched = contents(cache, others)
    host.copy(Copies((7, 8), [3, 4, 9, 1], [5, 6, 2, 0], True))
    assert host.take_done(wait=True) == [7, 8] and host.finish() == []
    for tensor in (*cache.keys, *cache.values):
        tensor[[3, 4, 9, 1]] = -1.0
    host.copy(Copies((7,), [5, 6], [20, 30], False))
    host.copy(Copies((8,), [2, 0], [21, 22], False))
    assert host.finish() == [7, 8]
    assert same(contents(cache, [20, 30, 21, 22]), before)
    assert same(contents(cache, others), untouched)


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_behind_what_was_computed_before_it(device: str) -> None:
    """What is written just before is what goes out; what comes in may be read when it is said to be done."""
    cache = filled(device, blocks=256)
    host = HostCache(cache, 128)
    everything, there = [*range(128)], [*range(128, 256)]
    for round in range(20):
        for tensor in (*cache.keys, *cache.values):
            tensor[:128].fill_(float(round))
        host.copy(Copies((round,), everything, everything, True))
        host.copy(Copies((round + 100,), everything, there, False))
        done = host.take_done(wait=False)
        done += host.finish()
        assert done == [round, round + 100]
        assert all((tensor[128:] == round).all() for tensor in (*cache.keys, *cache.values))


def test_the_way_through_the_device_is_that_without() -> None:
    """What a GPU does, with tensors that are here: any blocks, in pieces of any size."""
    for seed in range(40):
        random = Random(seed)
        cache, other = filled("cpu"), filled("cpu")
        here, there = HostCache(cache, 24), HostCache(other, 24)
        for out in (True, False, True):
            count = random.randint(1, 20)
            sides = [random.sample(range(size), count) for size in (32, 24)]
            copies = Copies((1,), *(sides if out else sides[::-1]), out)
            here.copy(copies)
            pieces = [*portions(copies, random.randint(0, 7))]
            assert [*pieces[0].sources, *pieces[-1].sources][0] == copies.sources[0]
            for part in pieces:
                stage(there.layers, there.rows, part)
        assert torch.equal(here.rows, there.rows) and here.rows.any()
        assert same(contents(cache, [*range(32)]), contents(other, [*range(32)]))


def test_a_copy_takes_a_call_per_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not one per run and layer: between host and device, that is, where a call is dear."""
    host = HostCache(filled("cpu"), 24)
    calls = []
    monkeypatch.setattr(hostcache, "runs", lambda blocks: calls.append(len(blocks)) or runs(blocks))
    stage(host.layers, host.rows, Copies((1,), [5, 9, 2], [3, 4, 8], True))
    stage(host.layers, host.rows, Copies((1,), [3, 4, 8], [1, 2, 3], False))
    assert calls == [3, 3]


class FakeCuda:
    """What pins memory. `limit`: bytes that it has."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.limit, self.pinned = limit, {}

    def cudaHostRegister(self, at: int, size: int, flags: int) -> int:
        if size > self.limit:
            return 2
        self.pinned[at] = size
        return 0

    def cudaHostUnregister(self, at: int) -> None:
        del self.pinned[at]


def test_exactly_what_is_stated_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the next power of two, and as long as it is needed."""
    cuda = FakeCuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    rows = torch.zeros(1000, 77)
    pin(rows)
    assert cuda.pinned == {rows.data_ptr(): 308_000}
    del rows
    assert cuda.pinned == {}
    cuda.limit = 1 << 20
    with pytest.raises(LoadError, match=r"swap_gb: the host does not pin 4 MiB \(CUDA error 2\)"):
        pin(torch.zeros(1 << 20))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_memory_is_pinned() -> None:
    host = HostCache(filled("cuda"), 24)
    assert host.rows.is_pinned()


# --- the core -------------------------------------------------------------------------------------------------------


@pytest.fixture
def core(bench: Any) -> WorkerCore:
    runner = bench("llama").core.runner
    return WorkerCore(runner, host=HostCache(runner.cache, 16))


def batch(step: int, entries: list[tuple[int, int, int, int, list[int]]], **rest: Any) -> Batch:
    """entries: (id, start, count, table_at, blocks)"""
    columns: dict[str, Any] = {"new": [], "copy_from": [], "copy_to": [], "release": [], **rest}
    return Batch(
        step=step,
        ids=[e[0] for e in entries],
        starts=[e[1] for e in entries],
        counts=[e[2] for e in entries],
        table_at=[e[3] for e in entries],
        table_counts=[len(e[4]) for e in entries],
        table_blocks=[block for e in entries for block in e[4]],
        predicted_s=0.01,
        bound_s=1.0,
        **columns,
    )


def out(ids: list[int], counts: list[int], here: list[int], there: list[int]) -> dict[str, Any]:
    return {"out_ids": ids, "out_counts": counts, "out_from": here, "out_to": there}


def back(ids: list[int], counts: list[int], there: list[int], here: list[int]) -> dict[str, Any]:
    return {"in_ids": ids, "in_counts": counts, "in_from": there, "in_to": here}


def test_a_request_goes_and_comes_back(core: WorkerCore) -> None:
    """Its next token is the one that it would have got without that."""
    prompt = Prompt(1, [*range(10)], GREEDY)
    stays = Prompt(2, [*range(10)], GREEDY)
    first = core.execute(
        batch(0, [(1, 0, 10, 0, [1, 2, 3]), (2, 0, 10, 0, [4, 5, 6])], new=[prompt, stays])
    )
    gone = core.execute(batch(1, [(2, 10, 1, 3, [])], **out([1], [3], [1, 2, 3], [5, 6, 7])))
    assert gone.moved == [1] and gone.ids == [2]
    assert core.inventory().held == [Held(1, 10, [], [5, 6, 7]), Held(2, 11, [4, 5, 6])]
    core.execute(batch(2, [(2, 11, 1, 3, [])], new=[Prompt(3, [9] * 12, GREEDY)]))
    core.execute(batch(3, [(3, 0, 12, 0, [1, 2, 3])]))  # overwrites where it was
    here = core.execute(batch(4, [], **back([1], [3], [5, 6, 7], [9, 8, 7])))
    assert here.moved == [1] and core.requests[1].table == [9, 8, 7]
    resumed = core.execute(batch(5, [(1, 10, 1, 0, [9, 8, 7])]))
    assert first.tokens[0] == first.tokens[1] and resumed.tokens == gone.tokens
    core.execute(batch(6, [], release=[1, 2, 3]))


def test_a_block_is_copied_before_another_comes_to_its_place(core: WorkerCore) -> None:
    """One Batch copies block 3 (a shared tail, about to be written) and hands it to who comes back."""
    new = [Prompt(1, [*range(10)], GREEDY), Prompt(2, [*range(20, 28)], GREEDY)]
    core.execute(batch(0, [(1, 0, 10, 0, [1, 2, 3]), (2, 0, 8, 0, [4, 5])], new=new))
    core.execute(batch(1, [], **out([2], [2], [4, 5], [0, 1])))
    cache = core.runner.cache
    shared = contents(cache, [3])
    returning = back([2], [2], [0, 1], [3, 4])
    core.execute(batch(2, [(1, 10, 1, 2, [9])], copy_from=[3], copy_to=[9], **returning))
    kept = 10 % 4  # tokens that were in the block; the next one is written behind them
    for tensor, before in zip((*cache.keys, *cache.values), shared, strict=True):
        assert torch.equal(tensor[9, :kept], before[0, :kept])


def test_the_wait_for_copies_is_no_part_of_an_iteration(bench: Any) -> None:
    """Whoever learns from `run_s` how long an iteration takes must not learn how long copies do."""
    now_s = 0.0

    class Slow(HostCache):
        def take_done(self, wait: bool) -> list[int]:
            nonlocal now_s
            now_s += 0.2 * wait
            return super().take_done(wait)

    runner = bench("llama").core.runner
    core = WorkerCore(runner, clock=lambda: now_s, host=Slow(runner.cache, 16))
    core.execute(batch(0, [(1, 0, 4, 0, [1])], new=[Prompt(1, [1] * 4, GREEDY)]))
    idle = core.execute(batch(1, [], **out([1], [1], [1], [0])))
    assert idle.run_s == 0.0 and core.run_s == 0.0
    assert core.execute(batch(2, [])).wait_s == pytest.approx(0.2)


@pytest.mark.parametrize("way", ["out", "back"])
def test_a_copy_that_raises_fails_its_requests_alone(
    core: WorkerCore, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a forward pass does that finds no memory: the others go on, and so does the worker."""
    new = [Prompt(1, [1] * 4, GREEDY), Prompt(2, [2] * 4, GREEDY)]
    core.execute(batch(0, [(1, 0, 4, 0, [1]), (2, 0, 4, 0, [2])], new=new))
    columns = out([1], [1], [1], [0])
    if way == "back":
        core.execute(batch(1, [], **columns))
        columns = back([1], [1], [0], [1])

    def no_memory(_: Copies) -> None:
        raise torch.OutOfMemoryError("tried to allocate a lot")

    assert core.host is not None
    monkeypatch.setattr(core.host, "copy", no_memory)
    result = core.execute(batch(2, [(2, 4, 1, 1, [3])], **columns))
    assert result.failed == [1] and "copy" in result.causes[0]
    assert result.moved == [1] and result.ids == [2]
    for step in range(3, 3 + MAX_FAILURES):
        assert core.execute(batch(step, [(2, step + 2, 1, 2, [])], **columns)).failed == [1]


def test_only_the_beginning_of_what_is_away_may_be_kept(core: WorkerCore) -> None:
    core.execute(batch(0, [(1, 0, 10, 0, [1, 2, 3])], new=[Prompt(1, [*range(10)], GREEDY)]))
    core.execute(batch(1, [], **out([1], [3], [1, 2, 3], [5, 6, 7])))
    core.execute(batch(2, [], cut_ids=[1], cut_to=[6]))
    assert core.inventory().held == [Held(1, 6, [], [5, 6])]
    again = Prompt(1, [*range(7)], GREEDY)  # by a new scheduler, before it comes back
    core.execute(batch(3, [], new=[again], **back([1], [2], [5, 6], [8, 9])))
    assert core.inventory().held == [Held(1, 6, [8, 9])]
    done = core.execute(batch(4, [(1, 6, 1, 0, [8, 9])]))
    assert done.ids == [1] and done.counts == [1]


def test_an_inventory_is_told_of_copies_once(core: WorkerCore) -> None:
    """Whoever has asked counts on them being done: a result that named them again could be taken for a later one."""
    core.execute(batch(0, [(1, 0, 4, 0, [1])], new=[Prompt(1, [1] * 4, GREEDY)]))
    assert core.host is not None
    core.host.copy(Copies((1,), [1], [0], True))
    assert core.inventory().held == [Held(1, 4, [1])]
    assert core.execute(batch(1, [(1, 4, 1, 1, [2])])).moved == []


@pytest.mark.parametrize(
    ("columns", "cause"),
    [
        (out([1], [1], [96], [0]), "block 96 of 96 does not exist"),
        (out([1], [1], [1], [16]), "block 16 of 16 does not exist"),
        (back([1], [1], [16], [1]), "block 16 of 16 does not exist"),
        (out([1], [2], [1], [0]), "do not fit together"),
    ],
)
def test_a_copy_that_cannot_be(core: WorkerCore, columns: dict[str, Any], cause: str) -> None:
    """The request fails, its blocks come back, and the others go on."""
    new = [Prompt(1, [1] * 4, GREEDY), Prompt(2, [2] * 4, GREEDY)]
    core.execute(batch(0, [(1, 0, 4, 0, [1]), (2, 0, 4, 0, [2])], new=new))
    result = core.execute(batch(1, [(2, 4, 1, 1, [3])], **columns))
    assert result.failed == [1] and cause in result.causes[0]
    assert result.moved == [1] and result.ids == [2]


def test_without_room_on_the_host(bench: Any) -> None:
    core = WorkerCore(bench("llama").core.runner)
    core.execute(batch(0, [(1, 0, 4, 0, [1])], new=[Prompt(1, [1] * 4, GREEDY)]))
    result = core.execute(batch(1, [], **out([1], [1], [1], [0])))
    assert result.failed == [1] and "block 0 of 0" in result.causes[0]


# --- any mixture ----------------------------------------------------------------------------------------------------


def swapping_driver(Driver: Any) -> Any:
    """The driver of conftest.py, which in addition swaps whoever it likes."""

    class Swapping(Driver):  # type: ignore[misc]
        def __init__(self, core: WorkerCore, random: Random) -> None:
            super().__init__(core, random)
            assert core.host is not None
            self.host_free = [*range(core.host.num_blocks)]
            self.away: dict[int, list[int]] = {}

        def step(self, live: list[Any], max_chunk: int, preempt: float) -> Any:
            outs = [one for one in live if one.computed and one.id not in self.away]
            outs = [one for one in outs if self.random.random() < 0.15]
            outs = [one for one in outs if len(one.table) <= len(self.host_free) // len(live)]
            backs = [one for one in live if one.id in self.away and self.random.random() < 0.4]
            columns = self._columns(outs, backs)
            ready = [one for one in live if one.id not in self.away and one not in backs]
            execute = self.core.execute
            self.core.execute = lambda given: execute(structs.replace(given, **columns))
            try:
                result = super().step(ready, max_chunk, preempt)
            finally:
                del self.core.execute
            assert sorted(result.moved) == sorted(columns["out_ids"] + columns["in_ids"])
            for one in outs:
                self._leave(one)
            for one in backs:
                self._arrive(one)
            return result

        def _columns(self, outs: list[Any], backs: list[Any]) -> dict[str, list[int]]:
            names = [f"{way}_{name}" for way in ("out", "in") for name in ("ids", "counts")]
            columns: dict[str, list[int]] = {name: [] for name in names}
            columns |= {"out_from": [], "out_to": [], "in_from": [], "in_to": []}
            for one in outs:
                self.random.shuffle(self.host_free)
                self.away[one.id] = [self.host_free.pop() for _ in one.table]
                columns["out_ids"].append(one.id)
                columns["out_counts"].append(len(one.table))
                columns["out_from"] += one.table
                columns["out_to"] += self.away[one.id]
            for one in backs:
                one.table = [self._take() for _ in self.away[one.id]]
                columns["in_ids"].append(one.id)
                columns["in_counts"].append(len(one.table))
                columns["in_from"] += self.away[one.id]
                columns["in_to"] += one.table
            return columns

        def _leave(self, one: Any) -> None:
            computed = one.computed
            self._drop(one)
            one.computed = computed
            self.events["out"] += 1

        def _arrive(self, one: Any) -> None:
            self.host_free += self.away.pop(one.id)
            one.settled, one.met = one.computed, False
            self.events["back"] += 1

    return Swapping


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_any_mixture_with_swapping_equals_that_without(
    bench: Any, drive: Any, architecture: str
) -> None:
    """Greedy tokens, and the logits that they come from."""
    made = bench(architecture)
    runner = made.core.runner
    Driver, Live = drive
    events = 0
    for seed in range(6):
        tokens = []
        for kind in (Driver, swapping_driver(Driver)):
            random = Random(seed)
            prompts = [
                [random.randrange(97) for _ in range(random.randint(1, 40))] for _ in range(4)
            ]
            core = WorkerCore(runner, host=HostCache(runner.cache, 64))
            driver = kind(core, random)
            for id, prompt in enumerate(prompts, 1):
                driver.add(Live(id, prompt, 12))
            driver.run(11)
            tokens.append({key: driver.logits[key] for key in sorted(driver.logits)})
        plain, swapped = tokens
        assert plain.keys() == swapped.keys()
        for key, logits in plain.items():
            torch.testing.assert_close(swapped[key], logits, atol=1e-4, rtol=0)
        events += driver.events["back"]
    assert events > 20


# --- sizes and times ------------------------------------------------------------------------------------------------


def test_the_size_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1 << 30)
    assert size_host(Config(swap_gb=64.0), 1 << 20) == 0  # recompute: none is asked for
    assert size_host(Config(preemption="swap", swap_gb=0.5), 10**6) == 500
    with pytest.raises(LoadError, match=r"swap_gb: 2 GB are 1,907 MiB, 1,024 MiB free"):
        size_host(Config(preemption="swap", swap_gb=2.0), 10**6)
    with pytest.raises(LoadError, match=r"swap_gb: 0.001 GB hold no block of 2,000,000 bytes"):
        size_host(Config(preemption="swap", swap_gb=0.001), 2 * 10**6)


def test_an_engine_says_what_it_has(tiny: Any) -> None:
    config = Config(
        model=str(tiny("llama")), block_size=4, kv_blocks=32, max_model_len=64,
        preemption="swap", swap_gb=20e-6, profile_file="none",
    )  # fmt: skip
    phases = []
    engine = start_engine(config, lambda phase, silent_s: phases.append((phase, silent_s)))
    assert phases[-1] == ("swap space", pytest.approx(60.0))
    assert engine.facts.host_blocks == 20_000 // (4 * 2 * 2 * 2 * 8 * 4)
    assert engine.core.host is not None
    assert host_bytes(engine) == engine.facts.host_blocks * (4 * 2 * 2 * 2 * 8 * 4)


def test_both_curves_are_measured() -> None:
    cache = filled("cpu")
    before = contents(cache, [*range(32)])
    samples = measure_swaps(HostCache(cache, 20), 5.0)
    assert [(one.blocks, one.out) for one in samples] == [
        (blocks, way) for blocks in (1, 2, 4, 8, 16) for way in (True, False)
    ]
    block_bytes = cache.total_bytes // 32
    assert all(one.run_s > 0 and one.bytes == one.blocks * block_bytes for one in samples)
    assert same(contents(cache, [*range(32)]), before)
    assert measure_swaps(HostCache(cache, 20), -1.0) == []
