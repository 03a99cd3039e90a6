"""A component that does nothing but live as its supervisor expects, for the supervisor's own tests.

Called as `fake_component.py ROLE --run-dir ...`. The environment says how it misbehaves:
FAKE_FAIL="worker:the line" fails so at start; FAKE_EXIT="worker:3" exits with that status; FAKE_STUBBORN=1 ignores
Stop and SIGTERM; FAKE_SLOW=1 never gets ready; FAKE_MUTE="scheduler:0.2" goes silent after announcing that bound.
A scheduler takes office and yields as it is told.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from accelgen.proto.child import Child
from accelgen.proto.messages import Assume, Facts, Handoff, Prepare, Role, Yield

FACTS = Facts("fake", "FakeForCausalLM", "cpu", "float32", "none", 128, 1000, 16, 64, 2**20, 2**21)


def trait(name: str, role: str) -> str | None:
    """What FAKE_<name> says about this role, None if nothing."""
    whom, _, what = os.environ.get(f"FAKE_{name}", "").partition(":")
    return what if whom in (role, "all") else None


def obey_orders(child: Child) -> None:
    while child.orders:
        match child.orders.popleft():
            case Prepare():
                child.phase("prepared")
            case Assume(term=term):
                child.epoch = term
                child.phase("ready")
            case Yield():
                child.link.send(Handoff(b"learnt"))
                child.phase("yielded")


def main() -> None:
    role = sys.argv.pop(1)
    if (status := trait("EXIT", role)) is not None:
        print("Traceback: the cause is in the last line", file=sys.stderr)
        sys.exit(int(status))
    child = Child.from_command_line(Role[role.upper()])
    if (line := trait("FAIL", role)) is not None:
        child.fail(line)
    stubborn = trait("STUBBORN", role) is not None
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if role == "scheduler" and trait("SLOW", role) is None:
        child.phase("standby")
    elif trait("SLOW", role) is None:
        child.phase("ready", facts=FACTS if role == "worker" else None)
    else:
        child.phase("loading weights")
    if (bound := trait("MUTE", role)) is not None:
        child.phase("ready", bound_s=float(bound))
        time.sleep(60)
    while not child.stopping or stubborn:
        child.beat()
        obey_orders(child)
        child.link.socket.poll(50)


if __name__ == "__main__":
    main()
