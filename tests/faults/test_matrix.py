"""The fast lane: the most telling cases of the matrix on one server of real processes, with their negative controls."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from accelgen.faults.campaign import Campaign
from accelgen.faults.cases import FAULTS, chosen
from accelgen.faults.fault import Decoy, Fault
from accelgen.faults.run import Pace
from accelgen.faults.schedule import Step
from accelgen.faults.server import Shape

# short, and not strict about milliseconds: other tests may run beside
PACE = Pace(before_s=0.3, control_s=0.5, after_s=0.3, rate_per_s=6.0, lasting=0.4, slack=20.0)

CASES = [
    "garbage/worker-0",
    "duplicate-identity/worker-0",
    "link-drop/scheduler-kvmanager-0",
    "link-duplicate/scheduler-frontend-0",
    "link-corrupt/scheduler-worker-0",
    "link-cut/kvmanager-0-worker-0",
    "leaves-midway/clients",
    "model-raises/worker-0",
    "out-of-files/kvmanager-0",
    "sigstop-0.5/worker-0",
    "raise/frontend-0",
    "exit-0/kvmanager-0",
]


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with Campaign(PACE) as campaign:
        yield campaign


def step(name: str, seed: int = 1) -> Step:
    [case] = chosen(name)
    return Step(0, case, seed, Shape(frontends=2), fresh=False)


@pytest.mark.parametrize("name", CASES)
def test_case(campaign: Campaign, name: str) -> None:
    row = campaign.run(step(name))
    assert not row.broken, row
    assert row.control == "caught" and row.verified and row.requests > 3


class Gullible(Fault):
    """Does nothing, and takes anything for evidence that it did."""

    def inject(self, decoy: Decoy | None = None) -> None:
        pass

    def proof(self) -> str:
        return "the server is there"


def test_evidence_that_a_wrong_target_gives_is_none(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAULTS, "sigkill", Gullible)
    words = "negative control: took for evidence: the server is there"
    assert campaign.run(step("sigkill/scheduler")).broken == [words]


class Clumsy(Gullible):
    """Finds that what it wants to hit has just gone."""

    def inject(self, decoy: Decoy | None = None) -> None:
        raise FileNotFoundError("/proc/7/fd")


def test_what_cannot_be_done_is_in_the_row(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAULTS, "sigkill", Clumsy)
    row = campaign.run(step("sigkill/scheduler"))
    assert row.note == "FileNotFoundError: /proc/7/fd" and not row.passed


def test_the_end_of_the_supervisor_is_the_end_of_all(campaign: Campaign) -> None:
    """The last case: the server is gone afterwards, and so must everything of it be."""
    row = campaign.run(step("sigkill/supervisor-0@end"))
    assert not row.broken and row.exit_status == -9 and row.orphans == 0
