"""Faults of links, aimed: a rule that nothing can meet proves nothing."""

from __future__ import annotations

from random import Random
from unittest.mock import Mock

import pytest

from accelgen.faults.fault import Site
from accelgen.faults.link_faults import LINKS, LinkFault
from accelgen.faults.tamper import Effect, Toward


@pytest.mark.parametrize("link", LINKS)
def test_half_open_is_a_direction_in_which_something_goes(link: str) -> None:
    seen = set()
    for seed in range(20):
        fault = LinkFault(Site(Mock(), Mock(), link, Random(seed)), Effect.HALF_OPEN)
        fault._proxy = Mock()
        fault.inject()
        seen.add(fault._proxy.apply.call_args.args[0].toward)
    both = set(Toward)
    assert seen == ({Toward.BOUND} if link == "kvmanager-0-worker-0" else both)
