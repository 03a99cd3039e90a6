"""`accelgen policies`: what could schedule and route, and what does."""

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
    ROUTING_GROUP,
    InOffice,
    in_office,
    parse_routing,
)
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live

_COLUMNS = 80


@click.command(name="policies")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(run_dir: str) -> int:
    """List what is installed: policies, memory policies (--memory), routings (--routing). Of a running server: which
    are active, in which epoch, for how long."""
    try:
        office = in_office(ask_directory(find_live(run_dir)))
    except StartError as error:
        if run_dir:
            raise click.ClickException(str(error)) from error
        office = None
    _list(POLICY_GROUP, *(("", "") if office is None else (office.policy, _life(office))))
    click.echo("\nMemory policies, beside any of them (--memory):")
    kept = ("", "") if office is None else (office.memory, params_of(office.memory_params))
    _list(MEMORY_GROUP, *kept)
    click.echo("\nRouting, which replica a request goes to (--routing):")
    _list(ROUTING_GROUP, *(("", "") if office is None else _routing(office)))
    if office is not None and office.swap:
        click.echo(f"\nswap under way: {office.swap['policy']}, {office.swap['stage']}")
    if office is not None and office.rolled_back:
        click.echo(f"\nrolled back: {office.rolled_back}")
    return 0


def _list(group: str, active: str, told: str) -> None:
    """A line for each that is installed; below the active one what is `told` of it."""
    modules = {point.name: point.module for point in entry_points(group=group)}
    width = max(map(len, modules), default=0)
    for name, module in sorted(modules.items()):
        phrase = about(name, docstring(module), max(20, _COLUMNS - width - 4))
        click.echo(f"{'*' if name == active else ' '} {name:{width}}  {phrase}".rstrip())
        if name == active and told:
            click.echo(" " * (width + 4) + told)


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


def _routing(office: InOffice) -> tuple[str, str]:
    """Name and parameters of the active one."""
    name, params = parse_routing(office.routing)
    return name, params_of(params)


def _life(office: InOffice) -> str:
    line = f"{params_of(office.params)} active for {office.for_s:,.0f} s".lstrip()
    if office.epoch is None:
        return f"{line}, no scheduler at the moment"
    return f"{line}, epoch {office.epoch}, its process for {office.process_s:,.0f} s"
