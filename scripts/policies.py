"""`accelgen policies`: what could schedule, and what does."""

from __future__ import annotations

import ast
import importlib.util
import re
import textwrap
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from accelgen.proto.policies import (
    MEMORY_GROUP,
    POLICY_GROUP,
    InOffice,
    in_office,
    known_memories,
    known_policies,
)
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live

_COLUMNS = 80


@click.command(name="policies")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(run_dir: str) -> int:
    """List the installed policies, and the memory policies that can work beside any of them (--memory). Of a running
    server: which are active, in which epoch, for how long."""
    try:
        office = in_office(ask_directory(find_live(run_dir)))
    except StartError as error:
        if run_dir:
            raise click.ClickException(str(error)) from error
        office = None
    names = [*known_policies(), *known_memories()]
    width = max(map(len, names), default=0)
    active, life = (office.policy, _life(office)) if office is not None else ("", "")
    memory, params = (office.memory, office.memory_params) if office is not None else ("", {})
    _list(POLICY_GROUP, width, active, life)
    click.echo("\nMemory policies, beside any of them (--memory):")
    _list(MEMORY_GROUP, width, memory, params_of(params))
    if office is not None and office.swap:
        click.echo(f"\nswap under way: {office.swap['policy']}, {office.swap['stage']}")
    if office is not None and office.rolled_back:
        click.echo(f"\nrolled back: {office.rolled_back}")
    return 0


def _list(group: str, width: int, active: str, about_it: str) -> None:
    """A line for each policy of a group, and another one below the one that is active ("": none)."""
    modules = {point.name: point.module for point in entry_points(group=group)}
    for name, module in sorted(modules.items()):
        phrase = about(name, docstring(module), max(20, _COLUMNS - width - 4))
        click.echo(f"{'*' if name == active else ' '} {name:{width}}  {phrase}".rstrip())
        if name == active and about_it:
            click.echo(" " * (width + 4) + about_it)


def params_of(params: dict[str, Any]) -> str:
    """As they are stated on the command line."""
    return " ".join(f"{key}={value}" for key, value in params.items())


def docstring(module: str) -> str:
    """That of a module, which is read and not imported, unlike its packages: a policy may need long for that."""
    try:
        spec = importlib.util.find_spec(module)
        source = Path(spec.origin).read_text() if spec is not None and spec.origin else ""
        return ast.get_docstring(ast.parse(source)) or ""
    except Exception:  # foreign code: no such module, a package that does not load, no Python
        return ""


def about(name: str, described: str, width: int) -> str:
    """The first sentence about a policy, else of all, without sources: as many of its clauses as fit into `width`."""
    paragraphs = described.split("\n\n")
    own = next((one for one in paragraphs if one.startswith(f"`{name}`:")), paragraphs[0])
    words = " ".join(re.sub(r"\s*\([^)]*\)", "", own.removeprefix(f"`{name}`:")).split())
    sentence = words.partition(". ")[0].rstrip(".")
    ends = [end.start() for end in re.finditer("[,:;] |$", sentence) if end.start() <= width]
    return sentence[: ends[-1]] if ends else textwrap.shorten(sentence, width, placeholder=" ...")


def _life(office: InOffice) -> str:
    line = f"{params_of(office.params)} active for {office.for_s:,.0f} s".lstrip()
    if office.epoch is None:
        return f"{line}, no scheduler at the moment"
    return f"{line}, epoch {office.epoch}, its process for {office.process_s:,.0f} s"
