"""What is said about one answer after it came: times measured here, and the server's own verdict."""

from __future__ import annotations

from typing import Any

from accelgen.scripts.chat_clean import clean_line
from accelgen.scripts.chat_client import Answer

_NOT_ASKED = "not asked"


def describe(answer: Answer) -> str:
    """One line of what this side measured and, if the server said anything, one of what it said."""
    said = describe_verdict(answer.verdict)
    return describe_times(answer) + (f"\n{said}" if said else "")


def describe_times(answer: Answer) -> str:
    """TTFT; TPOT, the mean time between tokens; tokens per second over the whole answer."""
    if answer.first_s is None or answer.last_s is None:
        return f"no text came ({counted(answer.tokens, 'token')})"
    taken_s = answer.last_s - answer.sent_s
    parts = [f"TTFT {1000 * (answer.first_s - answer.sent_s):.0f} ms"]
    if answer.tokens > 1:
        tpot_s = (answer.last_s - answer.first_s) / (answer.tokens - 1)
        parts.append(f"TPOT {1000 * tpot_s:.1f} ms")
    parts.append(f"{counted(answer.tokens, 'token')} in {taken_s:.2f} s")
    if taken_s > 0:
        parts.append(f"{answer.tokens / taken_s:.1f} tokens/s")
    prompt = answer.usage.get("prompt_tokens")
    if isinstance(prompt, int):
        parts.append(f"prompt {counted(prompt, 'token')}")
    return " · ".join(parts)


def counted(number: int, noun: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_verdict(verdict: dict[str, Any]) -> str:
    """The `accelgen` object of the final chunk in words, empty if there is none."""
    parts = []
    if verdict.get("slo_class"):
        parts.append(f"class {clean_line(str(verdict['slo_class']), 40)}")
    for name in ("queue", "ttft", "tpot"):
        value = verdict.get(f"{name}_ms")
        if isinstance(value, int | float):
            parts.append(f"{name} {value:.1f} ms")
    cached = verdict.get("cached_tokens")
    if isinstance(cached, int) and cached > 0:
        parts.append(f"{counted(cached, 'prompt token')} cached")
    met = verdict.get("slo_met")
    if isinstance(met, dict):
        judged = [f"{clean_line(str(name), 20)} {_word(kept)}" for name, kept in met.items()]
        judged = [one for one in judged if not one.endswith(_NOT_ASKED)]
        parts.append("objectives: " + (", ".join(judged) or "none stated"))
    elif isinstance(met, bool):
        parts.append(f"objectives {_word(met)}")
    return "server: " + " · ".join(parts) if parts else ""


def _word(kept: object) -> str:
    if not isinstance(kept, bool):
        return _NOT_ASKED
    return "met" if kept else "MISSED"
