"""What a scheduling policy sees, and what it answers. A policy is found by its entry point (`accelgen.policies`).

A policy has no sockets, no clock and no hidden state: `plan` reads a View, and what it must remember from one call to
the next is a value, its state, that it receives and returns. The same object runs live and
simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from msgspec import Struct

from accelgen.proto.policies import POLICY_GROUP, unknown_policy
from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.memory.crossover import Copies
from accelgen.scheduler.request import Request
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import Bools, Ints, RequestTable


@dataclass(frozen=True, slots=True)
class Limits:
    """What every plan is clipped to, whatever the policy says."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_s: float


@dataclass(frozen=True, slots=True)
class View:
    """One replica, projected past the iteration in flight. A policy reads it and changes nothing.

    `victims`: who gives way first if the memory policy has a say in it. `copies`: what copies of KV to the host and
    back take, if that has been measured and there is room on the host. `last`: what came of the decision before, tokens
    by request id that are processed: fewer than decided where limits cut them or entries wait for blocks which are
    leaving (moves.py); none if no iteration was planned. A policy that keeps account of its decisions goes by that."""

    table: RequestTable
    # that an allocation can take, the cached and the pinned ones included, and those that are leaving for the host
    free_blocks: int
    pinned_blocks: (
        int  # held only by prefix hits of waiting requests, and taken from them if need be
    )
    total_blocks: int
    limits: Limits
    cost: CostModel
    host_free: int = 0  # blocks of the host that KV can be swapped out to
    victims: Victims | None = None
    copies: Copies | None = None
    speculation: Speculation = field(default_factory=Speculation)  # no drafter
    last: Mapping[int, int] = field(default_factory=dict)


Victims = Callable[[View], Ints]
"""Running slots, who is preempted first in front. Asked only when blocks are short."""


@dataclass(slots=True)
class Decision:
    """Which request (by slot) processes how many tokens; whose KV is taken before. Slots are unique.

    `requeue`: waiting requests (also of `slots`) whose place in the waiting order has changed, and their new keys: what
    `order_key` would say with the new state. `declined`: requests that are best effort from now on: they are promised
    nothing, and their clients are told in the end. `swap`: of which of `preempt` the KV goes to the host, if there is
    room, instead of being dropped; None: of all or none, as the server is configured.
    `allocate`: how many blocks requests that run shall hold, if need be more than they have use for. `embed`: by guest,
    in whose unused blocks it is to live, as far as they go, with what it needs now.
    `drafts`: for each of `slots`, how many tokens are drafted and verified at most; only running requests that decode
    may have any. They are cut to what server and request allow, and to the blocks that are left. None: the engine
    decides (draft_lengths.py)."""

    slots: list[int]
    counts: list[int]
    preempt: list[int]
    requeue: dict[int, float] = field(default_factory=dict)
    declined: list[int] = field(default_factory=list)
    swap: list[int] | None = None
    allocate: dict[int, int] = field(default_factory=dict)
    embed: dict[int, int] = field(default_factory=dict)
    drafts: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Answer to an arrival: the replica it goes to and the predicted time to first token in seconds. `refused`: why it
    goes nowhere ("": it is taken); `is_hopeless`: and never would."""

    replica: int
    predicted_ttft_s: float
    refused: str = ""
    is_hopeless: bool = False


class StepStats(Struct, frozen=True):
    """What a policy may learn from an executed iteration: its seconds, the prompt chunks in it (tokens), the ids of the
    requests that ran in it, in the order of the plan, and its features."""

    run_s: float
    chunks: list[int]
    preempted: int
    finished: int
    ids: list[int] = []  # msgspec copies it
    work: Work = Work()


class Policy(Protocol):
    """See accelgen.scheduler.policies.vllm for the smallest one."""

    name: str

    def initial(self) -> Any:
        """The state of a policy that has seen nothing: a msgspec-serialisable value."""

    def order_key(self, view: View, slot: int, state: Any) -> float:
        """Place in the waiting order (ascending), asked on arrival and on preemption."""

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        """The replica for a request that arrives at `now_s`, or why it is refused. One that has been accepted before,
        by another scheduler, is taken whatever the answer says."""

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        """The next iteration, predicted to start at `start_s`."""

    def observe(self, step: StepStats, state: Any) -> Any:
        """After every executed iteration."""


class UnknownPolicy(ValueError):
    """No such policy, or a parameter it does not take; the text lists what there is."""


def find_policy(name: str) -> EntryPoint:
    """Where the installed policy `name` comes from. Raises UnknownPolicy."""
    if fault := unknown_policy(name):
        raise UnknownPolicy(fault)
    return next(iter(entry_points(group=POLICY_GROUP, name=name)))


def load_policy(name: str, params: dict[str, Any]) -> Policy:
    """The installed policy `name` with its parameters. Raises UnknownPolicy, and whatever its package raises."""
    kind = find_policy(name).load()
    try:
        policy: Policy = kind(**params)
    except (TypeError, ValueError) as error:
        raise UnknownPolicy(f"policy_params: {name}: {error}") from error
    return policy


def is_decode(table: RequestTable, slots: Ints) -> Bools:
    """Requests of which exactly the newest sampled token waits to be processed, [len(slots)]."""
    length = table.length[slots]
    decode: Bools = (length - table.computed[slots] == 1) & (length > table.prompt_len[slots])
    return decode
