"""CacheOPT's waiting order: TTFT slack of new requests beside TBT slack of preempted ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import request

from accelgen.proto.messages import Objective
from accelgen.scheduler.memory.waiting import (
    WINDOW,
    LongestRun,
    critical,
    latest_start_s,
    slack_order,
)
from accelgen.scheduler.table import FAR_S, RequestTable

CHUNK, LONGEST_S = 100.0, 0.05


class Queue:
    """Waiting requests, new or preempted; nothing of them is in the cache."""

    def __init__(self) -> None:
        self.table = RequestTable(16)

    def new(self, prompt: int, slo: Objective, at_s: float = 0.0) -> int:
        id = 1 + len(self.table.slot_of)
        slot = self.table.add(request(id, prompt, slo), at_s)
        self.table.predicted_output[slot] = 20
        return slot

    def preempted(self, prompt: int, slo: Objective, generated: int, last_s: float) -> int:
        slot = self.new(prompt, slo)
        self.table.length[slot] += generated
        self.table.last_s[slot] = last_s
        return slot

    def latest_s(self, *slots: int) -> list[float]:
        found = latest_start_s(self.table, np.array(slots), CHUNK, LONGEST_S)
        return [float(one) for one in found]


def test_a_new_request_has_its_ttft() -> None:
    queue = Queue()
    short, long = queue.new(80, Objective(1.0, 0.1)), queue.new(250, Objective(1.0, 0.1), 2.0)
    assert queue.latest_s(short, long) == pytest.approx([1.0 - 0.05, 3.0 - 3 * 0.05])


def test_a_preempted_one_has_its_tbt() -> None:
    queue = Queue()
    slot = queue.preempted(180, Objective(1.0, 0.1), generated=30, last_s=7.0)
    assert queue.latest_s(slot) == pytest.approx([7.1 - 3 * 0.05])  # 210 tokens again
    queue.table.computed[slot] = 209  # its KV is on the host: one token is to be processed
    assert queue.latest_s(slot) == pytest.approx([7.1 - 0.05])
    early = queue.preempted(180, Objective(9.0, 0.1), generated=0, last_s=0.0)
    assert queue.latest_s(early) == pytest.approx([9.0 - 2 * 0.05])  # before its first token


def test_an_end_to_end_objective_leaves_room_for_the_output() -> None:
    queue = Queue()
    new = queue.new(80, Objective(None, None, 10.0))
    assert queue.latest_s(new) == pytest.approx([10.0 - 19 * 0.05 - 0.05])
    begun = queue.preempted(80, Objective(None, None, 10.0), generated=15, last_s=1.0)
    assert queue.latest_s(begun) == pytest.approx([10.0 - 4 * 0.05 - 0.05])
    beyond = queue.preempted(60, Objective(None, None, 10.0), generated=35, last_s=1.0)
    assert queue.latest_s(beyond) == pytest.approx([10.0 - 0.05])  # it must end some time
    both = queue.new(80, Objective(0.5, None, 10.0))
    assert queue.latest_s(both) == pytest.approx([0.5 - 0.05])


def test_without_objectives_it_waits_behind_all_others() -> None:
    queue = Queue()
    slots = [
        queue.new(80, Objective(), at_s=2.0),
        queue.new(80, Objective(), at_s=1.0),
        queue.new(80, Objective(30.0), at_s=3.0),
        queue.preempted(80, Objective(30.0, 0.2), 5, last_s=4.0),
        queue.new(80, Objective(4.2)),
        queue.new(80, Objective(4.2)),
    ]
    order = slack_order(queue.table, np.array(slots), CHUNK, LONGEST_S).tolist()
    assert order == [slots[i] for i in (3, 4, 5, 2, 1, 0)]
    assert slack_order(queue.table, np.array(slots[::-1]), CHUNK, LONGEST_S).tolist() == order
    assert queue.latest_s(slots[0])[0] > FAR_S / 2


def test_critical_is_who_cannot_stay_out_once_more() -> None:
    latest_s = np.array([4.9, 5.0, 5.049, 5.051, FAR_S])
    assert critical(latest_s, 5.0, 0.05).tolist() == [True, True, True, False, False]


@given(st.floats(0, 100), st.floats(0, 100))
def test_the_order_stays_as_time_passes(one_s: float, other_s: float) -> None:
    queue = Queue()
    slots = np.array([queue.new(80, Objective(one_s)), queue.new(250, Objective(other_s))])
    latest_s = latest_start_s(queue.table, slots, CHUNK, LONGEST_S)
    order = slack_order(queue.table, slots, CHUNK, LONGEST_S)
    for now_s in (0.0, 50.0, 200.0):
        slack_s = latest_s - now_s
        by_slack = sorted(range(2), key=lambda i: (round(slack_s[i], 9), i))
        if abs(latest_s[0] - latest_s[1]) > 1e-6:
            assert order.tolist() == slots[by_slack].tolist()


def test_the_longest_of_the_last_iterations() -> None:
    runs = LongestRun()
    assert runs.longest_s(0.3) == 0.3
    for run_s in (0.1, 0.5, 0.2):
        runs = runs.after(run_s)
    assert runs.longest_s(0.3) == 0.5
    for _ in range(WINDOW - 2):
        runs = runs.after(0.2)
    assert runs.longest_s(0.3) == 0.5 and len(runs.runs_s) == WINDOW
    assert runs.after(0.2).longest_s(0.3) == 0.2
