"""Who may state an objective where: the precedence table, the bounds, the verdict."""

from __future__ import annotations

from typing import Any

import pytest

from accelgen.frontend.errors import ApiError
from accelgen.frontend.events import Outcome
from accelgen.frontend.objectives import Stated, judge, resolve
from accelgen.frontend.schema import Extension
from accelgen.proto.config import SloClass
from accelgen.proto.messages import Objective

CLASSES = {
    "chat": SloClass(ttft_ms=1000, tpot_ms=100, bounds_ms=(10, 5000)),
    "batch": SloClass(e2e_ms=600_000),
}
HEADER, ALIAS = (b"x-slo-ttft-ms", b"200"), (b"x-llm-d-slo-ttft-ms", b"300")
TPOT = (b"x-slo-tpot-ms", b"50.5")


def found(headers: list[tuple[bytes, bytes]], body: dict[str, Any] | None) -> Stated:
    extension = None if body is None else Extension.model_validate(body)
    return resolve(CLASSES, "chat", headers, extension)


@pytest.mark.parametrize(
    ("headers", "body", "name", "ttft_s", "tpot_s", "e2e_s"),
    [
        ([], None, "chat", 1.0, 0.1, None),
        ([], {}, "chat", 1.0, 0.1, None),
        ([], {"slo_class": "batch"}, "batch", None, None, 600.0),
        ([], {"slo": {"ttft_ms": 50}}, "chat", 0.05, 0.1, None),
        ([], {"slo": {"ttft_ms": None, "e2e_ms": 70}}, "chat", 1.0, 0.1, 0.07),
        ([HEADER], {"slo": {"ttft_ms": 50}}, "chat", 0.2, 0.1, None),
        ([ALIAS], {"slo": {"ttft_ms": 50}}, "chat", 0.3, 0.1, None),
        ([HEADER, TPOT], None, "chat", 0.2, 0.0505, None),
        ([(b"x-accelgen-slo-class", b"batch")], {"slo_class": "chat"}, "batch", None, None, 600.0),
        ([(b"x-accelgen-slo-class", b"batch"), HEADER], None, "batch", 0.2, None, 600.0),
        ([(b"x-slo-ttft-ms", b"10")], None, "chat", 0.01, 0.1, None),
        ([(b"x-slo-ttft-ms", b"5000")], None, "chat", 5.0, 0.1, None),
        ([HEADER, HEADER], None, "chat", 0.2, 0.1, None),
        ([(b"x-slo-e2e-ms", b"4000")], {"slo": {"e2e_ms": 70}}, "chat", 1.0, 0.1, 4.0),
    ],
)
def test_precedence(
    headers: Any, body: Any, name: str, ttft_s: float, tpot_s: float, e2e_s: float
) -> None:
    stated = found(headers, body)
    assert stated.slo_class == name
    assert stated.objective == Objective(ttft_s, tpot_s, e2e_s)


@pytest.mark.parametrize(
    "value",
    [b"0", b"-5", b"1000000000000000000", b"inf", b"nan", b"1e3", b"", b"5 ms", b"9.99", b"5000.01", b"\xb2",
     b"0x10", b"1_000", b"9" * 400],
)  # fmt: skip
def test_header_out_of_bounds(value: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        found([(b"x-slo-ttft-ms", value)], None)
    assert refused.value.status == 400 and refused.value.param == "x-slo-ttft-ms"


@pytest.mark.parametrize("second", [(b"x-slo-ttft-ms", b"201"), ALIAS])
def test_header_said_twice(second: Any) -> None:
    with pytest.raises(ApiError) as refused:
        found([HEADER, second], None)
    assert refused.value.param == "x-slo-ttft-ms"


@pytest.mark.parametrize("name", [b"x-slo-", b"x-slo-ttft", b"x-slo-tbt-ms"])
def test_unknown_header_is_refused(name: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        found([(name, b"5")], None)
    assert refused.value.status == 400 and refused.value.param == name.decode()
    assert "x-slo-ttft-ms" in refused.value.message


def test_limits_are_written_out() -> None:
    with pytest.raises(ApiError, match="7,000,000 ms is outside of 10 to 5,000 ms"):
        found([], {"slo": {"ttft_ms": 7e6}})


def test_unknown_class_names_the_known_ones() -> None:
    with pytest.raises(ApiError) as refused:
        found([(b"x-accelgen-slo-class", b"gold\r\n")], None)
    assert "batch, chat" in refused.value.message and "\n" not in refused.value.message


def outcome(ttft_s: float | None, tpot_s: float | None, e2e_s: float) -> Outcome:
    return Outcome(10, 5, 4, 1, 0.01, ttft_s, tpot_s, e2e_s)


def test_verdict() -> None:
    stated = Stated("chat", Objective(ttft_s=1.0, tpot_s=0.1))
    verdict = judge(stated, [outcome(1.0, 0.1, 5.0)])
    assert (verdict.slo_met.ttft, verdict.slo_met.tpot, verdict.slo_met.e2e) == (True, True, None)
    assert (verdict.ttft_ms, verdict.tpot_ms, verdict.e2e_ms) == (1000.0, 100.0, 5000.0)
    missed = judge(stated, [outcome(0.5, 0.05, 5.0), outcome(1.001, 0.2, 6.0)])
    assert (missed.slo_met.ttft, missed.slo_met.tpot) == (False, False)
    assert missed.cached_tokens == 8 and missed.e2e_ms == 6000.0
    single = judge(stated, [outcome(0.5, None, 0.5)])
    assert single.tpot_ms is None and single.slo_met.tpot is True
