"""Who is what on a replica under SLOs-Serve: admitted, new, or best effort.

What has been decided is in the policy's state, by id. The keys of the waiting order say it too: admitted requests are
ordered by deadline before all others, new ones by deadline after them, best-effort ones by arrival at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from accelgen.proto.messages import Objective
from accelgen.scheduler.policies.prompts import Place
from accelgen.scheduler.policy import is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import ARRIVING, FAR_S, Bools, Ints, RequestTable

PRIORITY_S = (
    10 * FAR_S
)  # a key is a deadline, less this of admitted ones; an arrival and this of best-effort ones
MOST_LOOKED_AT = 512  # new requests, per round
MISSED_S = 10.0  # so long it is remembered who was what: his frontend may be about to claim him
MOST_MISSED = 2048


@dataclass(frozen=True, slots=True)
class Standing:
    """Slots of a replica: admitted requests that decode, and those whose prompt is not done (running or waiting); new
    ones; best-effort ones that run."""

    decoding: Ints
    prompts: Ints
    new: Ints
    best_effort: Ints


def is_stated(objective: Objective) -> bool:
    """Whether there is anything to keep."""
    thinking_s = None if objective.thinking is None else objective.thinking.tpot_s
    stated = (objective.ttft_s, objective.tpot_s, objective.e2e_s, thinking_s)
    return any(one is not None for one in stated)


def known(
    table: RequestTable, admitted: Set[int], best_effort: Set[int]
) -> tuple[frozenset[int], frozenset[int]]:
    """Both without those who have ended, and with those who run, or have run, and were never judged: admitted, unless
    they state no objective; siblings are what their parent is."""
    more: set[int] = set()
    stray: set[int] = set()
    looked_at = [slot for _, slot in islice(new_places(table), MOST_LOOKED_AT)]
    begun = [slot for slot in looked_at if table.length[slot] > table.prompt_len[slot]]
    for slot in [*table.running.tolist(), *begun]:
        request = table.request(slot)
        if request.id in admitted or request.id in best_effort:
            continue
        is_stray = not is_stated(request.objective) or request.parent in best_effort
        (stray if is_stray else more).add(request.id)
    more.update(id for id in admitted if id in table.slot_of)
    stray.update(id for id in best_effort if id in table.slot_of)
    return frozenset(more), frozenset(stray)


def still_missed(
    table: RequestTable, judged: Set[int], missed: Mapping[int, float], now_s: float
) -> dict[int, float]:
    """Of those `judged` who are not there, and since when. They have ended, or, after a takeover, their frontends have
    not claimed them yet. `missed`: the same as of the last round; the oldest are forgotten."""
    gone = judged - table.slot_of.keys()
    since = {id: at_s for id, at_s in missed.items() if id in gone}
    since |= dict.fromkeys(sorted(gone - since.keys()), now_s)
    newest = [*since.items()][-MOST_MISSED:]
    return {id: at_s for id, at_s in newest if now_s - at_s <= MISSED_S}


def are_admitted(table: RequestTable, slots: Ints, best_effort: Set[int]) -> Bools:
    """Those that are not best effort, [n]."""
    found = [id not in best_effort for id in table.ids[slots].tolist()]
    return np.array(found, dtype=bool)


def standing_of(
    table: RequestTable, admitted: Set[int], best_effort: Set[int],
    is_promised: Callable[[Request], bool] = lambda request: False,
) -> Standing:  # fmt: skip
    """By what has been decided; the waiting order may not yet say the same. Admitted is also who `is_promised`."""
    running = table.running
    mine = are_admitted(table, running, best_effort)
    found = _sorted_out(table, running[mine], running[~mine])
    ids = table.ids[found.new].tolist()
    requests = map(table.request, found.new.tolist())
    old = np.array(
        [id in admitted or is_promised(one) for id, one in zip(ids, requests, strict=True)],
        dtype=bool,
    )
    new = ~old & np.array([id not in best_effort for id in ids], dtype=bool)
    prompts = np.concatenate([found.prompts, found.new[old]])
    return replace(found, prompts=prompts, new=found.new[new])


def standing_by_key(table: RequestTable) -> Standing:
    """Where that is not known: by the places that requests had when they waited, and, of those who were judged later or
    never waited (choices), by what the engine was told. Who has not been judged yet counts as admitted, and so does who
    has not even been looked up, but for choices that will fork."""
    running = table.running
    told = [table.request(slot).best_effort for slot in running.tolist()]
    lesser = (table.key[running] > PRIORITY_S / 2) | np.array(told, dtype=bool)
    found = _sorted_out(table, running[~lesser], running[lesser])
    used = np.array([*table.slot_of.values()], dtype=np.int64)
    arriving = used[table.state[used] == ARRIVING].tolist()
    alone = [slot for slot in arriving if not table.request(slot).parent]
    prompts = [found.prompts, found.new, np.array(alone, dtype=np.int64)]
    return replace(found, prompts=np.concatenate(prompts), new=found.new[:0])


def admitted_places(table: RequestTable) -> Iterator[Place]:
    """Of the waiting order, in order."""
    return table.waiting.irange(maximum=(-PRIORITY_S / 2, -1))  # type: ignore[no-any-return]


def new_places(table: RequestTable) -> Iterator[Place]:
    low, high = (-PRIORITY_S / 2, -1), (PRIORITY_S / 2, -1)
    return table.waiting.irange(minimum=low, maximum=high)  # type: ignore[no-any-return]


def best_effort_places(table: RequestTable) -> Iterator[Place]:
    return table.waiting.irange(minimum=(PRIORITY_S / 2, -1))  # type: ignore[no-any-return]


def _sorted_out(table: RequestTable, mine: Ints, best_effort: Ints) -> Standing:
    mine = mine[table.remaining(mine) > 0]
    decode = is_decode(table, mine)
    waiting = [slot for _, slot in admitted_places(table)]
    new = [slot for _, slot in islice(new_places(table), MOST_LOOKED_AT)]
    prompts = np.concatenate([mine[~decode], np.array(waiting, dtype=np.int64)])
    return Standing(mine[decode], prompts, np.array(new, dtype=np.int64), best_effort)
