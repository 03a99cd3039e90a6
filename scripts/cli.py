"""The `accelgen` command: one file per verb, imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

import accelgen

VERBS = {
    "up": "Start a server and stay with it (or --detach).",
    "status": "Show the processes of a running server.",
    "swap": "Replace the scheduling policy of a running server.",
    "policies": "List the policies, and which one is active.",
    "trace": "Show the history of one request.",
    "replay": "Run recorded decisions through another policy.",
    "logs": "Show what the processes of a server have logged.",
    "down": "Stop a running server.",
    "chat": "Talk to a model in the terminal.",
    "complete": "Complete a text once.",
    "bench": "Measure a running server.",
    "sim": "Simulate scheduling policies on a workload.",
    "chaos": "Break a server of its own in every way, and check what clients see.",
    "profile": "Measure this device for the cost model, once per model.",
}


class LazyGroup(click.Group):
    """Knows the verbs by name; `accelgen.scripts.<verb>` has the command. A wrong call costs one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"accelgen.scripts.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """As click's, but every error is one line on stderr, with its exit status."""
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.exit(status if isinstance(status, int) else 0)
        except click.UsageError as error:
            asked = error.ctx.command_path if error.ctx else "accelgen"
            click.echo(f"{asked}: {error.format_message()} (see {asked} --help)", err=True)
            sys.exit(2)
        except click.ClickException as error:
            click.echo(f"accelgen: {error.format_message()}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("accelgen: interrupted", err=True)
            sys.exit(130)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(accelgen.__version__, prog_name="accelgen")
def main() -> None:
    """AccelGen: a language-model server that keeps each request's objective."""


if __name__ == "__main__":
    main()
