"""The KV manager as a process: start-up, epochs, both ends of an iteration, bad messages, gauges, a prompt end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from plan_maker import make_lookup, make_plan, make_prompt

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, save_config
from accelgen.proto.messages import (
    Activate,
    Batch,
    Body,
    Directory,
    Facts,
    Failure,
    Heartbeat,
    Held,
    Hello,
    Inventory,
    KvReport,
    Lookup,
    Member,
    Pulse,
    Resync,
    Role,
    Stop,
)
from accelgen.proto.pulse import SILENCE_S
from accelgen.proto.sockets import Dealer, Router

sys.path.insert(0, str(Path(__file__).parents[1] / "proto"))
from hostile_frames import HOSTILE

DEADLINE_S = 30.0
Kind = TypeVar("Kind", bound=Body)
FACTS = Facts("fake", "FakeForCausalLM", "cpu", "float32", "none", 128, 1000, 4, 16, 2**20, 2**21)


def until(receive: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """What `receive` returns as soon as it is `good`."""
    end_s = now_s() + DEADLINE_S
    last = None
    while now_s() < end_s:
        last = receive()
        if last is not None and good(last):
            return last
    raise AssertionError(f"not heard in time; last: {last}")


def make_scheduler(incarnation: int) -> Member:
    return Member(Role.SCHEDULER, 0, 1, "", incarnation, 1, "ready", 1, 1.0, 0.0, 1, None, {})


GARBAGE = ([b""], [b"\xc1", b"\xc1"], [b"\xff" * 100] * 3, [b"\xdd\xff\xff\xff\xff"] * 2)


class Surroundings:
    """A KV manager process, and everybody it talks to: supervisor, worker and, on demand, schedulers."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        save_config(Config(), run_dir / "config.json")
        self.supervisor = Router(endpoint_of(run_dir, Role.SUPERVISOR), 1)
        self.worker = Router(endpoint_of(run_dir, Role.WORKER), 2)
        self.schedulers: list[Dealer] = []
        self.ran = -1  # step that the worker says it has run
        self.peer = self.manager = b""  # how it calls itself towards supervisor and worker
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "accelgen.kvmanager", "--run-dir", str(run_dir)]
            + ["--index", "0", "--epoch", "1", "--parent", str(os.getpid())],
            stderr=subprocess.PIPE,
        )

    def hear(self, kind: type[Kind], good: Callable[[Kind], bool] = lambda _: True) -> Kind:
        """The next message of a kind that the supervisor gets."""

        def receive() -> Body | None:
            self.supervisor.socket.poll(50)
            message = self.supervisor.recv()
            if message is None:
                return None
            self.peer = message[0]
            return message[2]

        return until(receive, lambda body: isinstance(body, kind) and good(body))

    def tell_facts(self, facts: Facts | None) -> None:
        member = Member(
            Role.WORKER, 0, 1, self.worker.endpoint, 2, 1, "ready", 1, 1.0, 0.0, 1, facts, {}
        )
        self.tell([member, make_scheduler(1), make_scheduler(2), make_scheduler(3)])

    def tell(self, members: list[Member]) -> None:
        self.supervisor.send(self.peer, Directory(members, False, False))

    def make_ready(self) -> None:
        self.hear(Heartbeat, lambda beat: beat.phase == "waiting for worker")
        self.tell_facts(FACTS)
        self.hear(Hello, lambda hello: hello.phase == "ready")

    def connect_scheduler(self, epoch: int) -> Dealer:
        """A scheduler that has activated its epoch and got the inventory."""
        scheduler = Dealer(endpoint_of(self.run_dir, Role.KVMANAGER), f"scheduler:{epoch}", epoch)
        self.schedulers.append(scheduler)
        scheduler.send(Activate(), epoch)
        self.answer_resync(epoch)
        assert next_of(scheduler, Inventory)[0].epoch == epoch
        return scheduler

    def hear_question(self, epoch: int) -> bytes:
        """Who asks the worker what it holds."""

        def receive() -> Any:
            self.worker.socket.poll(50)
            return self.worker.recv()

        peer, header, _ = until(receive, lambda message: isinstance(message[2], Resync))
        assert header.epoch == epoch
        return bytes(peer)

    def answer_resync(self, epoch: int, inventory: Inventory | None = None) -> None:
        """What the worker does when a scheduler takes over."""
        self.manager = self.hear_question(epoch)
        self.worker.send(self.manager, inventory or Inventory(self.ran, []), epoch)

    def no_complaint(self, scheduler: Dealer) -> bool:
        """The next pulse comes, and nothing else before it."""

        def receive() -> Any:
            scheduler.socket.poll(50)
            return scheduler.recv()

        return isinstance(until(receive, lambda m: isinstance(m[1], Pulse | Resync))[1], Pulse)

    def gauge(self, name: str) -> Callable[[Heartbeat], bool]:
        return lambda beat: beat.gauges.get(f'accelgen:{name}{{replica="0"}}', 0) > 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for socket in (self.supervisor, self.worker, *self.schedulers):
            socket.close()


def next_of(scheduler: Dealer, kind: type[Kind]) -> tuple[Any, Kind]:
    def receive() -> Any:
        scheduler.socket.poll(50)
        return scheduler.recv()

    return until(receive, lambda message: isinstance(message[1], kind))


def next_batch(worker: Router) -> tuple[Any, Batch]:
    def receive() -> Any:
        worker.socket.poll(50)
        return worker.recv()

    _, header, batch = until(receive, lambda message: isinstance(message[2], Batch))
    return header, batch


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="ag-"))  # short: socket paths have a limit
    yield path
    shutil.rmtree(path)


@pytest.fixture
def around(run_dir: Path) -> Iterator[Surroundings]:
    surroundings = Surroundings(run_dir)
    yield surroundings
    surroundings.close()


def test_life_of_a_kv_manager(around: Surroundings) -> None:
    around.make_ready()
    scheduler = around.connect_scheduler(epoch=3)

    scheduler.send(make_lookup(make_prompt(1, range(9))), 3)
    header, report = next_of(scheduler, KvReport)
    assert (header.epoch, report.step, report.hit_ids) == (3, -1, [1])

    scheduler.send(make_plan(0, [(1, 0, 9)]), 3)
    header, batch = next_batch(around.worker)
    assert (header.epoch, batch.step, batch.ids, batch.new[0].id) == (3, 0, [1], 1)
    header, report = next_of(scheduler, KvReport)
    assert (header.epoch, report.step, report.free) == (3, 0, 13)

    _misbehave(around, scheduler)
    scheduler.send(make_plan(1, [(1, 9, 1)]), 3)
    assert next_batch(around.worker)[1].step == 1  # nothing else was lost
    assert next_of(scheduler, KvReport)[1].step == 1

    for name in ("kv_messages_malformed_total", "kv_messages_unexpected_total"):
        around.hear(Heartbeat, around.gauge(name))
    beat = around.hear(Heartbeat, around.gauge("kv_invariant_ok"))
    assert beat.gauges['accelgen:kv_blocks{replica="0"}'] == 16
    assert beat.gauges['accelgen:kv_blocks_used{replica="0"}'] == 3
    assert beat.gauges['accelgen:prefix_cache_queries_total{replica="0"}'] == 9
    assert beat.rss_bytes < 150e6

    around.supervisor.send(around.peer, Stop(5.0))
    assert around.process.wait(10) == 0


def _misbehave(around: Surroundings, scheduler: Dealer) -> None:
    stranger = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "stranger", 9)
    around.schedulers.append(stranger)
    for frames in GARBAGE:
        stranger.socket.send_multipart(frames)
    scheduler.send(Stop(1.0), 3)  # well-formed, but none of its business


def test_lost_questions_and_answers_of_a_takeover_are_repeated(around: Surroundings) -> None:
    """Found by dropping messages on the link to the worker: an inventory that got lost cost up to 19 s, because only
    the next takeover asked again; and after a long wait for it the scheduler itself was taken for silent."""
    around.make_ready()
    scheduler = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "scheduler:1", 1)
    around.schedulers.append(scheduler)
    scheduler.send(Activate(), 1)
    begin_s = now_s()
    while now_s() < begin_s + SILENCE_S:  # the worker's answers are lost
        around.hear_question(1)
    around.answer_resync(1)
    assert next_of(scheduler, Inventory)[1].step == -1
    scheduler.send(Activate(), 1)  # this answer was lost, too
    assert next_of(scheduler, Inventory)[1].step == -1
    scheduler.send(make_lookup(make_prompt(1, range(9))), 1)
    assert next_of(scheduler, KvReport)[1].hit_ids == [1]
    assert around.no_complaint(scheduler)


@pytest.mark.parametrize("damage", ["garbage", "gap"])
def test_no_plan_is_made_on_a_table_with_a_gap(around: Surroundings, damage: str) -> None:
    """What the scheduler said and was lost: the KV manager asks for another epoch and does nothing before."""
    around.make_ready()
    scheduler = around.connect_scheduler(epoch=1)
    scheduler.send(make_lookup(make_prompt(1, range(9))), 1)
    next_of(scheduler, KvReport)
    if damage == "garbage":
        scheduler.socket.send_multipart(GARBAGE[1])
    else:
        scheduler.codec.pack(b"", make_plan(0), 1)  # never sent
        scheduler.send(Pulse(), 1)  # which shows it
    assert "were lost" in next_of(scheduler, Resync)[1].cause
    scheduler.send(make_plan(0, [(1, 0, 9)]), 1)
    again = around.connect_scheduler(epoch=2)
    again.send(make_plan(0, [(1, 0, 9)]), 2)
    header, batch = next_batch(around.worker)
    assert (header.epoch, batch.step, batch.ids) == (2, 0, [1])


def test_a_successor_builds_on_what_the_worker_holds(around: Surroundings) -> None:
    """A new KV manager: the tables are the worker's, whoever is not claimed is given back."""
    around.make_ready()
    held = Inventory(7, [Held(1, 9, [3, 1, 2]), Held(2, 4, [3]), Held(5, 0, [])])
    scheduler = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "scheduler:1", 1)
    around.schedulers.append(scheduler)
    scheduler.send(Activate(), 1)
    around.answer_resync(1, held)
    inventory = next_of(scheduler, Inventory)[1]
    assert inventory == Inventory(7, held.held, 13, 0)
    scheduler.send(Lookup([make_prompt(1, range(9))], adopt=True), 1)
    assert next_of(scheduler, KvReport)[1].hit_tokens == [8]
    scheduler.send(make_plan(8, [(1, 8, 1)], release=[2, 5]), 1)
    batch = next_batch(around.worker)[1]
    assert batch.ids == [1] and batch.release == [2, 5]
    assert (batch.cut_ids, batch.cut_to) == ([1], [8])


def test_an_inventory_that_does_not_add_up_counts_for_nothing(around: Surroundings) -> None:
    around.make_ready()
    scheduler = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "scheduler:1", 1)
    around.schedulers.append(scheduler)
    scheduler.send(Activate(), 1)
    around.answer_resync(1, Inventory(7, [Held(1, 9, [3, 1, 2]), Held(2, 8, [1, 3])]))
    inventory = next_of(scheduler, Inventory)[1]
    assert inventory == Inventory(7, [Held(1, 0, []), Held(2, 0, [])], 16, 0)


def test_older_epochs_are_not_obeyed(around: Surroundings) -> None:
    around.make_ready()
    old = around.connect_scheduler(epoch=1)
    old.send(make_lookup(make_prompt(1, range(9))), 1)
    next_of(old, KvReport)
    new = around.connect_scheduler(epoch=2)
    old.send(make_plan(0, [(1, 0, 9)]), 1)
    old.send(make_plan(0, [(1, 0, 9)]), 2)  # the right epoch from the wrong peer
    old.send(Activate(), 1)
    around.hear(Heartbeat, around.gauge("kv_messages_stale_total"))
    new.send(make_plan(0), 2)
    header, batch = next_batch(around.worker)
    assert header.epoch == 2 and batch.ids == []
    assert old.recv() is None


def test_a_strangers_gap_is_not_the_schedulers(around: Surroundings) -> None:
    """What a stranger skips must not make the core believe that the scheduler's words were lost."""
    around.make_ready()
    scheduler = around.connect_scheduler(epoch=1)
    scheduler.send(make_lookup(make_prompt(1, range(9))), 1)
    next_of(scheduler, KvReport)
    stranger = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "stranger", 7)
    around.schedulers.append(stranger)
    stranger.codec.pack(b"", make_plan(0), 1)  # number 0, never sent
    stranger.send(make_plan(0), 1)
    around.hear(Heartbeat, around.gauge("kv_messages_gap_total"))
    scheduler.send(make_plan(0, [(1, 0, 9)]), 1)
    next_of(scheduler, KvReport)
    around.process.terminate()
    assert around.process.stderr is not None
    assert b"were lost" not in around.process.stderr.read()


def test_who_is_not_listed_is_not_obeyed_until_it_is(around: Surroundings) -> None:
    """Whatever its epoch, and in whatever order Directory and Activate come."""
    around.make_ready()
    scheduler = around.connect_scheduler(epoch=1)
    stranger, early = (
        Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), f"scheduler:{one}:9", one)
        for one in (8, 9)
    )
    around.schedulers += [stranger, early]
    stranger.send(Activate(), 99)
    early.send(Activate(), 9)
    around.hear(Heartbeat, around.gauge("kv_messages_stranger_total"))
    scheduler.send(make_lookup(make_prompt(1, range(9))), 1)
    assert next_of(scheduler, KvReport)[1].hit_ids == [1]
    around.tell([make_scheduler(9)])
    around.answer_resync(9)
    assert next_of(early, Inventory)[0].epoch == 9
    stranger.send(make_plan(0), 99)
    scheduler.send(make_plan(0), 1)
    around.hear(Heartbeat, around.gauge("kv_messages_stale_total"))
    assert stranger.recv() is None
    while (message := around.worker.recv()) is not None:
        assert isinstance(message[2], Pulse)


def test_hostile_words_of_those_it_is_connected_to(around: Surroundings) -> None:
    around.make_ready()
    scheduler = around.connect_scheduler(epoch=1)
    for frames in HOSTILE.values():
        around.supervisor.socket.send_multipart([around.peer, *frames])
        around.worker.socket.send_multipart([around.manager, *frames])
    for body in (make_plan(0), Resync("made up"), Inventory(7, [])):  # sound, but not theirs to say
        around.supervisor.send(around.peer, body, 1)
        around.worker.send(around.manager, body, 1)
    scheduler.send(make_lookup(make_prompt(1, range(9))), 1)
    scheduler.send(make_plan(0, [(1, 0, 9)]), 1)
    assert next_batch(around.worker)[1].ids == [1]
    assert next_of(scheduler, KvReport)[1].hit_ids == [1]
    around.supervisor.send(around.peer, Stop(5.0))
    assert around.process.wait(10) == 0


def test_before_an_activation_nothing_is_obeyed(around: Surroundings) -> None:
    around.make_ready()
    early = Dealer(endpoint_of(around.run_dir, Role.KVMANAGER), "early", 7)
    around.schedulers.append(early)
    early.send(make_plan(0), 0)
    early.send(make_plan(0), 1)
    around.hear(Heartbeat, around.gauge("kv_messages_stale_total"))
    assert around.worker.recv() is None


@pytest.mark.parametrize("blocks, size", [(0, 16), (16, 0)])
def test_impossible_facts_end_it_with_one_line(
    around: Surroundings, blocks: int, size: int
) -> None:
    around.hear(Hello)
    around.tell_facts(None)
    around.tell_facts(
        Facts("fake", "F", "cpu", "float32", "none", 128, 1000, size, blocks, 2**20, 2**21)
    )
    line = around.hear(Failure).line
    assert f"num_blocks {blocks} of block_size {size}" in line
    assert around.process.wait(10) == 1


def test_taken_endpoint_ends_it_with_one_line(around: Surroundings) -> None:
    rival = Router(endpoint_of(around.run_dir, Role.KVMANAGER), 5)
    try:
        around.hear(Hello)
        around.tell_facts(FACTS)
        assert "another process has bound" in around.hear(Failure).line
        assert around.process.wait(10) == 1
    finally:
        rival.close()


def test_stop_while_waiting_for_the_worker(around: Surroundings) -> None:
    around.hear(Heartbeat, lambda beat: beat.phase == "waiting for worker")
    around.supervisor.send(around.peer, Stop(1.0))
    assert around.process.wait(10) == 0


def test_stays_lean() -> None:
    code = "import accelgen.kvmanager.__main__, sys; print([m for m in sys.modules])"
    loaded = subprocess.check_output([sys.executable, "-P", "-c", code], text=True)
    for heavy in ("torch", "transformers", "numpy", "fastapi"):
        assert f"'{heavy}'" not in loaded
