"""The checks of the contract find what is wrong with forged histories, and nothing wrong with good ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.faults.contract import (
    Allowance,
    Reference,
    check_blocks,
    check_outcomes,
    check_refusals,
    check_texts,
)
from accelgen.faults.history import Event, History, Kind, Request

REQUEST = Request(key=3, prompt=(5, 6, 7), max_tokens=6, seed=1)
PIECES = ["Th", "e ", "ca", "t ", "sa", "t."]
NOTHING = Allowance()


def good() -> History:
    """A whole, undisturbed history."""
    history = History(0, REQUEST, port=4711)
    history.note(1.0, Kind.SUBMIT)
    history.note(1.1, Kind.ADMIT)
    for number, piece in enumerate(PIECES, 1):
        history.note(1.1 + 0.1 * number, Kind.TOKENS, number, piece)
    history.note(1.8, Kind.FINISH, detail="length")
    history.note(1.8, Kind.USAGE, 6)
    history.note(1.8, Kind.DONE)
    history.note(1.8, Kind.CLOSED)
    return history


REFERENCE = Reference.of([good()])


def forged(*events: Event, keep: int = 20, drop: tuple[Kind, ...] = ()) -> History:
    """The first `keep` events of a good history without those of some kinds, then `events`."""
    history = good()
    history.events = [e for e in history.events[:keep] if e.kind not in drop] + list(events)
    return history


def faults(history: History, allowed: Allowance = NOTHING) -> list[str]:
    verdicts = check_outcomes([history], allowed), check_texts([history], REFERENCE)
    return [verdict.why for verdict in verdicts if not verdict.ok]


def test_a_good_history_is_good() -> None:
    assert faults(good()) == []
    assert good().text == "The cat sat." and good().complete


def test_tokens_that_came_together_are_good() -> None:
    history = good()
    first, second = history.events[2:4]
    both = Event(second.at_s, Kind.TOKENS, 2, first.text + second.text)
    history.events[2:4] = [both]
    assert faults(history) == []


def token(number: int, text: str) -> Event:
    return Event(1.5, Kind.TOKENS, number, text)


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (forged(token(2, "e "), keep=4), "token came twice"),
        (forged(token(1, "Th"), keep=4), "token 1 came again"),
        (forged(token(3, "e "), keep=4), "differs at token 3"),  # repeated under a new number
        (forged(token(4, "t "), keep=4), "differs at token 4"),  # the third was skipped
        (forged(token(3, "t "), keep=4), "differs at token 3"),  # skipped, numbers go on
        (forged(token(3, "do"), keep=4), "differs at token 3"),
        (forged(Event(1.9, Kind.FINISH, detail="length"), keep=7), "came to nothing|finished"),
        (forged(Event(1.9, Kind.CLOSED), keep=5), "ended without a word after 3 tokens"),
        (forged(Event(1.9, Kind.FINISH), keep=20), "2 outcomes: finish, finish"),
        (forged(Event(1.9, Kind.ERROR), keep=20), "2 outcomes: finish, error"),
        (forged(token(7, "!"), keep=20), "went on after its outcome finish"),
        (forged(Event(1.9, Kind.CUT), keep=5), "cut"),
        (forged(Event(1.9, Kind.ERROR, detail="worker_failed"), keep=5), "error worker_failed"),
        (forged(Event(1.9, Kind.REFUSED, 503, detail="no_workers"), keep=1), "refused 503 no_w"),
        (forged(Event(99.0, Kind.STUCK), keep=5), "stuck"),
        (forged(keep=5), "came to nothing"),
        (forged(Event(1.8, Kind.USAGE, 5), drop=(Kind.USAGE,)), "6 tokens came, 5 were counted"),
        (forged(drop=(Kind.DONE,)), "finished and never done"),
    ],
)
def test_forged_histories_are_caught(history: History, words: str) -> None:
    found = " / ".join(faults(history))
    assert any(word in found for word in words.split("|")), found


def test_every_fault_that_is_allowed_only_to_some_is_allowed_to_them() -> None:
    cut = forged(Event(1.9, Kind.CUT), keep=5)
    assert faults(cut, Allowance(ports=frozenset({4711}))) == []
    assert faults(cut, Allowance(ports=frozenset({4712}))) != []
    assert faults(cut, Allowance(any_port=True)) == []
    gone = forged(Event(1.9, Kind.LEFT), keep=5)
    assert faults(gone, Allowance(left=frozenset({0}))) == [] and faults(gone) != []
    refused = forged(Event(1.9, Kind.REFUSED, 503), keep=1)
    assert faults(refused, Allowance(refusals=frozenset({503}))) == []
    failed = forged(Event(1.9, Kind.ERROR, detail="draining"), keep=5)
    assert faults(failed, Allowance(errors=frozenset({"draining"}))) == []


def test_who_has_waited_as_long_as_its_class_allows_may_be_refused() -> None:
    late = forged(Event(32.0, Kind.REFUSED, 429, detail="ttl_expired"), keep=1)
    assert faults(late) == []
    assert faults(forged(Event(30.0, Kind.REFUSED, 429, detail="ttl_expired"), keep=1)) != []
    assert faults(forged(Event(32.0, Kind.REFUSED, 429, detail="saturated"), keep=1)) != []


def test_allowance_never_covers_a_spliced_or_silent_stream() -> None:
    everything = Allowance(any_port=True, refusals=frozenset({503}), errors=frozenset({"x"}))
    spliced = forged(token(4, "t "), Event(1.9, Kind.CUT), keep=4)
    assert faults(spliced, everything) == ["request 0 differs at token 4"]
    assert faults(forged(Event(1.9, Kind.CLOSED), keep=5), everything) != []
    assert faults(forged(Event(9.9, Kind.STUCK), keep=5), everything) != []


@given(st.integers(2, 7), st.sampled_from(["lose", "repeat", "change"]))
def test_any_token_lost_repeated_or_changed_is_caught(at: int, how: str) -> None:
    """Wherever it is in the stream, and though the server's own numbers go on as if nothing had been."""
    history = good()
    events, number = [], 0
    for place, event in enumerate(history.events):
        if event.kind is not Kind.TOKENS:
            events.append(event)
            continue
        texts = [event.text]
        if place == at:
            texts = {"lose": [], "repeat": [event.text] * 2, "change": ["??"]}[how]
        for text in texts:
            number += 1
            events.append(Event(event.at_s, Kind.TOKENS, number, text))
    history.events = events
    assert faults(history)


def test_a_reference_with_a_fault_is_none() -> None:
    with pytest.raises(AssertionError, match="request 3 undisturbed"):
        Reference.of([forged(keep=5)])


def test_refusals_must_say_when_to_come_back() -> None:
    refused = forged(Event(1.9, Kind.REFUSED, 429), keep=1)
    assert check_refusals([good()]).ok is None
    assert check_refusals([refused]).ok is False
    refused.retry_after = True
    assert check_refusals([refused]).ok is True


def gauges(**changed: float) -> dict[str, float]:
    at_rest = {
        "kv_blocks": 10.0, "kv_blocks_free": 7.0, "kv_blocks_cached": 3.0, "kv_blocks_used": 0.0,
        "num_requests_running": 0.0, "kv_invariant_ok": 1.0,
    }  # fmt: skip
    return {f'accelgen:{name}{{replica="0"}}': v for name, v in {**at_rest, **changed}.items()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kv_blocks_used": 1.0, "kv_blocks_free": 6.0}, "1 blocks used and 0 requests"),
        ({"num_requests_running": 2.0}, "2 requests running at rest"),
        ({"kv_blocks_free": 6.0}, "9 blocks accounted for of 10"),
        ({"kv_invariant_ok": 0.0}, "is 0"),
    ],
)
def test_lost_blocks_are_caught(changed: dict[str, float], words: str) -> None:
    assert check_blocks(gauges()).ok is True
    verdict = check_blocks(gauges(**changed))
    assert verdict.ok is False and words in verdict.why
