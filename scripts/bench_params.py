"""How the values of `accelgen bench` options are read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from accelgen.scripts.bench_metrics import Limits
from accelgen.scripts.bench_workload import Part, WorkloadError, parse_mix
from accelgen.scripts.chat_objective import (
    Objective,
    ObjectiveError,
    parse_milliseconds,
    parse_objective,
)


class MixParam(click.ParamType):
    name = "mix"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Part, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            return parse_mix(value)
        except WorkloadError as error:
            self.fail(str(error), param, ctx)


class RateParam(click.ParamType):
    """A number above 0, or `inf`."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if not rate > 0:
            self.fail(f"{value!r} is not a number above 0, or inf", param, ctx)
        return rate


class PairParam(click.ParamType):
    """`KEY=VALUE`."""

    name = "k=v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if not isinstance(value, str):
            return tuple(value)
        key, equals, rest = value.partition("=")
        if not (key and equals) or not value.isprintable():
            self.fail(f"{value!r} is not of the form key=value", param, ctx)
        return key, rest


class NumbersParam(click.ParamType):
    """Percentiles separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if not isinstance(value, str):
            return tuple(value)
        try:
            numbers = tuple(float(word) for word in value.split(","))
        except ValueError:
            numbers = (math.nan,)
        if not all(0 <= number <= 100 for number in numbers):
            self.fail(f"{value!r} is not a list of percentiles 0..100, like 50,90,99", param, ctx)
        return numbers


class ObjectParam(click.ParamType):
    """A JSON object."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        try:
            given = json.loads(value)
        except ValueError as error:
            self.fail(f"no JSON: {error}", param, ctx)
        if not isinstance(given, dict):
            self.fail("not a JSON object", param, ctx)
        return given


def parse_goodput(words: Sequence[str]) -> Limits:
    """Reads `ttft:500`, `tpot:50`, `e2el:3000` (ms), as vLLM writes objectives. Raises click.BadParameter."""
    limits_s: dict[str, float] = {}
    for word in " ".join(words).split():
        name, colon, value = word.partition(":")
        name = "e2e" if name == "e2el" else name
        try:
            if not colon:
                raise ObjectiveError(f"{word!r} is not of the form ttft:500")
            limits_s[f"{name}_s"] = parse_milliseconds(name, value) / 1000
        except ObjectiveError as error:
            raise click.BadParameter(str(error), param_hint="--goodput") from error
    return Limits(**limits_s)


def parse_objectives(
    slos: Sequence[str], classes: Sequence[str], labels: Sequence[str]
) -> dict[str, Objective]:
    """The objective of each label of the mix. A value that begins with `LABEL:` is for that part of the mix, any
    other for all. Raises click.BadParameter."""
    objectives = dict.fromkeys(labels, Objective())
    for option, given in (("--slo", slos), ("--slo-class", classes)):
        for text in sorted(given, key=lambda text: text.partition(":")[0] in labels):
            label, colon, rest = text.partition(":")
            chosen, value = ([label], rest) if colon and label in labels else (list(labels), text)
            try:
                stated = parse_objective(value)
            except ObjectiveError as error:
                raise click.BadParameter(str(error), param_hint=option) from error
            for one in chosen:
                objectives[one] = _over(objectives[one], stated, option == "--slo-class")
    return objectives


def _over(before: Objective, stated: Objective, is_class: bool) -> Objective:
    """`stated` takes the place of `before`; a class stands beside numbers."""
    if is_class:
        return replace(before, slo_class=stated.slo_class)
    return stated
