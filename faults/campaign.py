"""Runs the cases of a schedule one after another, each on a server of its own or on the one before's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec

from accelgen.faults.cases import Moment
from accelgen.faults.contract import Reference, check_blocks
from accelgen.faults.history import History, Request
from accelgen.faults.load import ask_all, pool_of
from accelgen.faults.rows import Row
from accelgen.faults.run import Pace, StartTrial, Trial
from accelgen.faults.schedule import Step
from accelgen.faults.server import Server, Shape
from accelgen.proto.clocks import now_s

FIT_S = 20.0  # for a server to become whole again after a case
POOL_SEED = 1  # the same requests in every campaign


class Campaign:
    """Use it as a context: the server that is there at the end is taken down. `histories`: those of the last case."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.pool: Sequence[Request] = pool_of(POOL_SEED)
        self.histories: list[History] = []
        self._references: dict[int, Reference] = {}  # by replicas: they share the cores
        self._server: Server | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self._take_down()

    def run(self, step: Step) -> Row:
        """One case."""
        if step.fresh or not self._is_fit():
            self._take_down()
        reference = self._reference(step.shape)
        trial: Trial
        if step.case.moment is Moment.START:
            self._take_down()
            server = self._stack.enter_context(Server(step.shape, start=False))
            trial = StartTrial(step.case, server, self.pool, reference, step.seed, self.pace)
        else:
            trial = Trial(
                step.case, self._up(step.shape), self.pool, reference, step.seed, self.pace
            )
        row = trial.run()
        self.histories = trial.load.histories
        kept = all(verdict.ok is not False for verdict in row.contract.values()) and not row.note
        if step.case.ends_server or step.case.moment is Moment.START or not kept:
            self._take_down()  # what a defect has left must not be held against the next case
        return row

    def _reference(self, shape: Shape) -> Reference:
        """The undisturbed texts, from a server of as many replicas before anything is done to it."""
        if shape.replicas not in self._references:
            server = self._up(shape)
            self._references[shape.replicas] = Reference.of(ask_all(server.url, self.pool))
        return self._references[shape.replicas]

    def _up(self, shape: Shape) -> Server:
        if self._server is None:
            self._server = self._stack.enter_context(Server(shape))
        return self._server

    def _is_fit(self) -> bool:
        """The server serves, and holds nothing."""
        if self._server is None or self._server.exit_status is not None:
            return False
        until_s = now_s() + FIT_S
        while not self._server.is_whole():
            if now_s() > until_s:
                return False
            time.sleep(0.05)
        return check_blocks(self._server.gauges()).ok is True

    def _take_down(self) -> None:
        self._server = None
        self._stack.close()


def dump(histories: Sequence[History]) -> bytes:
    """Histories as JSON, for whoever looks for the cause."""
    return msgspec.json.format(msgspec.json.encode(histories), indent=1)
