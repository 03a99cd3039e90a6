"""`qoserve`: QoServe, also called Niyama (ASPLOS'26), as its public code does it (docs/policies.md; read in
microsoft/sarathi-serve, branch niyama_asplos2026, `deadline_scheduler.py` and `sequence.py`).

1. All decodes join (at most `chunk_size`, most slack first). A decode's slack is its next deadline minus now, the
   deadline of its next token being arrival + max(time its prompt took, TTFT deadline) + (generated + 1) * TBT.
2. Dynamic chunking: the largest total of tokens in a fixed grid whose predicted time * 1.2 is within the least slack,
   by binary search; the smallest if there is no slack. The grid is short when memory is (free tokens / 32 < 1000).
3. Hybrid priority: prompts, begun or not, ascending by arrival + TTFT deadline + alpha * prompt tokens left. One with
   an end-to-end objective has the TTFT deadline that leaves 0.4 s for each predicted output token.
4. Eager relegation: a prompt that has not begun and would miss its deadline at the present prefill throughput (moving
   average, from 8500 tokens/s) is flagged, and served after all others.

Reconstructed: the code asserts when blocks run out; here the prompt of lowest priority is recomputed, then the decode
of lowest priority. Tiers are drawn at random there; here a request is of the batch tier if an end-to-end objective is
all that it states. Predicted times are those of the device's own fitted model, as in the paper, because the code's two
linear pieces are a fit of Llama-3-8B on an A100: `published_times` takes them. At most 512 are flagged per iteration.
`alpha_s` 0, `relegation` and `dynamic_chunking` false are the arms of the paper's ablation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from heapq import merge
from itertools import islice

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.chunk_search import fitted_s, largest_within, published_s
from accelgen.scheduler.policies.prompts import NOBODY, Place, keep_known, take_prompts
from accelgen.scheduler.policies.shared import (
    Batch,
    at_least,
    least_load,
    make_room,
    take_decodes,
)
from accelgen.scheduler.policies.slack import first_token_due_s, next_token_due_s
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import FAR_S, Floats, Ints, RequestTable

GRID = (128, *range(256, 2049, 256), 2552)  # tokens of a batch, decodes included
SHORT_GRID = (128, 256, 384, 512)
MEMORY_SHARE, SHORT_TOKENS = 32, 1000
MARGIN = 1.2  # on predicted times
DECAY = 0.995
RELEGATED_S = 10 * FAR_S  # added to the key of a relegated prompt
MOST_FLAGGED = 512  # per iteration; each costs about 10 microseconds


class Memory(Struct, frozen=True):
    """What the rule remembers: relegated requests by id, the prefill throughput in tokens/s, and when the last
    iteration began and whose prompts it was to have, by id."""

    throughput: float
    relegated: frozenset[int] = frozenset()
    prompts: tuple[int, ...] = ()
    begun_s: float = 0.0


class QoServe:
    name = "qoserve"

    def __init__(
        self, alpha_s: float = 0.008, chunk_size: int = 256, offline_tpot_s: float = 0.4,
        prefill_tokens_s: float = 8500.0, dynamic_chunking: bool = True, relegation: bool = True,
        published_times: bool = False,
    ) -> None:  # fmt: skip
        at_least("alpha_s", alpha_s, 0, "s per token")
        at_least("chunk_size", chunk_size, 1, "tokens")
        at_least("offline_tpot_s", offline_tpot_s, 0, "s")
        at_least("prefill_tokens_s", prefill_tokens_s, 1, "tokens/s")
        self.alpha_s, self.chunk_size, self.offline_tpot_s = alpha_s, chunk_size, offline_tpot_s
        self.prefill_tokens_s = prefill_tokens_s
        self.dynamic_chunking, self.relegation = dynamic_chunking, relegation
        self.published_times = published_times

    def initial(self) -> Memory:
        return Memory(self.prefill_tokens_s)

    def order_key(self, view: View, slot: int, state: Memory) -> float:
        return float(self._keys(view.table, np.array([slot]), state)[0])

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Memory, start_s: float) -> tuple[Decision, Memory]:
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        decodes, begun = ready[decode], ready[~decode]
        slack_s = next_token_due_s(table, decodes, self.offline_tpot_s) - start_s
        first = np.argsort(-slack_s, kind="stable")[: self.chunk_size]
        batch = Batch(view, len(first))
        victims = partial(self._victims, state)
        take_decodes(batch, decodes[first], victims)
        throughput = _throughput(view, state, start_s)
        late: list[Place] = []
        keys = self._keys(table, begun, state)
        batch.tokens = self._prompt_tokens(
            view,
            decodes[first],
            _prior(table, begun, keys),
            float(slack_s[first].min(initial=FAR_S)),
        )
        decoding = len(batch.slots)
        waiting = self._feasible(table, start_s, throughput, late)
        take_prompts(batch, begun, keys, waiting)
        make_room(batch, ready, victims)
        decision = batch.decision()
        ids = table.ids[[slot for _, slot in late]].tolist() if late else []
        relegated = keep_known(state.relegated, ids, table)
        prompts = table.ids[batch.slots[decoding:]].tolist()
        state = Memory(throughput, relegated, tuple(prompts), start_s)
        taken = set(batch.slots)
        left = np.array([slot for _, slot in late if slot not in taken], dtype=np.int64)
        keys = self._keys(table, left, state)
        decision.requeue = dict(zip(left.tolist(), keys.tolist(), strict=True))
        return decision, state

    def observe(self, step: StepStats, state: Memory) -> Memory:
        return state

    def _victims(self, state: Memory, view: View) -> Ints:
        """Prompts, then decodes, of lowest priority first."""
        table, running = view.table, view.table.running
        return running[np.lexsort((-self._keys(table, running, state), is_decode(table, running)))]

    def _keys(self, table: RequestTable, slots: Ints, state: Memory) -> Floats:
        """Hybrid priority, [n]; relegated ones after all others."""
        left = table.length[slots] - table.computed[slots]
        keys = first_token_due_s(table, slots, self.offline_tpot_s) + self.alpha_s * left
        if state.relegated:
            ids = table.ids[slots].tolist()
            keys += RELEGATED_S * np.array([id in state.relegated for id in ids], dtype=np.float64)
        return keys

    def _feasible(
        self, table: RequestTable, now_s: float, throughput: float, late: list[Place]
    ) -> Iterator[Place]:
        """Waiting prompts in order. Whoever is found to be too late moves behind the others, and into `late`."""
        places = table.waiting.irange(maximum=(RELEGATED_S / 2, -1))
        while found := list(islice(places, 64)):
            slots = np.array([slot for _, slot in found])
            takes_s = (table.length[slots] - table.computed[slots]) / throughput
            misses = now_s + takes_s > first_token_due_s(table, slots, self.offline_tpot_s)
            for place, is_late in zip(found, misses.tolist(), strict=True):
                if self.relegation and is_late:
                    late.append((place[0] + RELEGATED_S, place[1]))
                else:
                    yield place
            if len(late) >= MOST_FLAGGED:
                return
        yield from merge(sorted(late), table.waiting.irange(minimum=(RELEGATED_S / 2, -1)))

    def _prompt_tokens(self, view: View, decodes: Ints, prior: int, slack_s: float) -> int:
        """Prompt tokens of the batch; the first prompt has computed `prior` tokens."""
        most = max(0, view.limits.max_num_batched_tokens - len(decodes))
        if not self.dynamic_chunking:
            return min(most, max(0, self.chunk_size - len(decodes)))
        context = int(view.table.computed[decodes].sum())
        short = view.free_blocks * view.table.block_size // MEMORY_SHARE < SHORT_TOKENS
        seconds = published_s if self.published_times else fitted_s

        def takes_s(total: int) -> float:
            prefill = max(0, total - len(decodes))
            return MARGIN * seconds(view.cost, prefill, prior, len(decodes), context)

        total = largest_within(SHORT_GRID if short else GRID, takes_s, slack_s)
        return min(most, max(0, total - len(decodes)))


def _prior(table: RequestTable, begun: Ints, keys: Floats) -> int:
    """Computed tokens of the first of all prompts, begun or waiting."""
    first = table.waiting[0] if table.waiting else NOBODY
    if len(begun):
        first = min(first, (float(keys.min()), int(begun[keys.argmin()])))
    return 0 if first is NOBODY else int(table.computed[first[1]])


def _throughput(view: View, state: Memory, now_s: float) -> float:
    """Moving average of prompt tokens per second, with what the iteration that has just ended really had."""
    took_s = now_s - state.begun_s
    tokens = sum(view.last.get(id, 0) for id in state.prompts)
    if not tokens or took_s <= 0:
        return state.throughput
    return DECAY * state.throughput + (1 - DECAY) * tokens / took_s
