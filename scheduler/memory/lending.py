"""Who lends what it has allocated and does not use, to whom, in the plan that is being made (CacheOPT's KV embedding,
arXiv 2503.13773, section 3.3.1).

A newcomer that can wait lives inside a host that has room for all of it while both grow (embedding.py), at most one new
guest per host and plan. A running request that has used up its allocation, while no block is free, gets the next ones
from a host, too, before anybody is preempted.

The KV manager knows hosts and guests; what is needed of that here is told by what has been decided before: a guest
does not lend, a host does not borrow, and a guest has one host as long as both run. Reconstructed: all of the second
paragraph, which the paper does not say of running requests.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec import Struct
from sortedcontainers import SortedList

from accelgen.scheduler.memory.demand import Demands
from accelgen.scheduler.memory.embedding import Embedding, Guest
from accelgen.scheduler.memory.growth import Growth
from accelgen.scheduler.table import MOVING, RUNNING, Bools, Ints, RequestTable

WINDOW = 16  # waiting requests for which a host is looked for, per plan


class Stay(Struct, frozen=True):
    """Of a guest: the request id of its host, and the tokens that it was expected to have in the end."""

    host: int
    tokens: int


Stays = Mapping[int, Stay]
"""By the request id of the guest."""


def still_there(table: RequestTable, stays: Stays) -> dict[int, Stay]:
    """Those of which guest and host still hold KV of their own: of all others the loan is over."""

    def state(id: int) -> int:
        slot = table.slot_of.get(id)
        return -1 if slot is None else int(table.state[slot])

    return {
        id: stay
        for id, stay in stays.items()
        if state(id) in (RUNNING, MOVING) and state(stay.host) == RUNNING
    }


def overstayed(table: RequestTable, slots: Ints, stays: Stays) -> Bools:
    """Which of the running `slots` are guests that have outlived their prediction, [n]."""
    late = np.zeros(len(slots), dtype=bool)
    if stays:
        length = table.length[slots].tolist()
        for at, id in enumerate(table.ids[slots].tolist()):
            stay = stays.get(id)
            late[at] = stay is not None and length[at] > stay.tokens
    return late


def lend_to_running(table: RequestTable, stays: Stays, growth: Growth, free: int) -> None:
    """Offers, to each running request that lacks blocks for the tokens it has, while `free` ones are not enough, those
    of the host with the fewest to spare that has enough; of a guest only its own host counts."""
    running = table.running
    ready = running[table.remaining(running) > 0]
    demands = table.block_demand(ready, table.length[ready] - table.computed[ready])
    if int(demands.sum()) <= free:
        return
    ids = table.ids
    unused = growth.unused(table.blocks[running], table.length[running])
    rows = zip(unused.tolist(), ids[running].tolist(), running.tolist(), strict=True)
    # Whoever lacks blocks himself has none to spare.
    hosts = {id: (spare, id, slot) for spare, id, slot in rows if spare and id not in stays}
    by_spare = SortedList(hosts.values())
    lending = {stay.host for stay in stays.values()}
    short = np.flatnonzero(demands)
    for slot, lacks in zip(ready[short].tolist(), demands[short].tolist(), strict=True):
        if lacks <= free:
            free -= lacks
            continue
        if _shares_its_tail(table, slot):
            continue
        stay = stays.get(int(ids[slot]))
        if stay is not None:
            host = hosts.get(stay.host)
        elif int(ids[slot]) in lending:
            continue
        else:
            host = next(by_spare.irange((lacks,)), None)
        if host is None or host[0] < lacks:
            continue
        spare, id, lender = host
        by_spare.remove(host)
        hosts[id] = (spare - lacks, id, lender)
        by_spare.add(hosts[id])
        lending.add(id)
        table.offer(slot, lacks, lender)


def _shares_its_tail(table: RequestTable, slot: int) -> bool:
    """Whether its last block is somebody else's, too (a fork): the copy that it will write to must be a free one."""
    held = int(table.blocks[slot]) * table.block_size
    return bool(held < table.computed[slot] and not table.away[slot])


def lend_to_waiting(
    table: RequestTable, found: Demands, may: Bools, stays: Stays, rule: Embedding, chunk: int
) -> None:
    """Offers, to the first of the waiting requests that `may` live inside another one, all the blocks that they must be
    given, in the order of the queue."""
    running = table.running
    hosts = np.array(
        [
            slot
            for slot, id in zip(running.tolist(), table.ids[running].tolist(), strict=True)
            if id not in stays and slot not in table.lenders
        ],
        dtype=np.int64,
    )
    lent = np.zeros(len(table.requests), dtype=np.int64)
    for borrower, host in table.lenders.items():
        lent[host] += table.offered[borrower]
    allocated = (table.blocks[hosts] - lent[hosts]) * table.block_size
    used = table.length[hosts]
    for at in np.flatnonzero(may)[:WINDOW].tolist():
        slot = int(found.slots[at])
        if _shares_its_tail(table, slot):
            continue
        held = int(table.blocks[slot])
        guest = Guest(
            max(1, int(table.length[slot]) - held * table.block_size),
            int(found.output[at]),
            max(1, -(-int(table.length[slot] - table.computed[slot]) // chunk)),
        )
        place = rule.best_host(allocated, used, guest)
        if place is None:
            continue
        blocks = int(found.needed[at] + table.padding[slot]) - held
        if blocks > 0:
            allocated[place] = 0  # one new guest per host and plan
            table.offer(slot, blocks, int(hosts[place]))
