"""Each effect does what it says, to the messages it is aimed at and to no others, and the same again with the seed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.faults.tamper import REORDER_S, Delivery, Effect, Passing, Rule, Tamperer, Toward
from accelgen.faults.zmtp import GREETING_BYTES, Message, Raw, Splitter, pack
from accelgen.proto.frame import PROTOCOL_VERSION, TAG_OF, Header, encode
from accelgen.proto.messages import Abort


def message(number: int, toward: Toward = Toward.BOUND, peer: bytes = b"scheduler:1:1") -> Passing:
    header = Header(PROTOCOL_VERSION, TAG_OF[Abort], 1, 1, number)
    return Passing(peer, toward, tuple(encode(header, Abort([number]))))


def through(
    tamperer: Tamperer, messages: Sequence[Passing], every_s: float = 0.01
) -> list[Passing]:
    """What arrives in the end, in order, of messages that come one after another."""
    due: list[tuple[float, int, Delivery]] = []
    for number, one in enumerate(messages):
        for delivery in tamperer.judge(one, number * every_s):
            due.append((delivery.due_s, len(due), delivery))
    return [
        delivery.message
        for *_, delivery in sorted(due, key=lambda d: d[:2])
        if tamperer.goes_on(delivery)
    ]


TEN = [message(i) for i in range(10)]


def test_without_rules_everything_passes() -> None:
    tamperer = Tamperer(1)
    assert through(tamperer, TEN) == TEN and not tamperer.touched and tamperer.passed == 10


def test_drop_up_to_the_limit() -> None:
    tamperer = Tamperer(1, [Rule(Effect.DROP, limit=3)])
    assert through(tamperer, TEN) == TEN[3:]
    assert tamperer.touched == {(Effect.DROP, "Abort"): 3}


def test_duplicate() -> None:
    assert through(Tamperer(1, [Rule(Effect.DUPLICATE, limit=1)]), TEN) == [TEN[0], *TEN]


def test_half_open_swallows_one_direction() -> None:
    tamperer = Tamperer(1, [Rule(Effect.HALF_OPEN, Toward.CONNECTED)])
    back = [message(i, Toward.CONNECTED) for i in range(5)]
    assert through(tamperer, [*TEN, *back]) == TEN and tamperer.touched.total() == 5


def test_reorder_swaps_neighbours() -> None:
    arrived = through(Tamperer(1, [Rule(Effect.REORDER)]), TEN)
    assert arrived == [TEN[i ^ 1] for i in range(10)]


def test_reorder_of_a_lone_message_only_delays_it() -> None:
    tamperer = Tamperer(1, [Rule(Effect.REORDER)])
    [delivery] = tamperer.judge(TEN[0], 5.0)
    assert delivery.due_s == 5.0 + REORDER_S
    assert tamperer.goes_on(delivery) and not tamperer.goes_on(delivery)


def test_delay_keeps_the_order() -> None:
    rule = Rule(Effect.DELAY, seconds=0.05, jitter_s=0.5)
    tamperer = Tamperer(1, [rule])
    due = [tamperer.judge(one, 0.01 * i)[0].due_s for i, one in enumerate(TEN)]
    assert due == sorted(due) and due[0] >= 0.05
    assert through(Tamperer(1, [rule]), TEN) == TEN


def test_pause_holds_everything_from_the_first_message_on() -> None:
    tamperer = Tamperer(1, [Rule(Effect.PAUSE, seconds=2.0)])
    due = [tamperer.judge(one, 10.0 + i)[0].due_s for i, one in enumerate(TEN)]
    assert due == [12.0, 12.0, 12.0, *(10.0 + i for i in range(3, 10))]


@pytest.mark.parametrize("effect", [Effect.CORRUPT, Effect.TRUNCATE])
def test_spoilt_messages_differ(effect: Effect) -> None:
    arrived = through(Tamperer(1, [Rule(effect)]), TEN)
    assert len(arrived) == 10
    for before, after in zip(TEN, arrived, strict=True):
        changed = [a != b for a, b in zip(before.frames, after.frames, strict=True)]
        assert changed.count(True) == 1
        lengths = [len(b) - len(a) for a, b in zip(after.frames, before.frames, strict=True)]
        assert (max(lengths) > 0) == (effect is Effect.TRUNCATE)


def test_rules_aim_at_peers() -> None:
    other = message(3, peer=b"kvmanager-0:7")
    aimed = Tamperer(1, [Rule(Effect.DROP, peer=b"kvmanager")])
    assert through(aimed, [TEN[0], other]) == [TEN[0]]


@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_the_seed_decides(seed: int, p: float) -> None:
    rules = [
        Rule(Effect.DROP, p=p),
        Rule(Effect.DELAY, p=p, seconds=0.1, jitter_s=0.1),
        Rule(Effect.CORRUPT, p=p),
    ]
    first, second = Tamperer(seed, rules), Tamperer(seed, rules)
    assert through(first, TEN) == through(second, TEN) and first.touched == second.touched


frames = st.lists(st.binary(max_size=400), min_size=1, max_size=3)


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 500), max_size=20))
def test_messages_survive_splitting_and_packing(
    messages: list[list[bytes]], cuts: list[int]
) -> None:
    greeting, ready = b"\xff" + bytes(GREETING_BYTES - 1), ready_command(b"scheduler:7:1")
    stream = greeting + ready + b"".join(map(pack, messages))
    splitter, units = Splitter(), []
    for size in [*cuts, len(stream)]:
        units += splitter.feed(stream[:size])
        stream = stream[size:]
    raw = b"".join(unit.data for unit in units if isinstance(unit, Raw))
    assert raw == greeting + ready
    found = [unit for unit in units if isinstance(unit, Message)]
    assert found == [Message(tuple(one)) for one in messages]
    assert splitter.identity == b"scheduler:7:1"


def ready_command(identity: bytes) -> bytes:
    def of(name: bytes, value: bytes) -> bytes:
        return bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value

    body = b"\x05READY" + of(b"Socket-Type", b"DEALER") + of(b"Identity", identity)
    return bytes([4, len(body)]) + body
