"""A scheduler that takes over on links that lose messages."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import zmq

from accelgen.faults import connections
from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config
from accelgen.proto.messages import Activate, Body, Inventory, Pulse, Role
from accelgen.proto.sockets import Router
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.gauges import Stopwatch
from accelgen.scheduler.links import Links, Peer
from accelgen.scheduler.policies.cacheopt import CacheOpt
from accelgen.scheduler.session import Session

PEERS: list[Peer] = [(role, index) for role in (Role.KVMANAGER, Role.WORKER) for index in (0, 1)]


class Replicas(threading.Thread):
    """Two replicas that answer Activate, except the first ones that KV manager 1 gets. `heard`: what each was told."""

    def __init__(self, run_dir: Path, deaf: int) -> None:
        super().__init__(daemon=True)
        self.routers = {peer: Router(endpoint_of(run_dir, *peer), 7) for peer in PEERS}
        self.heard: dict[Peer, list[Body]] = {peer: [] for peer in PEERS}
        self.over = threading.Event()
        self._deaf = deaf

    def run(self) -> None:
        while not self.over.is_set():
            for peer, router in self.routers.items():
                router.socket.poll(5)
                if (message := router.recv()) is not None:
                    self._hear(peer, router, message)
        for router in self.routers.values():
            router.close()

    def told(self, kind: type[Body]) -> list[Peer]:
        """Who has heard a message of this kind."""
        return [p for p, bodies in self.heard.items() if any(isinstance(b, kind) for b in bodies)]

    def _hear(self, peer: Peer, router: Router, message: Any) -> None:
        who, header, body = message
        self.heard[peer].append(body)
        if not isinstance(body, Activate):
            return
        if peer == (Role.KVMANAGER, 1) and self._deaf:
            self._deaf -= 1
            return
        router.send(who, Inventory(3, []), header.epoch)


def test_a_link_that_is_cut_ends_the_epoch_unless_its_peer_has_died(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    replicas = Replicas(tmp_path, deaf=0)
    link = zmq.Context.instance().socket(zmq.PULL)
    child: Any = SimpleNamespace(run_dir=tmp_path, incarnation=5, link=SimpleNamespace(socket=link))
    links = Links(child, 1, Counter())
    replicas.start()
    try:
        for peer in PEERS:
            links.connect(*peer)
        while len(replicas.told(Activate)) < len(PEERS):
            links.receive(0.01)
        for role, index in ((Role.KVMANAGER, 0), (Role.WORKER, 1)):
            path = Path(endpoint_of(tmp_path, role, index).removeprefix("ipc://"))
            assert connections.cut(os.getpid(), path) == 1
        links.disconnect(Role.KVMANAGER, 0)  # the Directory has said that it is dead
        end_s = now_s() + 20
        while not links.trouble:
            links.receive(0.01)
            assert now_s() < end_s
        assert links.trouble == "worker-1: the connection was cut"
    finally:
        replicas.over.set()
        replicas.join()
        links.close()
        link.close()


def test_its_first_words_in_office_have_its_gauges(tmp_path: Path) -> None:
    """Else nobody would know the memory policy before the second heartbeat."""
    told: dict[str, dict[str, float]] = {}
    link = zmq.Context.instance().socket(zmq.PULL)

    def phase(name: str) -> None:
        told[name], child.stopping = child.gauges(), True

    child: Any = SimpleNamespace(
        run_dir=tmp_path, incarnation=5, link=SimpleNamespace(socket=link), gauges=dict,
        config=Config(), phase=phase, stopping=False,
    )  # fmt: skip
    office: Any = SimpleNamespace(
        child=child, failures=0, counters=Counter(), decisions=Stopwatch()
    )
    session: Any = Session(office, 1)
    session._await_replicas = dict
    session._activate = lambda: {0: Inventory(3, [])}
    session._make_core = lambda _: SchedulerCore(Config(), CacheOpt(), {0: ReplicaSpec(64, 16)})
    assert session.run() == ""
    link.close()
    assert told["ready"]['accelgen:scheduler_memory_info{memory="cacheopt"}'] == 1.0


def test_a_takeover_asks_again_and_shows_those_who_have_answered_that_it_lives(
    tmp_path: Path,
) -> None:
    """Found by dropping messages: what was lost of a takeover was asked again only seconds later, by the next one."""
    tmp_path.chmod(0o700)
    replicas = Replicas(tmp_path, deaf=3)
    link = zmq.Context.instance().socket(zmq.PULL)
    child = SimpleNamespace(
        run_dir=tmp_path, incarnation=5, link=SimpleNamespace(socket=link), beat=lambda: None,
        directory=None, orders=[], stopping=False,
    )  # fmt: skip
    office: Any = SimpleNamespace(child=child, failures=0, counters=Counter())
    session = Session(office, 1)
    life: Any = SimpleNamespace()
    session._lives = {0: life, 1: life}
    replicas.start()
    try:
        found = session._activate()
        assert sorted(found) == [0, 1] and not session.links.trouble and not session._skipped
    finally:
        replicas.over.set()
        replicas.join()
        session.links.close()
        link.close()
    told = replicas.heard[Role.KVMANAGER, 1]
    assert sum(isinstance(body, Activate) for body in told) == 4
    for peer in PEERS:
        assert any(isinstance(body, Pulse) for body in replicas.heard[peer])
