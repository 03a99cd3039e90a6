"""The frontend's end of the link to the scheduler: epochs, credits, and the way of events to the waiting calls.

The Router of `accelgen.proto.sockets` is synchronous; the event loop watches its descriptor. ZeroMQ signals that
descriptor only when something *becomes* readable, so everything is read after each wake-up and after each send.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from accelgen.frontend.errors import ApiError, busy, draining, not_activated
from accelgen.frontend.events import Admission, Demand, Ended, Event, Refused, Text
from accelgen.frontend.journal import Journal, Turn
from accelgen.frontend.metrics import Metrics
from accelgen.proto.clocks import now_s
from accelgen.proto.epochs import Claim, Fence, epoch_name
from accelgen.proto.frame import Header
from accelgen.proto.messages import (
    Abort,
    Activate,
    Body,
    Directory,
    End,
    Pulse,
    Reason,
    Replayed,
    Resync,
    Role,
)
from accelgen.proto.pulse import SILENCE_S, Metronome
from accelgen.proto.sockets import Router

log = structlog.get_logger()


class Mailbox:
    """Events of one call, for the one coroutine that serves it. `gone` when the client has left."""

    def __init__(self) -> None:
        self.gone = False
        self._events: list[Event] = []
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)
        self._wake()

    def leave(self) -> None:
        """The client has left."""
        self.gone = True
        self._wake()

    async def take(self) -> list[Event]:
        """All events that wait, at least one unless the client is gone."""
        if not self._events and not self.gone:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Link:
    """`fence` says which scheduler is obeyed, `active` whether it can be reached. `draining` refuses every new call."""

    def __init__(
        self,
        router: Router,
        journal: Journal,
        metrics: Metrics,
        queue_limits_s: Mapping[str, float],
    ) -> None:
        self.router, self.journal, self.metrics = router, journal, metrics
        self._queue_limits_s = queue_limits_s  # by class
        self.fence = Fence[Activate](Role.SCHEDULER)
        self.active = False
        self._directory: Directory | None = None
        self.draining = False
        self.failure: Exception | None = None  # the process must end
        self._continues = False  # a later turn of `drain` is on its way
        self._deaf = False  # something was lost: nothing counts before the next epoch
        self._heard_s = 0.0
        self._metronome = Metronome()
        self.credits = 0
        self._activated = asyncio.Event()
        self._mailboxes: dict[int, Mailbox] = {}
        self._next_call = 1

    def start(self) -> None:
        """Begins to watch the socket; call it inside the running loop."""
        asyncio.get_running_loop().add_reader(self.router.socket.fileno(), self.drain)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.router.socket.fileno())
        self.router.close()

    async def open(self, demand: Demand) -> tuple[int, Mailbox]:
        """Sends a call to the scheduler. Raises ApiError: 503 without a scheduler or while draining, 429 when the
        credits are used up."""
        while True:
            await self._wait_for_scheduler(demand)
            self._check_credits(demand)
            call, mailbox = self._next_call, Mailbox()
            self._next_call += 1
            self._mailboxes[call] = mailbox
            if all(self._send(submit) for submit in self.journal.open(call, demand, now_s())):
                self.drain()
                return call, mailbox
            # the supervisor brings another
            log.warning("scheduler is gone", epoch=epoch_name(self.fence.epoch))
            del self._mailboxes[call]
            self.journal.close(call)
            self.active = False
            self._activated.clear()

    def _check_credits(self, demand: Demand) -> None:
        wanted = len(demand.prompts) * demand.n
        if wanted > self.credits:
            message = (
                f"{len(demand.prompts)} prompts with n {demand.n} are {wanted} requests,"
                f" more than the limit of {self.credits}"
            )
            raise ApiError(400, message, "prompt" if demand.n == 1 else "n", "invalid_value")
        if self.journal.open_choices + wanted > self.credits:
            message = (
                f"{self.journal.open_choices} requests are open and {wanted} more do not fit"
                f" the limit of {self.credits}"
            )
            raise busy(429, "saturated", message, 1.0)

    def close(self, call: int) -> None:
        """The call is over, whether or not its choices are: what still runs is aborted."""
        self._mailboxes.pop(call, None)
        aborted = self.journal.close(call)
        if aborted:
            self.metrics.count("request_success_total", len(aborted), finished_reason="abort")
            self._send(Abort(aborted))
            self.drain()

    def fail_all(self, reason: Reason) -> None:
        """Tells every open call that it will not be completed."""
        for call, mailbox in self._mailboxes.items():
            mailbox.put(Refused(call, 0, End(id=0, reason=reason)))

    def learn(self, directory: Directory | None) -> None:
        """Takes the newest Directory: who has lost its worker, and whether a scheduler that was not listed is now."""
        if directory is not None and directory is not self._directory:
            self._directory = directory
            self._carry_out(self.journal.learn(directory))
        self._activate(self.fence.learn(directory))

    def drain(self) -> None:
        """Reads and handles the messages that have arrived; if there are very many, the rest after others' turns.
        What fails at one is kept in `failure`: it may have been half taken, so that nobody knows which tokens have
        been passed on."""
        for message in self.router.messages():
            if self.failure is not None:
                return
            self._look_for_gap()
            try:
                self._take(*message)
            except Exception as error:
                log.exception("a message of the scheduler could not be taken")
                self.failure = error
        self._look_for_gap()
        if self.router.pending and not self._continues:
            self._continues = True
            asyncio.get_running_loop().call_soon(self._continue)

    def _continue(self) -> None:
        self._continues = False
        if not self.router.socket.closed:
            self.drain()

    def tend(self) -> None:
        """Call at least twice a second: the pulse of the link."""
        now = now_s()
        if not (self.fence.peer and self._metronome.due(now)):
            return
        # Also to one that could not be reached: if only the link was cut, this shows what was lost.
        self.router.send(self.fence.peer, Pulse(), self.fence.epoch)
        if self.active and now > self._heard_s + SILENCE_S:
            self._ask_to_resync(f"scheduler was silent for {now - self._heard_s:.1f} s")

    def _look_for_gap(self) -> None:
        if self.active and self.router.codec.lost(self.fence.peer):
            self._ask_to_resync("words of the scheduler were lost")

    def _ask_to_resync(self, cause: str) -> None:
        """No token may be skipped: what comes now is not taken, and the scheduler takes over again."""
        if not self._deaf:
            log.error(
                "the link to the scheduler is broken",
                cause=cause,
                epoch=epoch_name(self.fence.epoch),
            )
            self._deaf = True
            self._send(Resync(cause))

    async def _wait_for_scheduler(self, demand: Demand) -> None:
        """While a scheduler is on its way a request waits as long as in the queue of its class."""
        if self.draining:
            raise draining()
        if self.active:
            return
        limit_s = self._queue_limits_s[demand.slo_class]
        waited_s = now_s() - demand.received_s
        try:
            async with asyncio.timeout(limit_s - waited_s):
                await self._activated.wait()
        except TimeoutError:
            raise not_activated() from None
        if self.draining:
            raise draining()

    def refuse_new(self) -> None:
        """The server is shutting down: also for those who wait for a scheduler."""
        self.draining = True
        self._activated.set()

    def _send(self, body: Body) -> bool:
        return self.active and self.router.send(self.fence.peer, body, self.fence.epoch)

    def _take(self, peer: bytes, header: Header, body: Body) -> None:
        if isinstance(body, Activate):
            self._activate(self.fence.claim(peer, header, body))
            return
        if not self.fence.passes(peer, header):
            return
        self._heard_s = now_s()
        if self._deaf or isinstance(body, Pulse):
            return
        self._carry_out(self.journal.take(body, now_s()))

    def _carry_out(self, turn: Turn) -> None:
        for event in turn.events:
            self._deliver(event)
        if turn.aborts:
            self._send(Abort(turn.aborts))
        if turn.replays or turn.given_up:
            self.metrics.count("request_replays_total", turn.replays)
            self.metrics.count("requests_given_up_total", turn.given_up)

    def _activate(self, given: Claim[Activate] | None) -> None:
        if given is None:
            return
        self.active, self.credits = True, given.body.credits
        self._deaf, self._heard_s = False, now_s()
        self._activated.set()
        log.info("scheduler activated", epoch=epoch_name(given.epoch), credits=self.credits)
        # a new scheduler knows nothing
        submits = [] if given.repeated else self.journal.replay(now_s())
        for submit in submits:
            self._send(submit)
        self._send(Replayed(len(submits)))

    def _deliver(self, event: Event) -> None:
        self._observe(event)
        mailbox = self._mailboxes.get(event.call)
        if mailbox is not None:
            mailbox.put(event)

    def _observe(self, event: Event) -> None:
        metrics = self.metrics
        match event:
            case Text(gap_s=gap_s, ttft_s=ttft_s):
                if ttft_s is not None:
                    metrics.ttft.observe(ttft_s)
                if gap_s is not None:
                    metrics.itl.observe(gap_s)
            case Ended(outcome=outcome, reason=reason):
                metrics.e2e.observe(outcome.e2e_s)
                if outcome.tpot_s is not None:
                    metrics.tpot.observe(outcome.tpot_s)
                if outcome.queue_s is not None:
                    metrics.queue.observe(outcome.queue_s)
                metrics.count("prompt_tokens_total", outcome.prompt_tokens)
                metrics.count("prompt_tokens_cached_total", outcome.cached_tokens)
                metrics.count("generation_tokens_total", outcome.completion_tokens)
                metrics.count("request_success_total", finished_reason=reason)
            case Refused():
                metrics.count("request_success_total", finished_reason="error")
            case Admission():
                pass
