"""Sends the requests of a benchmark when they are due, and notes when each token came back.

Open loop: a request is sent at its time whether or not earlier ones have been answered (unless `max_concurrency`
holds it back; that wait is the client's and is reported apart).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from msgspec import Struct

from accelgen.proto.clocks import now_s
from accelgen.proto.stages import THINKING
from accelgen.scripts.bench_http import HttpClient, HttpError
from accelgen.scripts.bench_metrics import Limits, Timing
from accelgen.scripts.bench_workload import Prompts, Request
from accelgen.scripts.chat_clean import clean_line
from accelgen.scripts.chat_client import error_text
from accelgen.scripts.sse import DONE, SseReader

MAX_ERROR_BYTES = 64 * 1024
INTERRUPTED = "interrupted"


class _Choice(Struct):
    text: str | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(Struct):
    """What we read of a chunk. Servers that know `continuous_usage_stats` put the count so far into each."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    accelgen: dict[str, Any] | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(frozen=True)
class Target:
    """Where and how every request is sent. `extra` are fields of the body beyond those made here."""

    url: str
    model: str
    headers: dict[str, str]
    temperature: float = 0.0
    ignore_eos: bool = True
    seed: int = 0
    timeout_s: float = 600.0
    max_concurrency: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one request. `error` is empty for a success; `verdict` is the server's `accelgen` object;
    `lag_s` is how late it was dispatched, `held_s` how long `max_concurrency` then held it."""

    request: Request
    timing: Timing
    error: str = ""
    text: str = ""
    finish_reason: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)
    lag_s: float = 0.0
    held_s: float = 0.0


@dataclass(frozen=True)
class Run:
    """A finished load. Times in outcomes count from its start. `cpu_s` is this process's processor time."""

    outcomes: list[Outcome]
    not_sent: int
    cpu_s: float


class Tally:
    """Reads one answer as it streams in."""

    def __init__(self, started_s: float) -> None:
        self.chunk_s: list[float] = []
        self.chunk_tokens: list[int] = []
        self.texts: list[str] = []
        self.usage: _Usage | None = None
        self.verdict: dict[str, Any] = {}
        self.finish_reason = ""
        self.error = ""
        self.done = False
        self._started_s = started_s
        self._counted = 0  # completion tokens that the server has counted in chunks so far
        self._reader = SseReader()
        self._refusal = b""

    def take(self, status: int, piece: bytes, arrived_s: float) -> None:
        """A piece of the body."""
        if status != 200:
            self._refusal += piece[: MAX_ERROR_BYTES - len(self._refusal)]
            return
        for event in self._reader.feed(piece):
            if event == DONE:
                self.done = True
            else:
                self._chunk(_decode(event), event, arrived_s - self._started_s)

    def _chunk(self, chunk: _Chunk, event: bytes, at_s: float) -> None:
        if chunk.error:
            self.error = f"failed in mid-stream: {error_text(event)}"
        self.verdict = chunk.accelgen or self.verdict
        text = "".join(choice.text or "" for choice in chunk.choices)
        for choice in chunk.choices:
            self.finish_reason = choice.finish_reason or self.finish_reason
        count = 1 if text else 0
        if chunk.usage is not None:
            self.usage = chunk.usage
            if chunk.choices:
                count = chunk.usage.completion_tokens - self._counted
                self._counted = chunk.usage.completion_tokens
        if count > 0:
            self.chunk_s.append(at_s)
            self.chunk_tokens.append(count)
            self.texts.append(text)

    def settle(self, status: int) -> None:
        """After the whole answer: judges whether it was one, and makes the count of tokens agree with the server's.

        Tokens that no chunk accounted for (a server that does not count in chunks and sent some without text) are
        taken to have come with the last chunk, so that no rule of attainment judges too kindly."""
        if status != 200:
            self.error = f"HTTP {status}: {error_text(self._refusal)}"
        elif not self.done:
            self.error = self.error or "the stream ended without [DONE]"
        elif self.usage is not None and self.chunk_tokens:
            uncounted = self.usage.completion_tokens - sum(self.chunk_tokens)
            self.chunk_tokens[-1] += max(0, uncounted)
        if not self.error and not self.chunk_s:
            self.error = "the answer has no tokens"


async def run_load(
    requests: Sequence[Request],
    warmups: Sequence[Request],
    target: Target,
    prompts: Prompts,
    on_outcome: Callable[[Outcome], None],
) -> Run:
    """Sends `warmups` at once and waits for them, then `requests` at their times, and what follows them. Cancelling it
    (Ctrl-C) ends the requests under way as failed and returns what there is."""
    gate = asyncio.Semaphore(target.max_concurrency) if target.max_concurrency else None
    client = HttpClient(target.url, target.headers)
    sender = _Sender(client, target, prompts, gate, on_outcome)
    tasks: list[asyncio.Task[list[Outcome]]] = []
    cpu_s = time.process_time()
    try:
        await sender.warm_up(warmups)
        sender.started_s, cpu_s = now_s(), time.process_time()
        for request in requests:
            delay_s = sender.started_s + request.arrival_s - now_s()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.append(asyncio.create_task(sender.send_session(request)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        client.close()
    sent = [task.result() for task in tasks if not task.cancelled()]
    outcomes = [outcome for session in sent for outcome in session]
    return Run(outcomes, len(requests) - len(sent), time.process_time() - cpu_s)


class _Sender:
    """Sends one request and makes an Outcome of it, whatever happens."""

    def __init__(
        self,
        client: HttpClient,
        target: Target,
        prompts: Prompts,
        gate: asyncio.Semaphore | None,
        on_outcome: Callable[[Outcome], None],
    ) -> None:
        self.started_s = now_s()
        self._client, self._target, self._prompts = client, target, prompts
        self._gate, self._on_outcome = gate, on_outcome

    async def warm_up(self, warmups: Sequence[Request]) -> None:
        """Raises HttpError if one fails: then nothing that follows is worth measuring."""
        for outcome in await asyncio.gather(*(self._exchange(request, 0.0) for request in warmups)):
            if outcome.error:
                raise HttpError(f"a warm-up request failed: {outcome.error}")

    async def send_session(self, request: Request) -> list[Outcome]:
        """The request, and those that follow it, each after the answer to the one before; none after a failure."""
        outcomes = [await self.send(request)]
        while request.follow_up is not None and not outcomes[-1].error:
            prompt, think_s = self._prompts.of(request), request.think_s
            try:
                await asyncio.sleep(think_s)
            except asyncio.CancelledError:
                break
            request = replace(
                request.follow_up,
                arrival_s=now_s() - self.started_s,
                before=prompt[: request.follow_up.shared],
            )
            outcomes.append(await self.send(request))
        return outcomes

    async def send(self, request: Request) -> Outcome:
        lag_s = now_s() - self.started_s - request.arrival_s
        outcome = await self._exchange(request, lag_s)
        self._on_outcome(outcome)
        return outcome

    async def _exchange(self, request: Request, lag_s: float) -> Outcome:
        body = self._body(request)
        waited_from_s = now_s()
        async with self._gate or nullcontext():
            tally = Tally(self.started_s)
            sent_s = now_s()
            try:
                async with asyncio.timeout(self._target.timeout_s):
                    response = await self._client.post("/v1/completions", body, tally.take)
                tally.settle(response.status)
            except TimeoutError:
                tally.error = f"no end within {self._target.timeout_s:g} s"
            except HttpError as error:
                tally.error = tally.error or str(error)
            except asyncio.CancelledError:
                tally.error = INTERRUPTED
            ended_s = now_s()
        prompt_tokens = tally.usage.prompt_tokens if tally.usage else request.shape.prompt
        timing = Timing(
            sent_s=sent_s - self.started_s,
            ended_s=ended_s - self.started_s,
            chunk_s=tally.chunk_s,
            chunk_tokens=tally.chunk_tokens,
            prompt_tokens=prompt_tokens,
            limits=limits_of(request),
            label=request.shape.label,
            failed=bool(tally.error),
            thinking=_thinking(request, tally.verdict),
            stage=request.objective.stage or "",
        )
        return Outcome(
            request,
            timing,
            clean_line(tally.error, 300),
            "".join(tally.texts),
            tally.finish_reason,
            tally.verdict,
            lag_s,
            sent_s - waited_from_s,
        )

    def _body(self, request: Request) -> bytes:
        target = self._target
        fields: dict[str, Any] = {
            "model": target.model,
            "prompt": self._prompts.of(request),
            "max_tokens": request.shape.output,
            "temperature": target.temperature,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if target.ignore_eos:
            fields["ignore_eos"] = True
        if target.temperature > 0:
            fields["seed"] = (target.seed * 1_000_003 + request.index) % 2**63
        asked = request.objective.body()
        if asked is not None:
            fields["accelgen"] = asked
        return msgspec.json.encode({**fields, **target.extra})


def limits_of(request: Request) -> Limits:
    """The objectives that the request states, in seconds."""
    asked = request.objective
    limits = [
        one / 1000 if one is not None else None
        for one in (asked.ttft_ms, asked.tpot_ms, asked.e2e_ms, asked.thinking_ms)
    ]
    return Limits(*limits)


def _thinking(request: Request, verdict: dict[str, Any]) -> int:
    """How many tokens were thinking: the server knows, or else what was drawn; 0 where nothing asks for it."""
    if request.objective.thinking_ms is None:
        return 0
    parts = verdict.get("stages")
    part = parts.get(THINKING) if isinstance(parts, dict) else None
    tokens = part.get("tokens") if isinstance(part, dict) else None
    return tokens if isinstance(tokens, int) else request.shape.thinking
