"""The distance to a searched upper reference, which knows all arrivals and lengths, and to a bound that no schedule
exceeds: AccelGen's setting with few requests."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from accelgen.simulator.experiment import Result
from accelgen.simulator.groups import Group, figure_of
from accelgen.simulator.oracle import bound_of_setting, choose, searches
from accelgen.simulator.published import ORACLE
from accelgen.simulator.shown import NONE, Cell, Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Ask, Found, Run, Scale, Section, faults
from accelgen.simulator.study_ratios import ATTAINED, GOODPUT, TOKENS, WHOLE

WORKLOAD = "oracle"
CHAINS = "chains of the search"
RATES = (0.5, 1.0)
MEASURES = (
    ("goodput", GOODPUT),
    ("token throughput", TOKENS),
    ("attainment", ATTAINED),
    ("mean JCT", figure_of("latency.jct_s.mean")),
)


def _asks(scale: Scale) -> list[Ask]:
    small = scale.requests is not None
    requests = min(24 if small else 60, (scale.requests or {}).get("", 60))
    evaluations = min(40 if small else 2000, 8 * requests)
    scenario = scale.scenario("accelgen", requests=requests)
    asks = scale.grid(WORKLOAD, scenario, WHOLE, RATES)
    for rate in RATES:
        settings = [
            chain
            for setting in scale.run(WORKLOAD, scenario, WHOLE[0], rate).settings
            for chain in searches(setting, evaluations, 0, "goodput", None)
        ]
        asks.append(Run(WORKLOAD, CHAINS, rate, tuple(settings)))
    return asks


def best_of(found: Found, rate: float) -> list[Result]:
    """Per seed the best of all runs of policies and of the search: at least every policy, by construction."""
    arms = [CHAINS, *(arm for arm in found.arms(WORKLOAD) if arm != CHAINS)]
    results = [result for arm in arms for result in found.group(WORKLOAD, arm, rate).results]
    good = [result for result in results if result.summary is not None]
    seeds = sorted({result.setting.seed for result in good})
    return [choose([one for one in good if one.setting.seed == seed], "goodput") for seed in seeds]


def _bound_row(best: Sequence[Result], rate: float) -> list[Cell]:
    """The mean over the seeds; `best` has one result of each."""
    bounds = [bound_of_setting(result.setting) for result in best]
    return [
        text("no schedule more than"),
        number(rate, "{:g}"),
        number(fmean(bound.goodput for bound in bounds), "{:.3f}"),
        number(fmean(bound.attainment for bound in bounds), "{:.1f}", 100),
        *[NONE] * len(MEASURES),
    ]


def distances(group: Group, best: Group) -> dict[str, float | None]:
    """Percent more than the best that was found; points, of attainment."""
    away: dict[str, float | None] = {}
    for name, read in MEASURES:
        ours, theirs = group.mean(read), best.mean(read)
        if ours is None or theirs is None:
            away[name] = None
        elif name == "attainment":
            away[name] = 100 * (ours - theirs)
        else:
            away[name] = 100 * (ours / theirs - 1) if theirs else None
    return away


def _table(found: Found) -> list[Table]:
    rows = []
    for rate in found.rates(WORKLOAD):
        best = Group("the best found", rate, best_of(found, rate))
        for arm in found.arms(WORKLOAD):
            group = best if arm == CHAINS else found.group(WORKLOAD, arm, rate)
            away = distances(group, best)
            rows.append(
                [
                    text(group.policy, "fault" if group.fault else ""),
                    number(rate, "{:g}"),
                    number(group.mean(GOODPUT), "{:.3f}", mark="best" if group is best else ""),
                    number(group.mean(ATTAINED), "{:.1f}", 100),
                    *(number(away[name], "{:+.1f}") for name, _ in MEASURES),
                ]
            )
        if best.results:
            rows.append(_bound_row(best.results, rate))
    said = {one.what: one for one in ORACLE}
    if rows:
        paper = [number(said[name].low, "{:+g}") for name, _ in MEASURES]
        rows.append([text("paper: AccelGen and its oracle"), NONE, NONE, NONE, *paper])
    units = ("goodput %", "tokens/s %", "attainment, points", "JCT %")
    heads = [
        "policy",
        "req/s",
        "goodput req/s",
        "attained %",
        *(f"against the best: {unit}" for unit in units),
    ]
    note = (
        "The best found is at least every policy by construction, and not called optimal: orders of all requests are"
        " searched, with arrivals and lengths known, and the best run of all is taken, seed by seed. It was chosen for"
        " its goodput: in another figure a policy may be ahead of it. No schedule more than: a relaxation over"
        " compute and KV."
    )
    title = "Distance to a searched upper reference"
    return [Table("oracle", title, heads, rows, found.made(WORKLOAD), note)]


def _draw(found: Found) -> list[Figure]:
    panels = []
    for rate in found.rates(WORKLOAD):
        best = Group("the best found", rate, best_of(found, rate))
        names = ["the best found", *(arm for arm in found.arms(WORKLOAD) if arm != CHAINS)]
        groups = [best, *(found.group(WORKLOAD, arm, rate) for arm in names[1:])]
        bars = Series("goodput", names, [group.mean(GOODPUT) for group in groups])
        title = f"Goodput at {rate:g} requests/s"
        panels.append(Panel(title, "requests/s that attain, every gap", "policy", [bars], "bars"))
    title = "Policies beside the best schedule that was found"
    return [Figure("oracle", title, panels, found.made(WORKLOAD))]


def _say(found: Found) -> list[str]:
    said = []
    for rate in found.rates(WORKLOAD):
        best = best_of(found, rate)
        if not best:
            continue
        away = distances(found.group(WORKLOAD, "accelgen", rate), Group("", rate, best))
        own = [arm for arm in found.arms(WORKLOAD) if arm != CHAINS]
        means = {arm: found.mean(WORKLOAD, arm, rate, GOODPUT) or 0.0 for arm in own}
        nearest = max(means, key=lambda arm: means[arm])
        if away["goodput"] is not None:
            near = distances(found.group(WORKLOAD, nearest, rate), Group("", rate, best))["goodput"]
            said.append(
                f"At {rate:g} req/s the goodput of accelgen is {0.0 - away['goodput']:.1f} % below the best found (the"
                f" paper: 6 % below its oracle); nearest to it comes {nearest}, {0.0 - (near or 0.0):.1f} % below."
            )
    return [*said, *faults(found, WORKLOAD)]


SECTION = Section(
    name="oracle",
    title="Distance to a searched upper reference",
    about="What could be reached by who knows all arrivals and output lengths? AccelGen's setting with few requests, as"
    " each schedule tried is a simulation.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
    published=ORACLE,
)
