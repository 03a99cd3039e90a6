"""Random loads for a World, takeovers at random moments of them, and what must have come of all that in the end."""

from __future__ import annotations

import random

from world import POLICIES, World, expected

from accelgen.proto.messages import Reason

Asked = dict[int, tuple[list[int], int, int]]
"""Prompt, tokens and seed by id, of those that nobody has aborted."""


def prompt_of(length: int, seed: int) -> list[int]:
    """The first half is the same in all."""
    draw = random.Random(seed)
    return [7] * (length // 2) + [draw.randrange(1, 97) for _ in range(length - length // 2)]


def submit_some(world: World, draw: random.Random, most_tokens: int) -> Asked:
    """Up to eleven requests within 0.3 s, with siblings and aborts."""
    asked: Asked = {}
    id = 1
    for _ in range(draw.randrange(1, 12)):
        prompt = prompt_of(draw.randrange(1, 30), draw.randrange(4))
        tokens = draw.randrange(1, most_tokens + 1)
        siblings = [id + 1, id + 2][: draw.choice([0, 0, 1, 2])]
        seconds = draw.random() * 0.3
        world.submit(id, prompt, tokens, at_s=seconds, siblings=siblings, seed=id)
        for i, choice in enumerate([id, *siblings]):
            asked[choice] = (prompt, tokens, id + i)
        if draw.random() < 0.2:
            world.abort([id], at_s=seconds + draw.random() * 0.2)
            del asked[id]
        id += 3
    return asked


def upset(world: World, draw: random.Random, times: int) -> None:
    """Schedulers die, with the KV managers or without, and Batches get lost."""
    for _ in range(times):
        if draw.random() < 0.3:
            world.lose_batch(draw.random() * 0.5)
        else:
            world.crash(draw.random() * 0.5, draw.choice(POLICIES), kv=draw.random() < 0.4)


def finish(world: World, asked: Asked, most_events: int = 20_000) -> None:
    """Everybody gets the tokens of the model, and nothing is held afterwards."""
    world.run(most_events=most_events)
    for choice, (prompt, tokens, own) in asked.items():
        assert world.delivered[choice] == expected(prompt, tokens, own), choice
        assert world.ended[choice] is Reason.LENGTH
    world.check_idle()
