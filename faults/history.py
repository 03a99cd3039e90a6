"""What clients saw, request by request: the only thing that the contract is checked against (Jepsen's idea)."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Kind(StrEnum):
    """What a client can see of its request."""

    SUBMIT = "submit"  # the request is on its way
    ADMIT = "admit"  # status 200
    TOKENS = "tokens"  # a chunk: `count` tokens in all so far, `text` of these
    FINISH = "finish"  # a finish reason, in `detail`, with the last of the text
    USAGE = "usage"  # the final count of tokens
    DONE = "done"  # the stream says that it is complete
    ERROR = "error"  # an error event in the stream; its code in `detail`
    REFUSED = "refused"  # another status than 200, in `count`; the reason in `detail`
    CLOSED = "closed"  # the answer is complete as far as HTTP can tell
    CUT = "cut"  # the connection ended before the answer was complete
    LEFT = "left"  # the client left by itself
    STUCK = "stuck"  # nothing of all this within the time allowed


OUTCOMES = (Kind.FINISH, Kind.ERROR, Kind.REFUSED, Kind.CUT, Kind.LEFT, Kind.STUCK)
"""What a request can come to. Exactly one of them per request."""


class Event(Struct, frozen=True):
    """One observation. `at_s` is of this process's monotonic clock."""

    at_s: float
    kind: Kind
    count: int = 0
    text: str = ""
    detail: str = ""


class Request(Struct, frozen=True):
    """A request that can be repeated exactly: same key, same prompt, same seed, same text. `streamed` or whole."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    streamed: bool = True


class History(Struct):
    """One sending of a request and all that came of it, in order. `port`: the client's end of its connection.
    `kept`: whether the server says that all objectives stated were kept. `retry_after`: a refusal names a time."""

    id: int
    request: Request
    events: list[Event] = []
    port: int = 0
    kept: bool | None = None
    retry_after: bool = False

    def note(
        self, at_s: float, kind: Kind, count: int = 0, text: str = "", detail: str = ""
    ) -> None:
        """Adds an observation."""
        self.events.append(Event(at_s, kind, count, text, detail))

    def first(self, *kinds: Kind) -> Event | None:
        """The first event of one of these kinds."""
        return next((event for event in self.events if event.kind in kinds), None)

    @property
    def sent_s(self) -> float:
        """When it was submitted."""
        return self.events[0].at_s

    @property
    def outcome(self) -> Event | None:
        """What it came to, None while it is open."""
        return self.first(*OUTCOMES)

    @property
    def complete(self) -> bool:
        """All its tokens, and the server says so."""
        return self.first(Kind.FINISH) is not None and self.first(Kind.DONE) is not None

    @property
    def text(self) -> str:
        """All that was delivered."""
        return "".join(event.text for event in self.events)

    def gaps(self) -> list[tuple[float, float]]:
        """Between two chunks with tokens: when the later one came, and how long after the one before."""
        times = [event.at_s for event in self.events if event.kind is Kind.TOKENS]
        return [(later, later - sooner) for sooner, later in zip(times, times[1:], strict=False)]
