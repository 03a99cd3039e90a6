"""AccelGen's multi-resource batching: again and again the request whose demand is nearest to what is left
(arXiv 2503.13737, batching, third to fifth step)."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.table import Bools, Floats, Ints


class Contest(Struct, frozen=True):
    """The candidates, [n] each, smallest T_r first. `pending` tokens need `blocks` further KV blocks; a request marked
    `cut` may be taken in part. The units make tokens and blocks comparable."""

    slots: Ints
    pending: Ints
    blocks: Ints
    cut: Bools
    running: Bools
    tokens_unit: float
    blocks_unit: float

    def distances(self, batch: Batch, alive: Bools, tokens_left: int, blocks_left: int) -> Floats:
        """Squared distances of the demands of those `alive` from what is left, infinite for what does not fit, [n].
        Demands of `cut` requests are not judged here."""
        fits = (self.pending <= tokens_left) & (self.blocks <= blocks_left) & alive & ~self.cut
        if batch.seats > 0:
            fits &= self.running | (self.blocks <= batch.room)
        else:
            fits &= self.running
        squares = ((tokens_left - self.pending) / self.tokens_unit) ** 2
        squares += ((blocks_left - self.blocks) / self.blocks_unit) ** 2
        return np.where(fits, squares, np.inf)


def take_nearest(batch: Batch, contest: Contest) -> None:
    """Takes candidates until nothing more fits. At most one request that is not yet running is taken in part: a second
    long prompt does not begin (exclusive allocation)."""
    alive, any_cut = np.ones(len(contest.slots), dtype=bool), contest.cut.any()
    while batch.tokens > 0 and alive.any():
        squares = contest.distances(batch, alive, batch.tokens, batch.blocks)
        chunks = _judge_cut(batch, contest, alive, squares) if any_cut else {}
        nearest = int(squares.argmin())
        if squares[nearest] == np.inf:
            return
        if contest.cut[nearest]:
            batch.take(int(contest.slots[nearest]), chunks[nearest])
            alive[nearest] = False
            if not contest.running[nearest]:
                alive &= ~contest.cut | contest.running
        elif contest.running[nearest]:
            alive[_take_alike(batch, contest, alive, nearest)] = False
        else:
            batch.take(int(contest.slots[nearest]), int(contest.pending[nearest]))
            alive[nearest] = False


def _judge_cut(batch: Batch, contest: Contest, alive: Bools, squares: Floats) -> dict[int, int]:
    """Chunk of each request that may be cut: as long as tokens and blocks allow; fills in its distance."""
    chunks: dict[int, int] = {}
    for i in np.flatnonzero(alive & contest.cut).tolist():
        slot = int(contest.slots[i])
        if not contest.running[i] and not batch.may_start(int(contest.blocks[i])):
            continue
        chunk = batch.largest_chunk(slot, int(contest.pending[i]))
        if chunk:
            chunks[i] = chunk
            blocks_left = batch.blocks - batch.block_demand(slot, chunk)
            squares[i] = ((batch.tokens - chunk) / contest.tokens_unit) ** 2
            squares[i] += (blocks_left / contest.blocks_unit) ** 2
    return chunks


def _take_alike(batch: Batch, contest: Contest, alive: Bools, nearest: int) -> Ints:
    """Takes the nearest running request, and with it those of the same demand that would be picked right after it.

    The difference of two squared distances is linear in the residual, and the residual moves on a straight line while
    equal demands are taken: who is nearest at the first and at the last step is nearest at all steps between."""
    pending, blocks = int(contest.pending[nearest]), int(contest.blocks[nearest])
    same = alive & contest.running & ~contest.cut
    same &= (contest.pending == pending) & (contest.blocks == blocks)
    alike: Ints = np.flatnonzero(same)
    most = min(len(alike), batch.tokens // pending)
    if blocks:
        most = min(most, batch.blocks // blocks)
    while most > 1:
        tokens_left = batch.tokens - (most - 1) * pending
        blocks_left = batch.blocks - (most - 1) * blocks
        squares = contest.distances(batch, alive, tokens_left, blocks_left)
        if squares[nearest] <= squares.min():
            break
        most //= 2
    alike = alike[:most]
    batch.take_all(contest.slots[alike], contest.pending[alike], contest.blocks[alike])
    return alike


def take_in_order(batch: Batch, contest: Contest) -> bool:
    """Takes candidates as they come; after the first new one that does not fit no other starts, and it is False. That
    is what is left of batching without this part."""
    is_open, exclusive = True, False
    for i, slot in enumerate(contest.slots.tolist()):
        new, cut = not contest.running[i], bool(contest.cut[i])
        if new and (not is_open or (exclusive and cut)):
            continue
        count = batch.largest_chunk(slot, int(contest.pending[i]))
        if count >= (1 if cut else contest.pending[i]) and (not new or batch.admits(slot)):
            batch.take(slot, count)
            exclusive = exclusive or (new and cut)  # a second long prompt does not begin
        else:
            is_open = is_open and not new
    return is_open
