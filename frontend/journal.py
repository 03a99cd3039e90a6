"""The journal: every live request of this frontend, from receipt to its one end. No sockets, no clock.

It is the truth about a request: its prompt, the tokens generated so far, and what of their text has been shown. A
*call* is one HTTP request, a *choice* one generation within it (prompt times `n`). Messages of the scheduler go in,
events for the calls and ids to abort come out. Each choice ends exactly once: Ended or Refused; whatever arrives for
it later is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from tokenizers import Tokenizer

from accelgen.frontend.detokenize import Detokenizer, StopStrings
from accelgen.frontend.events import Admission, Demand, Ended, Event, Outcome, Part, Refused, Text
from accelgen.frontend.losses import Losses, Workers
from accelgen.frontend.think_tokens import is_closed
from accelgen.proto.ids import RequestIds
from accelgen.proto.messages import (
    Admitted,
    Body,
    Directory,
    End,
    Finished,
    Objective,
    Prompt,
    Reason,
    Submit,
    Tokens,
)
from accelgen.proto.stages import RESPONSE, THINKING, thought


@dataclass(slots=True)
class Turn:
    """What one message led to. `replays`, `given_up`: requests that have lost their worker."""

    events: list[Event] = field(default_factory=list)
    aborts: list[int] = field(default_factory=list)
    replays: int = 0
    given_up: int = 0


@dataclass(slots=True, eq=False)
class Choice:
    """A live generation."""

    id: int
    call: int
    index: int
    prompt: list[int]
    max_tokens: int
    seed: int
    demand: Demand
    objective: Objective
    detokenizer: Detokenizer
    stops: StopStrings
    tokens: list[int] = field(default_factory=list)
    first_s: float | None = None
    last_s: float | None = None
    # Tokens of its thinking, and when the last of them came, once it is over.
    thought: int = 0
    thought_s: float | None = None
    cached_tokens: int = 0
    queue_s: float | None = None  # known with its first tokens
    # Amid the answer: the scheduler at the end does not know the beginning.
    taken_over: bool = False
    losses: Losses = field(default_factory=Losses)

    def push(self, tokens: Sequence[int]) -> tuple[str, bool]:
        """Takes tokens up to the one that completes a stop string: the text to show, and whether there was one."""
        shown: list[str] = []
        for token in tokens:
            self.tokens.append(token)
            if token in self.demand.stop_ids:  # counted, never shown; Finished follows
                continue
            text, found = self.stops.feed(self.detokenizer.push(token))
            shown.append(text)
            if found:
                return "".join(shown), True
        return "".join(shown), False

    def note_thinking(self, begin: int, now_s: float) -> None:
        """After tokens from `begin` on have come: whether they end its thinking."""
        if self.objective.thinking is None or self.thought:
            return
        self.thought = thought(self.objective.thinking, self.tokens, begin)
        if self.thought:
            self.thought_s = now_s

    def parts(self) -> tuple[Part, ...]:
        """Thinking and response, if the one has an objective of its own. One that never ended is all there is."""
        thinking, count = self.objective.thinking, len(self.tokens)
        if thinking is None:
            return ()
        over, end_s = (self.thought, self.thought_s) if self.thought else (count, self.last_s)
        paces: list[float | None] = [None, None]
        if over > 1 and self.first_s is not None and end_s is not None:
            paces[0] = (end_s - self.first_s) / (over - 1)
        if count > over and self.last_s is not None and end_s is not None:
            paces[1] = (self.last_s - end_s) / (count - over)
        return (
            Part(THINKING, over, paces[0], thinking.tpot_s),
            Part(RESPONSE, count - over, paces[1], self.objective.tpot_s),
        )

    def rest(self) -> tuple[str, bool]:
        """At the end: the text held back, and whether it completed a stop string."""
        text, found = self.stops.feed(self.detokenizer.flush())
        return (text, True) if found else (text + self.stops.flush(), False)

    def outcome(self, now_s: float, end: End | None) -> Outcome:
        """`end`: what the scheduler said, None when the frontend itself ended the choice."""
        received_s, count = self.demand.received_s, len(self.tokens)
        ttft_s = None if self.first_s is None else self.first_s - received_s
        tpot_s = None
        if count > 1 and self.first_s is not None and self.last_s is not None:
            tpot_s = (self.last_s - self.first_s) / (count - 1)
        return Outcome(
            prompt_tokens=len(self.prompt),
            completion_tokens=count,
            cached_tokens=end.cached_tokens if end and not self.taken_over else self.cached_tokens,
            preemptions=end.preemptions if end else 0,
            queue_s=end.queue_s if end and self.queue_s is None else self.queue_s,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=(now_s if self.last_s is None else self.last_s) - received_s,
            parts=self.parts(),
            best_effort=end is not None and end.best_effort,
        )


class Journal:
    """All live choices. `counters`: late (tokens or ends of what had ended already). A choice under which more than
    `max_replays` workers have died is given up."""

    def __init__(self, tokenizer: Tokenizer, incarnation: int, max_replays: int) -> None:
        self._tokenizer = tokenizer
        self._max_replays = max_replays
        self._workers = Workers()
        self._moved = False  # some choice has been given to another worker since the last Directory
        self._ids = RequestIds(incarnation)
        self._live: dict[int, Choice] = {}
        self._calls: dict[int, list[int]] = {}
        self.counters: Counter[str] = Counter()

    @property
    def open_choices(self) -> int:
        return len(self._live)

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    def open(self, call: int, demand: Demand, now_s: float) -> list[Submit]:
        """Enters the choices of a call; what to send to the scheduler, one message per prompt."""
        assert call not in self._calls
        self._calls[call] = []
        submits = []
        for position, prompt in enumerate(demand.prompts):
            ids = self._ids.take(demand.n)
            for offset, id in enumerate(ids):
                self._live[id] = Choice(
                    id=id,
                    call=call,
                    index=position * demand.n + offset,
                    prompt=prompt,
                    max_tokens=demand.max_tokens[position],
                    seed=demand.sampling.seed + offset,
                    demand=demand,
                    objective=_objective(demand.objective, prompt),
                    detokenizer=Detokenizer(self._tokenizer, prompt if demand.continues else ()),
                    stops=StopStrings(demand.stops),
                )
            self._calls[call] += ids
            submits.append(_submit(self._live[ids[0]], now_s, siblings=ids[1:]))
        return submits

    def ids_of(self, call: int) -> list[int]:
        """The request ids of an open call's choices, by their index."""
        return list(self._calls[call])

    def close(self, call: int) -> list[int]:
        """Forgets a call; the ids of its choices that are still live and must be aborted."""
        ids = [id for id in self._calls.pop(call, ()) if id in self._live]
        for id in ids:
            del self._live[id]
        return ids

    def replay(self, now_s: float) -> list[Submit]:
        """Everything that is live, for a new scheduler: each choice by itself, with the tokens it already has."""
        return [_submit(choice, now_s, siblings=[]) for choice in self._live.values()]

    def take(self, message: Body, now_s: float) -> Turn:
        """What a message of the scheduler means for the calls."""
        turn = Turn()
        match message:
            case Tokens():
                self._take_tokens(message, now_s, turn)
            case Admitted():
                self._take_admitted(message, turn)
            case Finished():
                for end in message.ends:
                    self._take_end(end, now_s, turn)
            case _:
                self.counters["unexpected"] += 1
        return turn

    def learn(self, directory: Directory) -> Turn:
        """What a new Directory means for the calls: the requests of dead workers are lost."""
        turn = Turn()
        if self._workers.learn(directory) or self._moved:
            self._moved = False
            for choice in list(self._live.values()):
                self._judge(choice, turn)
                choice.losses.settle()
        return turn

    def _judge(self, choice: Choice, turn: Turn) -> None:
        """A choice that has lost its worker is computed again (by whoever schedules next), or given up."""
        losses = choice.losses
        if not losses.judge(self._workers):
            return
        if losses.count <= self._max_replays:
            turn.replays += 1
            return
        died = "1 worker has" if losses.count == 1 else f"{losses.count} workers have"
        detail = f"{died} died while this request ran; it is not tried again"
        turn.given_up += 1
        turn.aborts.append(choice.id)
        del self._live[choice.id]
        end = End(choice.id, Reason.FAILED, detail)
        turn.events.append(Refused(choice.call, choice.index, end))

    def _take_admitted(self, message: Admitted, turn: Turn) -> None:
        choice = self._live.get(message.id)
        if choice is None:
            return
        if choice.tokens:
            choice.taken_over = True
        else:
            choice.cached_tokens = message.cached_tokens
        turn.events.append(
            Admission(choice.call, choice.index, message.predicted_ttft_s, message.cached_tokens)
        )
        self._moved |= choice.losses.admit(message.worker)
        self._judge(choice, turn)

    def _take_tokens(self, message: Tokens, now_s: float, turn: Turn) -> None:
        at, queued = 0, dict(zip(message.begun, message.queue_s, strict=False))
        for id, count in zip(message.ids, message.counts, strict=False):
            tokens = message.tokens[at : at + count]
            at += count
            choice = self._live.get(id)
            if choice is None or not tokens:
                self.counters["late"] += choice is None
                continue
            gap_s = None if choice.last_s is None else now_s - choice.last_s
            ttft_s = None
            if choice.first_s is None:
                choice.first_s, choice.queue_s = now_s, queued.get(id)
                ttft_s = now_s - choice.demand.received_s
            choice.last_s = now_s
            begin = len(choice.tokens)
            text, found = choice.push(tokens)
            choice.note_thinking(begin, now_s)
            turn.events.append(
                Text(choice.call, choice.index, text, len(choice.tokens), gap_s, ttft_s)
            )
            if found:
                turn.aborts.append(id)
                self._end(choice, "", "stop", None, now_s, turn)

    def _take_end(self, end: End, now_s: float, turn: Turn) -> None:
        choice = self._live.get(end.id)
        if choice is None:
            self.counters["late"] += end.reason is not Reason.ABORTED  # that one we asked for
            return
        if end.reason is Reason.STOP or end.reason is Reason.LENGTH:
            text, found = choice.rest()
            reason = "length" if end.reason is Reason.LENGTH and not found else "stop"
            self._end(choice, text, reason, end, now_s, turn)
        else:
            del self._live[choice.id]
            turn.events.append(Refused(choice.call, choice.index, end))

    def _end(
        self, choice: Choice, text: str, reason: str, end: End | None, now_s: float, turn: Turn
    ) -> None:
        del self._live[choice.id]
        outcome = choice.outcome(now_s, end)
        turn.events.append(Ended(choice.call, choice.index, text, reason, outcome))


def _objective(stated: Objective, prompt: Sequence[int]) -> Objective:
    """What holds for an answer to `prompt`: without a thinking that is over before it begins."""
    if stated.thinking is None or not is_closed(prompt, stated.thinking.end_ids):
        return stated
    return msgspec.structs.replace(stated, thinking=None)


def _submit(choice: Choice, now_s: float, siblings: list[int]) -> Submit:
    demand = choice.demand
    return Submit(
        prompt=Prompt(
            id=choice.id,
            tokens=choice.prompt + choice.tokens,
            sampling=msgspec.structs.replace(demand.sampling, seed=choice.seed),
            generated=len(choice.tokens),
            salt=demand.salt,
        ),
        max_tokens=choice.max_tokens,
        stop_token_ids=list(demand.stop_ids),
        objective=choice.objective,
        slo_class=demand.slo_class,
        waited_s=max(0.0, now_s - demand.received_s),
        siblings=siblings,
        queue_s=choice.queue_s,
    )
