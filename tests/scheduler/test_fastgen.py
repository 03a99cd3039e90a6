"""FastGen: every forward pass exactly full, decodes first, the buffer a queue."""

from __future__ import annotations

from scene import Scene

from accelgen.scheduler.policies.fastgen import FastGen


def test_prompts_fill_the_batch_exactly_and_the_split_one_goes_on_first() -> None:
    """100 tokens: 3 decodes, prompts of 40 and 40, 17 of the third; next time its other 23 come first."""
    scene = Scene(FastGen(forward_size=100))
    decodes = [scene.running(32, 32) for _ in range(3)]
    prompts = [scene.waiting(40, at_s=1.0 + i) for i in range(4)]
    first = scene.step()
    assert first == dict.fromkeys(decodes, 1) | {prompts[0]: 40, prompts[1]: 40, prompts[2]: 17}
    second = scene.step()
    assert second == dict.fromkeys([*decodes, *prompts[:2]], 1) | {prompts[2]: 23, prompts[3]: 40}
    assert list(second).index(prompts[2]) < list(second).index(prompts[3])


def test_decodes_take_turns_where_they_exceed_the_batch() -> None:
    """Whoever has run goes to the end; those that ran together stay in the order in which they began."""
    scene = Scene(FastGen(forward_size=2))
    decodes = [scene.running(32, 32, last_s=i / 100) for i in range(5)]
    turns = [list(scene.step(1.0 + i)) for i in range(5)]
    assert turns == [
        decodes[:2],
        decodes[2:4],
        [decodes[4], decodes[0]],
        decodes[1:3],
        [decodes[3], decodes[0]],
    ]


def test_at_most_so_many_sequences() -> None:
    scene = Scene(FastGen(max_sequences=3))
    decodes = [scene.running(32, 33 - 1, last_s=i / 100) for i in range(2)]
    prompts = [scene.waiting(10, at_s=1.0 + i) for i in range(4)]
    assert list(scene.plan()) == [*decodes, prompts[0]]


def test_a_prompt_without_blocks_for_all_of_it_ends_the_batch() -> None:
    scene = Scene(FastGen(), blocks=6)
    long, short = scene.waiting(100, at_s=0.0), scene.waiting(10, at_s=1.0)
    assert scene.plan() == {}
    scene.free_blocks = 8
    assert scene.plan() == {long: 100, short: 10}


def test_a_decode_without_a_block_is_passed_over() -> None:
    """Two decodes at the end of a block, one block free: the first one gets it; the third needs none."""
    scene = Scene(FastGen(), blocks=1)
    first, second = scene.running(32, 32, last_s=0.1), scene.running(32, 32, last_s=0.2)
    third = scene.running(40, 40, last_s=0.3)
    assert scene.plan() == {first: 1, third: 1}
    assert not scene.preempted and second not in scene.preempted


def test_if_nothing_can_be_scheduled_the_last_one_is_flushed_to_the_end() -> None:
    scene = Scene(FastGen(), blocks=0)
    first, last = scene.running(32, 32, last_s=0.1), scene.running(32, 32, last_s=0.2)
    queued = scene.waiting(48, at_s=3.0)
    assert scene.step(5.0) == {}
    assert scene.preempted == [last]
    assert scene.rank([queued, last]) == [queued, last]
    assert scene.free_blocks == 2
    assert scene.step(5.1) == {first: 1}  # the queued one needs three blocks, two are free
