"""The worker process: `python -P -m accelgen.worker --run-dir DIR --index N --epoch E --parent PID`."""

from __future__ import annotations

from accelgen.proto.child import Child
from accelgen.proto.messages import Role


def main() -> None:
    """Loads, then serves Batches until told to stop. torch is imported after the first sign of life."""
    child = Child.from_command_line(Role.WORKER)
    child.phase("importing")
    from accelgen.worker.process import run

    run(child)


if __name__ == "__main__":
    main()
