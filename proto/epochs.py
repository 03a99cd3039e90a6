"""Epochs: who may give orders. A number in the header of every message, growing; whoever hears a higher one obeys it.

The high part, the *term*, is given out by the supervisor, one for each process that takes the scheduler's office. The
low part counts how often that process has taken over from itself since (Resync), for which it need not ask anybody.
"""

from __future__ import annotations

RESYNC_BITS = 16


def epoch_of(term: int, resyncs: int = 0) -> int:
    """The epoch of a scheduler's `resyncs`-th takeover from itself in its `term`."""
    assert term >= 0 and 0 <= resyncs < 1 << RESYNC_BITS
    return (term << RESYNC_BITS) + resyncs


def term_of(epoch: int) -> int:
    """The term that an epoch belongs to."""
    return epoch >> RESYNC_BITS
