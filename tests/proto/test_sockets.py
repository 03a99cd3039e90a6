"""Real sockets over ipc: bad messages are counted and dropped, and nothing else is lost or out of order."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hostile_frames import HOSTILE

from accelgen.faults import connections
from accelgen.proto import sockets
from accelgen.proto.clocks import now_s
from accelgen.proto.frame import Codec
from accelgen.proto.messages import Abort, Body, Query
from accelgen.proto.sockets import Dealer, EndpointError, Router, check_endpoint

DEADLINE_S = 20.0


def take(socket: Router | Dealer, count: int) -> list[Any]:
    """The next `count` good messages."""
    taken: list[Any] = []
    end_s = now_s() + DEADLINE_S
    while len(taken) < count:
        assert now_s() < end_s, (
            f"only {len(taken)} of {count} messages came: {socket.codec.counters}"
        )
        socket.socket.poll(50)
        if (message := socket.recv()) is not None:
            taken.append(message)
    return taken


class Link:
    """A Router and Dealers connected to it."""

    def __init__(self, run_dir: Path) -> None:
        self.endpoint = f"ipc://{run_dir}/router.sock"
        self.router = Router(self.endpoint, 1)
        self.dealers: list[Dealer] = []

    def dealer(self, name: str) -> Dealer:
        self.dealers.append(Dealer(self.endpoint, name, 2 + len(self.dealers)))
        return self.dealers[-1]

    def ids(self, count: int, peer: bytes = b"good") -> list[int]:
        """First ids of the next Aborts of one peer; Aborts of others may come between."""
        found: list[int] = []
        while len(found) < count:
            for sender, _, body in take(self.router, 1):
                if sender == peer:
                    found.append(body.ids[0])
        return found


@pytest.fixture
def link(run_dir: Path) -> Iterator[Link]:
    made = Link(run_dir)
    yield made
    for end in (made.router, *made.dealers):
        end.socket.close(linger=0)


def test_messages_arrive_in_order_both_ways(link: Link) -> None:
    good = link.dealer("good")
    for i in range(500):
        assert good.send(Abort([i]), epoch=4)
    received = take(link.router, 500)
    assert [body.ids[0] for _, _, body in received] == list(range(500))
    peer, header, _ = received[-1]
    assert (peer, header.epoch, header.incarnation, header.seq) == (b"good", 4, 2, 499)
    for i in range(500):
        assert link.router.send(b"good", Abort([i]), epoch=5)
    answers = take(good, 500)
    assert [body.ids[0] for _, body in answers] == list(range(500))
    assert answers[-1][0].epoch == 5


def test_hostile_frames_on_the_same_link_lose_nothing_else(link: Link) -> None:
    good = link.dealer("good")
    sendable = [frames for frames in HOSTILE.values() if frames]
    for i, frames in enumerate(sendable):
        good.send(Abort([i]))
        good.socket.send_multipart(frames)
    good.send(Abort([len(sendable)]))
    assert link.ids(len(sendable) + 1) == list(range(len(sendable) + 1))
    assert link.router.codec.counters == {
        "received": len(sendable) + 1,
        "malformed": len(sendable),
    }


def test_hostile_frames_of_a_stranger_lose_nothing(link: Link) -> None:
    good = link.dealer("good")
    stranger = zmq.Context.instance().socket(zmq.DEALER)
    stranger.connect(link.endpoint)
    try:
        for i in range(300):
            good.send(Abort([i]))
            stranger.send_multipart([b"\xdd\xff\xff\xff\xff" * (i % 3), bytes(range(i % 256))])
        assert link.ids(300) == list(range(300))
        while link.router.codec.counters["malformed"] < 300:  # the stranger's may come later
            assert link.router.socket.poll(int(DEADLINE_S * 1000))
            assert link.router.recv() is None
    finally:
        stranger.close(linger=0)


def test_hostile_frames_towards_a_dealer(link: Link) -> None:
    good = link.dealer("good")
    good.send(Query())
    take(link.router, 1)
    for i, frames in enumerate(HOSTILE.values()):
        link.router.send(b"good", Abort([i]))
        link.router.socket.send_multipart([b"good", *(frames or [b""])])
    link.router.send(b"good", Abort([len(HOSTILE)]))
    assert [body.ids[0] for _, body in take(good, len(HOSTILE) + 1)] == list(
        range(len(HOSTILE) + 1)
    )
    assert good.codec.counters["malformed"] == len(HOSTILE)


def test_duplicates_are_dropped_and_gaps_counted(link: Link) -> None:
    good = link.dealer("good")
    sender = Codec(2)
    frames = [sender.pack(b"", Abort([i]), 0) for i in range(6)]
    for at in (0, 1, 1, 0, 2, 5, 3):
        good.socket.send_multipart(frames[at])
    good.socket.send_multipart(sender.pack(b"", Abort([6]), 0))
    assert link.ids(5) == [0, 1, 2, 5, 6]
    assert link.router.codec.counters == {"received": 5, "duplicate": 3, "gap": 1}


def test_oversize_frame_ends_only_the_connection_that_sent_it(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1024 * 1024
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", limit)
    link = Link(run_dir)
    good, giant = link.dealer("good"), link.dealer("giant")
    try:
        for i in range(50):
            good.send(Abort([i]))
        giant.socket.send_multipart([b"x" * (limit + 1), b""])
        for i in range(50, 100):
            good.send(Abort([i]))
        assert link.ids(100) == list(range(100))
        end_s = now_s() + DEADLINE_S  # it reconnects by itself and is heard again
        while True:
            giant.send(Abort([7]))
            if link.router.socket.poll(50) and (message := link.router.recv()) is not None:
                assert message[0] == b"giant" and message[2] == Abort([7])
                break
            assert now_s() < end_s
    finally:
        for end in (link.router, good, giant):
            end.socket.close(linger=0)


def test_a_body_too_large_for_the_receiver_is_not_sent(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "MAX_FRAME_BYTES", 1000)
    good = link.dealer("good")
    assert good.send(Abort([1])) and not good.send(Abort([2**40] * 1000)) and good.send(Abort([2]))
    assert link.ids(2) == [1, 2]
    assert not link.router.send(b"good", Abort([2**40] * 1000))
    assert link.router.send(b"good", Query()) and take(good, 1)
    assert "gap" not in link.router.codec.counters + good.codec.counters
    assert good.codec.counters["unsent"] == link.router.codec.counters["unsent"] == 1


def test_a_flood_comes_in_portions(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage counts, too: the receiver gets to do something else in between, and loses nothing."""
    monkeypatch.setattr(sockets, "ROUND_LIMIT", 10)
    stranger, good = link.dealer("stranger"), link.dealer("good")
    for i in range(25):
        stranger.socket.send_multipart([b"\xc1", b"\xc1"])
        good.send(Abort([i]))
    counters, got = link.router.codec.counters, []
    end_s = now_s() + DEADLINE_S
    while counters["malformed"] < 25 or len(got) < 25:
        assert now_s() < end_s
        before = counters["malformed"] + counters["received"]
        got += [body.ids[0] for _, _, body in link.router.messages() if isinstance(body, Abort)]
        assert counters["malformed"] + counters["received"] <= before + 10
    assert got == list(range(25)) and not link.router.pending and link.router.recv() is None


def test_sending_to_nobody_is_told(link: Link) -> None:
    assert not link.router.send(b"nobody", Query())
    assert link.router.codec.counters == {"sent": 0, "unsent": 1}


def test_what_was_sent_while_a_peer_was_away_is_missed(link: Link) -> None:
    """Found by cutting all links under load: a StepResult was not sent in the moment before the scheduler had connected
    again, its number was used for the next message, and nobody missed it before the watchdog did."""
    assert not link.router.send(b"good", Query())
    good = link.dealer("good")
    good.send(Query())
    assert take(link.router, 1) and link.router.send(b"good", Query())
    assert take(good, 1) and good.codec.lost(b"")


def test_a_watched_connection_that_is_cut_is_noticed(link: Link) -> None:
    """Found by an hour of chaos: the link to a worker was cut and made again before the worker, amid an iteration, had
    seen its end; it then ignored the new connection, because of the name, and nobody noticed for 6 s."""
    watched = Dealer(link.endpoint, "watched", 9, watched=True)
    link.dealers.append(watched)
    watched.send(Query())
    assert take(link.router, 1) and not watched.was_cut()
    assert connections.cut(os.getpid(), Path(link.endpoint.removeprefix("ipc://"))) == 1
    assert watched.events is not None and watched.events.poll(1000 * DEADLINE_S)
    assert watched.was_cut() and not watched.was_cut()
    watched.close()


def test_a_full_queue_is_told(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "HIGH_WATER_MARK", 5)
    lonely = Dealer(f"ipc://{run_dir}/nobody.sock", "lonely", 1)  # what it connects to comes later
    try:
        sent = [lonely.send(Abort([i])) for i in range(20)]
        assert sent.count(True) == 5 and not sent[-1]
        router = Router(lonely.endpoint, 2)
        assert [body.ids[0] for _, _, body in take(router, 5)] == [0, 1, 2, 3, 4]
        router.close()
    finally:
        lonely.socket.close(linger=0)


def test_a_new_life_of_a_dealer_is_heard(link: Link) -> None:
    """The successor has another incarnation, thus another identity, and counts from 0 again."""
    first = link.dealer("scheduler:2")
    first.send(Abort([1]))
    assert link.ids(1, b"scheduler:2") == [1]
    first.close()
    link.dealer("scheduler:3").send(Abort([2]))
    assert link.ids(1, b"scheduler:3") == [2]
    assert "gap" not in link.router.codec.counters


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1:5555", "inproc://here", "/tmp/path", "", "pgm://x", "ipc"]
)
def test_only_ipc_is_allowed(endpoint: str) -> None:
    with pytest.raises(EndpointError, match="only ipc://"):
        check_endpoint(endpoint)
    for make in (lambda: Router(endpoint, 1), lambda: Dealer(endpoint, "me", 1)):
        with pytest.raises(EndpointError):
            make()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_the_directory_must_be_private(run_dir: Path, mode: int) -> None:
    endpoint = f"ipc://{run_dir}/a.sock"
    assert check_endpoint(endpoint) == endpoint
    run_dir.chmod(mode)
    with pytest.raises(EndpointError, match=f"mode is {mode:04o}, must be 0700"):
        check_endpoint(endpoint)
    run_dir.chmod(0o700)


def test_the_path_has_a_limit(run_dir: Path) -> None:
    fits = "n" * (107 - len(f"{run_dir}/"))
    router = Router(f"ipc://{run_dir}/{fits}", 1)  # the kernel agrees
    router.close()
    with pytest.raises(EndpointError, match="longer than 107 bytes"):
        check_endpoint(f"ipc://{run_dir}/{fits}n")
    with pytest.raises(EndpointError, match="longer than 107 bytes"):
        check_endpoint(f"ipc://{run_dir}/{fits[:-1]}\N{LATIN SMALL LETTER U WITH DIAERESIS}")


def test_a_bound_path_is_not_taken_over(link: Link) -> None:
    with pytest.raises(EndpointError, match="another process has bound"):
        Router(link.endpoint, 9)
    link.dealer("good").send(Abort([1]))
    assert link.ids(1) == [1]


def test_what_a_killed_process_has_left_is_no_obstacle(run_dir: Path) -> None:
    """Found by an hour of chaos: a worker loaded its model for 10 s, met the dead socket and had to load it again."""
    path = run_dir / "router.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as leftover:
        leftover.bind(str(path))
    assert path.is_socket()
    link = Link(run_dir)
    link.dealer("good").send(Abort([1]))
    assert link.ids(1) == [1]
    for end in (link.router, *link.dealers):
        end.socket.close(linger=0)


def test_a_socket_file_that_was_removed_is_made_again(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a new user: without its socket a KV manager lived on, and no scheduler ever reached it again."""
    monkeypatch.setattr(sockets, "LOOK_S", 0.0)
    good = link.dealer("good")
    good.send(Abort([1]))
    assert link.ids(1) == [1]
    Path(link.endpoint.removeprefix("ipc://")).unlink()
    other = link.dealer("other")
    other.send(Abort([2]))
    assert link.ids(1, b"other") == [2]
    good.send(Abort([3]))  # the connections that there were go on
    assert link.ids(1) == [3] and link.router.send(b"good", Query()) and take(good, 1)


def test_what_is_no_socket_is_left_alone(run_dir: Path) -> None:
    path = run_dir / "router.sock"
    path.write_text("somebody's file")
    with pytest.raises(EndpointError, match="another process has bound"):
        Router(f"ipc://{path}", 1)
    assert path.read_text() == "somebody's file"


def test_large_and_empty_bodies_pass(link: Link) -> None:
    good = link.dealer("good")
    bodies: list[Body] = [Abort(list(range(200_000))), Query(), Abort([])]
    for body in bodies:
        assert good.send(body)
    assert [body for _, _, body in take(link.router, 3)] == bodies
