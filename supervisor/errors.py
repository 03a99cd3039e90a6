"""The one way in which start-up says that it cannot go on."""

from __future__ import annotations


class StartError(Exception):
    """One line for people that names the cause and, where there is one, the remedy. `status` is the exit status."""

    def __init__(self, line: str, status: int = 1) -> None:
        super().__init__(line)
        self.status = status
