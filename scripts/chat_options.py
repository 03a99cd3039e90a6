"""The options that `accelgen chat` and `accelgen complete` share, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from accelgen.scripts.chat_objective import Objective, ObjectiveError, parse_objective

if TYPE_CHECKING:
    from accelgen.scripts.chat_client import ServerError


class ObjectiveParam(click.ParamType):
    """An option value read by `parse_objective`."""

    name = "objective"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Objective:
        if isinstance(value, Objective):
            return value
        try:
            return parse_objective(value)
        except ObjectiveError as error:
            self.fail(str(error), param, ctx)


@dataclass(frozen=True)
class ClientOptions:
    """Which server and model, and how to generate. None leaves the choice to the server."""

    url: str | None
    model: str | None
    api_key: str | None
    max_tokens: int | None
    temperature: float | None
    seed: int | None
    stats: bool
    slo: Objective

    def generation(self, objective: Objective) -> dict[str, Any]:
        """The fields of a request's body that these options and `objective` set."""
        fields = {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "accelgen": objective.body(),
        }
        return {name: value for name, value in fields.items() if value is not None}


_OPTIONS = (
    click.option(
        "--url",
        envvar="ACCELGEN_URL",
        show_default="the one running here, else http://127.0.0.1:8000",
        help="Server; also from the variable ACCELGEN_URL.",
    ),
    click.option("--model", show_default="the server's first", help="Model."),
    click.option(
        "--api-key",
        envvar=["ACCELGEN_API_KEY", "OPENAI_API_KEY"],
        show_default="none",
        help="Key; better given in ACCELGEN_API_KEY (or OPENAI_API_KEY), which `ps` does not show.",
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(1),
        show_default="the server's",
        help="Longest answer in tokens.",
    ),
    click.option(
        "--temperature",
        type=click.FloatRange(0, 2),
        show_default="the server's",
        help="0 takes the likeliest token.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(0, 2**63 - 1),
        show_default="the server's",
        help="Same seed, same answer.",
    ),
    click.option(
        "--slo",
        type=ObjectiveParam(),
        default=Objective(),
        show_default="those of the server's default class",
        metavar="OBJECTIVE",
        help='Objective, in ms, or a class: "ttft=300 tpot=40", "chat".',
    ),
    click.option("--stats", is_flag=True, help="Show times and the verdict after an answer."),
)


def as_click(error: ServerError) -> click.ClickException:
    """A server's error as click's: exit status 2 if an option is at fault, else 1."""
    if error.option:
        return click.UsageError(str(error), click.get_current_context(silent=True))
    return click.ClickException(str(error))


def client_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command, which gets them as one ClientOptions named `options`."""

    def command(**given: Any) -> Any:
        names = ClientOptions.__dataclass_fields__
        options = ClientOptions(**{name: given.pop(name) for name in names})
        return function(options=options, **given)

    command.__doc__ = function.__doc__
    command.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    decorated: Callable[..., Any] = command
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
