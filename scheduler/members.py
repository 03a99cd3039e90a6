"""What the Directory says about others: which replicas can be used, in which life; whether there is a successor."""

from __future__ import annotations

from dataclasses import dataclass

from accelgen.proto.messages import Directory, Facts, Role


@dataclass(frozen=True)
class Life:
    """A replica of which KV manager and worker are ready; another incarnation of either is another life."""

    manager: int
    worker: int
    facts: Facts


def lives_of(directory: Directory | None) -> dict[int, Life]:
    """The replicas that can be used now, by index."""
    ready = {
        (m.role, m.index): m for m in (directory.members if directory else []) if m.phase == "ready"
    }
    found = {}
    for (role, index), worker in ready.items():
        manager = ready.get((Role.KVMANAGER, index))
        if role is Role.WORKER and manager is not None and worker.facts is not None:
            found[index] = Life(manager.incarnation, worker.incarnation, worker.facts)
    return found


def has_successor(directory: Directory | None, term: int) -> bool:
    """Whether a scheduler of a later term serves."""
    return any(
        m.role is Role.SCHEDULER and m.epoch > term and m.phase == "ready"
        for m in (directory.members if directory else [])
    )
