"""What each request needs at least, and when: the ground on which bounds on all schedules stand.

Every iteration takes, by the cost model (`simulator/device.py`), for every `theta` in [0, 1]

    at least  f + sum over its entries of v      f = a + h0 - theta * b2 * K      u = b + theta * b2
    v = u + h1 + c + d * context                 of a decode
    v = u * chunk + h1 + e * (end^2 - start^2) / 2    of a prompt chunk that ends at token `end`

because max(0, N - K) >= theta * (N - K). Penalties (mixing, prior tokens) are left out. `theta` 0 counts all of the
fixed time, 1 the whole price of a token beyond the knee; both are true, and neither is always the stronger.

The requests in an iteration hold the KV of all their tokens, in blocks that are theirs alone (those that another
request may share through the prefix cache are not counted). The shares of all blocks that they hold sum to 1 at most,
so that an iteration also takes at least the sum over its entries of `f * share + v`: the fixed time is paid for by
those whose KV fits together. Summed over a request's tokens this joins compute and KV in one currency, seconds of one
replica.

A token after the first is computed as a decode, or, if the request was preempted just before, as the last of a chunk
that recomputes at least the tokens since the last full block (what the prefix cache may have kept ends at a block). The
cheaper of the two is counted; what else a preemption costs is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from accelgen.proto.config import Config
from accelgen.scheduler.table import Floats
from accelgen.simulator.device import Device
from accelgen.simulator.times import CLOSE_S, Rule
from accelgen.simulator.worker import STOP, THINK_END, TOKEN
from accelgen.simulator.workload import OWN, Arrival, Workload

DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Model:
    """The linear pieces of a replica's iterations, in seconds, and its KV in blocks. See the formulas above."""

    fixed_s: Floats  # f, [2]: theta 0 and theta as near 1 as leaves f positive
    token_s: Floats  # u, [2]
    entry_s: float  # h1
    decode_s: float  # c
    context_s: float  # d
    attention_s: float  # e
    knee: float
    beyond_s: float  # b2
    blocks: int
    block_size: int
    most_tokens: int

    @classmethod
    def of(cls, device: Device, config: Config) -> Model:
        k = device.coefficients
        whole_s = k.a + device.host_s
        spent_s = k.b2 * k.knee
        theta = np.array([0.0, min(1.0, whole_s / spent_s) if spent_s > 0 else 1.0])
        return cls(
            fixed_s=whole_s - theta * spent_s,
            token_s=k.b + theta * k.b2,
            entry_s=device.host_sequence_s,
            decode_s=k.c,
            context_s=k.d,
            attention_s=k.e,
            knee=k.knee,
            beyond_s=k.b2,
            blocks=config.kv_blocks or device.blocks(config.block_size),
            block_size=config.block_size,
            most_tokens=config.max_num_batched_tokens,
        )

    def prompt_s(self, tokens: int, cached: int) -> float:
        """The least time of all iterations that compute a prompt after its `cached` tokens: in the best number of
        chunks, between few, and many that stay below the knee but pay the fixed time each."""
        rest = tokens - cached
        at_knee = rest / max(self.knee, 1.0)
        least = -(-rest // self.most_tokens)
        chunks = {max(least, min(rest, int(at_knee) + more)) for more in (0, 1)} | {least}
        fixed_s, token_s = float(self.fixed_s[0]), float(self.token_s[0])
        best_s = min(
            m * (fixed_s + self.entry_s) + self.beyond_s * max(0.0, rest - m * self.knee)
            for m in chunks
        )
        return best_s + token_s * rest + self.attention_s * (tokens**2 - cached**2) / 2

    def prompt_work_s(self, tokens: int, cached: int) -> Floats:
        """Sum of v over the chunks of a prompt, by theta, [2]."""
        work_s = self.entry_s + self.attention_s * (tokens**2 - cached**2) / 2
        return self.token_s * (tokens - cached) + work_s

    def decode_work_s(self, at: NDArray[np.int64]) -> Floats:
        """v of the tokens at positions `at`, by theta, [2, len(at)]: as a decode or as the end of a recomputation."""
        again = at % self.block_size + 1
        squares = (at + 1.0) ** 2 - (at + 1.0 - again) ** 2
        decode_s = self.token_s[:, None] + self.decode_s + self.context_s * at
        again_s = self.token_s[:, None] * again + self.attention_s * squares / 2
        found: Floats = np.minimum(decode_s, again_s) + self.entry_s
        return found


@dataclass(frozen=True, slots=True)
class Needs:
    """What one request needs, token by token, [n] for its n output tokens; the first stands for the whole prompt.

    Its iterations for token k begin at `release_s[k]` at the earliest, and must have ended at `latest_s[k]` if the
    request is to attain (infinite: whenever). `alone_s` is how long they take at least; `work_s` [2, n] and `share` are
    v and the share of KV blocks of the derivation above; `kept` is the share of the blocks that are full when the token
    is there. `gap_s` is the longest time between two tokens that is allowed (infinite: any)."""

    sent_s: float
    release_s: Floats
    latest_s: Floats
    alone_s: Floats
    work_s: Floats
    share: Floats
    kept: Floats
    gap_s: float
    attainable: bool

    @property
    def residence_s(self) -> float:
        """From sent to last token, with the device for itself."""
        return float(self.alone_s.sum())


def needs_of(workload: Workload, device: Device, config: Config, rule: Rule) -> list[Needs | None]:
    """By request, in order of arrival; None for one that every scheduler must refuse: it does not fit the KV."""
    model = Model.of(device, config)
    shared = _shared_tokens(workload.arrivals) if config.prefix_caching else repeat(0)
    return [
        None
        if arrival.prompt_tokens + arrival.limit_tokens > model.blocks * model.block_size
        else _needs(arrival, tokens // model.block_size, model, rule)
        for arrival, tokens in zip(workload.arrivals, shared, strict=False)
    ]


def _needs(arrival: Arrival, shared: int, model: Model, rule: Rule) -> Needs:
    """`shared`: its leading blocks that others may have, too."""
    prompt, output = arrival.prompt_tokens, arrival.output_tokens
    cached = min(shared, (prompt - 1) // model.block_size) * model.block_size
    at = prompt + np.arange(output - 1)  # the token computed for each but the first
    work_s = np.column_stack([model.prompt_work_s(prompt, cached), model.decode_work_s(at)])
    alone_s = model.fixed_s[0] + work_s[0]
    alone_s[0] = model.prompt_s(prompt, cached)
    tokens = prompt + np.arange(output)
    held = np.maximum(-(-tokens // model.block_size) - shared, 0)
    full = np.maximum(tokens // model.block_size - shared, 0)
    ends_s = arrival.at_s + np.cumsum(alone_s)
    latest_s = _latest_s(arrival, alone_s, rule)
    paces_s, gaps_s = _paces_s(arrival), alone_s[1:]
    attainable = bool((ends_s <= latest_s + CLOSE_S).all())
    if rule is Rule.EVERY_GAP:
        attainable &= bool((gaps_s <= paces_s + CLOSE_S).all())
    elif rule is Rule.MEAN:
        attainable &= _keeps_means(arrival, gaps_s)
    return Needs(
        sent_s=arrival.at_s,
        release_s=np.concatenate([[arrival.at_s], ends_s[:-1]]),
        latest_s=latest_s,
        alone_s=alone_s,
        work_s=work_s,
        share=held / model.blocks,
        kept=full / model.blocks,
        gap_s=float(paces_s.max()) if rule is Rule.EVERY_GAP and output > 1 else np.inf,
        attainable=attainable,
    )


def _latest_s(arrival: Arrival, alone_s: Floats, rule: Rule) -> Floats:
    """When each token must be there for the request to attain: by every rule the last one at arrival + F + (n - 1) G
    and arrival + D, by two of them token k at arrival + F + (k - 1) G; and each so early that the rest can follow."""
    goal, number = arrival.objective, np.arange(len(alone_s))
    first_s = np.inf if goal.ttft_s is None else arrival.at_s + goal.ttft_s
    if goal.thinking is None:
        gap_s = np.inf if goal.tpot_s is None else goal.tpot_s
        with np.errstate(invalid="ignore"):
            paced_s = first_s + np.where(number > 0, number * gap_s, 0.0)
    else:  # without an objective of its own thinking may take any time
        paced_s = first_s + np.concatenate([[0.0], np.cumsum(_paces_s(arrival))])
    end_s = float(paced_s[-1])
    if goal.e2e_s is not None:
        end_s = min(end_s, arrival.at_s + goal.e2e_s)
    after_s = alone_s.sum() - np.cumsum(alone_s)  # what follows token k
    latest_s: Floats = np.full(len(alone_s), end_s) - after_s
    if rule is not Rule.MEAN:
        latest_s = np.minimum(latest_s, paced_s)
    latest_s[0] = min(latest_s[0], first_s)
    return latest_s + CLOSE_S * (number + 2)


def _paces_s(arrival: Arrival) -> Floats:
    """The objective of each gap, [output - 1]; infinite where none is stated."""
    goal, numbers = arrival.objective, np.arange(2, arrival.output_tokens + 1)
    response_s = np.inf if goal.tpot_s is None else goal.tpot_s
    if goal.thinking is None:
        return np.full(len(numbers), response_s)
    thinking_s = np.inf if goal.thinking.tpot_s is None else goal.thinking.tpot_s
    return np.where(numbers <= arrival.thought, thinking_s, response_s)


def _keeps_means(arrival: Arrival, gaps_s: Floats) -> bool:
    """Whether the mean of the shortest gaps of each part of the answer keeps its objective."""
    thinking = max(arrival.thought - 1, 0)
    paces_s = _paces_s(arrival)
    parts = [part for part in (slice(0, thinking), slice(thinking, None)) if len(gaps_s[part])]
    return all(bool(gaps_s[part].mean() <= paces_s[part][0] + CLOSE_S) for part in parts)


def _shared_tokens(arrivals: Sequence[Arrival]) -> list[int]:
    """How many leading tokens of each request the prefix cache may have from another one, at most. Where that is the
    whole prompt it is the answer, too: all that is generated looks alike."""
    sizes = {arrival.prefix_block for arrival in arrivals if arrival.prefix}
    seen = Counter(
        arrival.prefix[: depth + 1] for arrival in arrivals for depth in range(len(arrival.prefix))
    )
    found = []
    for arrival in arrivals:
        names = 0
        while names < len(arrival.prefix) and (
            seen[arrival.prefix[: names + 1]] > 1
            or arrival.prefix[names] % OWN
            in (TOKEN, STOP, THINK_END)  # as what others have generated
            or len(sizes) > 1  # names of blocks of another size: nobody looks how far they agree
        ):
            names += 1
        tokens, prompt = names * arrival.prefix_block, arrival.prompt_tokens
        found.append(tokens if tokens < prompt else prompt + arrival.output_tokens)
    return found
