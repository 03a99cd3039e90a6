"""Recorded requests: loaders for the public trace formats, found through ACCELGEN_TRACES or by a path.

| format | columns |
|---|---|
| compact CSV, length sets | `prompt_tokens`, `output_tokens`, perhaps `arrived_at` (s), `hash_ids`, `reason_tokens` |
| sessions CSV (agents) | `session_id`, both lengths, `think_time` (s), `prefix_tokens_shared_with_prev` |
| Azure CSV, 2023 and 2024 | `TIMESTAMP`, `ContextTokens`, `GeneratedTokens` |
| BurstGPT CSV | `Timestamp` (s), `Request tokens`, `Response tokens` |
| Mooncake JSON lines | `timestamp` (ms), `input_length`, `output_length`, `hash_ids` |

Any of them may be gzipped. Mooncake's times are multiples of 3 s: requests of one time are spread over the 3 s that
follow, uniformly, by seed. A request that generated nothing (BurstGPT's failures) is left out.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from accelgen.scheduler.table import Floats
from accelgen.simulator.rows import Rows, Stage

VARIABLE = "ACCELGEN_TRACES"
SUFFIXES = ("", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")
MOONCAKE_BLOCK, MOONCAKE_STEP_S = 512, 3.0
MAX_TOKENS = 100_000_000


class TraceError(ValueError):
    """A trace that cannot be found or read; the text names the file, and row and column where there are any."""


class MissingTrace(TraceError):
    """There is no such trace here."""


def find_trace(name: str) -> Path:
    """The file `name`, or `name` in the folder that ACCELGEN_TRACES names, with or without its suffixes. Raises
    MissingTrace with near matches."""
    folder = os.environ.get(VARIABLE, "")
    for base in [Path(name), *([Path(folder) / name] if folder else [])]:
        for suffix in SUFFIXES:
            path = base.with_name(_stem(base.name) + suffix) if base.name and suffix else base
            if path.is_file():
                return path
    if not folder:
        raise MissingTrace(f"there is no file {name!r}; {VARIABLE} can name a folder of traces")
    if not Path(folder).is_dir():
        raise MissingTrace(f"there is no file {name!r}, and {VARIABLE}={folder} is no folder")
    known = sorted({_stem(path.name) for path in Path(folder).iterdir() if path.is_file()})
    near = difflib.get_close_matches(_stem(name), known)
    hint = (
        f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known) or 'nothing'}"
    )
    raise MissingTrace(f"there is no trace {name!r} in {folder}; {hint}")


def read_trace(path: Path, seed: int = 0) -> Rows:
    """The requests of a file, in any of the formats above. Raises TraceError."""
    try:
        digest = sha256(path.read_bytes()).hexdigest()[:16]
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            rows = _read(lines, path, digest, seed)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: {error}") from error
    if not len(rows):
        raise TraceError(f"{path}: there is no request in it")
    return rows


def _read(lines: TextIO, path: Path, digest: str, seed: int) -> Rows:
    if ".jsonl" in path.suffixes:
        return _mooncake(_json_rows(lines, path), path, digest, seed)
    rows = csv.DictReader(lines)
    names = {(name or "").strip() for name in rows.fieldnames or ()}
    for needed, read in _CSV_FORMATS:
        if needed <= names:
            return read(_csv_rows(rows, path), path, digest, seed)
    raise TraceError(
        f"{path}, row 1: the columns {', '.join(sorted(names)) or '(none)'} are those of no known format: a trace has"
        " prompt_tokens, output_tokens and perhaps arrived_at, or the columns of Azure, BurstGPT or Mooncake"
    )


# --- cells -------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """One row, and where it stands (the header is row 1)."""

    path: Path
    number: int
    cells: dict[str, Any]

    def fault(self, column: str, words: str) -> TraceError:
        return TraceError(f"{self.path}, row {self.number}, column {column}: {words}")

    def text(self, column: str) -> str:
        value = self.cells.get(column)
        if value is None:
            raise self.fault(column, "there is nothing in it")
        return str(value).strip()

    def number_in(self, column: str, low: float, high: float) -> float:
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            raise self.fault(column, f"{text[:40]!r} is not a number") from None
        if not low <= value <= high:
            raise self.fault(column, f"{text} is not between {low:g} and {high:g}")
        return value

    def tokens(self, column: str, least: int = 1) -> int:
        value = self.number_in(column, 0, MAX_TOKENS)
        if value != int(value):
            raise self.fault(column, f"{value} is not a number of tokens")
        return max(least, int(value))

    def seconds(self, column: str, scale: float = 1.0) -> float:
        return self.number_in(column, 0, math.inf if scale == 1 else 1e18) * scale


def _csv_rows(rows: csv.DictReader[str], path: Path) -> Iterator[_Row]:
    for cells in rows:
        row = _Row(path, rows.line_num, {(k or "").strip(): v for k, v in cells.items()})
        if None in cells:
            raise TraceError(f"{path}, row {row.number}: there are more cells than columns")
        yield row


def _json_rows(lines: TextIO, path: Path) -> Iterator[_Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{path}, row {number}: not JSON: {error}") from error
        if not isinstance(cells, dict):
            raise TraceError(f"{path}, row {number}: not a JSON object")
        yield _Row(path, number, cells)


# --- formats -----------------------------------------------------------------------------------------------------


def _compact(rows: Iterator[_Row], path: Path, digest: str, seed: int) -> Rows:
    at_s, prompt, output = [], [], []
    prefixes: list[tuple[int, ...]] = []
    thinking: list[int] = []
    timed = hashed = False
    for row in rows:
        timed, hashed = "arrived_at" in row.cells, "hash_ids" in row.cells
        if "reason_tokens" in row.cells:
            thinking.append(min(row.tokens("reason_tokens", 0), row.tokens("output_tokens") - 1))
        prompt.append(row.tokens("prompt_tokens"))
        output.append(row.tokens("output_tokens"))
        if timed:
            at_s.append(row.seconds("arrived_at"))
        if hashed:
            prefixes.append(_names(row, row.text("hash_ids").split()))
    times = at_s if timed else None
    return _rows(path, digest, seed, times, prompt, output, prefixes or None, thinking or None)


def _azure(rows: Iterator[_Row], path: Path, digest: str, seed: int) -> Rows:
    at_s, prompt, output = [], [], []
    for row in rows:
        text = row.text("TIMESTAMP")
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise row.fault("TIMESTAMP", f"{text[:40]!r} is not a date and time") from None
        at_s.append(moment.timestamp() if moment.tzinfo else (moment - _EPOCH).total_seconds())
        prompt.append(row.tokens("ContextTokens"))
        output.append(row.tokens("GeneratedTokens"))
    return _rows(path, digest, seed, at_s, prompt, output)


def _burstgpt(rows: Iterator[_Row], path: Path, digest: str, seed: int) -> Rows:
    at_s, prompt, output = [], [], []
    for row in rows:
        generated = row.tokens("Response tokens", least=0)
        if not generated:
            continue
        at_s.append(row.seconds("Timestamp"))
        prompt.append(row.tokens("Request tokens"))
        output.append(generated)
    return _rows(path, digest, seed, at_s, prompt, output)


def _mooncake(rows: Iterator[_Row], path: Path, digest: str, seed: int) -> Rows:
    at_s, prompt, output = [], [], []
    prefixes: list[tuple[int, ...]] = []
    for row in rows:
        at_s.append(row.seconds("timestamp", 1e-3))
        prompt.append(row.tokens("input_length"))
        output.append(row.tokens("output_length"))
        names = row.cells.get("hash_ids")
        if not isinstance(names, list):
            raise row.fault("hash_ids", "not a list of numbers")
        prefixes.append(_names(row, names))
    return _rows(path, digest, seed, at_s, prompt, output, prefixes)


def _sessions(rows: Iterator[_Row], path: Path, digest: str, seed: int) -> Rows:
    """One row per session, with the calls that follow its first one. Times of sessions are not in the trace."""
    stages: dict[str, list[Stage]] = {}
    for row in rows:
        stages.setdefault(row.text("session_id"), []).append(
            Stage(
                row.tokens("prompt_tokens"),
                row.tokens("output_tokens"),
                row.seconds("think_time") if row.cells.get("think_time") else 0.0,
                row.tokens("prefix_tokens_shared_with_prev", least=0),
            )
        )
    sessions = [*stages.values()]
    first = [session[0] for session in sessions]
    found = _rows(path, digest, seed, None, [s.prompt for s in first], [s.output for s in first])
    later = [tuple(session[1:]) for session in sessions]
    return Rows(found.name, digest, None, found.prompt, found.output, later=later)


_EPOCH = datetime(2020, 1, 1)
_Reader = Callable[[Iterator[_Row], Path, str, int], Rows]
_CSV_FORMATS: tuple[tuple[frozenset[str], _Reader], ...] = (
    (
        frozenset({"session_id", "prompt_tokens", "output_tokens", "think_time"}),
        _sessions,
    ),
    (frozenset({"prompt_tokens", "output_tokens"}), _compact),
    (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), _azure),
    (frozenset({"Timestamp", "Request tokens", "Response tokens"}), _burstgpt),
)


def _names(row: _Row, words: list[Any]) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words)
    except (ValueError, TypeError):
        raise row.fault("hash_ids", "not a list of whole numbers") from None


def _rows(
    path: Path,
    digest: str,
    seed: int,
    at_s: list[float] | None,
    prompt: list[int],
    output: list[int],
    prefixes: list[tuple[int, ...]] | None = None,
    thinking: list[int] | None = None,
) -> Rows:
    """Columns from lists, in the order of time, times from 0 on."""
    block = MOONCAKE_BLOCK if prefixes is not None else 0
    name = _stem(path.name)
    lengths = np.array(prompt, dtype=np.int64), np.array(output, dtype=np.int64)
    thoughts = None if thinking is None else np.array(thinking, dtype=np.int64)
    if at_s is None:
        return Rows(name, digest, None, *lengths, prefixes, block, thinking=thoughts)
    times_s = np.array(at_s, dtype=float)
    if prefixes is not None:
        times_s = _spread(times_s, seed)
    order = np.argsort(times_s, kind="stable")
    rows = Rows(name, digest, times_s, *lengths, prefixes, block, thinking=thoughts)
    return rows.take(order)


def _spread(at_s: Floats, seed: int) -> Floats:
    """Requests at multiples of 3 s (to 10 ms), spread over the 3 s after them, in their order. Other times stay."""
    moments_s = np.round(at_s / MOONCAKE_STEP_S) * MOONCAKE_STEP_S
    if np.any(np.abs(at_s - moments_s) > 0.01):
        return at_s
    draw = np.random.default_rng([seed, len(at_s)])
    order = np.argsort(moments_s, kind="stable")
    spread = moments_s[order] + draw.uniform(0, MOONCAKE_STEP_S, size=len(at_s))
    found = np.empty_like(at_s)
    found[order] = np.sort(spread)  # intervals do not overlap: sorting keeps each in its own
    return found


def _stem(name: str) -> str:
    for suffix in sorted(SUFFIXES[1:], key=len, reverse=True):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name
