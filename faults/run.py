"""One case from beginning to end: load, negative control, fault, evidence, recovery, rest, and the checks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from random import Random

import psutil

from accelgen.faults import checks
from accelgen.faults.cases import FAULTS, Case, Moment
from accelgen.faults.contract import Reference, check_blocks
from accelgen.faults.fault import CONTROL_S, Decoy, Fault, Site
from accelgen.faults.history import Request
from accelgen.faults.judge import Judge
from accelgen.faults.load import RATE_PER_S, Load
from accelgen.faults.orders import NotArmed
from accelgen.faults.probe import Probe, read_metrics
from accelgen.faults.process_faults import Leftovers, ProcessFault
from accelgen.faults.processes import is_gone
from accelgen.faults.proxy import ProxyError
from accelgen.faults.rows import Row
from accelgen.faults.server import Server, ServerGone
from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Swap
from accelgen.supervisor.client import ask_to_swap
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.restarts import INTENSITY, PERIOD_S

DEATHS_PER_CASE = 2
BACK_S = 60.0  # a worker has to load its model again
REST_S = 20.0  # after the last request, for all that is held to be given back: a replica left aside gets its turn
LAST_WORDS_S = 0.3  # for what the last request has ended to show in gauges
OPEN_S = 45.0  # what is open at the end of the load gets that long
POLICIES = ("accelgen", "sarathi", "vllm")
"""Those that a case swaps among."""


@dataclass(frozen=True)
class Pace:
    """How much time a case takes: load before the fault, the control, load after recovery. `lasting` multiplies the
    time that a fault is left in place, `slack` the bounds of detection, for machines that have other work."""

    before_s: float = 1.5
    control_s: float = CONTROL_S
    after_s: float = 1.5
    rate_per_s: float = RATE_PER_S
    lasting: float = 1.0
    slack: float = 1.0


@dataclass
class Seen:
    """What a case has shown so far."""

    verified: str = ""
    control: str = "not run"
    note: str = ""
    struck_s: float = 0.0  # now_s() when the fault was injected
    struck_at: float = 0.0  # the same as time.time(), for logs
    pid: int = 0  # the process that was struck
    gone_at: float = 0.0  # when the target was gone, as time.time()
    back_s: float | None = None
    began_at: float = field(default_factory=time.time)


class Trial:
    """One case on a server that serves. The server is there afterwards, unless the case is to end it."""

    def __init__(
        self,
        case: Case,
        server: Server,
        pool: Sequence[Request],
        reference: Reference,
        seed: int,
        pace: Pace = Pace(),
    ) -> None:
        self.case, self.server, self.reference = case, server, reference
        self.seed, self.pace = seed, pace
        self.chance = Random(seed)
        self.load = Load(server.url, pool, self.chance.randrange(2**31), pace.rate_per_s)
        self.probe = Probe(server)
        self.seen = Seen()
        self.faults: list[Fault] = []

    def run(self) -> Row:
        """Does it all. What goes wrong with the server, or with doing anything to it, is in the row."""
        try:
            with ExitStack() as stack:
                self._play(stack)
        except (ServerGone, ProxyError, NotArmed, StartError, OSError, psutil.Error) as error:
            self.seen.note = f"{type(error).__name__}: {error}"
        serves = self.server.exit_status is None and bool(self.server.url)
        return Judge(self, *(self._rest() if serves else ({}, {}))).row()

    def _play(self, stack: ExitStack) -> None:
        """From the first request to the last; what was set up is taken down by `stack`."""
        self._await_patience()
        fault = FAULTS[self.case.fault](self._site(self.case.target))
        fault.prepare()
        stack.callback(fault.remove)
        self._load_up(stack)
        time.sleep(self.pace.before_s)
        if not self._comes_later:
            self._control(fault)
        self._approach()
        if self._comes_later:
            self.server.await_pid(self.case.target)
            self._control(fault)
        self._strike(fault)
        self._recover(fault)

    def _load_up(self, stack: ExitStack) -> None:
        self.load.url = self.server.url
        self.probe.start()
        stack.callback(self.probe.stop)
        self.load.start()
        stack.callback(self.load.stop, OPEN_S)

    def _await_patience(self) -> None:
        """Waits until no seat has died so often lately that this case would exhaust the supervisor's patience."""
        while not self.case.ends_server:
            deaths = checks.own_deaths(self.server.events(time.time() - PERIOD_S))
            if max(deaths.values(), default=0) <= INTENSITY - DEATHS_PER_CASE:
                return
            time.sleep(0.5)

    @property
    def _comes_later(self) -> bool:
        """The target is a scheduler that only a swap starts."""
        return self.case.target == "spare"

    def _site(self, target: str) -> Site:
        return Site(self.server, self.load, target, self.chance)

    def _control(self, fault: Fault) -> None:
        """The same fault done to the wrong target: if there is evidence all the same, it is worth nothing."""
        with Decoy(self.server) as decoy:
            try:
                fault.inject(decoy)
                found = fault.await_proof(self.pace.control_s)
            finally:
                fault.lift()
        self.seen.control = f"took for evidence: {found}" if found else "caught"

    def _approach(self) -> None:
        """Brings the server to the moment at which the fault is to strike."""
        match self.case.moment:
            case Moment.RECOVERY:
                assert self.case.first is not None
                name, target = self.case.first
                first = FAULTS[name](self._site(target))
                self.faults.append(first)
                first.inject()
                if not first.await_proof(first.proof_s):
                    self.seen.note = f"{name}/{target} did not take effect"
                time.sleep(self.chance.uniform(0.0, 1.0))
            case Moment.SWAP:
                now = self.server.see().config["policy"]
                policy = self.chance.choice([name for name in POLICIES if name != now])
                threading.Thread(target=self._swap, args=(policy,), daemon=True).start()
                if not self._comes_later:
                    time.sleep(self.chance.uniform(0.0, 1.2))
            case Moment.DRAIN:
                self.server.terminate()
                time.sleep(0.1)

    def _swap(self, policy: str) -> None:
        with suppress(StartError):
            ask_to_swap(self.server.run_dir, Swap(policy, {}), 60.0)

    def _strike(self, fault: Fault) -> None:
        """The fault itself, until it is over."""
        seen = self.seen
        self.faults.append(fault)
        seen.struck_s, seen.struck_at = now_s(), time.time()
        try:
            fault.inject()
            seen.verified = fault.await_proof(fault.proof_s)
            if seen.verified and isinstance(fault, ProcessFault):
                seen.pid = fault.target_pid
            until_s = seen.struck_s + fault.lasts_s * self.pace.lasting
            while now_s() < until_s and not self._gone():
                time.sleep(0.005)
            seen.verified = fault.proof() or seen.verified  # by now there may be more to tell
        finally:
            fault.lift()

    def _gone(self) -> bool:
        """Whether the process that was struck has ended; notes when."""
        self.faults[-1].watch()
        if self.seen.pid and not self.seen.gone_at and is_gone(self.seen.pid):
            self.seen.gone_at = time.time()
        return bool(self.seen.gone_at)

    def _recover(self, fault: Fault) -> None:
        """Waits until the server serves again, or has ended, and lets the load go on for a while."""
        until_s = now_s() + BACK_S
        while fault.ends_target and self.seen.pid and not self._gone() and now_s() < until_s:
            time.sleep(0.002)
        if self.case.ends_server:
            self._await_end(until_s)
            return
        while not self.server.is_whole():
            if now_s() > until_s or self.server.exit_status is not None:
                self.seen.note = f"the server does not serve again: {self.server.last_words()}"
                return
            time.sleep(0.02)
        self.seen.back_s = now_s() - self.seen.struck_s
        time.sleep(self.pace.after_s)

    def _await_end(self, until_s: float) -> None:
        if not self.server.wait_end(until_s - now_s()):
            self.seen.note = "the server does not end"

    def _rest(self) -> tuple[dict[str, float], dict[str, float]]:
        """Gauges and metrics of the server once it holds nothing any more, or has been given time enough."""
        since_s = now_s() + LAST_WORDS_S
        until_s = since_s + REST_S
        while not check_blocks(gauges := self.server.gauges(since_s)).ok and now_s() < until_s:
            time.sleep(0.05)
        while True:
            metrics = read_metrics(self.server.url)
            whole = checks.check_metrics(self.probe.looks, metrics).ok is not False
            if whole or now_s() > until_s:
                return gauges, metrics
            time.sleep(0.1)


class StartTrial(Trial):
    """A fault while the server comes up. It is started here, and the load begins when it serves, if it does."""

    def _play(self, stack: ExitStack) -> None:
        fault = FAULTS[self.case.fault](self._site(self.case.target))
        fault.prepare()
        stack.callback(fault.remove)
        self.server.start()
        self.server.await_pid(self.case.target)
        later = isinstance(fault, Leftovers)  # shows only when all is up
        if not later:
            self._control(fault)
            time.sleep(self.chance.uniform(0.0, 1.0))
        self._strike(fault)
        self._recover(fault)
        if self.server.exit_status is None and self.server.url:
            self._load_up(stack)
            time.sleep(self.pace.after_s)
            if later:
                self._control(fault)
                fault.inject()
            self.seen.verified = fault.proof() or self.seen.verified

    def _recover(self, fault: Fault) -> None:
        while fault.ends_target and self.seen.pid and not self._gone():
            time.sleep(0.002)
        try:
            self.server.wait_ready(BACK_S)
            self.seen.back_s = now_s() - self.seen.struck_s
        except ServerGone as error:
            if self.server.exit_status is None:
                self.seen.note = str(error)
