"""What does not fit its type: the place is the one that was broken, however deep, and the words say what would fit."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct, field

from accelgen.proto.validation import find_misfit


class Hue(Enum):
    RED = "red"
    BLUE = "blue"


class Leaf(Struct, forbid_unknown_fields=True):
    size: Annotated[float, Meta(gt=0)] | None = None
    hue: Hue = Hue.RED
    mood: Literal["calm", "wild"] | None = None
    pair: tuple[int, int] = (0, 0)


class Tree(Struct, forbid_unknown_fields=True):
    leaves: dict[str, Leaf] = field(default_factory=dict)
    rows: list[dict[str, Leaf]] = field(default_factory=list)
    inner: Leaf | None = None


def told(value: Any, kind: Any = Tree, at: str = "") -> str:
    with pytest.raises(msgspec.ValidationError) as found:
        msgspec.convert(value, kind)
    return find_misfit(found.value, value, kind).below(at)


BROKEN = [
    ({"size": -1}, ".size: expected float > 0.0, got -1"),
    ({"size": "x"}, ".size: expected float | null, got str"),
    ({"hue": "green"}, ".hue: 'green' is not one of red, blue"),
    ({"mood": "mad"}, ".mood: 'mad' is not one of calm, wild"),
    ({"mood": 3}, ".mood: 3 is not one of calm, wild"),
    ({"pair": [1, "x"]}, ".pair[1]: expected int, got str"),
    ({"pair": [1]}, ".pair: expected array of length 2, got 1"),
    ({"sise": 1}, ".sise: unknown field; did you mean size?"),
    (3, ": expected object, got int"),
]


@pytest.mark.parametrize(("leaf", "words"), BROKEN)
def test_words_and_place_at_every_depth(leaf: Any, words: str) -> None:
    whole = {"size": 2.0, "hue": "blue"}
    assert told({"inner": leaf}, at="tree").replace(" | null", "") == f"tree.inner{words}".replace(
        " | null", ""
    )
    assert told({"leaves": {"a": whole, "b": leaf, "c": leaf}}) == f"leaves.b{words}"
    assert told({"rows": [{"a": whole}, {"a": whole, "b": leaf}]}) == f"rows[1].b{words}"


@given(
    st.lists(st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), st.booleans(), min_size=1),
             min_size=1, max_size=4)
)  # fmt: skip
def test_the_entry_that_is_named_is_the_first_broken_one(rows: list[dict[str, bool]]) -> None:
    """`True`: broken."""
    value = [{key: {"size": -1 if bad else 1} for key, bad in row.items()} for row in rows]
    first = next(
        (f"rows[{at}].{key}.size" for at, row in enumerate(rows) for key, bad in row.items() if bad),
        None,
    )  # fmt: skip
    if first is None:
        msgspec.convert({"rows": value}, Tree)
    else:
        assert told({"rows": value}) == f"{first}: expected float > 0.0, got -1"


def test_a_struct_that_judges_its_fields_names_one_itself() -> None:
    class Range(Struct):
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError(f"low: {self.low} is above {self.high}")
            if not self.high:
                raise ValueError("state a range")

    assert told({"low": 2, "high": 1}, Range, "file.range") == "file.range.low: 2 is above 1"
    assert told({"low": 2, "high": 1}, Range) == "low: 2 is above 1"
    assert told({"low": 0, "high": 0}, Range, "file.range") == "file.range: state a range"
    assert told({"low": 0}, Range, "r") == "r: Object missing required field high"
