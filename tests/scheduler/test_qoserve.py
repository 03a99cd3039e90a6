"""QoServe's rules one by one: chunk sizes from the slack search, hybrid priority, relegation."""

from __future__ import annotations

import pytest
from scene import Scene

from accelgen.scheduler.policies.chunk_search import largest_within, published_s
from accelgen.scheduler.policies.qoserve import GRID, RELEGATED_S, SHORT_GRID, Memory, QoServe
from accelgen.scheduler.policies.slack import next_token_due_s

PLENTY = 3000  # blocks: more than 32 * 1000 tokens


def test_the_grid_is_that_of_the_code() -> None:
    assert GRID == (128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2552)
    assert SHORT_GRID == (128, 256, 384, 512)


@pytest.mark.parametrize(
    ("slack_s", "expected"), [(-1.0, 128), (0.0, 128), (0.02, 128), (0.05, 256), (0.1, 512), (9.0, 2552)]
)  # fmt: skip
def test_the_largest_batch_that_ends_within_the_slack(slack_s: float, expected: int) -> None:
    """10 ms + 0.1 ms per token, times 1.2: 256 tokens take 42.7 ms, 512 take 73.4 ms, 768 take 104 ms."""
    assert largest_within(GRID, lambda n: 1.2 * (0.01 + 1e-4 * n), slack_s) == expected


def test_published_times_of_llama_3_8b_on_an_a100() -> None:
    """By hand from the coefficients: below and above 512 tokens."""
    by_hand = (
        0.014936 + 5.882475e-5 * 300 + 2.247956e-5 * 290 + 3.634519e-5 * 10 + 1.111258e-7 * 5000
    )
    assert published_s(None, 290, 0, 10, 5000) == pytest.approx(by_hand)  # type: ignore[arg-type]
    by_hand = 0.005004 + 2.719050e-5 * 1024 + 6.863043e-5 * 1000 - 4.143993e-5 * 24
    by_hand += 2.727223e-6 * 2000
    assert published_s(None, 1000, 2000, 24, 0) == pytest.approx(by_hand)  # type: ignore[arg-type]


def test_deadlines_of_decodes_are_cumulative() -> None:
    """First token at 3 s, deadline 5 s: the 10th token is due at 5 + (9 + 1) * 0.2. First token late, at 6 s: the
    second is due at 6 + 2 * 0.2. With an end-to-end objective alone: 0.4 s per token."""
    scene = Scene(QoServe())
    early = scene.running(32, 32, last_s=3.0)
    scene.table.length[early] += 8
    scene.running(32, 32, last_s=6.0)
    offline = scene.running(32, 32, last_s=6.0, ttft_s=None, tpot_s=None, e2e_s=40.0)
    scene.table.predicted_output[offline] = 60  # first token due at 16 s
    found = next_token_due_s(scene.table, scene.table.running, 0.4)
    assert found == pytest.approx([5.0 + 10 * 0.2, 6.0 + 2 * 0.2, 16.0 + 2 * 0.4])


def test_the_chunk_follows_the_tightest_decode() -> None:
    """Deadline 5 + 2 * 0.2 = 5.4 s; at 5.3 s there are 0.1 s, in which 512 tokens end (with the margin), 768 not."""
    scene = Scene(QoServe(), blocks=PLENTY)
    decode = scene.running(32, 32, last_s=3.0)
    scene.running(32, 32, last_s=3.0, tpot_s=10.0)
    prompt = scene.waiting(4000, ttft_s=60.0)
    assert scene.plan(5.3)[prompt] == 512 - 2
    assert scene.plan(5.4)[prompt] == 128 - 2  # no slack
    assert scene.plan(5.14)[prompt] == 2048 - 2  # 0.258 s of 0.26 s
    scene.table.tpot_s[decode] = 10.0
    assert scene.plan(5.14)[prompt] == 2552 - 2


def test_with_little_memory_the_grid_is_short() -> None:
    """(1999 blocks * 16 tokens) / 32 = 999 < 1000."""
    scene = Scene(QoServe(), blocks=2000)
    prompt = scene.waiting(4000)
    assert scene.plan() == {prompt: 2552}
    scene.free_blocks = 1999
    assert scene.plan() == {prompt: 512}


def test_without_dynamic_chunking_the_batch_has_a_fixed_size() -> None:
    scene = Scene(QoServe(dynamic_chunking=False), blocks=PLENTY)
    scene.running(32, 32)
    prompt = scene.waiting(4000)
    assert scene.plan()[prompt] == 255


def test_hybrid_priority() -> None:
    """arrival + TTFT + 8 ms per token left: 1 + 5 + 3.2 = 9.2 s, 2 + 4 + 1.6 = 7.6 s; alone by deadline they tie."""
    scene = Scene(QoServe())
    long, short = scene.waiting(400, at_s=1.0, ttft_s=5.0), scene.waiting(200, at_s=2.0, ttft_s=4.0)
    assert scene.table.key[[long, short]] == pytest.approx([9.2, 7.6])
    assert scene.rank([long, short]) == [short, long]
    offline = scene.waiting(100, at_s=0.0, ttft_s=None, tpot_s=None, e2e_s=30.0, max_tokens=50)
    assert scene.table.key[offline] == pytest.approx(30.0 - 50 * 0.4 + 0.8)


def test_a_prompt_is_overtaken_between_chunks_by_priority() -> None:
    scene = Scene(QoServe(dynamic_chunking=False), blocks=PLENTY)
    begun = scene.running(4000, 1000, ttft_s=5.0)  # 5 + 3000 * 0.008 = 29
    new = scene.waiting(200, ttft_s=20.0)  # 20 + 1.6
    assert scene.plan() == {new: 200, begun: 56}


def test_eager_relegation() -> None:
    """4000 tokens at 8500 tokens/s take 0.47 s: at 4.6 s too late for 5 s. It stays in the queue, behind the others."""
    scene = Scene(QoServe(dynamic_chunking=False), blocks=PLENTY)
    late = scene.waiting(4000, ttft_s=5.0)
    feasible = [scene.waiting(100, ttft_s=40.0), scene.waiting(100, ttft_s=41.0)]
    assert scene.plan(4.5) == {late: 256}
    assert scene.plan(4.6) == {feasible[0]: 100, feasible[1]: 100, late: 56}
    assert scene.state.relegated == {1}
    assert scene.requeued == []  # it has begun
    scene.policy.chunk_size = 100  # type: ignore[attr-defined]
    scene.state = Memory(8500.0)
    assert scene.plan(4.6) == {feasible[0]: 100}
    assert scene.requeued == [late]
    assert scene.rank([late, *feasible]) == [*feasible, late]
    assert scene.table.key[late] == pytest.approx(5.0 + 32.0 + RELEGATED_S)


def test_what_has_begun_is_not_relegated() -> None:
    scene = Scene(QoServe(dynamic_chunking=False), blocks=PLENTY)
    begun = scene.running(4000, 100, ttft_s=0.1)
    scene.waiting(100, ttft_s=90.0)
    assert scene.plan(50.0) == {begun: 256}


def test_relegation_can_be_left_out() -> None:
    scene = Scene(QoServe(dynamic_chunking=False, relegation=False), blocks=PLENTY)
    late = scene.waiting(4000, ttft_s=5.0)
    scene.waiting(100, ttft_s=40.0)
    assert scene.plan(50.0) == {late: 256}
    assert not scene.state.relegated


def test_prefill_throughput_is_a_moving_average() -> None:
    scene = Scene(QoServe(dynamic_chunking=False), blocks=PLENTY)
    scene.waiting(4000, ttft_s=60.0)
    scene.step(1.0)
    scene.step(1.5)
    assert scene.state.throughput == pytest.approx(0.995 * 8500 + 0.005 * 256 / 0.5)


def test_decodes_beyond_the_chunk_size_wait_those_with_least_slack() -> None:
    scene = Scene(QoServe(chunk_size=2))
    tight, loose, looser = (scene.running(32, 32, tpot_s=t) for t in (0.1, 1.0, 2.0))
    assert list(scene.plan()) == [looser, loose] and tight not in scene.plan()


def test_out_of_blocks_the_prompt_of_lowest_priority_is_recomputed() -> None:
    scene = Scene(QoServe(), blocks=0)
    decode = scene.running(32, 32)
    first, last = scene.running(400, 64, ttft_s=5.0), scene.running(400, 64, ttft_s=6.0)
    taken = scene.plan()
    assert scene.preempted == [last]
    assert taken[decode] == 1 and first in taken
