"""A whole server under a virtual clock: the real scheduler and KV cores, a worker that follows the protocol to the
letter.

The worker keeps its own token lists and *content-checked* KV memory: every slot records which token prefix was written
there, and every entry verifies that it reads exactly its own prefix. Its "model" is a hash of the prefix, so that a
replay gives the same tokens whatever the batches were. Copies to the host and back happen as late as they may, an
iteration after they were asked for. Its drafts are now right, now wrong, and now missing; those that are wrong are
written to the KV memory, too.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from math import isclose

from msgspec import structs

from accelgen.kvmanager.core import KvCore
from accelgen.proto.config import Config
from accelgen.proto.messages import (
    Abort,
    Admitted,
    Batch,
    Body,
    Finished,
    Held,
    Inventory,
    KvReport,
    Lookup,
    Objective,
    Plan,
    Prompt,
    Reason,
    Role,
    Sampling,
    StepResult,
    Submit,
    Tokens,
)
from accelgen.proto.policies import known_policies
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.policy import load_policy

POLICIES = known_policies()
VOCAB = 97
HOP_S = 0.0002


def next_token(prefix: tuple[int, ...], seed: int) -> int:
    """The deterministic model: a token in 1..VOCAB-1."""
    return 1 + hash((prefix[-8:], len(prefix), seed)) % (VOCAB - 1)


@dataclass
class FakeWorker:
    """Executes Batches as the contract says; asserts everything the contract promises."""

    block_size: int
    tokens: dict[int, list[int]] = field(default_factory=dict)
    seeds: dict[int, int] = field(default_factory=dict)
    tables: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    processed: int = 0
    forgives: bool = False  # a new scheduler may introduce requests again
    fails: set[int] = field(default_factory=set)  # requests that it fails to compute
    computed: dict[int, int] = field(default_factory=dict)
    hosts: dict[int, list[int]] = field(default_factory=dict)  # blocks of those that are away
    host_memory: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    copies: list[tuple[int, bool, list[int], list[int]]] = field(default_factory=list)
    copied_out: int = 0  # blocks
    rejected: dict[int, int] = field(default_factory=dict)  # drafts of the last entry
    planned: int = 0
    drafted: int = 0
    accepted: int = 0
    moved: int = 0  # entries that were planned behind drafts which were not accepted
    step: int = -1

    def inventory(self) -> Inventory:
        self._finish(len(self.copies))
        held = []
        for id in self.tokens:
            computed = self.computed.get(id, 0)
            used = -(-computed // self.block_size)
            held.append(Held(id, computed, self.tables[id][:used], self.hosts.get(id, [])[:used]))
        return Inventory(self.step, held)

    def _begin(self, batch: Batch) -> None:
        outs = (batch.out_ids, batch.out_counts, batch.out_from, batch.out_to)
        backs = (batch.in_ids, batch.in_counts, batch.in_from, batch.in_to)
        for out, (ids, counts, sources, targets) in ((True, outs), (False, backs)):
            at = 0
            for id, blocks in zip(ids, counts, strict=True):
                here, there = sources[at : at + blocks], targets[at : at + blocks]
                at += blocks
                assert here == (self.tables[id] if out else self.hosts[id])[:blocks]
                self.tables[id], self.hosts[id] = ([], there) if out else (there, [])
                self.copies.append((id, out, list(here), list(there)))
                self.copied_out += blocks * out

    def _finish(self, count: int) -> list[int]:
        done, self.copies = self.copies[:count], self.copies[count:]
        for _, out, sources, targets in done:
            memories = (self.memory, self.host_memory)
            source, target = memories if out else memories[::-1]
            for block, other in zip(sources, targets, strict=True):
                for offset in range(self.block_size):
                    target.pop((other, offset), None)
                    if (block, offset) in source:
                        target[other, offset] = source[block, offset]
        return [id for id, *_ in done]

    def run(self, batch: Batch) -> StepResult:
        self.step = batch.step
        older = len(self.copies)
        for id, tokens in zip(batch.cut_ids, batch.cut_to, strict=True):
            if id in self.tokens:
                self.computed[id] = min(self.computed.get(id, 0), tokens)
                used = -(-self.computed[id] // self.block_size)
                del self.tables[id][used:], self.hosts.setdefault(id, [])[used:]
        for prompt in batch.new:
            assert prompt.id not in self.tokens or self.forgives
            self.tokens[prompt.id] = list(prompt.tokens)
            self.seeds[prompt.id] = prompt.sampling.seed
        self._begin(batch)
        for source, target in zip(batch.copy_from, batch.copy_to, strict=True):
            for offset in range(self.block_size):
                if (source, offset) in self.memory:
                    self.memory[target, offset] = self.memory[source, offset]
        sampled, ids, failed, at = [], [], [], 0
        drafted, accepted = self.drafted, self.accepted
        drafts = batch.drafts or [0] * len(batch.ids)
        assert len(drafts) == len(batch.ids)
        made: list[int] = []
        for i, id in enumerate(batch.ids):
            blocks = batch.table_blocks[at : at + batch.table_counts[i]]
            at += batch.table_counts[i]
            table = self.tables[id]
            if blocks or batch.table_at[i] < len(table):
                del table[batch.table_at[i] :]
                table.extend(blocks)
            if batch.table_at[i] == 0 and blocks:  # a new life: what the table covers is computed
                self.computed[id], self.rejected[id] = batch.starts[i], 0
            if id in self.fails:
                failed.append(id)
                continue
            before = self.drafted
            sampled.append(self._compute(id, batch.starts[i], batch.counts[i], drafts[i]))
            ids.append(id)
            made.append(self.drafted - before)
        for id in batch.release:
            self.tokens.pop(id), self.tables.pop(id, None), self.computed.pop(id, None)
            self.hosts.pop(id, None)
            self.rejected.pop(id, None)
        counts = [len(tokens) for tokens in sampled]
        flat = [token for tokens in sampled for token in tokens]
        causes = ["made to fail"] * len(failed)
        seconds = self.seconds(batch)
        right = [max(0, count - 1) for count in counts]
        assert sum(made) == self.drafted - drafted and sum(right) == self.accepted - accepted
        moved = self._finish(older if batch.ids else max(1, older))
        return StepResult(
            batch.step, ids, counts, flat, failed, causes, [], 0.0, seconds, moved,
            *((made, right) if batch.drafts else ()),
        )  # fmt: skip

    def seconds(self, batch: Batch) -> float:
        return 0.004 + 0.0001 * (sum(batch.counts) + sum(batch.drafts))

    def _compute(self, id: int, start: int, count: int, drafts: int) -> list[int]:
        tokens, table = self.tokens[id], self.tables[id]
        if count == 1 and start > self.computed[id]:
            start -= self.rejected[id]
            assert start == self.computed[id]
            self.moved += 1
        end = start + count
        assert count > 0 and end <= len(tokens), (id, start, count, len(tokens))
        assert not drafts or (count == 1 and end == len(tokens)), "drafts for what does not decode"
        assert end + drafts <= len(table) * self.block_size, f"request {id}: no blocks for drafts"
        guesses = self._guess(id, drafts)
        written = [*tokens[:end], *guesses]
        for position in range(len(written)):
            slot = (table[position // self.block_size], position % self.block_size)
            prefix = tuple(written[: position + 1])
            if position >= start:
                self.memory[slot] = prefix
                self.processed += 1
            else:
                assert self.memory.get(slot) == prefix, (
                    f"request {id} reads foreign KV at {position}"
                )
        assert start <= self.computed[id]
        self.computed[id] = end
        if end < len(tokens):
            return []
        return self._verify(id, guesses, drafts)

    def _guess(self, id: int, drafts: int) -> list[int]:
        """Up to `drafts` tokens; each is the right one in three of four cases."""
        tokens, guesses = list(self.tokens[id]), []
        for _ in range(drafts):
            luck = hash((len(tokens), self.step, id)) % 16
            if luck == 0:  # nothing to propose
                break
            right = next_token(tuple(tokens), self.seeds[id])
            guesses.append(right if luck < 12 else 1 + right % (VOCAB - 1))
            tokens.append(guesses[-1])
        return guesses

    def _verify(self, id: int, guesses: list[int], planned: int) -> list[int]:
        tokens, begin = self.tokens[id], len(self.tokens[id])
        for guess in [*guesses, -1]:
            tokens.append(next_token(tuple(tokens), self.seeds[id]))
            if tokens[-1] != guess:
                break
        accepted = len(tokens) - begin - 1
        self.planned += planned
        self.drafted += len(guesses)
        self.accepted += accepted
        self.computed[id], self.rejected[id] = len(tokens) - 1, planned - accepted
        return tokens[begin:]


class World:
    """Submit requests, run, look at what the frontend received."""

    def __init__(
        self, policy: str = "accelgen", blocks: int = 64, block_size: int = 4, replicas: int = 1,
        params: dict[str, float] | None = None, report_s: float = HOP_S, host_blocks: int = 0,
        **config: object,
    ) -> None:  # fmt: skip
        self.host_blocks = host_blocks
        self.report_s = report_s  # how long a KvReport takes: the result of its step may be faster
        self.config = Config(policy=policy, replicas=replicas, **config)  # type: ignore[arg-type]
        self.specs = {
            index: ReplicaSpec(blocks, block_size, None, 100 + index) for index in range(replicas)
        }
        self.core = SchedulerCore(self.config, load_policy(policy, params or {}), self.specs)
        self.epoch = self.adopted = self.lost = 0
        self._loses = False
        self.journal: dict[int, Submit] = {}  # live choices, each by itself
        self.kvs = [KvCore(blocks, block_size, True, host_blocks) for _ in range(replicas)]
        self.workers = [FakeWorker(block_size) for _ in range(replicas)]
        self.busy_until_s = [0.0] * replicas
        self.now_s = 0.0
        self.delivered: dict[int, list[int]] = defaultdict(list)
        self.token_times_s: dict[int, list[float]] = defaultdict(list)
        self.ended: dict[int, Reason] = {}
        self.queue_s: dict[int, float] = {}
        self.admitted: dict[int, Admitted] = {}
        self.plans: list[Plan] = []
        self._events: list[tuple[float, int, object]] = []
        self._order = count()

    def submit(
        self, id: int, prompt: list[int], max_tokens: int = 8, at_s: float | None = None,
        siblings: list[int] | None = None, objective: Objective | None = None, seed: int = 0,
        stop: list[int] | None = None, slo_class: str = "standard",
    ) -> None:  # fmt: skip
        message = Submit(
            Prompt(id, prompt, Sampling(seed=seed)), max_tokens, stop or [],
            objective or Objective(5.0, 0.25), slo_class, 0.0, siblings or [],
        )  # fmt: skip
        self._at(self.now_s if at_s is None else at_s, ("submit", message))

    def abort(self, ids: list[int], at_s: float | None = None) -> None:
        self._at(self.now_s if at_s is None else at_s, ("abort", Abort(ids)))

    def crash(
        self, at_s: float, policy: str | None = None, kv: bool = False, without: int | None = None
    ) -> None:
        """The scheduler dies at that moment with everything on its way to or from it; another one takes over. With
        `kv`, the KV managers die, too. `without`: this replica does not answer; the next takeover finds it again."""
        self._at(at_s, ("crash", policy or self.config.policy, kv, without))

    def lose_batch(self, at_s: float) -> None:
        """The next Batch made after that moment gets lost; the scheduler takes over from itself."""
        self._at(at_s, ("lose",))

    def run(self, until_s: float = 1e6, most_events: int = 20_000) -> None:
        """Until nothing is left to do (or `until_s`)."""
        for _ in range(most_events):
            tick_s = max(self.now_s, self.core.next_s(self.now_s))
            event_s = self._events[0][0] if self._events else float("inf")
            if min(tick_s, event_s) > until_s or (event_s == float("inf") and not self._alive()):
                return
            if event_s <= tick_s:
                self.now_s, _, event = heapq.heappop(self._events)
                self._handle(event)
            else:
                self.now_s = tick_s
                self.core.tick(tick_s)
            self._flush()
        raise AssertionError(f"no end after {most_events} events: {self._alive()} requests alive")

    def check_idle(self) -> None:
        """After the end: nothing is held anywhere."""
        for kv, worker, replica in zip(
            self.kvs, self.workers, self.core.replicas.values(), strict=True
        ):
            kv.settle()
            assert kv.check() == []
            assert kv.pool.used == 0, f"{kv.pool.used} blocks leaked"
            assert kv.tables.host.used == 0 and not replica.moves.pending and not worker.copies
            assert not worker.tokens and len(replica.table) == 0 and not replica.flights
            assert replica.table.waiting_tokens == 0

    def _alive(self) -> int:
        return sum(
            len(r.table) + len(r.flights) + len(r._release) + r.moves.pending
            for r in self.core.replicas.values()
        )

    def _at(self, at_s: float, event: object) -> None:
        heapq.heappush(self._events, (at_s, next(self._order), event))

    def _handle(self, event: object) -> None:
        kind, *rest = event  # type: ignore[misc]
        if kind in ("kv", "report", "result") and rest.pop() != self.epoch:
            return  # of a scheduler that is gone
        if kind == "crash":
            self._take_over(*rest)
        elif kind == "lose":
            self._loses = True
        elif kind == "submit":
            self._remember(rest[0])
            self.core.on_submit(rest[0], 0, self.now_s)
        elif kind == "abort":
            for id in rest[0].ids:
                self.journal.pop(id, None)
            self.core.on_abort(rest[0], self.now_s)
        elif kind == "kv":
            self._to_kv(rest[0], rest[1])
        elif kind == "report":
            self.core.on_report(rest[1], rest[0], self.now_s)
        elif kind == "result":
            self.core.on_result(rest[1], rest[0], self.now_s)

    def _to_kv(self, index: int, body: Body) -> None:
        if isinstance(body, Lookup):
            self._at(
                self.now_s + HOP_S, ("report", index, self.kvs[index].on_lookup(body), self.epoch)
            )
            return
        assert isinstance(body, Plan)
        self.plans.append(body)
        batch, report = self.kvs[index].on_plan(body)
        self.kvs[index].settle()
        if self._loses:
            self._loses, self.lost = False, self.lost + 1
            self._take_over(self.config.policy)
            return
        assert isinstance(report, KvReport) and report.step == body.step
        self._at(self.now_s + self.report_s, ("report", index, report, self.epoch))
        result = self.workers[index].run(batch)
        begin_s = max(self.now_s + HOP_S, self.busy_until_s[index])
        self.busy_until_s[index] = begin_s + result.run_s
        self._at(self.busy_until_s[index] + HOP_S, ("result", index, result, self.epoch))

    def _flush(self) -> None:
        for role, index, body in self.core.outbox:
            if role is Role.KVMANAGER:
                self._at(self.now_s + HOP_S, ("kv", index, body, self.epoch))
            else:
                self._receive(body)
        self.core.outbox.clear()

    def _remember(self, submit: Submit) -> None:
        prompt = submit.prompt
        for i, id in enumerate([prompt.id, *submit.siblings]):
            sampling = Sampling(seed=prompt.sampling.seed + i)
            own = structs.replace(prompt, id=id, sampling=sampling)
            self.journal[id] = structs.replace(submit, prompt=own, siblings=[])

    def _take_over(self, policy: str, kv_dies: bool = False, without: int | None = None) -> None:
        """What the processes do when a new scheduler activates them, in one moment."""
        if kv_dies:
            size = self.workers[0].block_size
            host = self.host_blocks
            self.kvs = [KvCore(kv.pool.num_blocks, size, True, host) for kv in self.kvs]
        self.epoch += 1
        specs = {index: spec for index, spec in self.specs.items() if index != without}
        self.core = SchedulerCore(self.config, load_policy(policy, {}), specs)
        for index, (kv, worker) in enumerate(zip(self.kvs, self.workers, strict=True)):
            if index == without:
                continue
            assert kv.on_inventory(worker.inventory()) == []
            inventory = kv.on_activate()
            assert kv.check() == []
            self.adopted += sum(held.computed for held in inventory.held)
            self.core.inherit(inventory, index)
            worker.forgives = True
        for id, submit in self.journal.items():
            tokens = self.delivered[id]
            prompt = structs.replace(
                submit.prompt, tokens=submit.prompt.tokens + tokens, generated=len(tokens)
            )
            self.core.on_submit(structs.replace(submit, prompt=prompt), 0, self.now_s)
        self.core.release_unclaimed()

    def _receive(self, body: Body) -> None:
        match body:
            case Tokens():
                at = 0
                for id, n in zip(body.ids, body.counts, strict=True):
                    assert id not in self.ended, f"token for {id} after its end"
                    self.delivered[id].extend(body.tokens[at : at + n])
                    self.token_times_s[id].extend([self.now_s] * n)
                    at += n
                for id, queue_s in zip(body.begun, body.queue_s, strict=True):
                    assert id not in self.queue_s, f"first tokens for {id} twice"
                    self.queue_s[id] = queue_s
                    self.journal[id] = structs.replace(self.journal[id], queue_s=queue_s)
            case Finished():
                for end in body.ends:
                    assert end.id not in self.ended, f"request {end.id} ended twice"
                    self.ended[end.id] = end.reason
                    known_s = self.queue_s.get(end.id, end.queue_s)
                    assert isclose(end.queue_s, known_s, abs_tol=1e-9), "queued anew"
                    self.journal.pop(end.id, None)
            case Admitted():
                assert body.worker == 100 + body.replica
                self.admitted[body.id] = body


def expected(
    prompt: list[int], max_tokens: int, seed: int = 0, stop: list[int] | None = None
) -> list[int]:
    """What the model generates for a prompt, computed without any server."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        tokens.append(next_token(tuple(tokens), seed))
        if tokens[-1] in (stop or []):
            break
    return tokens[len(prompt) :]
