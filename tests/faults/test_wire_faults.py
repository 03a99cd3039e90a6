"""What an intruder calls itself."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from accelgen.faults.fault import Site
from accelgen.faults.wire_faults import DuplicateIdentity
from accelgen.proto.epochs import epoch_of
from accelgen.proto.messages import Member, Role

RESYNCS = {'accelgen:messages_total{process="scheduler",kind="resyncs"}': 2.0}


def test_an_identity_is_duplicated_to_the_letter(folder: Path) -> None:
    """Terms are what a Directory has; identities have epochs."""
    members = {
        "scheduler": Member(Role.SCHEDULER, 1, 9, "", 7, 3, "ready", 1, 1.0, 0.0, 1, None, RESYNCS),
        "kvmanager-0": Member(Role.KVMANAGER, 0, 9, "", 8, 1, "ready", 1, 1.0, 0.0, 1, None, {}),
    }
    server: Any = SimpleNamespace(
        member=lambda name: members[name], socket_path=lambda name: folder / name
    )
    load: Any = None
    identities = {
        target: DuplicateIdentity(Site(server, load, target, Random(1))).identity.decode()
        for target in ("frontend-0", "kvmanager-0", "worker-0")
    }
    epoch = epoch_of(3, 2)
    assert identities["frontend-0"] == identities["kvmanager-0"] == f"scheduler:7:{epoch}"
    assert identities["worker-0"] == f"kvmanager-0:8:{epoch}"
