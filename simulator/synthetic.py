"""Requests without a file: arrival processes, length distributions, and stand-ins for the public traces.

A stand-in has the published quantiles of a trace's lengths, its rate, and its burstiness (docs/simulator.md; the finer
quantiles and the rates of the Azure traces are of the first 60 % of their hour). Prompt and output are drawn
independently: in the traces their rank correlation is below 0.15, except in `bwb` (0.8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from accelgen.scheduler.table import Floats, Ints
from accelgen.simulator.rows import Rows, Stage

# --- arrivals ----------------------------------------------------------------------------------------------------


def poisson(count: int, rate: float, draw: np.random.Generator) -> Floats:
    """`count` arrival times (s) at `rate` per second, the first one at 0."""
    return gamma(count, rate, 1.0, draw)


def gamma(count: int, rate: float, cv: float, draw: np.random.Generator) -> Floats:
    """Gaps are gamma distributed with coefficient of variation `cv` (1: Poisson; above: burstier)."""
    assert count >= 1 and rate > 0 and cv > 0
    gaps = draw.gamma(1 / cv**2, cv**2 / rate, size=count)
    gaps[0] = 0
    times: Floats = np.cumsum(gaps)
    return times


@dataclass(frozen=True, slots=True)
class Bursts:
    """Two rates that take turns, each for exponentially distributed times: `duty` of the time is burst, in bursts of
    `mean_s`; between them the rate is `quiet` times the mean rate."""

    duty: float
    quiet: float
    mean_s: float

    def __post_init__(self) -> None:
        assert 0 < self.duty < 1 and 0 <= self.quiet < 1 and self.mean_s > 0

    @property
    def loud(self) -> float:
        """The rate in bursts, as a multiple of the mean rate."""
        return (1 - (1 - self.duty) * self.quiet) / self.duty


def bursty(count: int, rate: float, bursts: Bursts, draw: np.random.Generator) -> Floats:
    """`count` arrival times (s) of a Poisson process whose rate switches between bursts and quiet."""
    factors = (bursts.loud, bursts.quiet)
    means_s = (bursts.mean_s, bursts.mean_s * (1 - bursts.duty) / bursts.duty)
    parts: list[Floats] = []
    found, begin_s, phase = 0, 0.0, 0
    while found < count:
        length_s = draw.exponential(means_s[phase])
        here = draw.poisson(rate * factors[phase] * length_s)
        parts.append(begin_s + np.sort(draw.uniform(0, length_s, size=here)))
        found, begin_s, phase = found + here, begin_s + length_s, 1 - phase
    times: Floats = np.concatenate(parts)[:count]
    since: Floats = times - times[0]
    return since


# --- lengths -----------------------------------------------------------------------------------------------------


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, count: int, source: np.random.Generator) -> Ints:
        """`count` lengths, each at least 1."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A table: `values[i]` tokens at share `shares[i]`; between two of them the logarithm is interpolated."""

    values: tuple[int, ...]
    shares: tuple[float, ...] = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.shares) and self.values[0] >= 1
        assert list(self.values) == sorted(self.values) and list(self.shares) == sorted(self.shares)

    def draw(self, count: int, source: np.random.Generator) -> Ints:
        shares = source.uniform(0, 1, size=count)
        logs = np.interp(shares, self.shares, np.log(self.values))
        return np.maximum(1, np.rint(np.exp(logs))).astype(np.int64)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Tokens whose logarithm is normal: `median`, the 90 % quantile `p90`, cut to `low`..`high`."""

    median: float
    p90: float
    low: int = 1
    high: int = 1 << 20

    def draw(self, count: int, source: np.random.Generator) -> Ints:
        sigma = (
            np.log(self.p90 / self.median) / 1.2815515655446004
        )  # the 90 % quantile of the normal
        lengths = np.rint(self.median * np.exp(sigma * source.standard_normal(count)))
        found: Ints = np.clip(lengths, self.low, self.high).astype(np.int64)
        return found


@dataclass(frozen=True, slots=True)
class LogUniform:
    """Tokens whose logarithm is uniform between `low` and `high`."""

    low: int
    high: int

    def draw(self, count: int, source: np.random.Generator) -> Ints:
        logs = source.uniform(np.log(self.low), np.log(self.high), size=count)
        return np.rint(np.exp(logs)).astype(np.int64)


# --- stand-ins ---------------------------------------------------------------------------------------------------


_SHARES = (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1)


class Source(Protocol):
    """Where requests come from that are in no file; `rate` is 0 if they have no times."""

    @property
    def rate(self) -> float: ...

    def rows(self, name: str, count: int, seed: int) -> Rows:
        """`count` requests, or sessions."""


@dataclass(frozen=True, slots=True)
class StandIn:
    """What is published of a trace. `rate` in requests per second, 0 for a set of lengths; without `bursts` arrivals
    are a Poisson process. `thinking`: quantiles of the share of the output that is thinking."""

    prompt: Lengths
    output: Lengths
    rate: float = 0.0
    bursts: Bursts | None = None
    thinking: tuple[float, ...] = ()

    def rows(self, name: str, count: int, seed: int) -> Rows:
        """`count` requests, with times if it has a rate."""
        draw = np.random.default_rng([seed, 7])
        prompt, output = self.prompt.draw(count, draw), self.output.draw(count, draw)
        at_s = None
        if self.rate and self.bursts:
            at_s = bursty(count, self.rate, self.bursts, draw)
        elif self.rate:
            at_s = poisson(count, self.rate, draw)
        thinking = self._thinking(output, draw) if self.thinking else None
        name, digest = f"synthetic:{name}", f"synthetic-1-{seed}"
        return Rows(name, digest, at_s, prompt, output, thinking=thinking)

    def _thinking(self, output: Ints, draw: np.random.Generator) -> Ints:
        shares = np.interp(draw.uniform(0, 1, size=len(output)), _SHARES, self.thinking)
        found: Ints = np.minimum(np.rint(shares * output), output - 1).astype(np.int64)
        return found


@dataclass(frozen=True, slots=True)
class Loops:
    """Sessions in which a model calls tools until it can answer: the number of calls is geometric with mean `calls`,
    the answer included. Each prompt is all that was said, and the tool's `result`, there after an exponential time."""

    prompt: Lengths
    call: Lengths
    result: Lengths
    answer: Lengths
    calls: float
    tool_s: float
    rate: float = 0.0

    def rows(self, name: str, count: int, seed: int) -> Rows:
        draw = np.random.default_rng([seed, 7])
        numbers = draw.geometric(1 / self.calls, size=count)
        total = int(numbers.sum())
        prompts, results = self.prompt.draw(count, draw), self.result.draw(total, draw)
        calls, answers = self.call.draw(total, draw), self.answer.draw(count, draw)
        waits_s = draw.exponential(self.tool_s, size=total)
        first: list[int] = []
        later: list[tuple[Stage, ...]] = []
        at = 0
        for i, number in enumerate(numbers.tolist()):
            outputs = [*calls[at : at + number - 1].tolist(), int(answers[i])]
            said = int(prompts[i])
            stages = []
            for k in range(1, number):
                said += outputs[k - 1]
                prompt = said + int(results[at + k])
                stages.append(Stage(prompt, outputs[k], float(waits_s[at + k]), said))
                said = prompt
            first.append(outputs[0])
            later.append(tuple(stages))
            at += number
        output = np.array(first, dtype=np.int64)
        digest = f"synthetic-1-{seed}"
        return Rows(f"synthetic:{name}", digest, None, prompts, output, later=later)


STAND_INS: dict[str, Source] = {
    "azure2023_conv": StandIn(
        Quantiles((2, 42, 191, 369, 397, 1024, 1234, 4076, 4086, 4123, 14050)),
        Quantiles((7, 16, 38, 49, 79, 115, 394, 423, 451, 601, 1000)),
        5.87,
        Bursts(duty=0.5, quiet=0.8, mean_s=120),  # variance/mean of counts: 1.3 in 1 s, 15 in 60 s
    ),
    "azure2023_code": StandIn(
        Quantiles((3, 17, 75, 146, 578, 1460, 2715, 5047, 7382, 7436, 7437)),
        Quantiles((6, 6, 6, 7, 9, 13, 23, 55, 87, 247, 1899)),
        3.17,
        Bursts(duty=0.3, quiet=0.0, mean_s=15.4),  # gaps have CV 13; variance/mean 161 in 60 s
    ),
    "mooncake_conversation": StandIn(
        Quantiles((891, 894, 901, 964, 2306, 6909, 15367, 27367, 39550, 85400, 126195)),
        Quantiles((1, 3, 10, 24, 156, 350, 472, 597, 698, 1118, 2000)),
        3.4,
    ),
    "lengths_sharegpt_8k_llama2": StandIn(
        Quantiles((1, 12, 29, 74, 580, 1730, 3734, 5696, 6563, 7433, 8141)),
        Quantiles((2, 6, 44, 84, 228, 415, 628, 834, 920, 998, 1024)),
    ),
    "lengths_sharegpt_val10k_llama2": StandIn(
        Quantiles((1, 2, 7, 9, 15, 35, 143, 761, 1423, 2862, 3973)),
        Quantiles((3, 10, 23, 43, 136, 286, 446, 681, 839, 1000, 1734)),
    ),
    "lengths_arxiv_summarization_llama2": StandIn(
        Quantiles((1, 73, 748, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4054)),
        Quantiles((5, 36, 60, 78, 115, 167, 242, 372, 736, 3271, 4056)),
    ),
    "lengths_bwb_llama2": StandIn(
        Quantiles((5, 405, 682, 789, 915, 1037, 1178, 1453, 1584, 1800, 3504)),
        Quantiles((6, 540, 1017, 1209, 1421, 1601, 1768, 2149, 2342, 2533, 2858)),
    ),
    "servegen_deepseek-r1_1h_resampled": StandIn(
        Quantiles((4, 8, 35, 78, 172, 302, 705, 3081, 10976, 28909, 56956)),
        Quantiles((28, 109, 171, 231, 338, 484, 860, 1480, 2170, 10542, 30060)),
        14.08,
        Bursts(duty=0.5, quiet=0.72, mean_s=120),
        (0.021, 0.243, 0.339, 0.409, 0.534, 0.697, 0.907, 0.956, 0.971, 0.989, 0.998),
    ),
    # Long prompts as in AccelGen's mixed trace (arXiv 2503.13737: 4,000 to 100,000 tokens, outputs up to 2,048), as far
    # as 12 GB of KV for OPT-13B hold them beside their output (14,648 tokens).
    "long_prompts": StandIn(LogUniform(4000, 12000), LogNormal(median=286, p90=681, high=2048)),
    # HumanEval: the means that DistServe gives (OSDI'24, figure of its datasets: 171.3, 98.2); the spread is ours.
    "humaneval": StandIn(
        LogNormal(median=151, p90=287, low=20, high=1024),
        LogNormal(median=77, p90=189, low=5, high=1024),
    ),
    # ToolBench: 4.0 steps on average (arXiv 2307.16789, table 1); lengths and times of tools: ours, nobody gives any.
    "toolbench": Loops(
        prompt=LogNormal(median=1200, p90=2400, low=200, high=4000),
        call=LogNormal(median=60, p90=120, low=10, high=512),
        result=LogNormal(median=200, p90=800, low=20, high=2000),
        answer=LogNormal(median=150, p90=350, low=10, high=1024),
        calls=4.0,
        tool_s=1.0,
    ),
}
