"""Faults between two processes: messages that are delayed, lost, doubled, out of order or spoilt, and a link cut."""

from __future__ import annotations

from dataclasses import replace

from accelgen.faults.connections import connections_to, cut
from accelgen.faults.fault import Decoy, Fault, Site
from accelgen.faults.proxy import Proxy
from accelgen.faults.tamper import Effect, Rule, Toward

LINKS = (
    "scheduler-frontend-0",
    "scheduler-kvmanager-0",
    "kvmanager-0-worker-0",
    "scheduler-worker-0",
)
"""Who connects, and to whom: `scheduler-worker-0` is the link that the scheduler makes to worker-0."""

ONE_WAY = "kvmanager-0-worker-0"
"""On this one messages go towards the bound side only, but for the answer to a question at a takeover."""

RULES = {  # what is typical of each effect; one seeded source of chance decides about each message
    Effect.DELAY: Rule(Effect.DELAY, seconds=0.03, jitter_s=0.03),
    Effect.DROP: Rule(Effect.DROP, p=0.1, limit=5),
    Effect.DUPLICATE: Rule(Effect.DUPLICATE, p=0.3),
    Effect.REORDER: Rule(Effect.REORDER, p=0.1, limit=5),
    Effect.CORRUPT: Rule(Effect.CORRUPT, p=0.1, limit=5),
    Effect.TRUNCATE: Rule(Effect.TRUNCATE, p=0.1, limit=5),
    Effect.PAUSE: Rule(Effect.PAUSE, seconds=1.5),
    Effect.HALF_OPEN: Rule(Effect.HALF_OPEN),
}
NOBODY = b"nobody"  # the identity that a control aims at


def ends_of(link: str) -> tuple[str, str]:
    """The seat that connects, and the seat that has bound."""
    parts = link.split("-")
    at = 1 if parts[0] == "scheduler" else 2
    return "-".join(parts[:at]), "-".join(parts[at:])


class LinkFault(Fault):
    """A rule on a proxy between the two. Putting the proxy there and taking it away disturbs an idle link only; so it
    is put there before the load begins: `prepare`."""

    lasts_s = 1.5

    def __init__(self, site: Site, effect: Effect) -> None:
        super().__init__(site)
        self._effect = effect
        self._connecting, self._bound = ends_of(site.target)
        self._proxy: Proxy | None = None

    def prepare(self) -> None:
        """Puts the proxy on the link."""
        path = self.site.server.socket_path(self._bound)
        proxy = Proxy(path, self.site.chance.randrange(2**31))
        proxy.open([self.site.server.pid(self._connecting)])
        self._proxy = proxy

    def inject(self, decoy: Decoy | None = None) -> None:
        assert self._proxy is not None
        toward = None
        if self._effect is Effect.HALF_OPEN:
            ways = [Toward.BOUND] if self.site.target == ONE_WAY else list(Toward)
            toward = self.site.chance.choice(ways)
        peer = NOBODY if decoy else self._connecting.encode() + b":"  # how its identity begins
        self._proxy.apply(replace(RULES[self._effect], toward=toward, peer=peer))

    def proof(self) -> str:
        assert self._proxy is not None
        return ", ".join(f"{n} x {what}" for what, n in self._proxy.counts().items())

    def lift(self) -> None:
        """The rule ends; the proxy stays until the load is over."""
        if self._proxy is not None:
            self._proxy.apply()

    def remove(self) -> None:
        """Takes the proxy off."""
        if self._proxy is not None:
            self._proxy.close()
            self._proxy = None


class LinkCut(Fault):
    """The connection is cut from outside: both sides see its end, and ZeroMQ connects again."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        connecting, bound = ends_of(site.target)
        self._pid = site.server.pid(connecting)
        self._path = site.server.socket_path(bound)
        self._before: set[int] = set()
        self._cut = 0

    def inject(self, decoy: Decoy | None = None) -> None:
        if decoy is not None:
            cut(decoy.pid, self._path)
        else:
            self._cut = cut(self._pid, self._path)

    def proof(self) -> str:
        """It was there, and is there again."""
        back = self._cut and connections_to(self._pid, self._path)
        return f"{self._cut} connection cut and made again" if back else ""
