"""What several routings share: their plainest halves, turns, and what counts as load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request


class Forgetful:
    """A routing without its rule: it remembers nothing."""

    def initial(self) -> Any:
        return None

    def placed(self, request: Request, index: int, view: View, state: Any) -> Any:
        return state

    def ended(self, request: Request, index: int, view: View, state: Any) -> Any:
        return state

    def lost(self, index: int, state: Any) -> Any:
        return state


class Rotating(Forgetful):
    """It remembers who was the last to be given a request (-1: nobody yet)."""

    def initial(self) -> int:
        return -1

    def placed(self, request: Request, index: int, view: View, state: int) -> int:
        return index


def in_turn(indices: Iterable[int], last: int) -> list[int]:
    """Replicas by index from the one after `last` on, round."""
    ordered = sorted(indices)
    return [i for i in ordered if i > last] + [i for i in ordered if i <= last]


def load_of(view: View) -> int:
    """Tokens that a replica has before it, and tokens of KV that it needs for them.

    Tokens to be processed are those of waiting prompts, of what is left of running ones, and one for each decode; KV is
    what requests hold, and what those that wait will ask for. Counted together, because either may be what a new
    request has to wait for: computation at a replica with long prompts, memory and a share of each iteration at one
    with many long answers. (SGLang's balance by `total_tokens` has KV and waiting prompts; vLLM's data-parallel
    balancer counts requests instead, those that wait four times.) Prefixes that nobody uses are no load."""
    table = view.table
    pending = int(table.remaining(table.running).sum()) + table.waiting_tokens
    held = (view.total_blocks - view.free_blocks) * table.block_size
    return pending + held + table.waiting_tokens


def by_load(views: Mapping[int, View], last: int) -> list[int]:
    """Replicas by index, least load first; among equals in turn, so that none is preferred for its number."""
    loads = {index: load_of(view) for index, view in views.items()}
    return sorted(in_turn(views, last), key=lambda index: loads[index])
