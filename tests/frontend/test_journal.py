"""The journal as a state machine: one end per choice, nothing after it, text equal to the tokens' text."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from accelgen.frontend.events import Demand, Ended, Event, Refused, Text
from accelgen.frontend.journal import Journal
from accelgen.proto.messages import (
    Admitted,
    End,
    Finished,
    Objective,
    Reason,
    Sampling,
    Thinking,
    Tokens,
)

EOS = 255


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = byte_tokenizer()


def demand(**changes: Any) -> Demand:
    given: dict[str, Any] = {
        "prompts": [[1, 2, 3]], "n": 1, "max_tokens": [10], "sampling": Sampling(seed=7), "stop_ids": (EOS,),
        "stops": (), "objective": Objective(ttft_s=1.0), "slo_class": "chat", "salt": b"s", "continues": False,
        "received_s": 100.0,
    }  # fmt: skip
    return Demand(**{**given, **changes})


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def tokens(id: int, text: str) -> Tokens:
    ids = ids_of(text)
    return Tokens(0, [id], [len(ids)], ids)


def finished(id: int, reason: Reason = Reason.STOP) -> Finished:
    return Finished([End(id, reason, queue_s=0.5, cached_tokens=2, preemptions=1)])


def test_submit_carries_the_demand() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    submits = journal.open(1, demand(prompts=[[1], [2]], n=3, max_tokens=[10, 9]), 100.25)
    assert [submit.prompt.tokens for submit in submits] == [[1], [2]]
    assert [len(submit.siblings) for submit in submits] == [2, 2]
    assert [submit.max_tokens for submit in submits] == [10, 9]
    assert len({id for s in submits for id in (s.prompt.id, *s.siblings)}) == 6
    assert submits[0].prompt.sampling.seed == 7 and submits[0].prompt.salt == b"s"
    assert submits[0].waited_s == 0.25 and submits[0].objective.ttft_s == 1.0
    assert journal.open_choices == 6


def test_times_of_a_request() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    id = journal.open(1, demand(), 100.0)[0].prompt.id
    assert journal.take(Admitted(id, 0, 0.3, 2), 100.1).events[0].choice == 0
    first = journal.take(tokens(id, "a"), 101.0).events[0]
    assert isinstance(first, Text) and first.ttft_s == 1.0 and first.gap_s is None
    second = journal.take(tokens(id, "bc"), 101.5).events[0]
    assert isinstance(second, Text) and second.ttft_s is None and second.gap_s == 0.5
    (end,) = journal.take(finished(id), 102.0).events
    assert isinstance(end, Ended) and end.reason == "stop"
    assert (end.outcome.ttft_s, end.outcome.tpot_s, end.outcome.e2e_s) == (1.0, 0.25, 1.5)
    assert (end.outcome.queue_s, end.outcome.cached_tokens, end.outcome.preemptions) == (0.5, 2, 1)


def test_a_takeover_amid_the_answer_does_not_count_as_queue_or_cache() -> None:
    """Found by looking at a trace: a request of 8 prompt tokens had 41 of them cached, and was queued until a swap."""
    journal = Journal(TOKENIZER, 5, 3)
    id = journal.open(1, demand(), 100.0)[0].prompt.id
    assert journal.replay(100.05)[0].queue_s is None
    journal.take(Admitted(id, 0, 0.3, 1), 100.1)
    ids = ids_of("ab")
    journal.take(Tokens(0, [id], [2], ids, [id], [0.125]), 100.25)
    assert journal.replay(100.4)[0].queue_s == 0.125
    journal.take(Admitted(id, 0, 0.3, 41), 100.5)
    (end,) = journal.take(finished(id), 101.0).events  # which says that 2 were cached, after 0.5 s
    assert isinstance(end, Ended)
    assert (end.outcome.queue_s, end.outcome.cached_tokens) == (0.125, 1)


THINKS = Objective(ttft_s=1.0, tpot_s=0.2, thinking=Thinking(0.1, [ids_of("!")[0]]))


def test_the_times_of_thinking_and_response() -> None:
    """Four tokens of thinking, the mark included, in 1.5 s after the first; then three in 1.5 s. What a takeover sends
    again says the same, and the scheduler finds the mark among the tokens."""
    journal = Journal(TOKENIZER, 5, 3)
    submit = journal.open(1, demand(objective=THINKS), 100.0)[0]
    id = submit.prompt.id
    assert submit.objective == THINKS
    for at_s, text in ((101.0, "a"), (101.5, "bc"), (102.5, "!"), (103.0, "d"), (104.0, "ef")):
        journal.take(tokens(id, text), at_s)
    (again,) = journal.replay(104.0)
    assert again.objective == THINKS and again.prompt.generated == 7
    (end,) = journal.take(finished(id), 105.0).events
    assert isinstance(end, Ended)
    thinking, response = end.outcome.parts
    assert (thinking.stage, thinking.tokens, thinking.tpot_s, thinking.kept) == (
        "thinking",
        4,
        0.5,
        False,
    )
    assert (response.stage, response.tokens, response.tpot_s, response.kept) == (
        "response",
        3,
        0.5,
        False,
    )
    assert (thinking.aim_s, response.aim_s) == (0.1, 0.2)


def test_a_mark_amid_a_portion_and_a_thinking_without_end() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    one, other = (
        journal.open(call, demand(objective=THINKS), 100.0)[0].prompt.id for call in (1, 2)
    )
    journal.take(tokens(one, "a!b"), 101.0)
    journal.take(tokens(other, "ab"), 101.0)
    journal.take(tokens(other, "cd"), 102.0)
    (end,) = journal.take(finished(one), 103.0).events
    assert isinstance(end, Ended)
    assert [(part.tokens, part.tpot_s) for part in end.outcome.parts] == [(2, 0.0), (1, 0.0)]
    (end,) = journal.take(finished(other), 103.0).events
    assert isinstance(end, Ended)
    assert [(part.tokens, part.tpot_s) for part in end.outcome.parts] == [(4, 1 / 3), (0, None)]


def test_a_prompt_whose_thinking_is_over_has_none() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    closed = [1, 2, 3, *ids_of("?!"), 4]
    given = demand(prompts=[closed, [1, 2]], max_tokens=[10, 10], objective=THINKS)
    first, second = journal.open(1, given, 100.0)
    assert first.objective == Objective(ttft_s=1.0, tpot_s=0.2) and second.objective == THINKS
    (again, _) = journal.replay(101.0)
    assert again.objective == first.objective
    journal.take(tokens(first.prompt.id, "ab"), 101.0)
    (end,) = journal.take(finished(first.prompt.id), 102.0).events
    assert isinstance(end, Ended) and end.outcome.parts == ()


def test_stop_string_ends_the_choice_and_drops_the_rest() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    id = journal.open(1, demand(stops=("END",)), 100.0)[0].prompt.id
    assert [e.text for e in journal.take(tokens(id, "abE"), 101.0).events] == ["ab"]  # type: ignore[union-attr]
    turn = journal.take(tokens(id, "NDxyz"), 102.0)
    assert turn.aborts == [id]
    end = turn.events[-1]
    assert isinstance(end, Ended) and end.reason == "stop"
    assert end.outcome.completion_tokens == 5, "tokens after the match do not count"
    for late in (tokens(id, "more"), finished(id), finished(id, Reason.ABORTED)):
        assert journal.take(late, 103.0).events == []
    assert journal.counters["late"] == 2


def test_stop_token_counts_and_is_not_shown() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    id = journal.open(1, demand(), 100.0)[0].prompt.id
    assert [
        e.text for e in journal.take(Tokens(0, [id], [2], [ids_of("a")[0], EOS]), 101).events
    ] == ["a"]  # type: ignore[union-attr]
    (end,) = journal.take(finished(id), 102.0).events
    assert isinstance(end, Ended) and end.text == "" and end.outcome.completion_tokens == 2


def test_what_was_held_back_comes_at_the_end() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    id = journal.open(1, demand(stops=("END",)), 100.0)[0].prompt.id
    journal.take(tokens(id, "abE"), 101.0)
    (end,) = journal.take(finished(id, Reason.LENGTH), 102.0).events
    assert isinstance(end, Ended) and (end.text, end.reason) == ("E", "length")


def test_replay_repeats_what_is_live() -> None:
    journal = Journal(TOKENIZER, 5, 3)
    first = journal.open(1, demand(n=2), 100.0)[0]
    journal.take(tokens(first.siblings[0], "hi"), 101.0)
    journal.take(finished(first.prompt.id), 101.0)
    (again,) = journal.replay(103.0)
    assert again.prompt.id == first.siblings[0] and again.prompt.sampling.seed == 8
    assert again.prompt.tokens == [1, 2, 3, *ids_of("hi")] and again.prompt.generated == 2


class JournalMachine(RuleBasedStateMachine):
    """Any order of messages, true, late, repeated or about nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal(TOKENIZER, 9, 3)
        self.next_call = 1
        self.call_of: dict[int, tuple[int, int]] = {}
        self.closed: set[int] = set()
        self.ends: dict[tuple[int, int], Event] = {}
        self.sent: dict[int, str] = {}
        self.shown: dict[tuple[int, int], str] = {}
        self.now_s = 100.0

    def absorb(self, message: Any) -> None:
        self.now_s += 0.1
        for event in self.journal.take(message, self.now_s).events:
            key = (event.call, event.choice)
            assert key not in self.ends, "something after the end"
            assert event.call not in self.closed, "something for a call that is closed"
            if isinstance(event, Text | Ended):
                self.shown[key] = self.shown.get(key, "") + event.text
            if isinstance(event, Ended | Refused):
                self.ends[key] = event

    @rule(n=st.integers(1, 3), prompts=st.integers(1, 2))
    def open(self, n: int, prompts: int) -> None:
        call, self.next_call = self.next_call, self.next_call + 1
        given = demand(prompts=[[1]] * prompts, n=n, max_tokens=[9] * prompts, stops=("#",))
        for position, submit in enumerate(self.journal.open(call, given, self.now_s)):
            for offset, id in enumerate((submit.prompt.id, *submit.siblings)):
                self.call_of[id] = (call, position * n + offset)

    @precondition(lambda self: self.call_of)
    @rule(data=st.data(), text=st.text("abé#", max_size=4))
    def tokens(self, data: Any, text: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.call_of)))
        if self.call_of[id] not in self.ends:
            self.sent[id] = self.sent.get(id, "") + text
        self.absorb(tokens(id, text))

    @precondition(lambda self: self.call_of)
    @rule(data=st.data(), reason=st.sampled_from(Reason))
    def finish(self, data: Any, reason: Reason) -> None:
        self.absorb(finished(data.draw(st.sampled_from(sorted(self.call_of))), reason))

    @rule(id=st.integers(0, 2**63 - 1))
    def stranger(self, id: int) -> None:
        self.absorb(tokens(id, "x"))
        self.absorb(finished(id))
        self.absorb(Admitted(id, 0, 0.0, 0))

    @precondition(lambda self: self.next_call > 1)
    @rule(data=st.data())
    def close(self, data: Any) -> None:
        call = data.draw(st.integers(1, self.next_call - 1))
        for id in self.journal.close(call):
            assert self.call_of[id] not in self.ends
        self.closed.add(call)

    @invariant()
    def live_is_what_has_not_ended(self) -> None:
        live = [
            key
            for key in self.call_of.values()
            if key not in self.ends and key[0] not in self.closed
        ]
        assert self.journal.open_choices == len(live)

    @invariant()
    def text_is_what_was_sent_up_to_the_stop(self) -> None:
        for id, key in self.call_of.items():
            end = self.ends.get(key)
            if isinstance(end, Ended):
                assert self.shown[key] == self.sent.get(id, "").partition("#")[0]


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestJournalMachine = JournalMachine.TestCase
