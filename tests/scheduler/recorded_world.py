"""A World whose scheduler is recorded, as the real one is by its sockets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import world
from world import World

from accelgen.proto import recorder
from accelgen.proto.dumps import events_of, head_of, write_dump
from accelgen.proto.frame import Codec
from accelgen.proto.messages import Abort, Body, Inventory, KvReport, StepResult, Submit
from accelgen.proto.recorder import RECV, SEND
from accelgen.scheduler.recording import RecordedCore


class NotedCore(RecordedCore):
    """Notes each message that it is given, as the socket would that has received it."""

    epoch = 0
    codec = Codec(1)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        type(self).epoch += 1

    def note(self, direction: str, peer: str, body: Body) -> None:
        if not self._inside:
            frames = self.codec.pack(peer.encode(), body, self.epoch)
            recorder.note(direction, peer.encode(), body, frames)

    def on_submit(self, submit: Submit, frontend: int, now_s: float) -> None:
        self.note(RECV, f"frontend-{frontend}", submit)
        super().on_submit(submit, frontend, now_s)

    def on_abort(self, abort: Abort, now_s: float) -> None:
        self.note(RECV, "frontend-0", abort)
        super().on_abort(abort, now_s)

    def inherit(self, inventory: Inventory, index: int) -> None:
        self.note(RECV, f"kvmanager-{index}", inventory)
        super().inherit(inventory, index)

    def on_report(self, report: KvReport, index: int, now_s: float) -> None:
        self.note(RECV, f"kvmanager-{index}", report)
        super().on_report(report, index, now_s)

    def on_result(self, result: StepResult, index: int, now_s: float) -> None:
        self.note(RECV, f"worker-{index}", result)
        super().on_result(result, index, now_s)


class RecordedWorld(World):
    """`core` is a NotedCore; what it sends is noted when it leaves."""

    core: NotedCore

    def _flush(self) -> None:
        for role, index, body in self.core.outbox:
            self.core.note(SEND, f"{role.name.lower()}-{index}", body)
        super()._flush()


@contextmanager
def recording_to(path: Path, most_events: int = 1_000_000) -> Iterator[None]:
    """Worlds made within are recorded; at the end `path` is the dump."""
    plain, world.SchedulerCore = world.SchedulerCore, NotedCore  # type: ignore[misc]
    ring = recorder.start_recorder(most_events, 1 << 30)
    assert ring is not None
    try:
        yield
    finally:
        world.SchedulerCore = plain  # type: ignore[misc]
        recorder.start_recorder(0, 0)
    write_dump(path, head_of("scheduler-0", 1, ring), events_of(ring))
