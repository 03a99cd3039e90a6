"""The worker's core: applies Batches in order, answers with StepResults. No sockets; time comes from a clock given.

A request that does not fit its entry, or whose logits are not numbers, fails alone. A forward pass that raises fails
the requests of its batch, a copy to or from the host those that it was for. Only a broken device, or one of both that
keeps raising, ends the worker (FatalError). A drafter that raises is done without from then on.

Drafted tokens are a part of the entry's span: they run in the same packed pass, and its last logits verify them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import structlog
import torch

from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Batch, Held, Inventory, StepResult
from accelgen.worker.drafting.proposal import NOTHING, Drafter, Proposal
from accelgen.worker.drafting.verify import Verdict, verify
from accelgen.worker.faults import FatalError, one_line
from accelgen.worker.hostcache import Copies, HostCache
from accelgen.worker.packing import Span
from accelgen.worker.request import Request, RequestFault
from accelgen.worker.runner import Runner

log = structlog.get_logger()

FAILED_PASS = "the iteration with this request failed; the worker's log says why"
FAILED_COPY = "the copy of its KV to or from the host's memory failed; the worker's log says why"
MAX_FAILURES = 3  # consecutive forward passes or copies that raise
NO_TOKEN = Verdict(())


class Work(NamedTuple):  # made for each entry: a frozen dataclass would take three times as long
    """An entry that can be computed. `planned` drafts are counted for it, `most` of them can be used; `proposal` is
    what it got."""

    request: Request
    span: Span
    planned: int = 0
    most: int = 0
    proposal: Proposal = NOTHING

    def with_drafts(self, proposal: Proposal) -> Work:
        """The proposal's tokens follow the entry's own, and are verified."""
        given = self.span
        count = len(proposal.tokens)
        tokens = (*given.tokens, *proposal.tokens)
        span = Span(tokens, given.start, given.table, 1 + count)
        return self._replace(span=span, proposal=proposal)


class WorkerCore:
    """State of all requests on one worker. `step` is the last one executed, -1 for none. `host` None: nothing can be
    swapped out."""

    def __init__(
        self,
        runner: Runner,
        clock: Callable[[], float] = now_s,
        host: HostCache | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.runner, self.step, self.host, self.drafter = runner, -1, host, drafter
        self.requests: dict[int, Request] = {}
        self.steps = self.tokens_processed = self.drafted = self.accepted = 0
        self.run_s = self.wait_s = 0.0
        self.last_s = self.longest_s = 0.0  # of the iterations that computed something
        self._clock = clock
        self._idle_since_s = clock()
        self._failures = 0

    def execute(self, batch: Batch) -> StepResult:
        """One iteration. Raises FatalError when this worker cannot go on."""
        begin_s = self._clock()
        wait_s = begin_s - self._idle_since_s
        self._forget_and_meet(batch)
        failed: dict[int, str] = {}
        intact = self._own_tails(batch, failed)  # first: a copy from the host may overwrite them
        moved: list[int] = []
        if batch.out_ids or batch.in_ids:
            asked_s = self._clock()
            moved = self._move(batch, failed)
            moved_s = self._clock() - asked_s
            # Copies that do not run beside the iteration are no part of it.
            begin_s, wait_s = begin_s + moved_s, wait_s + moved_s
        works = self._entries(batch, failed) if intact else []
        draft_s = 0.0
        if self.drafter is not None and batch.drafts:
            draft_begin_s = self._clock()
            works = self._draft(works, self.drafter)
            draft_s = self._clock() - draft_begin_s
        sampled = self._compute(batch.step, works, failed)
        self.step = batch.step
        end_s = self._clock()
        self._idle_since_s = end_s  # waiting for copies is idle time, too
        if self.host is not None:  # without entries there is nothing else to do but wait
            moved += self.host.take_done(wait=not works and not moved)
        self._count(works, wait_s, end_s - begin_s)
        done = [work for work in works if work.request.id not in failed]
        verdicts = [sampled.get(work.request.id, NO_TOKEN) for work in done]
        drafted = [len(work.proposal.tokens) for work in done] if batch.drafts else []
        accepted = [verdict.accepted for verdict in verdicts] if batch.drafts else []
        self.drafted += sum(drafted)
        self.accepted += sum(accepted)
        return StepResult(
            step=batch.step,
            ids=[work.request.id for work in done],
            counts=[len(verdict.tokens) for verdict in verdicts],
            tokens=[token for verdict in verdicts for token in verdict.tokens],
            failed=list(failed),
            causes=list(failed.values()),
            copied=list(batch.copy_to),
            wait_s=wait_s,
            run_s=end_s - begin_s,
            moved=moved,
            drafted=drafted,
            accepted=accepted,
            draft_s=draft_s,
        )

    def inventory(self) -> Inventory:
        """Every request known here and what the cache holds of it, for a KV manager that asks. It can count on all
        copies being done, and is not told of them again."""
        if self.host is not None:
            self.host.finish()
        size = self.runner.cache.block_size
        held: list[Held] = [request.held(size) for request in self.requests.values()]
        return Inventory(self.step, held)

    def _forget_and_meet(self, batch: Batch) -> None:
        for id, tokens in zip(batch.cut_ids, batch.cut_to, strict=False):
            if id in self.requests:
                self.requests[id].cut(tokens, self.runner.cache.block_size)
        for id in batch.release:
            self.requests.pop(id, None)
            self._undraft(id)
        for prompt in batch.new:
            self._undraft(prompt.id)
            known = self.requests.get(prompt.id)
            request = Request(prompt, self.runner.loaded.vocab_size)
            if (
                known is not None
            ):  # told again (new scheduler): its journal is the truth, our KV stays
                request.table, request.host = known.table, known.host
                request.computed = _common(known.tokens[: known.computed], request.tokens)
            self.requests[prompt.id] = request

    def _undraft(self, id: int) -> None:
        if self.drafter is not None:
            self.drafter.forget(id)

    def _move(self, batch: Batch, failed: dict[int, str]) -> list[int]:
        """Begins the copies to the host and back. Returns requests of which there is nothing that could be copied:
        these fail."""
        outs = (batch.out_ids, batch.out_counts, batch.out_from, batch.out_to)
        backs = (batch.in_ids, batch.in_counts, batch.in_from, batch.in_to)
        lost: list[int] = []
        for out, (ids, counts, sources, targets) in ((True, outs), (False, backs)):
            if not ids:
                continue
            fault = self._copy_fault(out, counts, sources, targets)
            if fault or self.host is None:
                failed.update(dict.fromkeys(ids, fault or "the worker has no room on the host"))
                lost += ids
                continue
            try:
                self.host.copy(Copies(tuple(ids), sources, targets, out))
            except Exception as error:  # no memory for it, above all
                log.exception("copy of KV failed", step=batch.step, requests=list(ids))
                self._survive(error)
                failed.update(dict.fromkeys(ids, FAILED_COPY))
                lost += ids
                continue
            self._rename(ids, counts, targets, out)
        return lost

    def _rename(self, ids: list[int], counts: list[int], targets: list[int], out: bool) -> None:
        """From now on the KV of these requests is where it has been copied to."""
        at = 0
        for id, count in zip(ids, counts, strict=False):
            request = self.requests.get(id)
            if request is not None:
                there = list(targets[at : at + count])
                request.table, request.host = ([], there) if out else (there, [])
            at += count

    def _copy_fault(
        self, out: bool, counts: list[int], sources: list[int], targets: list[int]
    ) -> str:
        """Why blocks cannot be copied so; "" if they can."""
        there = self.host.num_blocks if self.host is not None else 0
        here = self.runner.cache.num_blocks
        limits = (here, there) if out else (there, here)
        if not sum(counts) == len(sources) == len(targets):
            return "the columns of a copy to or from the host do not fit together"
        for blocks, limit in zip((sources, targets), limits, strict=True):
            if blocks and max(blocks) >= limit:
                return f"block {max(blocks)} of {limit} does not exist"
        return ""

    def _entries(self, batch: Batch, failed: dict[int, str]) -> list[Work]:
        works: list[Work] = []
        at = 0
        for i, id in enumerate(batch.ids):
            blocks = batch.table_blocks[at : at + batch.table_counts[i]]
            at += batch.table_counts[i]
            try:
                works.append(self._entry(batch, i, blocks))
            except RequestFault as fault:
                failed[id] = str(fault)
        return works

    def _entry(self, batch: Batch, i: int, blocks: list[int]) -> Work:
        request = self.requests.get(batch.ids[i])
        if request is None:
            raise RequestFault(f"request {batch.ids[i]} is not known to the worker")
        if blocks and max(blocks) >= self.runner.cache.num_blocks:
            raise RequestFault(
                f"block {max(blocks)} of {self.runner.cache.num_blocks} does not exist"
            )
        end, limit = batch.starts[i] + batch.counts[i], self.runner.loaded.checkpoint.max_positions
        if end > limit:
            raise RequestFault(f"position {end} is beyond the {limit} that the model has")
        request.set_table(batch.table_at[i], blocks, batch.starts[i])
        size = self.runner.cache.block_size
        span = request.span(batch.starts[i], batch.counts[i], size)
        drafts = batch.drafts[i] if batch.drafts else 0
        if span.end + drafts > len(request.table) * size:
            raise RequestFault(
                f"block table of {len(request.table)} blocks does not cover {span.end} tokens"
                f" and {drafts} drafts"
            )
        return Work(request, span, drafts, min(drafts, limit - span.end) if span.logits else 0)

    def _draft(self, works: list[Work], drafter: Drafter) -> list[Work]:
        """The same, with what the drafter proposes."""
        asked = [work for work in works if work.most > 0]
        if not asked:
            return works
        try:
            proposals = drafter.propose([w.request for w in asked], [w.most for w in asked])
        except Exception as error:  # whatever a second model can raise: the first one serves on
            log.exception("the drafter failed; it is not used any more", cause=one_line(error))
            self.drafter = None
            return works
        found = {w.request.id: p for w, p in zip(asked, proposals, strict=True) if p.tokens}
        return [
            work.with_drafts(found[work.request.id]) if work.request.id in found else work
            for work in works
        ]

    def _own_tails(self, batch: Batch, failed: dict[int, str]) -> bool:
        """Copies the blocks that are about to be written and are others', too. False if that failed, and with it the
        iteration."""
        try:
            self.runner.cache.copy(batch.copy_from, batch.copy_to)
        except Exception as error:
            log.exception("copy of blocks failed", step=batch.step, requests=list(batch.ids))
            self._survive(error)
            failed.update(dict.fromkeys(batch.ids, FAILED_PASS))
            return False
        return True

    def _compute(self, step: int, works: list[Work], failed: dict[int, str]) -> dict[int, Verdict]:
        """Forward pass and sampling; returns the tokens of each request that got any."""
        if not works:
            return {}
        try:
            logits = self.runner.forward([work.span for work in works])
            requests, proposals = [w.request for w in works], [w.proposal for w in works]
            verdicts = verify(logits, requests, proposals)
        except Exception as error:  # whatever a model can raise: its batch fails, not the server
            log.exception(
                "iteration failed", step=step, requests=[work.request.id for work in works]
            )
            self._survive(error)
            failed.update((work.request.id, FAILED_PASS) for work in works)
            return {}
        self._failures = 0
        for work in works:
            work.request.computed = work.span.end
        return self._accept(works, verdicts, failed)

    def _accept(
        self, works: list[Work], verdicts: dict[int, Verdict], failed: dict[int, str]
    ) -> dict[int, Verdict]:
        sampled: dict[int, Verdict] = {}
        for i, verdict in verdicts.items():
            work = works[i]
            request = work.request
            if verdict.tainted:
                self.runner.cache.scrub(request.table)
            if verdict.tokens:
                request.extend(verdict.tokens, work.planned - verdict.accepted)
                sampled[request.id] = verdict
            else:
                failed[request.id] = "the model's logits are not finite numbers"
        return sampled

    def _survive(self, error: Exception) -> None:
        self._failures += 1
        device_lost = self.runner.loaded.device.type == "cuda" and not isinstance(
            error, torch.OutOfMemoryError
        )
        if device_lost and "CUDA error" in str(error):
            raise FatalError(f"the CUDA device failed: {one_line(error)}") from error
        if self._failures >= MAX_FAILURES:
            raise FatalError(
                f"{self._failures} iterations in a row failed, last: {one_line(error)}"
            ) from error

    def _count(self, works: list[Work], wait_s: float, run_s: float) -> None:
        self.steps += 1
        self.tokens_processed += sum(len(work.span.tokens) for work in works)
        self.wait_s += wait_s
        self.run_s += run_s
        if works:
            self.last_s, self.longest_s = run_s, max(self.longest_s, run_s)


def _common(old: list[int], new: list[int]) -> int:
    """Length of the common beginning, at most all but the last token of `new` (one must be left to process)."""
    limit = min(len(old), len(new) - 1)
    if old[:limit] == new[:limit]:
        return limit
    return next(i for i in range(limit) if old[i] != new[i])
