"""The request table of one replica: a column per fact (numpy), a slot per request, slots reused.

Columns are *projected*: they count everything that has been planned, as if the iterations in flight had already
ended. `length` is the number of tokens a request will then have (prompt + sampled), `computed` how
many of them have their keys and values in the cache. `length - computed` tokens wait to be processed: many for a
prompt, one for a request that decodes, none for one whose last allowed token is in flight. Drafted tokens in flight
count as if all of them were accepted, until `settle`.

A request can have its KV on the host: it is *away*, waits, and holds no blocks, so that `block_demand` asks for all of
them. While the KV is being copied there or back the request is *moving*: neither waiting nor running, it holds blocks.

While a plan is made, *terms* of the memory policy can hold: what a request must be given beyond its tokens (padding),
and what others lend it (offered). `block_demand` goes by them, and so does every policy.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedList

from accelgen.scheduler.request import Request

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FAR_S = 1e9  # "no objective": later than everything, yet finite, so that differences stay ordered


class State(IntEnum):
    FREE = 0
    ARRIVING = 1  # looked up, not yet visible to the policy
    MOVING = 2  # its KV is being copied to the host, or back
    WAITING = 3  # in the queue: never started, or preempted
    RUNNING = 4  # holds KV blocks


# Comparing with an enum member costs a microsecond each time in a loop; these are the same numbers.
FREE, ARRIVING, MOVING, WAITING, RUNNING = map(int, State)

_COLUMNS: dict[str, type] = {
    "ids": np.int64,
    "state": np.int8,
    "length": np.int64,
    "computed": np.int64,
    "prompt_len": np.int64,
    "limit": np.int64,  # prompt + max_tokens: `length` never exceeds it
    "blocks": np.int64,  # KV blocks held
    "away": np.int64,  # tokens whose KV is on the host: `computed`, or 0
    "arrival_s": np.float64,
    "first_due_s": np.float64,  # arrival + TTFT objective
    "tpot_s": np.float64,  # of the stage that it is in
    "tightest_s": np.float64,  # the smallest of this stage's and of those that follow
    "shift_s": np.float64,  # of its cumulative deadlines: what another pace before this stage's has made of them
    "end_due_s": np.float64,  # arrival + end-to-end objective
    "first_s": np.float64,  # time of the first token, FAR_S before it
    "last_s": np.float64,  # (predicted) time of the newest token; arrival before the first
    "predicted_output": np.int64,  # tokens, an estimate
    "predicted_range": np.int64,  # of its errors, in tokens; negative if it is rather too high
    "padding": np.int64,  # terms: blocks that a waiting request must be given beyond its tokens
    "offered": np.int64,  # terms: blocks that do not come out of the free ones
    "key": np.float64,  # place in the waiting order, given by the policy
    "drafted": np.int64,  # tokens of `length` that are drafts in flight: fewer of them may be accepted
    "draft_hits": np.float64,  # drafted tokens accepted, and judged, lately (scheduler/speculation.py)
    "draft_trials": np.float64,
}


class RequestTable:
    """Columns, the waiting order, and the `Request` of every slot. Grows by doubling; raises nothing."""

    ids: Ints
    state: NDArray[np.int8]
    length: Ints
    computed: Ints
    prompt_len: Ints
    limit: Ints
    blocks: Ints
    away: Ints
    arrival_s: Floats
    first_due_s: Floats
    tpot_s: Floats
    tightest_s: Floats
    shift_s: Floats
    end_due_s: Floats
    first_s: Floats
    last_s: Floats
    predicted_output: Ints
    predicted_range: Ints
    padding: Ints
    offered: Ints
    key: Floats
    drafted: Ints
    draft_hits: Floats
    draft_trials: Floats

    def __init__(self, block_size: int, capacity: int = 256) -> None:
        self.block_size = block_size
        self.requests: list[Request | None] = [None] * capacity
        self.slot_of: dict[int, int] = {}
        self.waiting: SortedList = SortedList()  # of (key, slot)
        self._running: dict[int, None] = {}  # slots in the order they started
        self._returning: dict[int, None] = {}  # slots whose KV is on its way back
        self.num_away = 0  # waiting requests whose KV is on the host
        self._free = list(range(capacity - 1, -1, -1))
        self._running_array: Ints | None = None
        self.waiting_tokens = 0  # tokens to process in ARRIVING and WAITING
        self.has_terms = False
        self.lenders: dict[int, int] = {}  # terms: by slot of who is offered blocks, whose they are
        for name, kind in _COLUMNS.items():
            setattr(self, name, np.zeros(capacity, dtype=kind))

    def __len__(self) -> int:
        return len(self.slot_of)

    @property
    def running(self) -> Ints:
        """Slots of running requests, oldest start first."""
        if self._running_array is None:
            self._running_array = np.fromiter(
                self._running, dtype=np.int64, count=len(self._running)
            )
        return self._running_array

    @property
    def returning(self) -> Ints:
        """Slots whose KV is on its way back from the host: they hold blocks, and will run."""
        return np.fromiter(self._returning, dtype=np.int64, count=len(self._returning))

    @property
    def seated(self) -> int:
        """How many requests run or are about to: what counts against the most sequences."""
        return len(self._running) + len(self._returning)

    def add(self, request: Request, arrival_s: float) -> int:
        """A slot for a request that has arrived; not visible to the policy until `enqueue`."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        objective = request.objective
        self.ids[slot] = request.id
        self.state[slot] = ARRIVING
        self.length[slot] = len(request.prompt) + len(request.generated)
        self.computed[slot] = self.blocks[slot] = self.away[slot] = 0
        self.key[slot] = 0.0  # not yet given
        self.prompt_len[slot] = len(request.prompt)
        self.limit[slot] = len(request.prompt) + request.max_tokens
        self.arrival_s[slot] = self.last_s[slot] = arrival_s
        self.first_s[slot] = FAR_S
        self.first_due_s[slot] = arrival_s + _or_far(objective.ttft_s)
        thinking, response_s = objective.thinking, _or_far(objective.tpot_s)
        self.tpot_s[slot] = response_s if thinking is None else _or_far(thinking.tpot_s)
        self.tightest_s[slot] = min(response_s, self.tpot_s[slot])
        self.shift_s[slot] = 0.0
        self.end_due_s[slot] = arrival_s + _or_far(objective.e2e_s)
        self.predicted_output[slot], self.predicted_range[slot] = request.max_tokens, 0
        self.drafted[slot] = self.draft_hits[slot] = self.draft_trials[slot] = 0
        self.requests[slot] = request
        self.slot_of[request.id] = slot
        self.waiting_tokens += int(self.length[slot])
        return slot

    def enqueue(self, slot: int, key: float) -> None:
        """The request enters the waiting order (from ARRIVING, or from RUNNING by preemption)."""
        assert self.state[slot] != WAITING
        self._leave(slot)
        self.state[slot] = WAITING
        self.key[slot] = key
        self.waiting.add((key, slot))
        self.waiting_tokens += int(self.length[slot] - self.computed[slot])

    def respond(self, slot: int, thought: int, now_s: float) -> None:
        """Its thinking has ended at `now_s` with token number `thought`: from the next one on the response's objective
        holds. The line of cumulative deadlines goes on from where the thinking's ends (SLOs-Serve, arXiv 2504.08784);
        if the thinking had no objective, it begins at `now_s`."""
        thinking_s = float(self.tpot_s[slot])
        response_s = _or_far(self.request(slot).objective.tpot_s)
        self.tpot_s[slot] = self.tightest_s[slot] = response_s
        shift_s = (thought - 1) * (thinking_s - response_s)
        if thinking_s >= FAR_S:
            begin_s, due_s = float(self.first_s[slot]), float(self.first_due_s[slot])
            begin_s = max(begin_s, due_s) if due_s < FAR_S / 2 else begin_s
            shift_s = now_s - begin_s - (thought - 1) * response_s
        self.shift_s[slot] = 0.0 if response_s >= FAR_S else shift_s

    def move(self, slot: int, key: float) -> None:
        """Gives a waiting request another place in the waiting order."""
        assert self.state[slot] == WAITING
        self.waiting.remove((float(self.key[slot]), slot))
        self.key[slot] = key
        self.waiting.add((key, slot))

    def start(self, slot: int) -> None:
        """The request leaves the queue and runs."""
        self._leave(slot)
        self.state[slot] = RUNNING
        self._running[slot] = None
        self._running_array = None

    def hit(self, slot: int, tokens: int, away: bool = False) -> None:
        """The first `tokens` of a waiting request are (or, with 0, are no longer) in the cache, or `away` on the
        host."""
        assert self.state[slot] in (ARRIVING, WAITING)
        self.waiting_tokens -= tokens - int(self.computed[slot])
        self.computed[slot] = tokens
        self.blocks[slot] = 0 if away else tokens // self.block_size
        self._set_away(slot, tokens if away else 0)

    def go_out(self, slot: int) -> None:
        """The KV of a running request begins to go to the host. It keeps its blocks until `went_out`."""
        assert self.state[slot] == RUNNING
        self._leave(slot)
        self.state[slot] = MOVING

    def went_out(self, slot: int, key: float, kept: bool = True) -> None:
        """It is there, and the request waits; or it was dropped instead (`kept` false)."""
        assert self.state[slot] == MOVING and slot not in self._returning
        self.blocks[slot] = 0
        if not kept:
            self.computed[slot] = 0
        self._set_away(slot, int(self.computed[slot]))
        self.enqueue(slot, key)

    def come_back(self, slot: int) -> None:
        """The KV of a waiting request begins to come back from the host, into blocks of its own."""
        assert self.state[slot] == WAITING and self.away[slot]
        blocks = -(-self.computed[slot] // self.block_size)
        self._leave(slot)
        self.state[slot] = MOVING
        self.blocks[slot] = blocks
        self._set_away(slot, 0)
        self._returning[slot] = None

    def came_back(self, slot: int) -> None:
        """It is here, and the request runs."""
        assert self.state[slot] == MOVING and slot in self._returning
        self.start(slot)

    def stayed(self, slot: int, key: float) -> None:
        """It could not come back: the request waits on."""
        assert self.state[slot] == MOVING and slot in self._returning
        self._set_away(slot, int(self.computed[slot]))
        self.blocks[slot] = 0
        self.enqueue(slot, key)

    def remove(self, slot: int) -> Request:
        """Frees the slot; the request is over."""
        request = self.requests[slot]
        assert request is not None
        self._leave(slot)
        self._set_away(slot, 0)
        self.state[slot] = FREE
        self.requests[slot] = None
        del self.slot_of[request.id]
        self._free.append(slot)
        return request

    def request(self, slot: int) -> Request:
        """The request in a used slot."""
        found = self.requests[slot]
        assert found is not None
        return found

    def remaining(self, slots: Ints) -> Ints:
        """Tokens that can be processed now, [len(slots)]; 0 where the last allowed token is in flight."""
        remaining: Ints = self.length[slots] - self.computed[slots]
        remaining[self.length[slots] >= self.limit[slots]] = 0
        return remaining

    def used_blocks(self, slot: int) -> int:
        """How many blocks what is computed takes."""
        return -(-int(self.computed[slot]) // self.block_size)

    def pad(self, slots: Ints, padding: Ints) -> None:
        """Terms: requests that start must be given padding[i] >= 0 blocks beyond their tokens, [n]."""
        self.padding[slots] = padding
        self.has_terms = True

    def offer(self, slot: int, blocks: int, lender: int = -1) -> None:
        """Terms: so many blocks need not be free for a request, since they are those of the slot `lender`, or (-1) of
        what the memory policy has kept back."""
        self.offered[slot] = blocks
        if lender >= 0:
            self.lenders[slot] = lender
        self.has_terms = True

    def clear_terms(self) -> None:
        """The plan is made."""
        if self.has_terms:
            self.padding.fill(0)
            self.offered.fill(0)
            self.lenders = {}
            self.has_terms = False

    def block_demand(self, slots: Ints, counts: Ints) -> Ints:
        """Further KV blocks needed to process counts[i] tokens of slots[i]; free ones, if there are terms."""
        needed = -(-(self.computed[slots] + counts) // self.block_size)
        if self.has_terms:
            needed = needed + self.padding[slots] - self.offered[slots]
        demand: Ints = np.maximum(needed - self.blocks[slots], 0)
        return demand

    def plan(self, slots: Ints, counts: Ints, end_s: float, drafts: Ints | None = None) -> Bools:
        """Projects the columns past an iteration that processes counts[i] tokens of slots[i] and ends at `end_s`.
        `drafts` [len(slots)], of decodes only, count as accepted.

        Returns which of them will have sampled a token, [len(slots)]."""
        taken = counts if drafts is None else counts + drafts
        self.blocks[slots] += self.block_demand(slots, taken)
        self.computed[slots] += counts
        sampled: Bools = self.computed[slots] == self.length[slots]
        self.length[slots] += sampled
        if drafts is not None:
            self.computed[slots] += drafts
            self.length[slots] += drafts
            self.drafted[slots] += drafts
        self.last_s[slots[sampled]] = end_s
        return sampled

    def roll_back(self, slot: int, count: int, sampled: int, blocks: int) -> None:
        """Takes back one entry of `plan` that was dropped: `count` tokens with its drafts, `sampled` as it counted;
        `blocks` is what the request held before."""
        self.drafted[slot] -= max(sampled - 1, 0)
        self.computed[slot] -= count
        self.length[slot] -= sampled
        self.blocks[slot] = blocks

    def settle(self, slot: int, end: int, drafts: int, rejected: int) -> None:
        """An entry that ended, with its `drafts`, at `end` computed tokens has come back, and `rejected` of these were
        not accepted. Blocks that were taken for them stay: the next tokens go there. A request that was preempted
        meanwhile has fewer computed tokens than that, and they are not touched; one whose KV is on its way to the host
        has them."""
        assert 0 <= rejected <= drafts < end
        self.drafted[slot] -= drafts
        self.length[slot] -= rejected
        if self.computed[slot] >= end:
            self.computed[slot] -= rejected
        elif self.state[slot] in (ARRIVING, WAITING):
            self.waiting_tokens -= rejected

    def generated(self, slots: Ints) -> Ints:
        """How many tokens each will surely have sampled, [len(slots)]: drafts in flight do not count."""
        found: Ints = self.length[slots] - self.prompt_len[slots] - self.drafted[slots]
        return found

    def _leave(self, slot: int) -> None:
        if self.state[slot] == WAITING:
            self.waiting.remove((float(self.key[slot]), slot))
        if self.state[slot] in (ARRIVING, WAITING):
            self.waiting_tokens -= int(self.length[slot] - self.computed[slot])
        if self.state[slot] == RUNNING:
            del self._running[slot]
            self._running_array = None
        self._returning.pop(slot, None)

    def _set_away(self, slot: int, tokens: int) -> None:
        self.num_away += bool(tokens) - bool(self.away[slot])
        self.away[slot] = tokens

    def _grow(self) -> None:
        capacity = len(self.requests)
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)]))
        self.requests.extend([None] * capacity)
        self._free.extend(range(2 * capacity - 1, capacity - 1, -1))


def _or_far(duration_s: float | None) -> float:
    return FAR_S if duration_s is None else duration_s
