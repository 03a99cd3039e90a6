"""What a benchmark sends, and when: lengths and arrivals from a random source or a trace, the same for the same seed.

Arrivals, lengths and prompts are drawn from separate streams of random numbers: another rate leaves the lengths as
they are.
"""

from __future__ import annotations

import csv
import gzip
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from accelgen.scripts.chat_clean import clean_line
from accelgen.scripts.chat_objective import Objective

TRACES_VARIABLE = "ACCELGEN_TRACES"
FIRST_ID, DEFAULT_VOCAB_SIZE = 100, 1000
"""Prompts are token ids in [FIRST_ID, vocabulary size): special tokens lie below, or at the vocabulary's end."""

MAX_TOKENS = 10_000_000
_ARRIVALS, _LENGTHS, _PROMPTS, _PREFIX = range(4)


class WorkloadError(ValueError):
    """The load cannot be made; the text names the option or file, and the limit."""


@dataclass(frozen=True)
class Part:
    """One kind of request in a mix: `share` of the requests, around `prompt` tokens in and `output` out."""

    label: str
    share: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Shape:
    """How long a request is: tokens in, tokens out; `arrived_s` where a trace says so. The first `thinking` tokens out
    count as thinking if the request asks for a pace of it."""

    prompt: int
    output: int
    label: str = ""
    arrived_s: float | None = None
    thinking: int = 0


@dataclass(frozen=True)
class Request:
    """One request to send `arrival_s` after the start. `follow_up` is sent `think_s` after its answer, and its prompt
    begins with `shared` tokens of this one's (`before`, once it is known). `session` is the index of the request with
    which the session began, -1 for that one itself."""

    index: int
    arrival_s: float
    shape: Shape
    objective: Objective = Objective()
    follow_up: Request | None = None
    think_s: float = 0.0
    shared: int = 0
    before: Sequence[int] = ()
    session: int = -1

    @property
    def calls(self) -> int:
        """Requests of the session from here on."""
        count, call = 1, self.follow_up
        while call is not None:
            count, call = count + 1, call.follow_up
        return count


def parse_mix(text: str) -> tuple[Part, ...]:
    """Reads `short=0.65:64:128,long=0.35:2048:64` (label=share:tokens in:tokens out). Shares need not sum to 1."""
    parts = []
    for word in text.split(","):
        label, equals, numbers = word.strip().partition("=")
        fields = numbers.split(":")
        try:
            share, prompt, output = float(fields[0]), int(fields[1]), int(fields[2])
            if not equals or not label or len(fields) != 3:
                raise ValueError
        except (ValueError, IndexError):
            raise WorkloadError(
                f"{clean_line(word)!r} is not label=share:tokens in:tokens out"
            ) from None
        if not (math.isfinite(share) and share > 0):
            raise WorkloadError(f"{label}: the share {fields[0]} is not more than 0")
        if not (1 <= prompt <= MAX_TOKENS and 1 <= output <= MAX_TOKENS):
            raise WorkloadError(f"{label}: lengths lie in 1..{MAX_TOKENS} tokens")
        parts.append(Part(label, share, prompt, output))
    if len({part.label for part in parts}) < len(parts):
        raise WorkloadError("two parts of the mix have one label")
    return tuple(parts)


def draw_shapes(parts: Sequence[Part], count: int, range_ratio: float, seed: int) -> list[Shape]:
    """`count` lengths: a part by its share, each length uniform in [(1 - r) x, (1 + r) x], at least 1."""
    draw = np.random.default_rng([seed, _LENGTHS])
    shares = np.array([part.share for part in parts])
    chosen = draw.choice(len(parts), size=count, p=shares / shares.sum())
    factors = draw.uniform(1 - range_ratio, 1 + range_ratio, size=(count, 2))
    shapes = []
    for number, (for_prompt, for_output) in zip(chosen, factors, strict=True):
        part = parts[number]
        prompt, output = round(part.prompt * for_prompt), round(part.output * for_output)
        shapes.append(Shape(max(1, prompt), max(1, output), part.label))
    return shapes


def poisson_arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """Arrival times (s) of `count` requests at `rate` per second: gaps are gamma distributed with shape `burstiness`
    (1: a Poisson process; below 1 burstier) and scaled so that they take exactly (count - 1) / rate. An infinite rate
    sends all at once."""
    if math.isinf(rate) or count == 1:
        return [0.0] * count
    draw = np.random.default_rng([seed, _ARRIVALS])
    at = np.concatenate([[0.0], draw.gamma(burstiness, size=count - 1).cumsum()])
    if at[-1] > 0:
        at *= (count - 1) / rate / at[-1]
    return [float(one) for one in at]


def trace_arrivals(shapes: Sequence[Shape], scale: float) -> list[float]:
    """Arrival times (s) as in the trace, from its first row on, `scale` times as fast."""
    at = [shape.arrived_s for shape in shapes if shape.arrived_s is not None]
    assert len(at) == len(shapes)
    return [(one - at[0]) / scale for one in at]


def find_trace(name: str) -> Path:
    """The file `name`, or `name` in the folder that ACCELGEN_TRACES names, with or without .csv or .csv.gz."""
    folder = os.environ.get(TRACES_VARIABLE, "")
    for base in [Path(name), *([Path(folder) / name] if folder else [])]:
        for path in (
            base,
            base.with_name(base.name + ".csv"),
            base.with_name(base.name + ".csv.gz"),
        ):
            if path.is_file():
                return path
    where = f", nor in {folder}" if folder else f" ({TRACES_VARIABLE} may name a folder of traces)"
    raise WorkloadError(f"--trace: there is no file {clean_line(name)}{where}")


def read_trace(path: Path, length_scale: float = 1.0) -> Iterator[Shape]:
    """The rows of a CSV file (perhaps gzipped) with the columns prompt_tokens, output_tokens and, if it has times,
    arrived_at (s). Lengths are multiplied by `length_scale`; a length of 0 counts as 1. Raises WorkloadError."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            rows = csv.DictReader(lines)
            missing = {"prompt_tokens", "output_tokens"} - set(rows.fieldnames or ())
            if missing:
                raise WorkloadError(f"{path}: no column {', '.join(sorted(missing))}")
            for row in rows:
                yield _shape(row, length_scale)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{path}: {error}") from error
    except (ValueError, TypeError) as error:
        if isinstance(error, WorkloadError):
            raise
        raise WorkloadError(f"{path}, line {rows.line_num}: {clean_line(str(error))}") from error


def _shape(row: dict[str, str], length_scale: float) -> Shape:
    prompt, output = float(row["prompt_tokens"]), float(row["output_tokens"])
    arrived = row.get("arrived_at")
    arrived_s = float(arrived) if arrived is not None else None
    for value in (prompt, output, arrived_s or 0.0):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{value} is not a length or a time")
    return Shape(
        max(1, round(prompt * length_scale)), max(1, round(output * length_scale)), "", arrived_s
    )


def select(
    shapes: Iterator[Shape], count: int | None, max_len: int | None
) -> tuple[list[Shape], int]:
    """The first `count` shapes (None: all) with at most `max_len` tokens in and out together, in order of arrival;
    and how many were passed over because they are longer."""
    chosen: list[Shape] = []
    too_long = 0
    for shape in shapes:
        if count is not None and len(chosen) == count:
            break
        if max_len is not None and shape.prompt + shape.output > max_len:
            too_long += 1
        else:
            chosen.append(shape)
    return sorted(chosen, key=lambda shape: shape.arrived_s or 0.0), too_long


class Prompts:
    """Makes the token ids of each prompt: random ids, after `prefix_len` ids that are the same for all."""

    def __init__(self, seed: int, vocab_size: int, prefix_len: int) -> None:
        first = min(FIRST_ID, vocab_size // 2)
        self._seed, self._range = seed, (first, vocab_size)
        self._prefix = self._draw([seed, _PREFIX], prefix_len)

    def make(self, index: int, length: int) -> list[int]:
        """The prompt of request `index`; a prefix longer than `length` is cut. Warm-ups have negative indices."""
        stream = 2 * index if index >= 0 else -2 * index - 1
        own = self._draw([self._seed, _PROMPTS, stream], max(0, length - len(self._prefix)))
        return self._prefix[:length] + own

    def of(self, request: Request) -> list[int]:
        """The prompt of `request`, which may go on from one before."""
        tokens = self.make(request.index, request.shape.prompt)
        shared = min(len(request.before), len(tokens))
        return [*request.before[:shared], *tokens[shared:]]

    def _draw(self, seed: list[int], count: int) -> list[int]:
        ids: list[int] = np.random.default_rng(seed).integers(*self._range, size=count).tolist()
        return ids
