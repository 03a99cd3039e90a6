"""Requests whose workers die: counted exactly once each, in whatever order the news comes; given up after the limit."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from accelgen.frontend.events import Admission, Refused
from accelgen.frontend.journal import Journal, Turn
from accelgen.frontend.losses import MAX_DEAD, Workers
from accelgen.proto.messages import Admitted, Directory, Member, Reason, Role, Tokens

sys.path.insert(0, str(Path(__file__).parent))
from test_journal import TOKENIZER, demand, finished, tokens

NOW_S = 101.0


def worker(incarnation: int, phase: str = "ready", index: int = 0) -> Member:
    return Member(Role.WORKER, index, 1, "", incarnation, 1, phase, 1, 1.0, 0.0, 1, None, {})


def listing(*members: Member) -> Directory:
    return Directory(list(members), True, False)


class Bench:
    """A journal with one choice, and what has come of it."""

    def __init__(self, max_replays: int, n: int = 1) -> None:
        self.journal = Journal(TOKENIZER, 5, max_replays)
        submit = self.journal.open(1, demand(n=n), 100.0)[0]
        self.ids = [submit.prompt.id, *submit.siblings]
        self.turns: list[Turn] = []

    def admit(self, worker: int, id: int | None = None, replica: int = 0) -> Turn:
        word = Admitted(self.ids[0] if id is None else id, replica, 0.1, 0, worker)
        self.turns.append(self.journal.take(word, NOW_S))
        return self.turns[-1]

    def learn(self, *members: Member) -> Turn:
        self.turns.append(self.journal.learn(listing(*members)))
        return self.turns[-1]

    @property
    def losses(self) -> int:
        return sum(turn.replays + turn.given_up for turn in self.turns)


@pytest.mark.parametrize("after", [[], [worker(7, "dead")], [worker(8, "starting")], [worker(0)]])
def test_a_loss(after: list[Member]) -> None:
    """Dead, gone, replaced, replaced by one not born yet: all the same."""
    bench = Bench(max_replays=1)
    bench.learn(worker(7))
    bench.admit(7)
    turn = bench.learn(*after)
    assert (turn.replays, turn.given_up, turn.events, turn.aborts) == (1, 0, [], [])
    assert bench.learn(*after) == Turn() and bench.learn(worker(9)) == Turn()
    (again,) = bench.journal.replay(NOW_S)
    assert again.prompt.id == bench.ids[0]


@pytest.mark.parametrize(
    "max_replays, says", [(0, "1 worker has died"), (2, "3 workers have died")]
)
def test_one_loss_too_many(max_replays: int, says: str) -> None:
    bench = Bench(max_replays)
    for incarnation in range(1, max_replays + 2):
        bench.learn(worker(incarnation))
        assert isinstance(bench.admit(incarnation).events[0], Admission)
    turn = bench.learn()
    (event,) = turn.events
    assert isinstance(event, Refused) and event.end.reason is Reason.FAILED
    assert event.end.detail.startswith(says)
    assert (turn.aborts, turn.given_up, turn.replays) == (bench.ids, 1, 0)
    assert bench.losses == max_replays + 1
    for late in (tokens(bench.ids[0], "x"), finished(bench.ids[0])):
        assert bench.journal.take(late, NOW_S).events == []
    assert bench.admit(9) == Turn() and bench.journal.replay(NOW_S) == []


def test_each_choice_has_its_own_count() -> None:
    bench = Bench(max_replays=0, n=3)
    bench.learn(worker(7), worker(8, index=1))
    bench.admit(7, bench.ids[0])
    bench.admit(8, bench.ids[1], replica=1)
    turn = bench.learn(worker(8, index=1))
    assert turn.aborts == [bench.ids[0]]  # the third has not been given to anybody
    assert bench.journal.open_choices == 2


def test_only_workers_count() -> None:
    bench = Bench(max_replays=0)
    others = [structs.replace(worker(7), role=role) for role in Role if role is not Role.WORKER]
    bench.learn(*others)
    bench.admit(7)
    assert bench.learn() == Turn()


def test_what_is_not_known_is_no_loss() -> None:
    bench = Bench(max_replays=0)
    bench.admit(7)  # before a Directory lists it
    assert bench.learn() == Turn() and bench.learn(worker(6)) == Turn()
    bench.learn(worker(7))
    assert bench.learn(worker(8)).given_up == 1
    unsaid = Bench(max_replays=0)
    unsaid.learn(worker(7))
    unsaid.admit(0)
    assert unsaid.learn() == Turn()


def test_who_hands_a_request_over_may_die_later() -> None:
    bench = Bench(max_replays=0)
    both = [worker(7), worker(8, index=1)]
    bench.learn(*both)
    bench.admit(7)
    bench.admit(8, replica=1)  # another scheduler has chosen another replica
    bench.learn(*both)
    assert bench.learn(both[1]) == Turn()
    assert bench.learn().given_up == 1


@given(st.lists(st.integers(0, 1), max_size=5), st.data())
def test_order_does_not_matter(homes: list[int], data: st.DataObject) -> None:
    """Worker after worker dies under a request, which is given to the same replica again or to the other. Each death is
    heard of before or after that; it may be seen only by another worker in the dead one's place."""
    bench = Bench(max_replays=100)
    alive, fresh = {0: 1, 1: 2}, 3
    bench.learn(*(worker(one, index=i) for i, one in alive.items()))
    bench.admit(alive[0])
    home = 0
    for to in homes:
        dead, alive[home], fresh = alive[home], fresh, fresh + 1
        buried = [worker(alive[1 - home], index=1 - home), worker(dead, "dead", home)]
        reborn = [worker(one, index=i) for i, one in alive.items()]
        news = [lambda m=buried: bench.learn(*m), lambda m=reborn: bench.learn(*m)]  # type: ignore[misc]
        news = news[data.draw(st.integers(0, 1)) :]
        news.insert(data.draw(st.integers(0, len(news))), lambda to=to: bench.admit(alive[to]))  # type: ignore[misc]
        for one in news:
            one()
        home = to
    assert bench.losses == len(homes)


def test_memory_is_bounded() -> None:
    workers = Workers()
    for incarnation in range(1, 3 * MAX_DEAD):
        workers.learn(listing(worker(incarnation)))
    assert len(workers._dead) <= MAX_DEAD and workers.is_dead(3 * MAX_DEAD - 2)


# --- the process -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_one_error_and_an_abort(make_stage: Any, wait: Any, stream: bool) -> None:
    """The others go on."""
    stage = make_stage(max_replays=0)
    both = [worker(7), worker(8, index=1)]
    stage.lists(*both)
    given = iter((7, 8))
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0, next(given))]
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with ThreadPoolExecutor(2) as pool:
        fails = pool.submit(httpx.post, f"{stage.url}/v1/chat/completions", json=body)
        lost = stage.scheduler.submit().prompt.id
        goes_on = pool.submit(httpx.post, f"{stage.url}/v1/chat/completions", json=body)
        id = stage.scheduler.submit(2).prompt.id
        wait(lambda: gauge(stage, 'process_up{process="worker-1"}') == 1, "the Directory")
        stage.lists(both[1])
        wait(lambda: lost in stage.scheduler.aborts, "the abort")
        ids = stage.tokenizer.encode("fox").ids
        for word in (Tokens(0, [id], [len(ids)], ids), finished(id)):
            stage.scheduler.send(word)
        assert '"content":"fox"' in goes_on.result(10).text
    reply, says = (
        fails.result(10),
        "1 worker has died while this request ran; it is not tried again",
    )
    if stream:
        chunks = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
        assert reply.status_code == 200 and json.loads(chunks[-1])["error"]["message"] == says
        assert sum("error" in json.loads(chunk) for chunk in chunks) == 1
    else:
        assert reply.status_code == 500 and reply.json()["error"]["message"] == says
    assert stage.scheduler.aborts == [lost]
    assert gauge(stage, "requests_given_up_total") == 1
    assert gauge(stage, "request_replays_total") == 0


def gauge(stage: Any, name: str) -> float:
    lines = stage.http.get("/metrics").text.splitlines()
    return float(next(x.split()[1] for x in lines if x.startswith(f"accelgen:{name} ")))
