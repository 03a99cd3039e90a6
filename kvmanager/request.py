"""What the KV manager knows of one request."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

from accelgen.proto.messages import Prompt

NEVER = 1 << 62  # no request has so many tokens


@dataclass(slots=True, eq=False)
class Request:
    """A request with its tokens and its block table. Counts are tokens unless they say blocks.

    `computed` leading tokens have their KV in `table`, or will have it when the worker has run what was sent to it; of
    a request that is away, in `host`. A running request can hold more blocks than it uses.
    `length` is how many tokens the worker will know then: it can be ahead of `tokens`, which holds what the scheduler
    has confirmed. A request that holds KV but has not run with it (a prefix hit, a fork) can lose it under pressure.

    Drafted tokens count in `computed` and `length` as if all were accepted, until the confirmed ones say how many were:
    `unsettled` has, for each entry with drafts that has not been confirmed, oldest first, the `length` before it and
    the number of drafts.
    """

    id: int
    tokens: array[int]
    root: bytes  # key that its hash chain starts from
    length: int
    prompt: Prompt | None  # until the worker has been told of it, or of its tokens anew
    chain: list[bytes] = field(default_factory=list)  # keys of its leading full blocks
    table: list[int] = field(default_factory=list)
    computed: int = 0
    indexed: int = 0  # leading blocks that have been offered to the prefix index
    index_at: int = (
        NEVER  # when this many tokens are computed and confirmed, the next block is full
    )
    sent: int = 0  # leading blocks of the table that the worker has
    capacity: int = 0  # it may run up to this token without a change of its table; 0 when that must be looked at
    running: bool = False  # the worker has run it with the present table
    shares_tail: bool = False  # forked: the block it writes next may belong to others, too
    introduced: bool = False  # the worker has heard of it and must be told to forget it
    follows: bool = True  # no confirmed token has been missed, so the next one can be appended
    host: list[int] = field(default_factory=list)  # blocks of the host that hold its KV: it is away
    moving: bool = False  # its KV is being copied to the host, or back
    claimed: bool = False  # not run since a takeover, but the worker has computed its table
    unsettled: list[tuple[int, int]] = field(default_factory=list)
