"""Messages that nobody should believe, from an intruder on the sockets of a running server."""

from __future__ import annotations

import time
from abc import abstractmethod
from random import Random

import zmq
from zmq.utils.monitor import recv_monitor_message

from accelgen.faults.fault import Decoy, Fault, Site
from accelgen.faults.server import find
from accelgen.proto.epochs import epoch_of
from accelgen.proto.frame import PROTOCOL_VERSION, TAG_OF, Header, encode
from accelgen.proto.messages import Activate, Member, Plan

INTRUDER = 666  # the incarnation it claims
GARBAGE = 200  # messages
SENT_S = 2.0  # to be connected and rid of everything


class WireFault(Fault):
    """An intruder connects to the target's socket and sends. A control sends to the socket of somebody else."""

    identity = b"intruder"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._decoy_path = site.server.socket_path("decoy")

    def inject(self, decoy: Decoy | None = None) -> None:
        path = self.site.server.socket_path(self.site.target)
        if decoy is not None:
            path = self._decoy_path
            self._context.socket(zmq.ROUTER).bind(f"ipc://{path}")
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self.identity)
        dealer.setsockopt(zmq.LINGER, int(1000 * SENT_S))
        self.watch_link(dealer)
        dealer.connect(f"ipc://{path}")
        for frames in self.messages():
            dealer.send_multipart(frames)

    def watch_link(self, dealer: zmq.Socket[bytes]) -> None:
        """Called before the intruder connects."""

    @abstractmethod
    def messages(self) -> list[list[bytes]]:
        """What is sent, as frames."""

    def lift(self) -> None:
        self._context.destroy(linger=0)
        self._context = zmq.Context()
        self._decoy_path.unlink(missing_ok=True)


class CountedFault(WireFault):
    """Messages that the target counts, as being of a `kind`: its counters, in its heartbeats, are the evidence."""

    kind: str
    _before = 0.0

    def inject(self, decoy: Decoy | None = None) -> None:
        self._before = self._counted()
        super().inject(decoy)

    def proof(self) -> str:
        time.sleep(0.05)  # counters travel in heartbeats; no need to ask all the time
        more = self._counted() - self._before
        return f"{more:g} messages counted and dropped" if more >= len(self.messages()) else ""

    def _counted(self) -> float:
        member = find(self.site.server.see(), self.site.target)
        return counter(member, self.kind) if member is not None else 0.0


def counter(member: Member, kind: str) -> float:
    """The sum of a process's counters of messages of this kind, however it calls them."""
    return sum(
        value
        for name, value in member.gauges.items()
        if "messages" in name and (f"_{kind}_" in name or f'kind="{kind}"' in name)
    )


class WrongVersion(CountedFault):
    """A message of another version of the protocol."""

    kind = "malformed"

    def messages(self) -> list[list[bytes]]:
        header = Header(PROTOCOL_VERSION + 1, TAG_OF[Activate], 10**9, INTRUDER, 0)
        return [encode(header, Activate())]


class OldEpoch(CountedFault):
    """A scheduler of the past speaks up: it wants to be obeyed, and has a plan."""

    kind = "stale"

    def messages(self) -> list[list[bytes]]:
        old = Header(PROTOCOL_VERSION, TAG_OF[Activate], 0, INTRUDER, 0)
        found = [encode(old, Activate())]
        if self.site.target.startswith("kvmanager"):
            plan = Plan(2**40, [7], [0], [5], [], [], [], [], [], [], [], 0.0, 0.0)
            found.append(encode(Header(PROTOCOL_VERSION, TAG_OF[Plan], 0, INTRUDER, 1), plan))
        return found


class Usurper(CountedFault):
    """A process that the supervisor has not started wants to be the scheduler, in an epoch above all others."""

    kind = "stranger"

    def messages(self) -> list[list[bytes]]:
        header = Header(PROTOCOL_VERSION, TAG_OF[Activate], 2**60, INTRUDER, 0)
        return [encode(header, Activate(1))]


class Garbage(CountedFault):
    """Random frames in random number, spoilt messages, and one that would run a command if anybody unpickled it."""

    kind = "malformed"

    def __init__(self, site: Site) -> None:
        self._seed = site.chance.randrange(2**31)
        self._trap = site.server.folder / "unpickled"
        super().__init__(site)

    def messages(self) -> list[list[bytes]]:
        chance = Random(self._seed)
        pickled = f"cposix\nsystem\n(S'touch {self._trap}'\ntR.".encode()  # pickle's text protocol
        good = encode(Header(PROTOCOL_VERSION, TAG_OF[Activate], 10**9, INTRUDER, 0), Activate())
        found = [[pickled], [good[0], pickled], [good[0], b"\x91\xdd\xff\xff\xff\xff"]]
        while len(found) < GARBAGE:
            frames = [chance.randbytes(chance.randrange(300)) for _ in range(chance.randint(1, 4))]
            found.append(frames)
        return found

    def harm(self) -> str:
        return "a pickle was executed" if self._trap.exists() else ""


class DuplicateIdentity(WireFault):
    """The intruder calls itself like the peer that is in office, and says what that would never say. Fenced out, its
    messages are not even seen; so the evidence is that ZeroMQ has shaken hands with the target."""

    def __init__(self, site: Site) -> None:
        scheduler = site.server.member("scheduler")
        self._epoch = epoch_of(scheduler.epoch, int(counter(scheduler, "resyncs")))
        peer, name = scheduler, "scheduler"
        if site.target.startswith("worker"):
            peer = site.server.member(site.target.replace("worker", "kvmanager"))
            name = f"kvmanager-{peer.index}"
        self.identity = f"{name}:{peer.incarnation}:{self._epoch}".encode()
        self._monitor: zmq.Socket[bytes] | None = None
        self._shaken = False
        super().__init__(site)

    def watch_link(self, dealer: zmq.Socket[bytes]) -> None:
        self._monitor, self._shaken = dealer.get_monitor_socket(), False

    def lift(self) -> None:
        if self._monitor is not None:
            self._monitor.close(linger=0)
            self._monitor = None
        super().lift()

    def messages(self) -> list[list[bytes]]:
        plan = Plan(2**40, [7], [0], [5], [], [], [], [], [], [], [], 0.0, 0.0)
        epoch = self._epoch
        return [
            encode(Header(PROTOCOL_VERSION, TAG_OF[type(body)], epoch, INTRUDER, seq), body)
            for seq, body in enumerate([plan, Activate(1)])
        ]

    def proof(self) -> str:
        endpoint = f"ipc://{self.site.server.socket_path(self.site.target)}"
        while self._monitor is not None and self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)
            shaken = event["event"] == zmq.Event.HANDSHAKE_SUCCEEDED
            self._shaken |= shaken and event["endpoint"].decode() == endpoint
        return f"shook hands as {self.identity.decode()}" if self._shaken else ""
