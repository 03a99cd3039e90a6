"""Markdown of the reliability page: tables and paragraphs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

Cells = Sequence[object]


def table(head: Cells, rows: Iterable[Cells]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [
        "| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines
    ]


def paragraph(text: str) -> str:
    """Lines of at most 120 characters."""
    return textwrap.fill(text, 118, break_on_hyphens=False)
