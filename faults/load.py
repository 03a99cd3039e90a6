"""A fixed-seed, open-loop load: requests are sent at their times, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import count
from random import Random

from accelgen.faults.client import Manner, send
from accelgen.faults.history import History, Kind, Request
from accelgen.proto.clocks import now_s

POOL = 24  # different requests
RATE_PER_S = 8.0


def pool_of(seed: int) -> list[Request]:
    """Different requests: 20 to 120 prompt tokens, 16 to 48 to generate, a seed each; every eighth wants its answer
    whole."""
    chance = Random(seed)
    return [
        Request(
            key=key,
            prompt=tuple(chance.randrange(5, 4000) for _ in range(chance.randint(20, 120))),
            max_tokens=chance.randint(16, 48),
            seed=chance.randrange(2**31),
            streamed=key % 8 != 7,
        )
        for key in range(POOL)
    ]


class Load:
    """Sends requests of a pool from a thread of its own, from `start` until `stop`. `histories` grows meanwhile."""

    def __init__(
        self, url: str, pool: Sequence[Request], seed: int, rate_per_s: float = RATE_PER_S
    ) -> None:
        self.url, self.pool, self.rate_per_s = url, pool, rate_per_s
        self.histories: list[History] = []
        self._ids = count()  # of both threads
        self._chance = Random(seed)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = True
        self._deadline_s = float("inf")
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Sends no more and waits for what is open; what is still open after `timeout_s` is stuck."""
        self._deadline_s = now_s() + timeout_s
        self._sending = False
        self._thread.join()

    def send(self, request: Request, manner: Manner = Manner.GOOD) -> History:
        """One more request, now; from any thread."""
        history = self._enter(request)
        self._loop.call_soon_threadsafe(self._launch, history, manner)
        return history

    def open_requests(self) -> list[History]:
        """Those that have come to nothing yet."""
        return [history for history in list(self.histories) if history.outcome is None]

    def _run(self) -> None:
        self._loop.run_until_complete(self._drive())
        self._loop.close()

    async def _drive(self) -> None:
        due_s = now_s()
        while self._sending:
            due_s += self._chance.expovariate(self.rate_per_s)
            while (wait_s := due_s - now_s()) > 0 and self._sending:
                await asyncio.sleep(min(wait_s, 0.05))
            if self._sending:
                self._launch(self._enter(self._chance.choice(self.pool)), Manner.GOOD)
        await asyncio.sleep(0)  # what other threads have sent until now has become tasks
        while self._tasks and (left_s := self._deadline_s - now_s()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for history in self.open_requests():
            history.note(now_s(), Kind.STUCK)

    def _enter(self, request: Request) -> History:
        history = History(next(self._ids), request)
        self.histories.append(history)
        return history

    def _launch(self, history: History, manner: Manner) -> None:
        task = asyncio.create_task(send(self.url, history, manner))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def ask_all(url: str, pool: Sequence[Request]) -> list[History]:
    """Every request of the pool once, all at the same time; for the reference."""

    async def run() -> list[History]:
        histories = [History(request.key, request) for request in pool]
        async with asyncio.timeout(60):
            await asyncio.gather(*(send(url, history) for history in histories))
        return histories

    return asyncio.run(run())
