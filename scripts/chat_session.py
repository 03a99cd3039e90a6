"""The state of a chat and its commands, without a terminal: lines in, messages and things to say out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from accelgen.scripts.chat_classes import Classes
from accelgen.scripts.chat_client import Answer
from accelgen.scripts.chat_objective import Objective, ObjectiveError, parse_objective
from accelgen.scripts.chat_stats import describe

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation; system prompt and objective stay",
    "/system [TEXT|off]": "show, set or remove the system prompt",
    "/slo [OBJECTIVE|off]": "the objective, in ms or as a class: /slo ttft=300 tpot=40, /slo chat",
    "/stats [on|off]": "times and verdict after every answer, and of the last one",
    "/exit": "end (also Ctrl-D)",
}
SLO_FORMS = "valid: /slo ttft=300 tpot=40 e2e=9000 thinking=50 (any of them, ms), /slo CLASS, both, or /slo off"
KEYS = """\
Enter sends; Alt-Enter, or a backslash at the end, begins a new line.
Ctrl-C stops an answer. Tab completes a command."""


@dataclass(frozen=True)
class Chat:
    """A conversation and its settings. Changed by making a new one."""

    messages: tuple[dict[str, str], ...] = ()
    system: str = ""
    objective: Objective = Objective()
    accepted: Objective = Objective()  # the last one with which the server answered
    classes: Classes = Classes()
    stats: bool = False
    last: Answer | None = field(default=None, compare=False)
    ended: bool = False

    def body(self, said: str) -> dict[str, Any]:
        """The messages of a request that says `said` next."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, *self.messages, {"role": "user", "content": said}]}

    def after(self, said: str, answered: str, answer: Answer) -> Chat:
        """The chat with one exchange more. An exchange without any answer is forgotten."""
        exchange = ({"role": "user", "content": said}, {"role": "assistant", "content": answered})
        named = answer.verdict.get("slo_class")
        classes = self.classes
        if isinstance(named, str) and self.objective.slo_class is None:
            classes = replace(classes, default=named)
        return replace(
            self,
            messages=self.messages + (exchange if answered else ()),
            last=answer,
            accepted=self.objective,
            classes=classes,
        )

    def after_refusal(self) -> Chat:
        """The chat after the server refused the objective: with the last one that it took."""
        return replace(self, objective=self.accepted)

    def describe_objective(self) -> str:
        """What holds for the next request."""
        return self.classes.describe(self.objective)


def obey(chat: Chat, line: str) -> tuple[Chat, str]:
    """Carries out a line that begins with `/`: the chat after it, and what to say."""
    word, _, rest = line.strip().partition(" ")
    act = _ACTIONS.get(word)
    if act is None:
        return (
            chat,
            f"{word} is no command; /help lists them (begin with a space to say it to the model)",
        )
    return act(chat, rest.strip())


def is_command(line: str) -> bool:
    return line.startswith("/")


def _help(chat: Chat, rest: str) -> tuple[Chat, str]:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"{name:<{width}}{what}" for name, what in COMMANDS.items()]
    return chat, "\n".join([*lines, KEYS])


def _reset(chat: Chat, rest: str) -> tuple[Chat, str]:
    return replace(chat, messages=(), last=None), "a new conversation"


def _system(chat: Chat, rest: str) -> tuple[Chat, str]:
    if rest:
        chat = replace(chat, system="" if rest == "off" else rest)
    return chat, f"system prompt: {chat.system}" if chat.system else "no system prompt"


def _slo(chat: Chat, rest: str) -> tuple[Chat, str]:
    if rest:
        try:
            objective = parse_objective(rest)
            chat.classes.check(objective)
        except ObjectiveError as error:
            return chat, f"{error}\n{SLO_FORMS}\nobjective as before: {chat.describe_objective()}"
        chat = replace(chat, objective=objective)
    return chat, f"objective: {chat.describe_objective()}"


def _stats(chat: Chat, rest: str) -> tuple[Chat, str]:
    if rest not in ("", "on", "off"):
        return chat, f"/stats {rest}: on or off"
    chat = replace(chat, stats=rest == "on" if rest else not chat.stats)
    if not chat.stats:
        return chat, "stats off"
    return (
        chat,
        "stats on" if chat.last is None else f"stats on; the last answer:\n{describe(chat.last)}",
    )


def _exit(chat: Chat, rest: str) -> tuple[Chat, str]:
    return replace(chat, ended=True), ""


_ACTIONS: dict[str, Callable[[Chat, str], tuple[Chat, str]]] = {
    "/help": _help,
    "/reset": _reset,
    "/system": _system,
    "/slo": _slo,
    "/stats": _stats,
    "/exit": _exit,
    "/quit": _exit,
}
