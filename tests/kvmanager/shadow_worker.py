"""A worker without a model that checks every KV read, for tests of whatever makes Batches.

Of drafts it accepts what `lucky` says, and writes rubbish where the others would lie.

Its KV memory holds, instead of keys and values, a digest of the token prefix whose KV should lie there (the tenant's
salt included). A Batch is run like a real one: forget, introduce, copy, begin to copy to and from the host, change
tables, write, read. A read that finds anything but the digest of the reader's own prefix is an aliasing, copy-on-write,
eviction or prefix-cache bug.

A copy to the host or back takes until it is said to be done. It could happen at any moment in between: so what is
copied must not change meanwhile, and nobody may touch the place that it goes to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from accelgen.proto.messages import Batch, Held, Inventory, Prompt, StepResult

VOCABULARY = 7  # few different tokens, so that prompts often coincide


@dataclass
class Known:
    """A request as the worker knows it; `digests[i]` stands for the tokens 0..i."""

    salt: bytes
    seed: int
    tokens: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    rejected: int = 0  # drafts of the last entry
    table: list[int] = field(default_factory=list)
    host: list[int] = field(default_factory=list)
    computed: int = 0

    def append(self, token: int) -> None:
        before = self.digests[-1] if self.digests else int.from_bytes(b"s" + self.salt)
        self.tokens.append(token)
        self.digests.append(hash((before, token)))


def sampled_token(known: Known) -> int:
    """What the "model" says next: a function of the whole prefix and the seed."""
    return hash((known.digests[-1], known.seed)) % VOCABULARY


Memory = list[list[int | None]]


@dataclass
class Copy:
    """KV of request `id` on its way from blocks of one memory to blocks of another; `content` is what was there."""

    id: int
    source: Memory
    sources: list[int]
    target: Memory
    targets: list[int]
    content: Memory


POISON = -1  # no digest, we hope: in blocks that are being copied to


class ShadowWorker:
    """Runs Batches in order over a KV memory of digests. An AssertionError names what the Batch did wrong. `forgives`:
    a new scheduler may introduce requests again."""

    def __init__(
        self, num_blocks: int, block_size: int, host_blocks: int = 0, forgives: bool = False
    ) -> None:
        self.num_blocks, self.block_size, self.forgives = num_blocks, block_size, forgives
        self.memory: Memory = [[None] * block_size for _ in range(num_blocks)]
        self.host: Memory = [[None] * block_size for _ in range(host_blocks)]
        self.requests: dict[int, Known] = {}
        self.copies: list[Copy] = []
        self.step = -1
        self.reads = 0  # tokens whose KV was read and found right
        self.lucky: Callable[[int, int], int] = lambda id, drafts: drafts  # how many are accepted

    def run(self, batch: Batch, linger: int = 0) -> StepResult:
        """Executes `batch` and samples for every entry that reaches the end of what is known. The last `linger` copies
        are not done yet when it is; without anything to compute at least the oldest is waited for."""
        self.step = batch.step
        self._introduce(batch)
        self._copy(batch)
        self._begin_copies(batch)
        drafts = batch.drafts or [0] * len(batch.ids)
        entries = [
            (id, self._begin(id, start, count), count)
            for id, start, count in zip(batch.ids, batch.starts, batch.counts, strict=True)
        ]
        assert len(set(batch.ids)) == len(batch.ids), "an id occurs twice"
        self._change_tables(batch)
        self._write(entries)
        self._scribble(entries, drafts)
        counts, tokens = [], []
        for (id, start, count), ahead in zip(entries, drafts, strict=True):
            self._read(id, start + count)
            known = self.requests[id]
            samples = int(start + count == len(known.tokens))
            if samples:
                accepted = self.lucky(id, ahead) if ahead else 0
                known.rejected = ahead - accepted
                samples += accepted
            for _ in range(samples):
                tokens.append(sampled_token(known))
                known.append(tokens[-1])
            if samples > 1:
                self._fill(known, start + count, samples - 1)
            counts.append(samples)
        moved = self.finish_copies(linger if entries else min(linger, len(self.copies) - 1))
        return StepResult(batch.step, batch.ids, counts, tokens, [], [], [], 0.0, 0.0, moved)

    def inventory(self) -> Inventory:
        """What is held here, all copies done."""
        self.finish_copies()
        held = []
        for id, known in self.requests.items():
            used = -(-known.computed // self.block_size)
            held.append(Held(id, known.computed, known.table[:used], known.host[:used]))
        return Inventory(self.step, held)

    def finish_copies(self, linger: int = 0) -> list[int]:
        """All copies but the last `linger` are done: whose they are."""
        done = self.copies[: max(0, len(self.copies) - linger)]
        del self.copies[: len(done)]
        for copy in done:
            found = [copy.source[block] for block in copy.sources]
            assert found == copy.content, f"{copy.id}: changed while it was copied"
            for block, content in zip(copy.targets, copy.content, strict=True):
                assert copy.target[block] == [POISON] * self.block_size, f"{copy.id}: overwritten"
                copy.target[block] = list(content)
        return [copy.id for copy in done]

    def audit(self) -> None:
        """Whatever KV is held here is still that of its request, whether it is read now or not."""
        busy = {copy.id for copy in self.copies}
        for id, known in self.requests.items():
            assert not (known.table and known.host)
            if id not in busy:
                self._compare(id, known, known.computed)

    def _compare(self, id: int, known: Known, end: int) -> None:
        memory, table = (self.host, known.host) if known.host else (self.memory, known.table)
        for position in range(end):
            block, offset = divmod(position, self.block_size)
            found = memory[table[block]][offset]
            assert found == known.digests[position], f"{id}: wrong KV at token {position} of {end}"

    def _begin_copies(self, batch: Batch) -> None:
        outs = (batch.out_ids, batch.out_counts, batch.out_from, batch.out_to)
        backs = (batch.in_ids, batch.in_counts, batch.in_from, batch.in_to)
        for out, (ids, counts, sources, targets) in ((True, outs), (False, backs)):
            assert sum(counts) == len(sources) == len(targets)
            at = 0
            for id, count in zip(ids, counts, strict=True):
                here, there = sources[at : at + count], targets[at : at + count]
                at += count
                known = self.requests[id]
                used = -(-known.computed // self.block_size)
                drafts = known.rejected if out else 0  # nobody may know yet that they are not there
                most = -(-(known.computed + drafts) // self.block_size)
                assert used <= count <= most, f"{id}: not what it holds"
                assert here == (known.table if out else known.host)[:count], f"{id}: not its own"
                known.table, known.host = ([], there) if out else (there, [])
                source, target = (self.memory, self.host)[:: 1 if out else -1]
                content = [list(source[block]) for block in here]
                self.copies.append(Copy(id, source, here, target, list(there), content))
                for block in there:
                    target[block] = [POISON] * self.block_size

    def _begin(self, id: int, start: int, count: int) -> int:
        """An entry planned behind drafts in flight starts where the request is."""
        known = self.requests.get(id)
        if (
            known
            and known.rejected
            and count == 1
            and start == len(known.tokens) - 1 + known.rejected
        ):
            return start - known.rejected
        return start

    def _scribble(self, entries: list[tuple[int, int, int]], drafts: list[int]) -> None:
        """Something is written for every draft; it must hurt nobody."""
        for (id, start, count), ahead in zip(entries, drafts, strict=True):
            known = self.requests[id]
            end = start + count
            assert not ahead or (count == 1 and end == len(known.tokens)), f"{id}: drafts"
            assert end + ahead <= len(known.table) * self.block_size, f"{id}: no block for a draft"
            for position in range(end, end + ahead):
                block, offset = divmod(position, self.block_size)
                self.memory[known.table[block]][offset] = None

    def _fill(self, known: Known, start: int, count: int) -> None:
        """What was accepted has its KV."""
        known.computed = start + count
        for position in range(start, start + count):
            block, offset = divmod(position, self.block_size)
            self.memory[known.table[block]][offset] = known.digests[position]

    def _introduce(self, batch: Batch) -> None:
        for id, tokens in zip(batch.cut_ids, batch.cut_to, strict=True):
            if (known := self.requests.get(id)) is not None:
                known.computed = min(known.computed, tokens)
                used = -(-known.computed // self.block_size)
                del known.table[used:], known.host[used:]
        for id in batch.release:
            assert self.requests.pop(id, None) is not None, (
                f"release of {id}, which is unknown here"
            )
        for prompt in batch.new:
            before = self.requests.get(prompt.id)
            assert before is None or self.forgives, f"{prompt.id} is introduced twice"
            self.requests[prompt.id] = _known_of(prompt, before)

    def _change_tables(self, batch: Batch) -> None:
        at = 0
        for id, keep, count in zip(batch.ids, batch.table_at, batch.table_counts, strict=True):
            known = self.requests[id]
            assert keep <= len(known.table), f"{id}: a hole in the block table"
            known.table = known.table[:keep] + batch.table_blocks[at : at + count]
            assert all(0 <= block < self.num_blocks for block in known.table)
            assert len(set(known.table)) == len(known.table), f"{id}: a block twice in its table"
            at += count
        assert at == len(batch.table_blocks)

    def _copy(self, batch: Batch) -> None:
        """All copies see the memory as it was before the first one, or one after the other: it must not matter."""
        assert len(set(batch.copy_to)) == len(batch.copy_to), "two copies into one block"
        before = [list(self.memory[block]) for block in batch.copy_from]
        for source, target in zip(batch.copy_from, batch.copy_to, strict=True):
            self.memory[target] = list(self.memory[source])
        for target, content in zip(batch.copy_to, before, strict=True):
            assert self.memory[target] == content, "the result depends on the order of the copies"

    def _write(self, entries: list[tuple[int, int, int]]) -> None:
        written: set[tuple[int, int]] = set()
        for id, start, count in entries:
            known = self.requests[id]
            assert count > 0 and start + count <= len(known.tokens), (
                f"{id}: tokens it does not have"
            )
            assert start + count <= len(known.table) * self.block_size, (
                f"{id}: no block for a token"
            )
            for position in range(start, start + count):
                block, offset = divmod(position, self.block_size)
                slot = (known.table[block], offset)
                assert slot not in written, f"{id}: a slot is written twice in a step"
                written.add(slot)
                self.memory[slot[0]][offset] = known.digests[position]
            known.computed = start + count

    def _read(self, id: int, end: int) -> None:
        known = self.requests[id]
        assert not known.host, f"{id}: runs while its KV is on the host"
        self._compare(id, known, end)
        self.reads += end


def _known_of(prompt: Prompt, before: Known | None) -> Known:
    known = Known(prompt.salt, prompt.sampling.seed)
    for token in prompt.tokens:
        known.append(token)
    if before is not None:  # told again: the KV of what is still the same stays
        same = [old == new for old, new in zip(before.digests, known.digests, strict=False)]
        common = same.index(False) if False in same else len(same)
        known.computed = min(before.computed, common, len(prompt.tokens) - 1)
        known.table, known.host = before.table, before.host
    return known
