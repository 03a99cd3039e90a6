"""`accelgen up` with fake components and without a model: everything of the supervisor is the real thing."""

from __future__ import annotations

import sys
from pathlib import Path

from accelgen.proto.messages import Role
from accelgen.scripts import cli, up
from accelgen.supervisor import launch

FAKE = Path(__file__).with_name("fake_component.py")


def fake_command(role: Role) -> list[str]:
    """How a fake component is started."""
    return [sys.executable, "-P", str(FAKE), role.name.lower()]


def main() -> None:
    def serve(config, detached):  # type: ignore[no-untyped-def]
        return launch.serve(config, detached, fake_command, lambda config: (config, 0))

    up.serve = serve  # type: ignore[assignment]
    cli.main(["up", *sys.argv[1:]])


if __name__ == "__main__":
    main()
