"""Writes what the pytest benchmarks measured to `results/components-DATE.json`: percentiles, date, processor, load."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from accelgen.faults.machine import machine

RESULTS = Path(__file__).parent / "results"


def pytest_sessionfinish(session: pytest.Session) -> None:
    found = getattr(session.config, "_benchmarksession", None)
    rows = {
        bench.fullname: {
            f"p{q}_ms": round(float(np.percentile(bench.stats.data, q)) * 1e3, 4) for q in (50, 99)
        }
        | bench.extra_info
        | {"rounds": len(bench.stats.data)}
        for bench in (found.benchmarks if found else [])
        if bench.stats.data
    }
    if not rows:
        return
    now = datetime.now()
    report = {
        "date": f"{now:%Y-%m-%d %H:%M}",
        "processor": machine(),
        "load_average": os.getloadavg()[0],
        "command": "make bench",
        "results": rows,
    }
    path = RESULTS / f"components-{now:%Y-%m-%d}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten: {path}")
