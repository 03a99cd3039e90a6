"""AccelGen's own setting: every policy over rates, ratios beside the paper's ranges, ablations beside its losses."""

from __future__ import annotations

from accelgen.simulator.groups import Group, Read, figure_of
from accelgen.simulator.published import ABLATIONS, ACCELGEN
from accelgen.simulator.shown import (
    NONE,
    Cell,
    Figure,
    Panel,
    Table,
    number,
    text,
)
from accelgen.simulator.study import Ask, Found, Scale, Section, faults, sweep
from accelgen.simulator.study_ratios import (
    ARMS,
    ATTAINED,
    BASELINES,
    GAP,
    GOODPUT,
    ME,
    TOKENS,
    WITHOUT,
    ablations,
    ratio_figure,
    ratios,
    reached,
)


def best_rate(found: Found, workload: str, arm: str = ME) -> float | None:
    """Where the arm's goodput is highest."""
    means = {rate: found.mean(workload, arm, rate, GOODPUT) for rate in found.rates(workload)}
    known = {rate: value for rate, value in means.items() if value is not None}
    return max(known, key=lambda rate: known[rate]) if known else None


def looked_at(found: Found, workload: str) -> list[float]:
    """The rate of AccelGen's highest goodput, and the highest rate."""
    best = best_rate(found, workload)
    rates = found.rates(workload)
    return sorted({*([best] if best is not None else []), *rates[-1:]})


# --- tables ----------------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Read, str, float], ...] = (
    ("goodput req/s", GOODPUT, "{:.3f}", 1),
    ("attained %", ATTAINED, "{:.1f}", 100),
    ("TTFT kept %", figure_of("judged.ttft"), "{:.1f}", 100),
    ("every gap kept %", figure_of(f"judged.tpot.{GAP}"), "{:.1f}", 100),
    ("tokens/s", TOKENS, "{:.0f}", 1),
    ("req/s", figure_of("request_throughput"), "{:.3f}", 1),
    ("JCT mean s", figure_of("latency.jct_s.mean"), "{:.1f}", 1),
    ("TTFT p99 s", figure_of("latency.ttft_s.p99"), "{:.1f}", 1),
    ("KV used %", figure_of("machine.kv_utilisation"), "{:.0f}", 100),
    ("compute %", figure_of("machine.compute_utilisation"), "{:.0f}", 100),
    ("preemptions", figure_of("machine.preemptions"), "{:.0f}", 1),
)


def _policies(found: Found, workload: str) -> list[Table]:
    tables = []
    for rate in looked_at(found, workload):
        groups = [found.group(workload, arm, rate) for arm in found.arms(workload)]
        best = max((group.mean(GOODPUT) or 0.0 for group in groups), default=0.0)
        heads = ["policy", *(head for head, *_ in _COLUMNS)]
        rows = [_policy_row(group, best) for group in groups if group.results]
        title = f"{workload}: every policy at {rate:g} requests/s"
        made = found.made(workload)
        tables.append(Table(f"{workload}-at-{rate:g}", title, heads, rows, made))
    return tables


def _policy_row(group: Group, best: float) -> list[Cell]:
    if group.fault and not group.values(GOODPUT):
        return [text(group.policy), text("failed", "fault"), *[NONE] * (len(_COLUMNS) - 1)]
    cells = [number(group.mean(read), form, factor) for _, read, form, factor in _COLUMNS]
    if best > 0 and group.mean(GOODPUT) == best:
        cells[0] = Cell(cells[0].text, cells[0].value, "best")
    name = group.policy + (" (a seed failed)" if group.fault else "")
    return [text(name, "fault" if group.fault else ""), *cells]


# --- figures ------------------------------------------------------------------------------------------------------


def _figures(found: Found, workload: str) -> list[Figure]:
    whole = [arm for arm in found.arms(workload) if arm not in WITHOUT]
    parts = [ME, *(arm for arm in WITHOUT if arm in found.arms(workload))]
    made = found.made(workload)
    return [
        Figure(f"{workload}-sweep", f"{workload}: every policy over the rate", _panels(found, workload, whole), made),
        ratio_figure(found, workload),
        Figure(
            f"{workload}-ablations", f"{workload}: without each part", _panels(found, workload, parts)[:4], made
        ),
    ]  # fmt: skip


def _panels(found: Found, workload: str, arms: list[str]) -> list[Panel]:
    def panel(title: str, unit: str, path: str, scale: str = "linear", factor: float = 1) -> Panel:
        series = sweep(found, workload, arms, figure_of(path), factor)
        return Panel(title, "requests/s sent", unit, series, x_scale="log", y_scale=scale)  # type: ignore[arg-type]

    return [
        panel("Goodput, every gap", "requests/s that attain", f"goodput.{GAP}"),
        panel(
            "Attainment, every gap", "% of requests sent", f"judged.attainment.{GAP}", factor=100
        ),
        panel("Throughput", "output tokens/s", "token_throughput"),
        panel("Job completion time, mean", "s", "latency.jct_s.mean", "log"),
        panel("Time to first token, 99th percentile", "s", "latency.ttft_s.p99", "log"),
        panel("Time per output token, 99th percentile", "s", "latency.tpot_s.p99", "log"),
    ]


# --- sentences ----------------------------------------------------------------------------------------------------


def _say(found: Found, workload: str) -> list[str]:
    said = []
    for rate in looked_at(found, workload):
        said += [reached(found, workload, rate), _why(found, workload, rate)]
    return [*filter(None, said), *faults(found, workload)]


def _why(found: Found, workload: str, rate: float) -> str:
    """Where requests are lost, by accelgen and by the best baseline, and which resource is short."""
    means = {arm: found.mean(workload, arm, rate, GOODPUT) for arm in BASELINES}
    known = {arm: value for arm, value in means.items() if value is not None}
    ours = found.mean(workload, ME, rate, GOODPUT)
    if ours is None or not known:
        return ""
    best = max(known, key=lambda arm: known[arm])
    ratio = f"{ours / known[best]:.2f} times " if known[best] else ""
    words = [
        f"At {rate:g} req/s accelgen's goodput is {ours:.3f} req/s, {ratio}that of {best} ({known[best]:.3f}), the best"
        f" of the paper's baselines here."
    ]
    for arm in (ME, best):
        group = found.group(workload, arm, rate)

        def share(path: str, group: Group = group) -> float:
            return 100 * (group.mean(figure_of(path)) or 0.0)

        words.append(
            f"Of {arm}'s requests {100 - share('judged.ttft'):.0f} % miss the first token's objective and"
            f" {100 - share(f'judged.tpot.{GAP}'):.0f} % some gap's; KV blocks are in use to"
            f" {share('machine.kv_utilisation'):.0f} %, compute to {share('machine.compute_utilisation'):.0f} %,"
            f" {group.mean(figure_of('machine.preemptions')) or 0:.0f} preemptions,"
            f" {group.mean(figure_of('machine.batch')) or 0:.1f} requests per iteration."
        )
    return " ".join(words)


# --- the sections ----------------------------------------------------------------------------------------------------


def _section(workload: str, title: str, about: str) -> Section:
    def asks(scale: Scale) -> list[Ask]:
        scenario = scale.scenario(workload)
        return scale.grid(workload, scenario, ARMS, scale.pick(scenario.rates))

    def tabulate(found: Found) -> list[Table]:
        rates = looked_at(found, workload)
        compared = [ratios(found, workload, rates), ablations(found, workload, rates)]
        return [*_policies(found, workload), *compared]

    return Section(
        name=workload,
        title=title,
        about=about,
        asks=asks,
        tabulate=tabulate,
        draw=lambda found: _figures(found, workload),
        say=lambda found: _say(found, workload),
        published=(*ACCELGEN, *ABLATIONS.values()),
    )


SECTIONS = (
    _section(
        "accelgen",
        "AccelGen's setting",
        "OPT-13B on one A100 with 12 GB of KV, 35 % long prompts, Poisson arrivals, objectives of the paper. Does"
        " accelgen do better than the systems it was compared with, by as much as the paper says?",
    ),
    _section(
        "accelgen_long",
        "AccelGen's setting, longer prompts",
        "The same with long prompts of 4,000 to 12,000 tokens, as long as 12 GB of KV allow.",
    ),
    _section(
        "accelgen_offline",
        "AccelGen's setting, a fifth offline",
        "The same with a fifth of the requests that have a completion time instead of objectives for each token.",
    ),
)
