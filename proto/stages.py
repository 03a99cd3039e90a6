"""Stages that a request may state objectives for, and where one of them ends.

An answer has two parts: `thinking`, if the model reasons before it answers, and `response`. A session has two kinds of
calls: those of a `tool` loop, whose answer calls a tool before the conversation goes on, and the one that brings the
`answer`. (SLOs-Serve, arXiv 2504.08784, has the same four: reasoning and tool-calling applications.)
"""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.proto.messages import Thinking

THINKING, RESPONSE = "thinking", "response"
TOOL, ANSWER = "tool", "answer"
PARTS = (THINKING, RESPONSE)
"""Of one answer."""
CALLS = (TOOL, ANSWER)
"""Of a session."""
STAGES = (*PARTS, *CALLS)


def thought(thinking: Thinking, tokens: Sequence[int], begin: int = 0) -> int:
    """How many of an answer's `tokens` are thinking, its mark included, once it is over; 0 before. It was not over
    after the first `begin` of them."""
    if thinking.end_ids:
        for place in range(begin, len(tokens)):
            if tokens[place] in thinking.end_ids:
                limit = thinking.max_tokens
                return min(place + 1, limit) if limit else place + 1
    most = thinking.max_tokens
    return most if most and len(tokens) >= most else 0


__all__ = ["ANSWER", "CALLS", "PARTS", "RESPONSE", "STAGES", "THINKING", "TOOL", "thought"]
