"""What the flight recorders say of one iteration going round: who spent which part, as figures and as a picture."""

from __future__ import annotations

import bisect
import statistics
from pathlib import Path

WARM = 20  # iterations left out at both ends
Records = list[tuple[float, str, str, int]]
"""Of one process: moment, "send", "recv" or "begin", type of the message, step."""


class Rounds:
    """What the records say of each iteration: moments by (process, direction, message), for the steady part."""

    def __init__(self, records: dict[str, Records], arrivals: list[float]) -> None:
        self.arrivals = arrivals
        self.moments: dict[tuple[str, str, str], dict[int, float]] = {}
        for process, rows in records.items():
            for moment, direction, kind, step in rows:
                if step >= 0:
                    self.moments.setdefault((process, direction, kind), {})[step] = moment
        starts = self.at("worker-0", "recv", "Batch")
        self.steps = sorted(starts)[WARM:-WARM]

    def at(self, process: str, direction: str, kind: str) -> dict[int, float]:
        return self.moments[process, direction, kind]

    def periods(self) -> list[float]:
        """Seconds from the end of one iteration to the end of the next."""
        ends = self.at("worker-0", "send", "StepResult")
        return [ends[k] - ends[k - 1] for k in self.steps if k in ends and k - 1 in ends]

    def idles(self) -> list[float]:
        """Seconds the worker waited before each iteration."""
        ends, starts = (
            self.at("worker-0", "send", "StepResult"),
            self.at("worker-0", "recv", "Batch"),
        )
        return [max(0.0, starts[k] - ends[k - 1]) for k in self.steps if k - 1 in ends]

    def delivered(self) -> float:
        """Seconds from Tokens in the frontend to the last client's text of that iteration: median."""
        taken = self.at("frontend-0", "recv", "Tokens")
        found = []
        for k in self.steps:
            if k in taken and k + 1 in taken:
                first = bisect.bisect(self.arrivals, taken[k])
                last = bisect.bisect(self.arrivals, taken[k + 1])
                found += [self.arrivals[last - 1] - taken[k]] * (last > first)
        return statistics.median(found)

    def parts(self) -> dict[str, tuple[float, float]]:
        """Begin and end of each part of an iteration in seconds after the worker began it: medians over the steps."""
        zero = self.at("worker-0", "recv", "Batch")
        worker, scheduler, kv, frontend = "worker-0", "scheduler-0", "kvmanager-0", "frontend-0"
        ways = {
            "worker: forward pass k": ((worker, "recv", "Batch"), (worker, "send", "StepResult"), 0),
            "link: StepResult k": ((worker, "send", "StepResult"), (scheduler, "recv", "StepResult"), 0),
            "scheduler: pass tokens on": ((scheduler, "recv", "StepResult"), (scheduler, "send", "Tokens"), 0),
            "link: Tokens k": ((scheduler, "send", "Tokens"), (frontend, "recv", "Tokens"), 0),
            "scheduler: choose plan k+1": ((scheduler, "begin", "Plan"), (scheduler, "send", "Plan"), 1),
            "link: Plan k+1": ((scheduler, "send", "Plan"), (kv, "recv", "Plan"), 1),
            "KV manager: blocks for k+1": ((kv, "recv", "Plan"), (kv, "send", "Batch"), 1),
            "link: KvReport k+1": ((kv, "send", "KvReport"), (scheduler, "recv", "KvReport"), 1),
            "Batch k+1 lies ready": ((kv, "send", "Batch"), (worker, "recv", "Batch"), 1),
        }  # fmt: skip
        parts = {}
        for name, (start, end, ahead) in ways.items():
            starts, ends = self.at(*start), self.at(*end)
            steps = [k for k in self.steps if k + ahead in starts and k + ahead in ends]
            begin_s = statistics.median(starts[k + ahead] - zero[k] for k in steps)
            took_s = statistics.median(ends[k + ahead] - starts[k + ahead] for k in steps)
            parts[name] = (begin_s, begin_s + took_s)
        tokens_s = parts["link: Tokens k"][1]
        parts["frontend: text to the clients"] = (tokens_s, tokens_s + self.delivered())
        return dict(sorted(parts.items(), key=lambda part: part[1]))


def draw(parts: dict[str, tuple[float, float]], period_s: float, path: Path, note: str) -> None:
    """The iteration as a picture: one bar for each part."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "iteration"
    import matplotlib.pyplot as plt

    colours = {
        "worker": "#3b6ea5",
        "scheduler": "#c8553d",
        "KV": "#588157",
        "frontend": "#8e6bb0",
        "link": "#999999",
        "Batch": "#dddddd",
    }
    figure, axes = plt.subplots(figsize=(9, 3.6))
    for row, (name, (begin, end)) in enumerate(parts.items()):
        colour = colours[name.split(":")[0].split(" ")[0]]
        axes.barh(
            row, max(end - begin, period_s / 400) * 1e3, left=begin * 1e3, color=colour, height=0.65
        )
        axes.text(
            max(begin, end) * 1e3 + period_s * 8,
            row,
            f"{(end - begin) * 1e3:.2f} ms",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(parts)), list(parts), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=period_s * 1e3 * 1.25)
    axes.set_xlabel("ms after the worker began iteration k (medians)", fontsize=8)
    axes.set_title(note, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {}))
