"""Plain English for the demo model: Python's documentation strings and a few paragraphs.

The standard library's sources are parsed, not imported: importing every module opens browsers,
prints poems and depends on what the machine has installed; parsing gives the same text.
"""

import ast
import builtins
import inspect
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

from accelgen.scripts.demo_facts import PROCESSES, TERMS
from accelgen.scripts.demo_guide import GUIDE, SELF

SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo",
    "__pycache__", "idle_test", "encodings", "ensurepip",
}  # fmt: skip
SHORTEST_CHARS, LONGEST_CHARS = 80, 1500
PROSE_SHARE = 0.8  # letters, spaces and simple punctuation; less is a table or a transcript


def documentation() -> list[str]:
    """All documentation strings of this Python that read like prose, in a fixed order."""
    found = dict.fromkeys(
        text
        for source in (_library_docstrings(), _builtin_docstrings(), _language_topics())
        for text in source
        if _is_prose(text)
    )
    return list(found)


def paragraph(rng: random.Random) -> str:
    """A paragraph about AccelGen, for clients that use plain completions."""
    chosen = rng.sample(PROCESSES + TERMS + GUIDE + SELF[:1], rng.randint(2, 4))
    if rng.random() < 0.3:
        return "\n".join(
            f"Question: {rng.choice(topic.questions)}\nAnswer: {topic.answer}"
            for topic in chosen
            if topic.questions
        )
    return " ".join(f"{topic.answer} {topic.more}" for topic in chosen)


def _library_docstrings() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(path.relative_to(root).parts[:-1]):
            yield from _file_docstrings(path)


def _file_docstrings(path: Path) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, kinds):
            yield from _pieces(ast.get_docstring(node) or "")


def _builtin_docstrings() -> Iterator[str]:
    for _, item in sorted(vars(builtins).items(), key=_name):
        if callable(item):
            yield from _pieces(inspect.getdoc(item) or "")
        if inspect.isclass(item):
            for _, member in sorted(vars(item).items(), key=_name):
                yield from _pieces(inspect.getdoc(member) or "")


def _name(entry: tuple[str, object]) -> str:
    return entry[0]


def _language_topics() -> Iterator[str]:
    for name in sorted(topics.topics):
        plain = re.sub(r"\*\*?|``?", "", topics.topics[name])
        yield from _pieces(plain)


def _pieces(text: str) -> Iterator[str]:
    """`text` without interpreter transcripts, cut between paragraphs to fit a training row."""
    kept: list[str] = []
    for part in re.split(r"\n\s*\n", text.strip()):
        if ">>>" in part or part.lstrip().startswith(("+--", "==", "--")):
            continue
        if kept and sum(map(len, kept)) + len(part) > LONGEST_CHARS:
            yield "\n\n".join(kept)
            kept = []
        kept.append(_unwrapped(inspect.cleandoc(part)))
    if kept:
        yield "\n\n".join(kept)


def _unwrapped(part: str) -> str:
    """A paragraph on one line, as chat shows it; lists and code keep their lines."""
    if re.search(r"^[\s*\-]|:$", part, re.MULTILINE):
        return part
    return " ".join(part.split())


def _is_prose(text: str) -> bool:
    plain = sum(char.isalpha() or char in " ,.'\n" for char in text)
    return SHORTEST_CHARS <= len(text) <= 2 * LONGEST_CHARS and plain >= PROSE_SHARE * len(text)
