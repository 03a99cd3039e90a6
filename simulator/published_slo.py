"""What the papers of CacheOPT and SLOs-Serve say, each number with its source; evidence as in `published.py`."""

from __future__ import annotations

from accelgen.simulator.shown import Published

_CACHEOPT = "CacheOPT, arXiv 2503.13773, abstract"
_SLOS = "SLOs-Serve, arXiv 2504.08784"
_SLOS_ABSTRACT = f"{_SLOS}, abstract"

TAIL_TBT = Published("tail TBT", "up to 3.29 times lower", 3.29, 3.29, _CACHEOPT, "S")
TAIL_TTFT = Published("tail TTFT", "up to 2.83 times lower", 2.83, 2.83, _CACHEOPT, "S")
KEPT_TTFT = Published(
    "TTFT attainment", "up to 47 % higher (points or relative: not said)", 47, 47, _CACHEOPT, "S"
)
KEPT_TBT = Published(
    "TBT attainment", "up to 53 % higher (points or relative: not said)", 53, 53, _CACHEOPT, "S"
)
ARRIVAL_RATE = Published(
    "highest rate", "up to 1.58 times the arrival rate", 1.58, 1.58, _CACHEOPT, "S"
)
CACHEOPT = (TAIL_TBT, TAIL_TTFT, KEPT_TTFT, KEPT_TBT, ARRIVAL_RATE)
"""Tails are the 95th percentiles. Against which systems each of them holds, at which rate: no source says."""


def _slos(what: str, said: str, low: float, high: float | None = None) -> Published:
    return Published(what, said, low, low if high is None else high, _SLOS, "N")


SLOS_CAPACITY = {
    "vllm": _slos("capacity", "1.76 times vLLM's, geometric mean of six scenarios", 1.76),
    "sarathi": _slos("capacity", "1.94 times Sarathi-Serve's, geometric mean", 1.94),
    "distserve": _slos("capacity", "2.6 times DistServe's, geometric mean", 2.6),
}
"""By baseline: of slos-serve's capacity per GPU at less than 10 % violations."""
SLOS_MEAN = Published("capacity", "2.2 times, geometric mean", 2.2, 2.2, _SLOS_ABSTRACT, "S")
SLOS_CHATBOT = {
    "vllm": _slos("ChatBot at 2 %", "1.91 times vLLM's capacity", 1.91),
    "sarathi": _slos("ChatBot at 2 %", "2.19 times Sarathi-Serve's", 2.19),
    "distserve": _slos("ChatBot at 2 %", "2.4 times DistServe's", 2.4),
}
SLOS_SCENARIOS = (
    _slos("Coder", "up to 2.1 times", 2.1),
    _slos("ToolLLM", "up to 1.90 times", 1.9),
    _slos("Reasoning", "2.4 times", 2.4),
)
SLOS_REPLICAS = {
    "slos_chatbot": _slos("4 replicas, ChatBot", "4.61 times one replica's capacity", 4.61),
    "slos_toolllm": _slos("4 replicas, ToolLLM", "5.44 times", 5.44),
    "slos_coder": _slos("4 replicas, Coder", "6.2 times", 6.2),
}
SLOS_ROUTING = _slos("ablation", "routing 1.19 times", 1.19)
SLOS_SPECULATION = _slos("ablation", "speculation as objectives allow it 1.66 times", 1.66)
SLOS_BURSTS = _slos("ablation", "handling of bursts 1.34 times", 1.34)
SLOS_PLANNING = _slos("planning", "less than 10 ms always, mostly less than 2 ms", 0, 0.010)
SLOS = (
    *SLOS_CAPACITY.values(), SLOS_MEAN, *SLOS_CHATBOT.values(), *SLOS_SCENARIOS, *SLOS_REPLICAS.values(),
    SLOS_ROUTING, SLOS_SPECULATION, SLOS_BURSTS, SLOS_PLANNING,
)  # fmt: skip
