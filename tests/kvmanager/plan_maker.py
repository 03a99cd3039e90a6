"""Short ways to write Prompts and Plans in tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from accelgen.proto.messages import Fork, Lookup, Plan, Prompt, Sampling


def make_prompt(id: int, tokens: Iterable[int], salt: bytes = b"", parent: int = 0) -> Prompt:
    return Prompt(id, list(tokens), Sampling(seed=id), 0, salt, parent)


def make_family(id: int, tokens: Sequence[int], salt: bytes, siblings: int) -> list[Prompt]:
    """A prompt, and those of siblings with the ids that follow."""
    others = [make_prompt(id + i, tokens, salt, id) for i in range(1, siblings + 1)]
    return [make_prompt(id, tokens, salt), *others]


def make_lookup(*prompts: Prompt) -> Lookup:
    return Lookup(list(prompts))


def make_plan(
    step: int = 0,
    entries: Sequence[tuple[int, int, int]] = (),
    confirmed: Sequence[tuple[int, list[int]]] = (),
    forks: Sequence[tuple[int, int, int]] = (),
    release: Sequence[int] = (),
    preempt: Sequence[int] = (),
    swap_out: Sequence[int] = (),
    swap_in: Sequence[int] = (),
    moved: Sequence[int] = (),
    allocate: Sequence[tuple[int, int]] = (),
    embed: Sequence[tuple[int, int]] = (),
    spoiled: Sequence[int] = (),
    drafts: Sequence[int] = (),
) -> Plan:
    """A plan from rows: entries (id, start, count), confirmed (id, tokens), forks (child, parent, computed), allocate
    (id, blocks), embed (guest, host); `drafts` of each entry."""
    return Plan(
        step=step,
        ids=[id for id, _, _ in entries],
        starts=[start for _, start, _ in entries],
        counts=[count for _, _, count in entries],
        confirmed_ids=[id for id, _ in confirmed],
        confirmed_counts=[len(tokens) for _, tokens in confirmed],
        confirmed_tokens=[token for _, tokens in confirmed for token in tokens],
        forks=[Fork(*fork) for fork in forks],
        release=list(release),
        preempt=list(preempt),
        copied=[],
        predicted_s=0.01,
        bound_s=0.05,
        spoiled=list(spoiled),
        swap_out=list(swap_out),
        swap_in=list(swap_in),
        moved=list(moved),
        allocate_ids=[id for id, _ in allocate],
        allocate_blocks=[blocks for _, blocks in allocate],
        embed_guests=[guest for guest, _ in embed],
        embed_hosts=[host for _, host in embed],
        drafts=list(drafts),
    )
