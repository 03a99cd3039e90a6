"""Where a chat's lines come from: an editor with history on a terminal, plain lines from a pipe."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Protocol

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from accelgen.scripts.chat_session import COMMANDS

PROMPT = "> "
_CONTINUED = "… "


class Lines(Protocol):
    """Gives what the user says next; `status` is shown meanwhile, where there is a place for it. Raises EOFError at
    the end, KeyboardInterrupt for Ctrl-C at the prompt."""

    def next(self, status: str) -> str: ...


class PipedLines:
    """Lines of standard input; a backslash at the end joins the next one."""

    def next(self, status: str) -> str:
        said = ""
        while True:
            line = sys.stdin.readline()
            if not line:
                if said:
                    return said
                raise EOFError
            line = line.rstrip("\n")
            if not line.endswith("\\"):
                return said + line
            said += line[:-1] + "\n"


class EditedLines:
    """prompt_toolkit's editor, with the status below the prompt. Tab completes commands."""

    def __init__(self, history: History) -> None:
        words = [command.split()[0] for command in COMMANDS]
        self._session: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=_bindings(),
            prompt_continuation=lambda width, number, soft: _CONTINUED if not soft else "",
            completer=WordCompleter(words, sentence=True),
            complete_while_typing=False,
        )

    def next(self, status: str) -> str:
        return self._session.prompt(PROMPT, bottom_toolbar=status)


def _bindings() -> KeyBindings:
    """Enter sends, unless the line ends with a backslash; Alt-Enter makes a new line. A paste keeps its lines."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings


def open_history() -> tuple[History, str]:
    """The history of this user's chats, in `$XDG_STATE_HOME/accelgen/chat_history` (0600, its folder 0700), and a
    warning when it cannot be kept."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    path = home / "accelgen" / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        history_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        os.fchmod(history_fd, 0o600)
        os.close(history_fd)
    except OSError as error:
        return InMemoryHistory(), f"history is not kept: {path}: {error.strerror}"
    return FileHistory(path), ""
