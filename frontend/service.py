"""Everything the routes need: from a request body to a checked job, and what is known about the server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from accelgen.frontend.admin import Swaps
from accelgen.frontend.answers import Answers
from accelgen.frontend.body import BodyBudget, parse_object, read_body
from accelgen.frontend.errors import ApiError, draining, not_activated, quoted
from accelgen.frontend.events import Demand
from accelgen.frontend.generation import Generation, Job
from accelgen.frontend.link import Link
from accelgen.frontend.metrics import Metrics, collect, render
from accelgen.frontend.model_files import ModelFiles
from accelgen.frontend.objectives import RawHeaders, resolve
from accelgen.frontend.prompts import split_prompts
from accelgen.frontend.schema import ChatBody, CompletionBody, parse_chat, parse_completion
from accelgen.frontend.schema import Generation as Body
from accelgen.frontend.tokenizer import TextCodec
from accelgen.proto.child import Child
from accelgen.proto.messages import Facts, Sampling

Kind = Literal["chat", "completion"]
Result = TypeVar("Result")

_COMPLETION_MAX_TOKENS = 16  # OpenAI's default
_SEED_MASK = 2**62 - 1  # room for seed + choice below 2**63
_SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
)  # fmt: skip


class Service:
    """One per process. JSON, templates and tokenizing run in one thread beside the event loop: it is enough (several
    frontends can run), and it lets the tokenizer's switches be used without a lock."""

    def __init__(
        self, child: Child, model: ModelFiles, codec: TextCodec, link: Link, metrics: Metrics
    ) -> None:
        self.child, self.model, self.codec, self.link, self.metrics = (
            child, model, codec, link, metrics,
        )  # fmt: skip
        self.config = child.config
        self.budget = BodyBudget()
        self.swaps = Swaps(child)
        self._text = ThreadPoolExecutor(1, thread_name_prefix="text")

    @property
    def facts(self) -> Facts | None:
        """What a worker has found out about the model, once one is there."""
        members = self.child.directory.members if self.child.directory else []
        return next((member.facts for member in members if member.facts is not None), None)

    @property
    def context_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        facts = self.facts
        if facts is not None and facts.max_model_len:
            return facts.max_model_len
        return self.config.max_model_len or self.model.context_tokens or 2048

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of a replica holds; a lone request with more than that can never run."""
        facts = self.facts
        return facts.num_blocks * facts.block_size if facts is not None else self.context_tokens

    @property
    def vocab_size(self) -> int:
        facts = self.facts
        return facts.vocab_size if facts is not None and facts.vocab_size else self.codec.vocab_size

    @property
    def ready(self) -> bool:
        directory = self.child.directory
        return (
            self.link.active
            and not self.link.draining
            and directory is not None
            and directory.ready
            and not directory.draining
        )

    def metrics_text(self) -> bytes:
        return render(collect(self.samples(), self.child.index, self.child.directory))

    def samples(self) -> dict[str, float]:
        """This frontend's own samples."""
        codec = self.link.router.codec.counters
        counters = {**codec, **self.link.fence.counters, **self.link.journal.counters}
        gauges = {f'frontend_messages_total{{kind="{k}"}}': float(v) for k, v in counters.items()}
        gauges["frontend_open_requests"] = float(self.link.journal.open_choices)
        return self.metrics.samples(gauges)

    async def in_text_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._text, work, *args)

    async def read(self, request: Request, work: Callable[[dict[str, Any]], Result]) -> Result:
        """The JSON object of the body, handed to `work` in the text thread. Raises ApiError."""
        body = await read_body(request, self.budget, self.config.max_body_bytes)
        try:
            return await self.in_text_thread(lambda: work(parse_object(body)))
        finally:
            self.budget.give(len(body))

    async def generate(self, request: Request, kind: Kind) -> Response:
        """The answer to a chat or completion request. Raises ApiError."""
        if self.link.draining:
            raise draining()
        headers: RawHeaders = request.scope["headers"]
        received_s: float = request.scope["state"]["received_s"]
        job = await self.read(request, lambda given: self._job(kind, given, headers, received_s))
        prefix = "chatcmpl-" if kind == "chat" else "cmpl-"
        return Generation(
            self.link, job, Answers(kind, prefix + secrets.token_hex(12), self.model.name)
        )

    def check_model(self, name: str | None) -> None:
        """None is the one model there is. Raises ApiError 404 for any other name than its own."""
        if name is not None and name != self.model.name:
            message = f"the model {quoted(name)} does not exist; this server has {self.model.name}"
            raise ApiError(404, message, "model", "model_not_found")

    def _job(
        self, kind: Kind, given: dict[str, Any], headers: RawHeaders, received_s: float
    ) -> Job:
        body: ChatBody | CompletionBody
        body = parse_chat(given) if kind == "chat" else parse_completion(given)
        self.check_model(body.model)
        most = min(self.config.max_choices, self.config.max_num_seqs)
        if body.choices > most:
            message = f"n: {body.choices} is more than the limit of {most}"
            raise ApiError(400, message, "n", "invalid_value")
        stated = resolve(
            self.config.slo_classes,
            self.config.default_class,
            headers,
            body.accelgen,
            self.codec.think_end_ids,
        )
        prompts, max_tokens = self._prompts(body)
        options = body.stream_options
        demand = Demand(
            prompts=prompts,
            n=body.choices,
            max_tokens=max_tokens,
            sampling=self._sampling(body),
            stop_ids=self._stop_ids(body),
            stops=tuple(body.stop or ()),
            objective=stated.objective,
            slo_class=stated.slo_class,
            salt=(body.accelgen and body.accelgen.cache_salt or "").encode(),
            continues=kind == "completion",
            received_s=received_s,
        )
        return Job(
            demand=demand,
            stated=stated,
            stream=bool(body.stream),
            usage_chunk=bool(options and options.include_usage),
            usage_always=bool(options and options.continuous_usage_stats),
        )

    def _prompts(self, body: ChatBody | CompletionBody) -> tuple[list[list[int]], list[int]]:
        """Token ids and the limit of new tokens of every prompt. Raises ApiError naming the field."""
        context = self.context_tokens
        if isinstance(body, ChatBody):
            messages = [message.model_dump() for message in body.messages]
            for message in messages:  # newer name of the same thing; templates know the older one
                message["role"] = message["role"].replace("developer", "system")
            prompts = [self._known(self.codec.encode_chat(messages, context), "messages")]
            wanted = body.max_completion_tokens or body.max_tokens
            param = "messages"
        else:
            given = split_prompts(body.prompt, self.vocab_size)
            prompts = [
                self._known(self.codec.encode_text(one, context), "prompt")
                if isinstance(one, str)
                else one
                for one in given
            ]
            wanted = body.max_tokens or _COMPLETION_MAX_TOKENS
            param = "prompt"
        explicit = body.max_tokens is not None or isinstance(body, ChatBody) and wanted is not None
        most = self.kv_tokens
        return prompts, [
            _limit(len(one), wanted, explicit, context, most, param) for one in prompts
        ]

    def _known(self, ids: list[int], param: str) -> list[int]:
        """Raises ApiError for tokens that the tokenizer knows and the model does not."""
        if ids and max(ids) >= self.vocab_size:
            message = f"{param}: the model has no token {max(ids)}, only 0..{self.vocab_size - 1}"
            raise ApiError(400, message, param, "invalid_value")
        return ids

    def _sampling(self, body: Body) -> Sampling:
        """Request, else the recommendation of the model's makers, else OpenAI's defaults."""
        given = {name: getattr(body, name) for name in _SAMPLING_FIELDS}
        stated = {name: value for name, value in given.items() if value is not None}
        seed = secrets.randbits(62) if body.seed is None else body.seed & _SEED_MASK
        return Sampling(**{**self.model.defaults, **stated}, seed=seed)

    def _stop_ids(self, body: Body) -> tuple[int, ...]:
        given = tuple(body.stop_token_ids or ())
        if given and max(given) >= self.vocab_size:
            message = f"stop_token_ids: token ids must lie in 0..{self.vocab_size - 1}"
            raise ApiError(400, message, "stop_token_ids", "invalid_value")
        own = () if body.ignore_eos else self.codec.stop_ids
        return tuple(sorted({*own, *given}))

    async def require_ready(self) -> None:
        if not self.ready:
            raise draining() if self.link.draining else not_activated()


def counted(tokens: int) -> str:
    """1 token, 2 tokens."""
    return f"{tokens} token" + "s" * (tokens != 1)


def _limit(
    prompt: int, wanted: int | None, explicit: bool, context: int, kv_tokens: int, param: str
) -> int:
    """How many tokens may be generated after `prompt` tokens: what was asked for, or what is left of the context
    and of the KV cache. Raises ApiError with the numbers."""
    if prompt == 0:
        raise ApiError(400, f"{param}: must not be empty", param, "invalid_value")
    room = context - prompt
    if room < 1:
        message = (
            f"the prompt has {counted(prompt)}, which leaves no room for an answer"
            f" in the context of {context} tokens"
        )
        raise ApiError(400, message, param, "context_length_exceeded")
    if not explicit:
        left = max(1, min(room, kv_tokens - prompt))  # the scheduler refuses what then does not fit
        return left if wanted is None else min(wanted, left)
    assert wanted is not None
    if wanted > room:
        message = (
            f"the prompt has {counted(prompt)} and max_tokens is {wanted}:"
            f" together more than the context of {context} tokens"
        )
        raise ApiError(400, message, "max_tokens", "context_length_exceeded")
    return wanted
