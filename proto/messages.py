"""Every message of the system, on one page: who sends it to whom, and what it carries.

    frontend  -- Submit, Abort ----------------------> scheduler
    scheduler -- Activate, Admitted, Tokens, Finished -> frontend
    scheduler -- Activate, Lookup, Plan -------------> kvmanager
    kvmanager -- Inventory, KvReport ----------------> scheduler
    kvmanager -- Batch ------------------------------> worker
    kvmanager -- Resync -----------------------------> worker
    worker    -- Inventory --------------------------> kvmanager
    scheduler -- Activate ---------------------------> worker
    worker    -- Inventory, StepResult --------------> scheduler
    all these -- Resync, Pulse ----------------------> each other
    everyone  -- Hello, Heartbeat, Query, Dumped ----> supervisor
    supervisor - Directory, Stop, Dump --------------> everyone
    supervisor - Prepare, Yield, Assume -------------> scheduler
    scheduler -- Handoff ----------------------------> supervisor

Bodies are msgpack arrays (msgspec structs, array-like); the header frame is `accelgen.proto.frame.Header`.
Messages of one iteration are columnar: parallel lists, of which the i-th items belong together. Durations are
seconds (`_s`); a token is its integer id; a request id is a positive 63-bit integer given out by the frontend.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Any, ClassVar

from msgspec import Meta, Struct, field

Id = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(ge=0)]
ShortText = Annotated[str, Meta(max_length=2000)]
# What a person has written, or what was written to him: never in a dump of the flight recorder.
PRIVATE = {"private": True}
TokenIds = Annotated[list[Count], Meta(extra=PRIVATE)]
Salt = Annotated[bytes, Meta(extra=PRIVATE)]
PolicyName = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]+$")]
ChosenPolicy = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00]*$")]  # "": as it is
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
# What fits into one argument of a command line (128 KiB), however it is escaped.
PolicyParams = Annotated[
    dict[
        Annotated[str, Meta(max_length=64)],
        bool | Integer | float | Annotated[str, Meta(max_length=500)],
    ],
    Meta(max_length=32),
]


class Body(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """Base of everything that travels. Array-like: field order is the wire format. What is `periodic` says again and
    again what the one before said: the flight recorder leaves it out."""

    periodic: ClassVar[bool] = False


class Reason(IntEnum):
    """Why a request ended. The first two are successes; every other one is told to the client as an error."""

    STOP = 0
    LENGTH = 1
    ABORTED = 2  # by the frontend: client gone, or its stop string matched
    REFUSED_SATURATED = 3  # queue bound reached: 429
    REFUSED_EXPIRED = 4  # waited longer than its class allows: 429
    REFUSED_TOO_LONG = 5  # can never fit the KV cache: 400
    REFUSED_DRAINING = 6  # server is shutting down: 503
    FAILED = 7  # the worker could not compute it: 500
    REFUSED_OBJECTIVE = 8  # refused by a plan, and no idle replica could keep its objective: 400


class Role(IntEnum):
    SUPERVISOR = 0
    FRONTEND = 1
    SCHEDULER = 2
    KVMANAGER = 3
    WORKER = 4
    CLIENT = 5  # a command-line tool that asks the supervisor something


# --- parts -------------------------------------------------------------------------------------------------------


class Sampling(Body, frozen=True):
    """How the worker draws tokens. temperature 0 is greedy; top_k 0 and min_p 0 are off."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Count = 0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    seed: Id = 0  # random numbers come from (seed, position), so a replay continues identically


class Thinking(Body, frozen=True):
    """The first part of a reasoning model's answer, for as long as it has a time per token of its own. It is over with
    the first of `end_ids` (which belongs to it), or after `max_tokens` tokens (0: however many). `tpot_s` None is "not
    stated". What follows is the response."""

    tpot_s: Seconds | None = None
    end_ids: list[Count] = field(default_factory=list)
    max_tokens: Count = 0


class Objective(Body, frozen=True):
    """What the client asked for; None is "not stated". Bounded by the class in the configuration. Of an answer that
    begins with `thinking`, `tpot_s` is the response's. `refuses`: rather not at all than as best effort, where the
    policy promises objectives (slos-serve)."""

    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    e2e_s: Seconds | None = None
    thinking: Thinking | None = None
    refuses: bool = False


class Prompt(Body, frozen=True):
    """What KV manager and worker need of a request, sent once.

    `tokens` are the prompt and, after a recovery, the tokens generated so far (the last `generated` ones).
    `salt` separates prefix caches of tenants. `parent` names the request whose blocks this one will fork (0: none).
    """

    id: Id
    tokens: TokenIds
    sampling: Sampling = Sampling()
    generated: Count = 0
    salt: Salt = b""
    parent: Id = 0


class Held(Body, frozen=True):
    """One request in an Inventory: how many tokens have been computed, and in which blocks they lie: in those of the
    device, or, of a request that has been swapped out, in those of the host."""

    id: Id
    computed: Count
    blocks: list[Count]
    host: list[Count] = field(default_factory=list)


class Sample(Body, frozen=True):
    """One timed iteration: the features of the cost model and the seconds it took (scheduler/cost_model.py)."""

    prefill_tokens: Count
    decode_seqs: Count
    decode_context: Count  # sum of context lengths over decoding requests
    prefill_work: Seconds  # sum of chunk * (prior + chunk / 2), in token^2
    run_s: Seconds


class SwapSample(Body, frozen=True):
    """One timed copy of KV: `out` to the host's memory, else back."""

    blocks: Count
    bytes: Id
    out: bool
    run_s: Seconds


class Facts(Body, frozen=True):
    """What a worker found out while loading; everybody else learns it through the Directory.

    `host_blocks`: KV blocks that the host's memory has room for. `swaps`: what moving them takes, if that has been
    measured."""

    model: str
    architecture: str
    device: str
    dtype: str
    backend: str
    max_model_len: Count
    vocab_size: Count
    block_size: Count
    num_blocks: Count
    weights_bytes: Id
    kv_bytes: Id
    samples: list[Sample] = field(default_factory=list)
    host_blocks: Count = 0
    swaps: list[SwapSample] = field(default_factory=list)


class Member(Body, frozen=True):
    """One process as the supervisor sees it."""

    role: Role
    index: Count  # frontend number, or replica number
    pid: Count
    endpoint: str
    incarnation: Id
    epoch: Id
    phase: str  # "starting", "loading weights", ..., "ready", "stopping", "dead"
    progress: Id  # loop counter of its last heartbeat
    uptime_s: Seconds
    heard_s: Seconds  # age of its last heartbeat
    rss_bytes: Id
    facts: Facts | None
    gauges: dict[str, float]


class End(Body, frozen=True):
    """The one terminal event of a request. `detail` is for people; `retry_after_s` only with a refusal. `best_effort`:
    the policy promises objectives, and has not promised those of this request."""

    id: Id
    reason: Reason
    detail: ShortText = ""
    retry_after_s: Seconds = 0.0
    queue_s: Seconds = 0.0  # arrival at the scheduler until first planned
    cached_tokens: Count = 0  # prompt tokens found in the prefix cache
    preemptions: Count = 0
    best_effort: bool = False


# --- frontend and scheduler --------------------------------------------------------------------------------------


class Submit(Body, frozen=True):
    """frontend -> scheduler. `siblings` are the ids of choices 1..n-1 of the same prompt (`n > 1`); sibling i
    samples with seed + i. `waited_s` is the time since the request reached the frontend; `queue_s` what a scheduler
    before this one has said of it (see Tokens)."""

    prompt: Prompt
    max_tokens: Count
    stop_token_ids: TokenIds
    objective: Objective
    slo_class: str
    waited_s: Seconds
    siblings: list[Id] = field(default_factory=list)
    queue_s: Seconds | None = None


class Abort(Body, frozen=True):
    """frontend -> scheduler. Idempotent; unknown ids are ignored."""

    ids: list[Id]


class Admitted(Body, frozen=True):
    """scheduler -> frontend, once for each request that enters the queue. `worker`: the incarnation of that replica's
    worker, with whose death the request is lost (0: not said)."""

    id: Id
    replica: Count
    predicted_ttft_s: Seconds
    cached_tokens: Count
    worker: Id = 0


class Tokens(Body, frozen=True):
    """scheduler -> frontend, one per iteration: request ids[i] got counts[i] of the tokens. For those of `begun` they
    are the first: queue_s[i] passed from arrival until they were first planned. The frontend keeps it: a scheduler
    that takes over cannot know."""

    step: Id
    ids: list[Id]
    counts: list[Count]
    tokens: TokenIds
    begun: list[Id] = field(default_factory=list)
    queue_s: list[Seconds] = field(default_factory=list)


class Finished(Body, frozen=True):
    """scheduler -> frontend: the requests that ended, after their last Tokens."""

    ends: list[End]


# --- scheduler and KV manager ------------------------------------------------------------------------------------


class Lookup(Body, frozen=True):
    """scheduler -> kvmanager, at arrival: remember these requests, pin what the prefix cache has of them.
    Answered by a KvReport whose `hits` name every request without a parent.

    A new scheduler takes over requests of the Inventory with `adopt`: prompts[i] replaces what is known of that
    request, and of its computed tokens those that the prompt covers are kept, in whatever block they end."""

    prompts: list[Prompt]
    adopt: bool = False


class Fork(Body, frozen=True):
    """`child` shares the blocks that hold the first `computed` tokens of `parent` (copy-on-write)."""

    child: Id
    parent: Id
    computed: Count


class Plan(Body, frozen=True):
    """scheduler -> kvmanager: the work of iteration `step`. Applied in this order: confirmed, spoiled, moved, forks,
    release, preempt, swap_out, entries (with embed), swap_in, allocate. Entry i processes tokens starts[i] ..
    starts[i]+counts[i] of request ids[i].

    `confirmed_*`: tokens sampled and confirmed since the last plan, an item for each result (only those enter the
    prefix index).
    `release`: ended, forget them; `spoiled`: those of them whose KV cannot be relied on.
    `preempt`: drop their KV, keep their tokens.
    `swap_out`: their KV goes to the host; its blocks are free when the copy is done. `swap_in`: it comes back; they may
    run when that copy is done. `moved`: of which requests it is, repeated from StepResult.
    `allocate_*`: after this plan, request allocate_ids[i] holds allocate_blocks[i] blocks, if need be more than it has
    use for, and never fewer. `embed_*`: what embed_guests[i] gets by this plan, it gets from the end of what
    embed_hosts[i] holds and does not use, as far as that goes.
    `drafts`: of entry i, that many tokens at most are drafted behind its own and verified; only decodes (count 1) have
    any; empty: none. Blocks are reserved for all of them, and starts behind an iteration in flight count them all as
    accepted; the confirmed tokens tell how many were.
    A plan without entries goes round all the same (it carries the rest); the worker waits for copies then."""

    step: Id
    ids: list[Id]
    starts: list[Count]
    counts: list[Count]
    confirmed_ids: list[Id]
    confirmed_counts: list[Count]
    confirmed_tokens: TokenIds
    forks: list[Fork]
    release: list[Id]
    preempt: list[Id]
    copied: list[Id]  # copy ids of the last StepResult, repeated: their blocks may be used again
    predicted_s: Seconds  # predicted run time, and the upper quantile that watchdogs use
    bound_s: Seconds
    spoiled: list[Id] = field(default_factory=list)
    swap_out: list[Id] = field(default_factory=list)
    swap_in: list[Id] = field(default_factory=list)
    moved: list[Id] = field(default_factory=list)
    allocate_ids: list[Id] = field(default_factory=list)
    allocate_blocks: list[Count] = field(default_factory=list)
    embed_guests: list[Id] = field(default_factory=list)
    embed_hosts: list[Id] = field(default_factory=list)
    drafts: list[Count] = field(default_factory=list)


class KvReport(Body, frozen=True):
    """kvmanager -> scheduler. `step` is the plan it answers, -1 when it only answers a Lookup.

    `free` can be handed out at once, `cached` after evicting prefix-cache blocks nobody uses, `pinned` after
    withdrawing the pins of requests that have not started.
    `dropped`: entries of the plan that did not fit (dropped whole, nothing computed).
    `hits`: for looked-up requests, the number of leading tokens whose KV is pinned.
    `unpinned`: requests whose pin was withdrawn: they have no computed tokens any more.

    `swapped_out`: copies to the host have begun. `unswapped`: they could not (no room there), and the KV was dropped
    instead. `stayed`: what was to be swapped in, but did not fit. `away_ids`: those of `hit_ids` with KV on the host.
    `short_ids`: requests that hold another number of blocks than their tokens and the plan tell (an allocation not
    granted in full, or to one whose entry was dropped, blocks lent to or returned by a guest), and `short_blocks` how
    many they hold. `leaving`: blocks that become free when copies are done. `freeing`: how many become free when the
    copy of each of `swapped_out` is done (not those that others share, or have lent). `host_free`: blocks of the host
    that are free."""

    step: Annotated[int, Meta(ge=-1)]
    free: Count
    cached: Count
    pinned: Count
    dropped: list[Id]
    hit_ids: list[Id]
    hit_tokens: list[Count]
    unpinned: list[Id]
    swapped_out: list[Id] = field(default_factory=list)
    unswapped: list[Id] = field(default_factory=list)
    stayed: list[Id] = field(default_factory=list)
    away_ids: list[Id] = field(default_factory=list)
    short_ids: list[Id] = field(default_factory=list)
    short_blocks: list[Count] = field(default_factory=list)
    leaving: Count = 0
    host_free: Count = 0
    freeing: list[Count] = field(default_factory=list)


# --- KV manager, worker, scheduler -------------------------------------------------------------------------------


class Batch(Body, frozen=True):
    """kvmanager -> worker: a Plan with block tables. Done in this order: requests are forgotten, cut and introduced;
    `copy_from` is copied to `copy_to`; copies to the host and back begin; block tables change; the forward pass.

    Request ids[i] processes tokens starts[i] .. starts[i]+counts[i]; before that its block table gets
    `table[table_at[i] : table_at[i]+table_counts[i]] = ` the next table_counts[i] of `table_blocks` (what lay beyond
    is cut off). `new` introduces requests the worker has not seen. `release` are forgotten after the step before.
    Of request cut_ids[i] only the KV of its first cut_to[i] tokens is still its own, before everything else.

    Beside the forward pass, the KV of request out_ids[i] is copied from the next out_counts[i] blocks of `out_from` to
    those of `out_to` on the host, and that of in_ids[i] from `in_from` on the host to `in_to`: after all that was
    computed before, and one copy after the other. A block of `copy_from` can be one of `in_to`: its last reader has it
    copied, and it is handed out. The forward pass neither changes what is copied nor touches what is copied to.

    `drafts` as in Plan: an entry behind one whose drafts were not all accepted, and of which the scheduler did not know
    that yet, starts at the newest token all the same, by so many before starts[i]."""

    step: Id
    new: list[Prompt]
    ids: list[Id]
    starts: list[Count]
    counts: list[Count]
    table_at: list[Count]
    table_counts: list[Count]
    table_blocks: list[Count]
    copy_from: list[Count]
    copy_to: list[Count]
    release: list[Id]
    predicted_s: Seconds
    bound_s: Seconds
    cut_ids: list[Id] = field(default_factory=list)
    cut_to: list[Count] = field(default_factory=list)
    out_ids: list[Id] = field(default_factory=list)
    out_counts: list[Count] = field(default_factory=list)
    out_from: list[Count] = field(default_factory=list)
    out_to: list[Count] = field(default_factory=list)
    in_ids: list[Id] = field(default_factory=list)
    in_counts: list[Count] = field(default_factory=list)
    in_from: list[Count] = field(default_factory=list)
    in_to: list[Count] = field(default_factory=list)
    drafts: list[Count] = field(default_factory=list)


class StepResult(Body, frozen=True):
    """worker -> scheduler: request ids[i] sampled counts[i] (0 for an unfinished prompt, up to 1 + its drafts for an
    entry that had some) of the tokens.
    `failed`: requests that could not be computed, with the cause in `causes`. `wait_s`: idle time before the step.
    `moved`: requests whose KV has been copied to the host or back since the step before.
    `drafted[i]` tokens were really drafted for entry i, the first accepted[i] of them are among its tokens; both empty
    in a step without drafts. `draft_s`: what of `run_s` the drafter took."""

    step: Id
    ids: list[Id]
    counts: list[Count]
    tokens: TokenIds
    failed: list[Id]
    causes: list[ShortText]
    copied: list[Id]
    wait_s: Seconds
    run_s: Seconds
    moved: list[Id] = field(default_factory=list)
    drafted: list[Count] = field(default_factory=list)
    accepted: list[Count] = field(default_factory=list)
    draft_s: Seconds = 0.0


# --- everyone and the supervisor ---------------------------------------------------------------------------------


class Hello(Body, frozen=True):
    """component -> supervisor, first message and again when `facts` or `endpoint` become known."""

    role: Role
    index: Count
    pid: Count
    endpoint: str
    phase: str
    facts: Facts | None = None


class Heartbeat(Body, frozen=True):
    """component -> supervisor, from its main loop. `progress` counts loop rounds. `bound_s` announces how long the
    work begun now may keep it silent. `gauges` are Prometheus samples (`name` or `name{label="x"}`)."""

    periodic: ClassVar[bool] = True
    progress: Id
    phase: str
    bound_s: Seconds
    rss_bytes: Id
    gauges: dict[str, float] = field(default_factory=dict)


class Failure(Body, frozen=True):
    """component -> supervisor, the last thing it says: one line for people, with the numbers."""

    line: ShortText


class Query(Body, frozen=True):
    """command line -> supervisor; answered by a Directory."""


class Directory(Body, frozen=True):
    """supervisor -> everyone, at every change and once a second."""

    periodic: ClassVar[bool] = True
    members: list[Member]
    ready: bool
    draining: bool
    config: dict[str, Any] = field(default_factory=dict)


class Activate(Body, frozen=True):
    """scheduler -> frontend, KV manager, worker: the first message of its epoch (the header carries it). Whoever
    receives it obeys this epoch from now on. `credits`: requests a frontend may have open at a time."""

    credits: Count = 0


class Resync(Body, frozen=True):
    """To the scheduler: something was lost on the way to or from the sender; take over again, under the next epoch.
    KV manager -> worker: finish what I have sent and answer with an Inventory; I am your KV manager from now on."""

    cause: ShortText = ""


class Pulse(Body, frozen=True):
    """Once a second on every link of the active scheduler, and from a KV manager to its worker: its sequence number
    shows whether anything before it was lost, its absence that the link is dead."""

    periodic: ClassVar[bool] = True


class Inventory(Body, frozen=True):
    """worker -> KV manager -> scheduler: the answer to Resync and to Activate. `step`: the last one executed, -1 for
    none. The worker's answer to Activate holds nothing: its KV manager speaks for it."""

    step: Annotated[int, Meta(ge=-1)]
    held: list[Held]
    free: Count = 0
    cached: Count = 0


class Replayed(Body, frozen=True):
    """frontend -> scheduler, after Activate: all `count` choices that were live here have been submitted again."""

    count: Count


class Yield(Body, frozen=True):
    """supervisor -> scheduler: another one takes over. Plan nothing more, let what is in flight come back, then send
    Handoff and say "yielded"; stand by when the other one serves."""


class Prepare(Body, frozen=True):
    """supervisor -> scheduler that stands by: make this policy, then say "prepared". `memory`: the memory policy beside
    it, "" for the policy's own; `routing`: "NAME" or "NAME:key=value:...", "" for the policy's own choice of
    replicas."""

    policy: ShortText
    params: dict[str, Any] = field(default_factory=dict)
    memory: ShortText = ""
    memory_params: dict[str, Any] = field(default_factory=dict)
    routing: ShortText = ""


class Assume(Body, frozen=True):
    """supervisor -> scheduler that is prepared, or has yielded: take over now, in this term, with what the one before
    has learnt."""

    term: Id
    snapshot: bytes = b""


class Handoff(Body, frozen=True):
    """scheduler that has yielded -> supervisor, for its successor: `snapshot` is a versioned msgpack value."""

    snapshot: bytes


class Swap(Body, frozen=True):
    """command line, frontend -> supervisor: replace the scheduler by one with this policy, or with `dry_run` only see
    whether it could. Answered by Swapped, with the same `ticket`, when that has been done or refused. `memory` "": the
    memory policy stays as it was chosen, with its parameters; likewise `routing`, and `policy` where only they are to
    change."""

    policy: ChosenPolicy
    params: PolicyParams
    dry_run: bool = False
    ticket: Id = 0
    memory: ShortText = ""
    memory_params: PolicyParams = field(default_factory=dict)
    routing: ShortText = ""


class Swapped(Body, frozen=True):
    """supervisor -> command line, frontend: what became of a Swap, in one line."""

    done: bool
    line: ShortText
    ticket: Id = 0


class Dump(Body, frozen=True):
    """command line -> supervisor -> everyone: write what the flight recorder holds into the run directory. Each answers
    with Dumped. `client`: the address of who has asked, filled in by the supervisor."""

    client: Annotated[bytes, Meta(max_length=255)] = b""


class Dumped(Body, frozen=True):
    """everyone -> supervisor -> command line: `process` has written `events` to `file`, or not, because of `fault`."""

    client: Annotated[bytes, Meta(max_length=255)]
    process: ShortText
    file: ShortText = ""
    events: Count = 0
    fault: ShortText = ""


class Stop(Body, frozen=True):
    """supervisor -> component, command line -> supervisor: finish within `timeout_s`, then exit."""

    timeout_s: Seconds
    why: ShortText = ""


MESSAGES: tuple[type[Body], ...] = (
    Submit, Abort, Admitted, Tokens, Finished,
    Lookup, Plan, KvReport, Batch, StepResult,
    Hello, Heartbeat, Failure, Query, Directory, Activate, Inventory, Stop, Replayed,
    Yield, Assume, Swap, Swapped, Resync, Pulse, Prepare, Handoff, Dump, Dumped,
)  # fmt: skip
"""The order gives each type its tag on the wire: append, never reorder."""
