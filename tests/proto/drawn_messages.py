"""Hypothesis strategies for every message, derived from the types, and what they look like to others."""

from __future__ import annotations

import types
import typing
from enum import IntEnum
from typing import Annotated, Any, get_args, get_origin

import hypothesis.strategies as st
import msgspec
from hypothesis.strategies import SearchStrategy

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
PLAIN: dict[Any, SearchStrategy] = {
    str: st.text(max_size=20),
    bytes: st.binary(max_size=20),
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    type(None): st.none(),
    Any: JSON_VALUES,
}


def values_of(kind: Any, limits: msgspec.Meta | None = None) -> SearchStrategy:
    """Values of a type as it is written in `accelgen.proto.messages`, within its limits."""
    if get_origin(kind) is Annotated:
        return values_of(*get_args(kind))
    if get_origin(kind) is list:
        return st.lists(values_of(get_args(kind)[0]), max_size=4)
    if get_origin(kind) is dict:
        return st.dictionaries(*map(values_of, get_args(kind)), max_size=3)
    if get_origin(kind) in (typing.Union, types.UnionType):
        return st.one_of(*map(values_of, get_args(kind)))
    if kind is int:
        assert limits is not None and limits.ge is not None, "an integer needs limits on the wire"
        return st.integers(limits.ge, 2**63 - 1 if limits.le is None else limits.le)
    if kind is float and limits is not None:
        low = limits.gt if limits.ge is None else limits.ge
        return st.floats(low, limits.le, exclude_min=limits.ge is None, allow_nan=False)
    if kind is str and limits is not None and limits.pattern:
        return st.from_regex(limits.pattern).filter(lambda text: len(text) <= 200)
    if kind in PLAIN:
        return PLAIN[kind]
    if issubclass(kind, IntEnum):
        return st.sampled_from(list(kind))
    assert issubclass(kind, msgspec.Struct), f"no strategy for {kind}"
    fields = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values_of(fields[name]) for name in kind.__struct_fields__})


def as_lists(value: Any) -> Any:
    """What a decoder without our types makes of a message: structs are lists of their fields."""
    if isinstance(value, msgspec.Struct):
        return [as_lists(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {key: as_lists(item) for key, item in value.items()}
    return int(value) if isinstance(value, IntEnum) else value
