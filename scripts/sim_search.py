"""Options of the search for an upper reference, shared by `sim oracle` and `sim compare --oracle`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_SEARCH = (
    click.option("--evaluations", type=click.IntRange(4, 10**6), default=200, show_default=True,
                 help="Schedules that the search tries; up to 7 requests it tries all."),
    click.option("--search-seed", type=click.IntRange(0, 2**31), default=0, show_default=True,
                 help="Of the search; --seeds are those of the workload."),
    click.option("--metric", type=click.Choice(["goodput", "attainment"]), default="goodput", show_default=True,
                 help="What is sought, by the rule of the scenario."),
)  # fmt: skip


def search_options(command: F) -> F:
    """How it is searched."""
    for option in reversed(_SEARCH):
        command = option(command)
    return command
