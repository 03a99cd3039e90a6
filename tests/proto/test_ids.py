"""Ids never repeat and stay inside 63 bits."""

from __future__ import annotations

from accelgen.proto.ids import RequestIds, new_incarnation


def test_request_ids_name_one_life() -> None:
    ids, others = RequestIds(2**31 - 1), RequestIds(1)
    taken = [*ids.take(), *ids.take(3), *others.take(2)]
    assert len(set(taken)) == 6 and taken[1:4] == [taken[1], taken[1] + 1, taken[1] + 2]
    assert all(0 < id < 2**63 for id in taken)


def test_incarnations_are_positive_and_differ() -> None:
    drawn = {new_incarnation() for _ in range(100)}
    assert len(drawn) == 100 and all(0 < incarnation < 2**31 for incarnation in drawn)
