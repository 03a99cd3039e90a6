"""The scheduler process: stands by, serves while it is in office, stands by again."""

from __future__ import annotations

import gc

import structlog

from accelgen.proto.child import Child
from accelgen.proto.clocks import now_s
from accelgen.proto.epochs import RESYNC_BITS, epoch_of
from accelgen.proto.messages import Role
from accelgen.scheduler.session import IDLE_S, Office, Session
from accelgen.scheduler.standby import Standby, import_policies

BACK_OFF_S, BACK_OFF_MOST_S = 0.05, 2.0  # between sessions that fail at once

log = structlog.get_logger()


def main() -> None:
    child = Child.from_command_line(Role.SCHEDULER)
    import_policies()
    gc.collect()
    gc.freeze()  # what start-up made stays: collections then walk the requests only
    standby = Standby(child)
    try:
        while (office := standby.wait()) is not None:
            _serve(office)
    except Exception as error:
        log.exception("scheduler failed")
        child.fail(f"scheduler: {type(error).__name__}: {error}")


def _serve(office: Office) -> None:
    """One epoch after another, until told to stop, to yield, or anything else."""
    child = office.child
    for resyncs in range(1 << RESYNC_BITS):
        why = Session(office, epoch_of(child.epoch, resyncs)).run()
        if child.stopping:
            return
        if office.heed() or office.yielding:
            if office.yielding and not office.yielded:
                office.hand_over()
            return
        office.counters["resyncs"] += 1
        log.warning("takes over again", why=why)
        if office.failures:
            _pause(child, min(BACK_OFF_MOST_S, BACK_OFF_S * 2 ** (office.failures - 1)))
    child.fail(f"scheduler: took over from itself {1 << RESYNC_BITS} times")


def _pause(child: Child, pause_s: float) -> None:
    until_s = now_s() + pause_s
    while (left_s := until_s - now_s()) > 0 and not (child.stopping or child.orders):
        child.link.socket.poll(int(1000 * min(left_s, IDLE_S)) + 1)
        child.beat()


if __name__ == "__main__":
    main()
