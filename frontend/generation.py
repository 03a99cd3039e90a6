"""One call from its demand to the last byte of the answer, streamed or whole, on one path for both.

It is an ASGI response: nothing is sent before the scheduler has admitted the request, so a refusal still has a proper
status. A client that goes away is noticed in either case, and what it asked for is aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from msgspec import UNSET, Struct, UnsetType
from starlette.responses import Response

from accelgen.frontend.answers import DONE, Answers, PromptDetails, Usage, usage_of
from accelgen.frontend.errors import ApiError, from_end
from accelgen.frontend.events import Admission, Demand, Ended, Event, Outcome, Refused, Text
from accelgen.frontend.link import Link, Mailbox
from accelgen.frontend.objectives import Stated, Verdict, judge
from accelgen.frontend.responses import error_response, json_response
from accelgen.proto.recorder import fact

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # reverse proxies must not collect chunks
]


class Job(Struct, frozen=True):
    """A checked request. `usage_chunk`: stream_options.include_usage; `usage_always`: continuous_usage_stats."""

    demand: Demand
    stated: Stated
    stream: bool
    usage_chunk: bool
    usage_always: bool


class ClientGone(Exception):
    """Nobody is there to be answered."""


class Generation(Response):
    """Serves one job."""

    def __init__(self, link: Link, job: Job, answers: Answers) -> None:
        super().__init__()
        self._link, self._job, self._answers = link, job, answers
        count = len(job.demand.prompts) * job.demand.n
        self._texts: list[list[str]] = [[] for _ in range(count)]
        self._tokens = [0] * count
        self._ends: dict[int, Ended] = {}
        self._predicted_s: float | None = None
        self._failure: ApiError | None = None
        self._started = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        request = scope["state"]["request_id"]
        try:
            call, mailbox = await self._link.open(self._job.demand)
        except ApiError as error:
            self._record("call refused", request, status=error.status, cause=error.code)
            await error_response(error)(scope, receive, send)
            return
        self._record("call opened", request, ids=self._link.journal.ids_of(call))
        watch = asyncio.create_task(_watch(receive, mailbox))
        try:
            if self._job.stream:
                await self._stream(mailbox, send)
            else:
                body = await self._whole(mailbox)
                await json_response(body, self._own_headers())(scope, receive, send)
        except ApiError as error:
            if self._started:
                await _send_last(send, b"data: " + error.body() + b"\n\n")
            else:
                await error_response(error)(scope, receive, send)
            fact("call failed", answer=self._answers.id, status=error.status, cause=error.code)
        except ClientGone:
            fact("client gone", answer=self._answers.id)
        finally:
            watch.cancel()
            self._link.close(call)

    def _record(self, name: str, request: str, **values: Any) -> None:
        """For the recorder: what was asked for, in numbers, under the names that the client knows."""
        demand = self._job.demand
        fact(
            name,
            request=request,
            answer=self._answers.id,
            received_s=demand.received_s,
            prompts=[len(prompt) for prompt in demand.prompts],
            n=demand.n,
            max_tokens=demand.max_tokens,
            slo_class=demand.slo_class,
            stream=self._job.stream,
            **values,
        )

    async def _whole(self, mailbox: Mailbox) -> bytes:
        while not self._complete:
            await self._next(mailbox)
            self._raise_failure()
        texts = ["".join(pieces) for pieces in self._texts]
        ends = [self._ends[index] for index in range(len(texts))]
        return self._answers.whole(texts, ends, self._usage(), self._judged())

    async def _stream(self, mailbox: Mailbox, send: Send) -> None:
        events = await self._admitted(mailbox)
        headers = [*_STREAM_HEADERS, *self._own_headers()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._started = True
        while True:
            chunks = b"".join([self._chunk(event) for event in events])
            if self._complete:
                await _send_last(send, chunks + self._closing())
                return
            if chunks:
                await send({"type": "http.response.body", "body": chunks, "more_body": True})
            self._raise_failure()
            events = await self._next(mailbox)

    async def _admitted(self, mailbox: Mailbox) -> list[Event]:
        """Waits until the scheduler has spoken about every prompt; the events that came meanwhile."""
        waiting = set(range(len(self._job.demand.prompts)))
        collected: list[Event] = []
        while waiting:
            events = await self._next(mailbox)
            self._raise_failure()
            waiting -= {event.choice // self._job.demand.n for event in events}
            collected += events
        return collected

    async def _next(self, mailbox: Mailbox) -> list[Event]:
        """The events that wait, noted. Raises ClientGone."""
        events = await mailbox.take()
        if mailbox.gone:
            raise ClientGone
        for event in events:
            self._note(event)
        return events

    def _raise_failure(self) -> None:
        """Raises ApiError when a choice was refused or failed: that ends the whole call."""
        if self._failure is not None:
            raise self._failure

    def _note(self, event: Event) -> None:
        """Keeps what the end of the answer needs."""
        match event:
            case Refused(end=end):
                self._failure = self._failure or from_end(end)
            case Admission(predicted_ttft_s=predicted_s):
                self._predicted_s = max(self._predicted_s or 0.0, predicted_s)
            case Text(choice=choice, text=text):
                if not self._job.stream:
                    self._texts[choice].append(text)
            case Ended(choice=choice, text=text):
                self._texts[choice].append(text)
                self._ends[choice] = event

    def _chunk(self, event: Event) -> bytes:
        # Counts go on with the chunks: several events may have been noted before the first is shown.
        match event:
            case Text(choice=choice, text=text, tokens=tokens):
                self._tokens[choice] = tokens
                if not text and not self._job.usage_always:
                    return b""  # whoever counts tokens wants to hear of one that completes no character, too
                return self._answers.text(event, self._running_usage())
            case Ended(choice=choice, outcome=outcome):
                self._tokens[choice] = outcome.completion_tokens
                final = self._complete and not self._job.usage_chunk
                final = final and event is self._last_end
                verdict: Verdict | UnsetType = self._judged() if final else UNSET
                return self._answers.ended(event, self._running_usage(), verdict)
            case _:
                return b""

    def _closing(self) -> bytes:
        if not self._job.usage_chunk:
            return DONE
        return self._answers.usage(self._usage(), self._judged()) + DONE

    @property
    def _complete(self) -> bool:
        return len(self._ends) == len(self._texts)

    @property
    def _last_end(self) -> Ended:
        return next(reversed(self._ends.values()))

    def _outcomes(self) -> list[Outcome]:
        return [self._ends[index].outcome for index in range(len(self._texts))]

    def _usage(self) -> Usage:
        return usage_of(self._outcomes(), self._job.demand.n)

    def _running_usage(self) -> Usage | None | UnsetType:
        """`usage` of a chunk in the middle: absent, null, or (continuous_usage_stats) the counts so far."""
        if not self._job.usage_always:
            return None if self._job.usage_chunk else UNSET
        prompt = sum(map(len, self._job.demand.prompts))
        completion = sum(self._tokens)
        return Usage(prompt, completion, prompt + completion, PromptDetails(0))

    def _judged(self) -> Verdict:
        """The verdict; called once, at the end."""
        verdict = judge(self._job.stated, self._outcomes())
        self._link.metrics.judge(verdict)
        return verdict

    def _own_headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-accelgen-slo-class", self._job.stated.slo_class.encode("ascii", "replace"))]
        if self._predicted_s is not None:
            milliseconds = f"{self._predicted_s * 1000:.0f}"
            headers.append((b"x-accelgen-predicted-ttft-ms", milliseconds.encode()))
        return headers


async def _watch(receive: Receive, mailbox: Mailbox) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    mailbox.leave()


async def _send_last(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": False})
