"""`accelgen chat`: talk to a model in the terminal."""

from __future__ import annotations

import sys

import click

from accelgen.scripts.chat_options import ClientOptions, as_click, client_options


@click.command(name="chat", context_settings={"show_default": True})
@client_options
@click.option("--system-prompt", help="What the model is told first.", show_default="nothing")
@click.option(
    "-q", "--quick", metavar="MSG", help="Say MSG, print the answer, end. `-` reads MSG from stdin."
)
def command(options: ClientOptions, system_prompt: str | None, quick: str | None) -> None:
    """Talk to a model in the terminal. /help lists the commands; Ctrl-C stops an answer, Ctrl-D ends.

    What is piped in is said line by line."""
    from accelgen.scripts.chat_client import ServerError
    from accelgen.scripts.chat_loop import run_chat

    try:
        run_chat(options, system_prompt or "", read_text(quick) if quick is not None else None)
    except ServerError as error:
        raise as_click(error) from error


def read_text(given: str) -> str:
    """`given`, or standard input if it is `-`. Raises click.UsageError for what is not UTF-8, or nothing."""
    if given == "-":
        try:
            given = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"stdin is not UTF-8 at byte {error.start}") from error
    if not given:
        raise click.UsageError("there is nothing to send: the text is empty")
    return given
