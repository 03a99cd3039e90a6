"""The pulse of a link: a message a second, so that the loss of a last message shows, and that of the link itself."""

from __future__ import annotations

PULSE_S = 1.0
SILENCE_S = 3.0  # so long without a pulse, and the link counts as dead


class Metronome:
    """Says when the next one is due: the first at once, or a period after `begin_s`."""

    def __init__(self, period_s: float = PULSE_S, begin_s: float | None = None) -> None:
        self._period_s = period_s
        self._next_s = 0.0 if begin_s is None else begin_s + period_s

    def due(self, now_s: float) -> bool:
        """Whether to send one now; call it at least twice a second."""
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self._period_s
        return True
