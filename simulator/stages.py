"""DistServe's two stages as values: what waits, runs and lies where, on a device for prompts and on one for decodes
(OSDI'24). Rules and their evidence: `distserve.py`."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf

from accelgen.simulator.run import Fate
from accelgen.simulator.worker import SimulatedWorker


@dataclass(frozen=True)
class Rules:
    """Its parameters. `prefill_devices` of all, 0 for half of them. GB/s are 1e9 bytes per second."""

    prefill_devices: int = 0
    context_max_batch_size: int = 128
    context_max_tokens: int = 8192
    decoding_max_batch_size: int = 1024
    waiting_share: float = 0.05
    link_gb_s: float = 225.0

    def __post_init__(self) -> None:
        for name in ("context_max_batch_size", "context_max_tokens", "decoding_max_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, must be at least 1")
        for name in ("waiting_share", "link_gb_s"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name}: {getattr(self, name)}, must be above 0")
        if self.prefill_devices < 0:
            raise ValueError(f"prefill_devices: {self.prefill_devices}, must be at least 0")


@dataclass(slots=True, eq=False)
class Task:
    """A request under way: its tokens, and the block size."""

    fate: Fate
    block_size: int
    generated: int = 0

    prompt: int = field(init=False)
    output: int = field(init=False)
    prompt_blocks: int = field(init=False)

    def __post_init__(self) -> None:
        arrival = self.fate.arrival
        self.prompt, self.output = arrival.prompt_tokens, arrival.output_tokens
        self.prompt_blocks = -(-self.prompt // self.block_size)

    @property
    def blocks(self) -> int:
        """For all tokens so far."""
        return -(-(self.prompt + self.generated) // self.block_size)

    @property
    def done(self) -> bool:
        return self.generated >= self.output


@dataclass(slots=True)
class Prefill:
    """A device that processes prompts. `unaccepted` blocks are held by prompts that nobody has pulled yet, `tokens` is
    what is left to process."""

    worker: SimulatedWorker
    blocks: int
    waiting: deque[Task] = field(default_factory=deque)
    batch: list[Task] = field(default_factory=list)
    unaccepted: int = 0
    tokens: int = 0

    @property
    def used(self) -> int:
        return self.unaccepted + sum(task.prompt_blocks for task in self.batch)

    def add(self, task: Task) -> None:
        self.waiting.append(task)
        self.tokens += task.prompt

    def form(self, rules: Rules) -> None:
        """The next batch, from the front of the queue."""
        tokens, blocks = 0, self.unaccepted
        while self.waiting and len(self.batch) < rules.context_max_batch_size:
            task = self.waiting[0]
            tokens, blocks = tokens + task.prompt, blocks + task.prompt_blocks
            if blocks > self.blocks or (self.batch and tokens > rules.context_max_tokens):
                return
            self.batch.append(self.waiting.popleft())

    def end(self) -> list[Task]:
        """The batch, which has been processed."""
        batch, self.batch = self.batch, []
        self.tokens -= sum(task.prompt for task in batch)
        return batch


@dataclass(slots=True)
class Decode:
    """A device that decodes. `unaccepted`: prompts to be pulled, and where they lie; `waiting`: pulled, not yet in the
    batch; `swapped`: on the host. `used` blocks are held by what waits (for its prompt) and by the batch."""

    worker: SimulatedWorker
    blocks: int
    unaccepted: deque[tuple[Task, Prefill]] = field(default_factory=deque)
    waiting: deque[Task] = field(default_factory=deque)
    batch: list[Task] = field(default_factory=list)
    swapped: deque[Task] = field(default_factory=deque)
    used: int = 0
    pulled: int = 0  # of these, what waits
    busy: bool = False

    @property
    def load(self) -> int:
        return len(self.unaccepted) + len(self.waiting) + len(self.batch) + len(self.swapped)

    def accept(self, share: float) -> tuple[Task, Prefill] | None:
        """The next prompt to pull, if it may be."""
        if not self.unaccepted or self.pulled >= share * self.blocks:
            return None
        task, prefill = self.unaccepted[0]
        if self.used + task.prompt_blocks > self.blocks:
            return None
        self.waiting.append(task)
        self.pulled += task.prompt_blocks
        self.used += task.prompt_blocks
        return self.unaccepted.popleft()

    def form(self, rules: Rules) -> int:
        """Brings the batch up to date; returns how many blocks were swapped out or in for it."""
        moved = 0
        self.used = self.pulled + sum(task.blocks for task in self.batch)
        while self.used > self.blocks and self.batch:
            moved += self._swap_out(self.batch.pop())
        while self.swapped or self.waiting:
            task = self.swapped[0] if self.swapped else self.waiting[0]
            more = task.blocks - (0 if self.swapped else task.prompt_blocks)
            if len(self.batch) < rules.decoding_max_batch_size and self.used + more <= self.blocks:
                moved += self._join()
            elif self.batch or not self.waiting:
                break
            else:  # nothing could run any more
                self.pulled -= self.waiting[-1].prompt_blocks
                moved += self._swap_out(self.waiting.pop())
        return moved

    def end(self) -> list[Task]:
        """The batch, after an iteration; those that are done leave."""
        batch = self.batch
        self.batch = [task for task in batch if task.generated + 1 < task.output]
        self.used -= sum(task.blocks for task in batch if task.generated + 1 >= task.output)
        return batch

    def _join(self) -> int:
        """The next one enters the batch; blocks swapped in for it."""
        if self.swapped:
            self.batch.append(self.swapped.popleft())
            self.used += self.batch[-1].blocks
            return self.batch[-1].blocks
        task = self.waiting.popleft()
        self.batch.append(task)
        self.pulled -= task.prompt_blocks
        self.used += task.blocks - task.prompt_blocks
        return 0

    def _swap_out(self, task: Task) -> int:
        held = task.blocks
        self.swapped.append(task)
        self.used -= held
        task.fate.preemptions += 1
        return held
