"""What papers say of the systems compared here, each number with its source. Evidence: S stated in the source itself
(abstract or text), N second-hand (a reader's note of the paper), C read in public code."""

from __future__ import annotations

from accelgen.simulator.shown import Published

_ACCELGEN = "AccelGen, arXiv 2503.13737"
_QOSERVE = "QoServe (Niyama), ASPLOS'26"

ACCELGEN = (
    Published(
        "goodput",
        "1.43 to 13.71 times that of existing systems",
        1.43,
        13.71,
        f"{_ACCELGEN}, abstract",
        "S",
    ),
    Published(
        "token throughput", "1.42 to 11.21 times", 1.42, 11.21, f"{_ACCELGEN}, abstract", "S"
    ),
    Published("request throughput", "1.54 to 10 times", 1.54, 10.0, _ACCELGEN, "N"),
    Published(
        "mean JCT",
        "1.61 to 12.22 times lower response latency",
        1.61,
        12.22,
        f"{_ACCELGEN}, abstract",
        "S",
    ),
    Published(
        "attainment",
        "37 to 90 % higher (points or relative: not said)",
        37,
        90,
        f"{_ACCELGEN}, abstract",
        "S",
    ),
    Published(
        "JCT attainment",
        "34 to 93 % higher, requests with a completion time",
        34,
        93,
        _ACCELGEN,
        "N",
    ),
    Published("compute utilisation", "31 to 63 % higher", 31, 63, _ACCELGEN, "N"),
    Published("unallocated KV", "7.40 to 13.20 % lower", 7.4, 13.2, _ACCELGEN, "N"),
    Published("scheduler time", "0.02 % of the mean JCT", 0.02, 0.02, _ACCELGEN, "N"),
)
"""Against vLLM, Orca, FastGen, Sarathi-Serve and FastServe."""

ORACLE = (
    Published("goodput", "6 % below the oracle", -6, -6, _ACCELGEN, "N"),
    Published("token throughput", "12 % below the oracle", -12, -12, _ACCELGEN, "N"),
    Published("attainment", "1.1 % below the oracle", -1.1, -1.1, _ACCELGEN, "N"),
    Published("mean JCT", "22 % longer than the oracle's", 22, 22, _ACCELGEN, "N"),
)

ABLATIONS = {
    ("accelgen-no-chunking", "token throughput"): Published(
        "without dynamic chunking", "token throughput -97 %", -97, -97, _ACCELGEN, "N"
    ),
    ("accelgen-no-ordering", "goodput"): Published(
        "without ordering by objectives", "goodput -52 %", -52, -52, _ACCELGEN, "N"
    ),
    ("accelgen-no-ordering", "attainment"): Published(
        "without ordering by objectives", "attainment -42 %", -42, -42, _ACCELGEN, "N"
    ),
    ("accelgen-no-ordering", "token throughput"): Published(
        "without ordering by objectives", "token throughput -35 %", -35, -35, _ACCELGEN, "N"
    ),
    ("accelgen-no-batching", "token throughput"): Published(
        "without multi-resource batching", "token throughput -61 %", -61, -61, _ACCELGEN, "N"
    ),
}
"""By policy and figure: the loss in percent."""

CODE_CAPACITY = {"sarathi": (1.45, 1.9), "edf": (2.45, 2.9), "qoserve": (3.55, 4.0)}
CONV_CAPACITY = {"sarathi": (2.5, 3.1), "edf": (3.2, 3.8), "qoserve": (4.0, 4.6)}
"""Rates that QoServe's scripts sweep around the capacity at 99 %, by our name of the policy (chunks of 256 tokens)."""

FIELD = tuple(
    Published(
        f"{policy} on Azure {trace}",
        f"rates swept: {low} to {high} req/s",
        low,
        high,
        f"{_QOSERVE}, scripts",
        "C",
    )
    for trace, rates in (("code", CODE_CAPACITY), ("conversation", CONV_CAPACITY))
    for policy, (low, high) in rates.items()
)

STAIRCASE_CAPACITY = (2.75, 3.3, 3.6, 3.65)
STAIRCASE_VIOLATIONS = (100.0, 74.0, 26.0, 16.0)
STAIRCASE = (
    Published(
        "capacity at 99 %", "EDF 2.75, + dynamic chunking 3.3, + relegation 3.6, + hybrid priority 3.65 req/s",
        2.75, 3.65, f"{_QOSERVE}, ablation", "S",
    ),
    Published("violations at 6 req/s", "100, 74, 26 and 16 %", 16, 100, f"{_QOSERVE}, ablation", "S"),
)  # fmt: skip
