"""The worker process: `python -P -m accelgen.worker --run-dir DIR --index N --epoch E --parent PID`."""

from __future__ import annotations

import os
import sys

import zmq

from accelgen.proto.child import Child
from accelgen.proto.messages import Role


def main() -> None:
    """Loads, then serves Batches until told to stop. torch is imported after the first sign of life."""
    child = Child.from_command_line(Role.WORKER)
    child.phase("importing")
    from accelgen.worker.process import run

    run(child)
    child.link.close()
    zmq.Context.instance().term()  # waits for the last words, LINGER_MS at most
    sys.stderr.flush()
    os._exit(0)  # taking torch and the weights apart one by one would take seconds


if __name__ == "__main__":
    main()
