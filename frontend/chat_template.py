"""Renders a model's chat template in jinja's sandbox, with bounds on time, output and loops.

The environment offers what transformers offers (trim_blocks, lstrip_blocks, loop controls, `tojson`, `strftime_now`,
`raise_exception`, the `generation` tag), since templates are written against it. Templates come from the model
folder, never from a request: the sandbox keeps them from running code, the bounds keep mistakes from costing much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment

from accelgen.proto.clocks import now_s

RENDER_TIMEOUT_S = 2.0
MAX_OUTPUT_CHARS = 32 * 1024 * 1024
MAX_REPEAT_CHARS = 1_000_000


class RenderError(ValueError):
    """The template refused the messages (the text is the template's own) or ran out of bounds."""


class _Deadline:
    """Time limit of one rendering. Checked wherever a template can loop long: `range`, each piece of output."""

    def __init__(self) -> None:
        self.end_s = now_s() + RENDER_TIMEOUT_S

    def check(self) -> None:
        if now_s() > self.end_s:
            raise RenderError(f"the chat template took longer than {RENDER_TIMEOUT_S:.0f} s")

    def range(self, *bounds: int) -> _Range:
        return _Range(range(*bounds), self)


class _Range(Sequence[int]):
    """A range that a template may count through, as long as it is short and there is time."""

    def __init__(self, numbers: range, deadline: _Deadline) -> None:
        if len(numbers) > MAX_RANGE:
            raise RenderError(f"the chat template counts further than {MAX_RANGE}")
        self._numbers, self._deadline = numbers, deadline

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._numbers[index]

    def __iter__(self) -> Iterator[int]:
        for number in self._numbers:
            self._deadline.check()
            yield number


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a bound on `text * number`, the short way to exhaust memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise RenderError("the chat template uses **, which is not allowed")
        for text, times in ((left, right), (right, left)):
            repeats = isinstance(text, str | list | tuple) and isinstance(times, int)
            if repeats and len(text) * times > MAX_REPEAT_CHARS:
                raise RenderError("the chat template repeats a text too often")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the answer for training; here it is just its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. `render` may run in any thread."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        """`special`: bos_token, eos_token, ... Raises RenderError if the source is not a template."""
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special = dict(special)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise RenderError(f"chat template: {error.message} (line {_line(error)})") from error

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt text for `messages` (role and content each), ending where the answer begins.

        Raises RenderError."""
        deadline = _Deadline()
        pieces: list[str] = []
        size = 0
        try:
            stream = self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                tools=None,
                documents=None,
                range=deadline.range,
                **self._special,
            )
            for piece in stream:
                deadline.check()
                size += len(piece)
                if size > MAX_OUTPUT_CHARS:
                    raise RenderError(f"the chat template wrote more than {MAX_OUTPUT_CHARS} chars")
                pieces.append(piece)
        except RenderError:
            raise
        except TemplateError as error:
            raise RenderError(f"the chat template refused: {error.message}") from error
        except (
            Exception
        ) as error:  # a template is a program of somebody else: it may raise anything
            raise RenderError(f"the chat template failed with {type(error).__name__}") from error
        return "".join(pieces)


def _line(error: TemplateError) -> int | str:
    return getattr(error, "lineno", "?")


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(str(message)[:500])


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter escapes HTML characters."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
