"""`accelgen chat`, run: reads what the user says, streams what the model answers, until either ends."""

from __future__ import annotations

import shutil
import sys

from rich.console import Console
from rich.text import Text

from accelgen.scripts.chat_classes import Classes
from accelgen.scripts.chat_clean import clean_line
from accelgen.scripts.chat_client import (
    Client,
    ServerError,
    find_classes,
    find_url,
    make_server,
)
from accelgen.scripts.chat_objective import Objective, ObjectiveError
from accelgen.scripts.chat_options import ClientOptions
from accelgen.scripts.chat_session import Chat, is_command, obey
from accelgen.scripts.chat_stats import describe
from accelgen.scripts.chat_terminal import EditedLines, Lines, PipedLines, open_history
from accelgen.scripts.chat_wrap import Wrapper

CHAT_PATH = "/v1/chat/completions"


class Talk:
    """One user, one model. `say` prints what is not the model's: dim, and on stderr."""

    def __init__(self, client: Client, model: str, options: ClientOptions) -> None:
        self.client, self.model, self.options = client, model, options
        self._notes = Console(stderr=True, highlight=False)

    def say(self, text: str, style: str = "dim") -> None:
        if text:
            terminal = self._notes.is_terminal
            self._notes.print(Text(text, style=style), soft_wrap=not terminal)

    def status(self, chat: Chat) -> str:
        """Model and objective, for the line below the prompt."""
        return f" {clean_line(self.model, 60)} · objective: {chat.describe_objective()} · /help"

    def exchange(self, chat: Chat, said: str) -> Chat:
        """Sends `said`, prints the answer as it comes. Ctrl-C ends the answer (closing the stream makes the server
        abort the request); what came until then belongs to the conversation. Raises ServerError."""
        body = {"model": self.model, **chat.body(said), **self.options.generation(chat.objective)}
        pieces: list[str] = []
        stopped = False
        wrapper = Wrapper(shutil.get_terminal_size().columns) if sys.stdout.isatty() else None
        with self.client.stream(CHAT_PATH, body) as stream:
            try:
                for piece in stream:
                    pieces.append(piece)
                    _print(wrapper.feed(piece) if wrapper else piece)
            except KeyboardInterrupt:
                stopped = True
            finally:
                if pieces and not pieces[-1].endswith("\n"):
                    _print("\n")
            answer = stream.answer
        if stopped:
            self.say("[stopped]")
        elif answer.finish_reason == "length":
            self.say("[cut: the longest answer is reached]")
        elif not pieces:
            self.say("[an empty answer]")
        if chat.stats and not stopped:
            self.say(describe(answer))
        return chat.after(said, "".join(pieces), answer)

    def converse(self, chat: Chat, lines: Lines) -> None:
        """Until /exit or the end of the input. A server's error is told, and the chat goes on."""
        while not chat.ended:
            try:
                said = lines.next(self.status(chat))
            except KeyboardInterrupt:
                self.say("Ctrl-D or /exit ends")
                continue
            except EOFError:
                return
            if not said.strip():
                continue
            if is_command(said):
                chat, told = obey(chat, said)
                self.say(told)
                continue
            try:
                chat = self.exchange(chat, said)
            except KeyboardInterrupt:  # before the answer began
                self.say("[stopped]")
            except ServerError as error:
                self.say(str(error), style="red")
                if error.option == "--slo" and chat.objective != chat.accepted:
                    chat = chat.after_refusal()
                    self.say(f"objective as before: {chat.describe_objective()}")


def _print(text: str) -> None:
    """What the model says, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def run_chat(options: ClientOptions, system: str, quick: str | None) -> None:
    """The whole verb. Raises ServerError if the server cannot be reached, or (with `quick`) does not answer."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    server = make_server(options.url or find_url(), options.api_key)
    with Client(server) as client:
        model = options.model or client.models()[0]["id"]
        talk = Talk(client, model, options)
        chat = Chat(
            system=system,
            objective=options.slo,
            stats=options.stats,
            classes=known_classes(server.url, options.slo),
        )
        if quick is not None:
            asked = talk.exchange(chat, quick)
            if asked.last is not None and not asked.last.complete:  # Ctrl-C
                raise KeyboardInterrupt
        elif sys.stdin.isatty():
            _converse_on_terminal(talk, chat)
        else:
            talk.converse(chat, PipedLines())


def known_classes(url: str, asked: Objective) -> Classes:
    """What is known here of the classes of the server at `url`. Raises ServerError if it cannot take `asked`."""
    classes = find_classes(url)
    try:
        classes.check(asked)
    except ObjectiveError as error:
        raise ServerError(f"--slo: {error}", "--slo") from error
    return classes


def _converse_on_terminal(talk: Talk, chat: Chat) -> None:
    history, warning = open_history()
    talk.say(
        f"{clean_line(talk.model, 60)} at {talk.client.server.url}. /help lists the commands, Ctrl-D ends."
    )
    talk.say(warning, style="yellow")
    talk.converse(chat, EditedLines(history))
