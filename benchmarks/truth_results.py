"""Where scripts keep what they found."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from accelgen.faults.machine import machine

RESULTS = Path(__file__).parent / "results"


def save(name: str, content: dict[str, Any]) -> None:
    """Writes what was found, with when, on what and by which command."""
    head = {
        "date": datetime.now().strftime("%Y-%m-%d %H:%M"),
        "processor": machine(),
        "command": shlex.join(["python", *(_outside(word) for word in sys.argv)]),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now():%Y-%m-%d}.json"
    path.write_text(json.dumps(head | content, indent=1) + "\n")
    click.echo(f"Wrote {path}", err=True)


def _outside(word: str) -> str:
    """A word of the command line; of a path elsewhere only the name."""
    return Path(word).name if Path(word).is_absolute() else word
