"""The proxy between a real Router and a real Dealer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from accelgen.faults.connections import connections_to, cut, listener_of
from accelgen.faults.proxy import Proxy, ProxyError
from accelgen.faults.tamper import Effect, Rule, Toward
from accelgen.proto.messages import Abort
from accelgen.proto.sockets import Dealer, Router


class Pair:
    """A Router, a Dealer, and what either has received. Both live in this process."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "worker-0.sock"
        self.router = Router(f"ipc://{self.path}", 1)
        self.dealer = Dealer(f"ipc://{self.path}", "scheduler:9:1", 9)
        self.there: list[int] = []
        self.back: list[int] = []
        self.peer = b""

    def read(self) -> None:
        while (message := self.router.recv()) is not None:
            self.peer = message[0]
            self.there += message[2].ids  # type: ignore[attr-defined]
        while (answer := self.dealer.recv()) is not None:
            self.back += answer[1].ids  # type: ignore[attr-defined]

    def until(self, condition: Callable[[], bool]) -> None:
        until_s = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < until_s, (self.there, self.back)
            self.read()
            time.sleep(0.002)

    def put_between(self, proxy: Proxy) -> None:
        """Opens the proxy while both sides go on reading, as processes do."""
        opening = Thread(target=proxy.open, args=([os.getpid()],))
        opening.start()
        self.until(lambda: not opening.is_alive())

    def exchange(self, number: int) -> None:
        self.dealer.send(Abort([number]))
        self.until(lambda: number in self.there)
        self.router.send(self.peer, Abort([number]))
        self.until(lambda: number in self.back)


@pytest.fixture
def pair(folder: Path) -> Iterator[Pair]:
    pair = Pair(folder)
    pair.exchange(0)
    yield pair
    pair.dealer.socket.close(linger=0)
    pair.router.close()


def test_a_proxy_comes_and_goes_unnoticed(pair: Pair) -> None:
    proxy = Proxy(pair.path, seed=1)
    pair.put_between(proxy)
    pair.router.send(pair.peer, Abort([1]))  # the bound side may speak first: it knows who is there
    pair.until(lambda: 1 in pair.back)
    pair.exchange(2)
    assert proxy.passed == 3 and proxy.counts() == {}
    proxy.close()
    pair.exchange(3)
    assert pair.there == [0, 2, 3] and pair.back == [0, 1, 2, 3]
    assert pair.router.codec.counters["gap"] == pair.dealer.codec.counters["gap"] == 0
    assert os.listdir(pair.path.parent) == [pair.path.name]


def test_rules_come_and_go(pair: Pair) -> None:
    proxy = Proxy(pair.path, seed=1)
    pair.put_between(proxy)
    proxy.apply(Rule(Effect.DROP, Toward.BOUND, limit=2), Rule(Effect.DUPLICATE, Toward.CONNECTED))
    for number in (1, 2, 3):
        pair.dealer.send(Abort([number]))
    pair.until(lambda: 3 in pair.there)
    pair.router.send(pair.peer, Abort([4]))
    pair.until(lambda: pair.dealer.codec.counters["duplicate"] == 1)
    assert pair.there == [0, 3] and pair.back == [0, 4]
    assert pair.router.codec.counters["gap"] == 1
    assert proxy.counts() == {"drop Abort": 2, "duplicate Abort": 1}
    proxy.apply()
    pair.exchange(5)
    assert sum(proxy.counts().values()) == 3
    proxy.close()


def test_spoilt_frames_are_dropped_by_the_receiver(pair: Pair) -> None:
    proxy = Proxy(pair.path, seed=3)
    pair.put_between(proxy)
    proxy.apply(Rule(Effect.TRUNCATE, Toward.BOUND, limit=4))
    for number in range(10, 14):
        pair.dealer.send(Abort([number]))
    pair.exchange(14)
    assert pair.router.codec.counters["malformed"] == 4
    proxy.close()


def test_a_pause_holds_messages_and_a_delay_keeps_their_order(pair: Pair) -> None:
    proxy = Proxy(pair.path, seed=1)
    pair.put_between(proxy)
    proxy.apply(Rule(Effect.PAUSE, Toward.BOUND, seconds=0.2), Rule(Effect.DELAY, jitter_s=0.02))
    begin_s = time.monotonic()
    for number in range(1, 21):
        pair.dealer.send(Abort([number]))
    pair.until(lambda: 20 in pair.there)
    assert time.monotonic() - begin_s >= 0.2
    assert pair.there == list(range(21))
    proxy.close()


def test_who_is_not_connected_cannot_be_proxied(pair: Pair) -> None:
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ)
    try:
        with pytest.raises(ProxyError, match="not connected to worker-0.sock"):
            Proxy(pair.path, seed=1).open([stranger])
    finally:
        os.kill(stranger, 9)
        os.waitpid(stranger, 0)
    pair.exchange(1)


def test_a_cut_connection_is_made_again(pair: Pair) -> None:
    [fd] = connections_to(os.getpid(), pair.path)
    assert listener_of(os.getpid(), fd) == os.getpid()
    assert cut(os.getpid(), pair.path) == 1
    pair.exchange(1)
    assert cut(os.getpid(), pair.path.with_name("none.sock")) == 0


def test_a_proxy_leaves_what_another_life_has_bound(pair: Pair) -> None:
    """The bound side died behind the proxy, and its successor has taken the name over."""
    proxy = Proxy(pair.path, seed=1)
    pair.put_between(proxy)
    pair.path.unlink()
    successor = Router(f"ipc://{pair.path}", 2)
    proxy.close()
    assert pair.path.exists() and os.listdir(pair.path.parent) == [pair.path.name]
    successor.close()
