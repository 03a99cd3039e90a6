"""What a bad link does to the messages on it, sans I/O: rules, one seeded source of chance, and a count of everything
that was touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from accelgen.proto.frame import Malformed, decode

REORDER_S = 0.1  # a message held back to be overtaken goes on after that, if nothing overtakes it


class Effect(StrEnum):
    """What happens to a message."""

    DELAY = "delay"
    DROP = "drop"
    DUPLICATE = "duplicate"
    REORDER = "reorder"
    CORRUPT = "corrupt"
    TRUNCATE = "truncate"
    PAUSE = "pause"
    HALF_OPEN = "half-open"


class Toward(StrEnum):
    """A direction: to the side that bound the socket, or to the one that connected."""

    BOUND = "bound"
    CONNECTED = "connected"


@dataclass(frozen=True)
class Rule:
    """`effect` on messages in one direction (None: both), of connected peers whose identity begins with `peer`, each
    with probability `p`, on at most `limit` of them (0: no limit).

    `seconds`: how long a message is delayed (plus up to `jitter_s`), or a pause lasts from the first message on."""

    effect: Effect
    toward: Toward | None = None
    peer: bytes = b""
    p: float = 1.0
    limit: int = 0
    seconds: float = 0.0
    jitter_s: float = 0.0


@dataclass(frozen=True)
class Passing:
    """A message on its way through the proxy."""

    peer: bytes
    toward: Toward
    frames: tuple[bytes, ...]


@dataclass(frozen=True)
class Delivery:
    """When a message is to go on. `held`: it waits to be overtaken, and has gone on already if it was."""

    due_s: float
    message: Passing
    held: bool = False


@dataclass
class Tamperer:
    """Decides the fate of each message. `touched` counts (effect, message type); `passed` all that came."""

    seed: int
    rules: Sequence[Rule] = ()
    touched: Counter[tuple[Effect, str]] = field(default_factory=Counter)
    passed: int = 0
    _used: Counter[Rule] = field(default_factory=Counter)
    _paused_s: dict[Rule, float] = field(default_factory=dict)
    _held: dict[tuple[bytes, Toward], Passing] = field(default_factory=dict)
    _last_due_s: dict[tuple[bytes, Toward], float] = field(default_factory=dict)
    _chance: Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = Random(self.seed)

    def judge(self, message: Passing, now_s: float) -> list[Delivery]:
        """What is to be delivered because `message` has come, and when. Messages of one peer and direction keep their
        order, unless a rule says otherwise."""
        self.passed += 1
        due_s, out = now_s, [message]
        overtaken = self._held.pop((message.peer, message.toward), None)
        for rule in self.rules:
            if not self._strikes(rule, message):
                continue
            self.touched[rule.effect, kind_of(message.frames)] += 1
            match rule.effect:
                case Effect.DROP | Effect.HALF_OPEN:
                    out = []
                case Effect.DUPLICATE:
                    out = [one for one in out for _ in range(2)]
                case Effect.CORRUPT | Effect.TRUNCATE:
                    out = [self._spoilt(one, rule.effect) for one in out]
                case Effect.DELAY:
                    due_s += rule.seconds + self._chance.random() * rule.jitter_s
                case Effect.PAUSE:
                    due_s = max(due_s, self._paused_s.setdefault(rule, now_s + rule.seconds))
                case Effect.REORDER if out and overtaken is None:
                    self._held[message.peer, message.toward] = message
                    return [Delivery(now_s + REORDER_S, message, held=True)]
        found = self._in_order(out, due_s)
        return [*found, *self._in_order([overtaken], due_s)] if overtaken else found

    def goes_on(self, delivery: Delivery) -> bool:
        """Asked when its time has come: not if it was held back and has been overtaken meanwhile."""
        if not delivery.held:
            return True
        key = (delivery.message.peer, delivery.message.toward)
        if self._held.get(key) is delivery.message:
            del self._held[key]
            return True
        return False

    def _strikes(self, rule: Rule, message: Passing) -> bool:
        if rule.toward not in (None, message.toward) or not message.peer.startswith(rule.peer):
            return False
        if rule.limit and self._used[rule] >= rule.limit:
            return False
        if rule.p < 1.0 and self._chance.random() >= rule.p:
            return False
        self._used[rule] += 1
        return True

    def _in_order(self, messages: Iterable[Passing], due_s: float) -> list[Delivery]:
        found = []
        for message in messages:
            key = (message.peer, message.toward)
            due_s = self._last_due_s[key] = max(due_s, self._last_due_s.get(key, 0.0))
            found.append(Delivery(due_s, message))
        return found

    def _spoilt(self, message: Passing, effect: Effect) -> Passing:
        """One frame of it with three flipped bits, or without its end."""
        frames = list(message.frames)
        at = self._chance.randrange(len(frames))
        frame = bytearray(frames[at])
        if effect is Effect.TRUNCATE:
            del frame[self._chance.randrange(len(frame)) if frame else 0 :]
        else:
            for bit in self._chance.sample(range(8 * len(frame)), min(8 * len(frame), 3)):
                frame[bit // 8] ^= 1 << bit % 8
        frames[at] = bytes(frame)
        return Passing(message.peer, message.toward, tuple(frames))


def kind_of(frames: Sequence[bytes]) -> str:
    """The type of a message, for people."""
    try:
        return type(decode(frames)[1]).__name__
    except Malformed:
        return "undecodable"
