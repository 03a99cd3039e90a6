"""`accelgen complete`: continue a text once."""

from __future__ import annotations

import sys

import click

from accelgen.scripts.chat import read_text
from accelgen.scripts.chat_options import ClientOptions, as_click, client_options


@click.command(name="complete", context_settings={"show_default": True})
@click.argument("prompt", default="-")
@client_options
@click.option("--stop", multiple=True, metavar="TEXT", help="End before TEXT; repeatable.")
def command(options: ClientOptions, prompt: str, stop: tuple[str, ...]) -> None:
    """Print what the model makes of PROMPT, as it comes. Without PROMPT, or with `-`, it is read from stdin.

    Times (--stats) and errors go to stderr."""
    from accelgen.scripts.chat_client import ServerError

    if prompt == "-" and sys.stdin.isatty():
        raise click.UsageError("give a PROMPT, or pipe one in")
    try:
        run_complete(options, read_text(prompt), list(stop))
    except ServerError as error:
        raise as_click(error) from error


def run_complete(options: ClientOptions, prompt: str, stop: list[str]) -> None:
    """The whole verb. Raises ServerError."""
    from accelgen.scripts.chat_client import Client, find_url, make_server
    from accelgen.scripts.chat_stats import describe

    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    server = make_server(options.url or find_url(), options.api_key)
    with Client(server) as client:
        model = options.model or client.models()[0]["id"]
        body = {"model": model, "prompt": prompt, **options.generation(options.slo)}
        if stop:
            body["stop"] = stop
        with client.stream("/v1/completions", body) as stream:
            ended = "\n"
            for piece in stream:
                sys.stdout.write(piece)
                sys.stdout.flush()
                ended = piece[-1]
        if ended != "\n":
            sys.stdout.write("\n")
    if options.stats:
        click.echo(describe(stream.answer), err=True)
