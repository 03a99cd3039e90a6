"""Where plain settings do not fit their types, and what would: msgspec's words as those who wrote a file need them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

Step = str | int
_STEPS = re.compile(r"\.([^.\[\]]+)|\[(\d+|\.\.\.)\]")
_FIELD = re.compile(r"[a-z_]+[\w.]*: ")


class Misfit(NamedTuple):
    """`path`: where, like `parts[0].stages.tool`, "" for all of it. `unknown`: the name of a field that there is not,
    in what lies at `path`."""

    path: str
    words: str
    unknown: str = ""

    def below(self, at: str) -> str:
        """In one line, the place first, of what lies at `at`."""
        where = ".".join(part for part in (at, self.path, self.unknown) if part)
        # a struct that judges its fields together names one of them itself
        joint = "." if _FIELD.match(self.words) and not self.unknown else ": "
        return f"{where}{joint}{self.words}" if where else self.words


def find_misfit(error: msgspec.ValidationError, value: Any, kind: Any) -> Misfit:
    """What `error` says about `value`, which is no `kind`. Of a table whose keys are free msgspec does not say which
    entry it means: it is the first that has this error alone."""
    words, _, place = str(error).partition(" - at `$")
    path: list[Step] = []
    for name, index in _STEPS.findall(place.rstrip("`")):
        step = _entry(str(error), value, kind, path) if index == "..." else name or int(index)
        if step is None:
            break
        path.append(step)
    stated, wanted = _value_at(value, path), _type_at(kind, path)
    return _worded(words.replace("`", ""), _spelled(path), stated, wanted)


def _worded(words: str, path: str, stated: Any, wanted: inspect.Type | None) -> Misfit:
    unknown = words.partition("contains unknown field ")[2]
    if unknown:
        known = [one.encode_name for one in getattr(wanted, "fields", ())]
        near = difflib.get_close_matches(unknown, known, 1)
        return Misfit(
            path, "unknown field" + (f"; did you mean {near[0]}?" if near else ""), unknown
        )
    if choices := _choices(wanted):
        return Misfit(path, f"{stated!r} is not one of {', '.join(map(str, choices))}")
    if words.startswith("Expected"):
        words = "e" + words[1:]
        words += "" if ", got" in words or stated is None else f", got {stated!r}"
    return Misfit(path, words)


def _entry(text: str, value: Any, kind: Any, path: Sequence[Step]) -> str | None:
    """Which entry of the table at `path` is meant."""
    for key in _value_at(value, path):
        try:
            msgspec.convert(_with_only(value, path, key), kind)
        except msgspec.ValidationError as error:
            if str(error) == text:
                return str(key)
    return None


def _with_only(value: Any, path: Sequence[Step], key: str) -> Any:
    """A copy of `value` in which the table at `path` has this entry alone."""
    if not path:
        return {key: value[key]}
    inner = _with_only(value[path[0]], path[1:], key)
    if isinstance(value, dict):
        return {**value, path[0]: inner}
    return [inner if at == path[0] else one for at, one in enumerate(value)]


def _value_at(value: Any, path: Sequence[Step]) -> Any:
    for step in path:
        value = value[step]
    return value


def _type_at(kind: Any, path: Sequence[Step]) -> inspect.Type | None:
    """The type of what lies at `path`; None where that is not known."""
    found: inspect.Type | None = _plain(inspect.type_info(kind))
    for step in path:
        match found:
            case inspect.StructType(fields=fields):
                found = next((one.type for one in fields if one.encode_name == step), None)
            case inspect.DictType(value_type=inner) | inspect.ListType(item_type=inner):
                found = inner
            case inspect.TupleType(item_types=items):
                found = items[int(step)]
            case _:
                return None
        found = None if found is None else _plain(found)
    return found


def _plain(kind: inspect.Type) -> inspect.Type:
    """Without what is said about it, and without None."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        some = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return _plain(some[0]) if len(some) == 1 else kind
    return kind


def _choices(kind: inspect.Type | None) -> list[Any]:
    match kind:
        case inspect.LiteralType(values=values):
            return list(values)
        case inspect.EnumType(cls=cls):
            return [one.value for one in cls]
    return []


def _spelled(path: Sequence[Step]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".")
