"""The scheduler's connections during one epoch: a Dealer for each peer, polled together, and whether all is well."""

from __future__ import annotations

from collections import Counter
from typing import Any

import zmq

from accelgen.proto.child import Child, endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Activate, Body, Pulse, Resync, Role
from accelgen.proto.pulse import SILENCE_S, Metronome
from accelgen.proto.sockets import Dealer

Peer = tuple[Role, int]
DEATH_S = 0.15  # for the Directory to say that a peer has died, whose connection has ended


class Links:
    """`trouble` says why this epoch must end: what was lost, by whom; "" while nothing was.

    `counters` has those of the codecs and "stale", summed over epochs."""

    def __init__(self, child: Child, epoch: int, counters: Counter[str]) -> None:
        self._child, self._epoch, self.counters = child, epoch, counters
        self._dealers: dict[Peer, Dealer] = {}
        self._heard_s: dict[Peer, float] = {}
        self._cut_s: dict[Peer, float] = {}  # connections that have ended, and when
        self._poller = zmq.Poller()
        self._poller.register(child.link.socket, zmq.POLLIN)
        self._metronome = Metronome()
        self.trouble = ""

    def connect(self, role: Role, index: int, credits: int = 0) -> None:
        """Connects to a peer and Activates it."""
        child = self._child
        self.disconnect(role, index)
        identity = f"scheduler:{child.incarnation}:{self._epoch}"
        endpoint = endpoint_of(child.run_dir, role, index)
        dealer = Dealer(endpoint, identity, child.incarnation, watched=True)
        self._dealers[role, index] = dealer
        self._heard_s[role, index] = now_s()
        self._poller.register(dealer.socket, zmq.POLLIN)
        self._poller.register(dealer.events, zmq.POLLIN)
        self.activate(role, index, credits)

    def activate(self, role: Role, index: int, credits: int = 0) -> None:
        """Says, maybe again, that this epoch has begun."""
        self.send(role, index, Activate(credits))

    def disconnect(self, role: Role, index: int) -> None:
        """Closes the link to a peer that is gone, if there is one."""
        dealer = self._dealers.pop((role, index), None)
        if dealer is not None:
            self._poller.unregister(dealer.socket)
            self._poller.unregister(dealer.events)
            self._cut_s.pop((role, index), None)
            self.counters.update(dealer.codec.counters)
            dealer.close()

    def close(self) -> None:
        """The epoch is over."""
        for role, index in list(self._dealers):
            self.disconnect(role, index)

    def send(self, role: Role, index: int, body: Body) -> None:
        """Sends; a peer that is gone loses its messages (the Directory says so soon)."""
        dealer = self._dealers.get((role, index))
        if dealer is not None:
            dealer.send(body, self._epoch)

    def receive(self, timeout_s: float) -> list[tuple[Role, int, Body]]:
        """What has come, waiting at most `timeout_s` for the first: up to the first gap, if there is one."""
        ready = {socket for socket, _ in self._poller.poll(max(0, int(timeout_s * 1000)))}
        found: list[tuple[Role, int, Body]] = []
        for (role, index), dealer in self._dealers.items():
            has_come = dealer.socket in ready  # to hear "nothing" costs half as much as a message
            while has_come and (message := dealer.recv()) and not self._is_lossy(role, index):
                self._heard_s[role, index] = now_s()
                header, body = message
                if header.epoch != self._epoch:
                    self.counters["stale"] += 1
                elif isinstance(body, Resync):
                    self._complain(role, index, body.cause)
                elif not isinstance(body, Pulse):
                    found.append((role, index, body))
            if self._is_lossy(role, index):
                return found
        self._look_for_cuts(ready)
        return found

    def _look_for_cuts(self, ready: set[Any]) -> None:
        """A connection that has ended: its peer has died, which the Directory says at once, or only the link."""
        now = now_s()
        for (role, index), dealer in self._dealers.items():
            if dealer.events in ready and dealer.was_cut():
                self._cut_s.setdefault((role, index), now)
        for (role, index), cut_s in self._cut_s.items():
            if now > cut_s + DEATH_S:
                self._complain(role, index, "the connection was cut")

    def tend(self, busy: set[Peer]) -> None:
        """Call at least twice a second: sends pulses, and finds links that are dead. From `busy` peers no sign is
        expected."""
        if not self._metronome.due(now := now_s()):
            return
        for (role, index), dealer in self._dealers.items():
            dealer.send(Pulse(), self._epoch)
            silent_s = now - self._heard_s[role, index]
            if (role, index) in busy:
                self._heard_s[role, index] = now
            elif silent_s > SILENCE_S:
                self._complain(role, index, f"was silent for {silent_s:.1f} s")

    def count(self, name: str) -> int:
        """A counter, with those of the present links."""
        return self.counters[name] + sum(d.codec.counters[name] for d in self._dealers.values())

    def _is_lossy(self, role: Role, index: int) -> bool:
        if self._dealers[role, index].codec.lost(b""):
            self._complain(role, index, "has sent something that was lost")
        return bool(self.trouble)

    def _complain(self, role: Role, index: int, cause: str) -> None:
        self.trouble = self.trouble or f"{role.name.lower()}-{index}: {cause}"
