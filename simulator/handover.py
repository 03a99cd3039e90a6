"""Another policy takes over a simulated server, as `accelgen swap` does it live.

Whoever is in office yields: nothing more is planned until its iterations have come back. Then its successor inherits
the KV managers' inventories and what has been learnt (length predictor, cost models, what became of drafts, the state
of the routing, and those of a policy and of a memory policy of the same names), and hears of every live request again:
prompt, tokens so far, and for how long it has waited. Requests that ran go on where they were; whoever had ended is
given back. It takes no time of its own (live: an iteration and 50 ms).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelgen.kvmanager.core import KvCore
from accelgen.proto.config import Config
from accelgen.proto.messages import Prompt, Submit
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.request import Request


def successor(
    old: SchedulerCore,
    policy: Policy,
    config: Config,
    specs: Mapping[int, ReplicaSpec],
    kvs: Sequence[KvCore],
    now_s: float,
) -> SchedulerCore:
    """The core that goes on with `policy`; what it has to say is in its outbox. Nothing is in flight."""
    assert old.settled and not old.outbox
    core = SchedulerCore(config, policy, specs, old.predictor)
    core.finished, core.refused = old.finished, old.refused
    if core.placement.routing.name == old.placement.routing.name:
        core.placement.state = old.placement.state
    for index, kv in enumerate(kvs):
        before, after = old.replicas[index], core.replicas[index]
        after.cost = before.cost
        after.speculation.go_on_from(before.speculation.state())
        if policy.name == old.policy.name:
            after.state, after.last = before.state, before.last
        if core.memory.name == old.memory.name:
            after.memory_state = before.memory_state
        kv.on_copies_done()  # as if the worker had been asked
        core.inherit(kv.on_activate(), index)
    for request, arrival_s in live(old):
        core.on_submit(_again(request, now_s - arrival_s), request.frontend, now_s)
    core.release_unclaimed()
    return core


def live(core: SchedulerCore) -> list[tuple[Request, float]]:
    """Requests that have not ended, and when they arrived, in the order of their ids."""
    found = []
    for replica in core.replicas.values():
        table = replica.table
        found += [(table.request(s), float(table.arrival_s[s])) for s in table.slot_of.values()]
    return sorted(found, key=lambda pair: pair[0].id)


def _again(request: Request, waited_s: float) -> Submit:
    """What the frontend's journal says of a request."""
    tokens, generated = request.prompt + request.generated, len(request.generated)
    return Submit(
        Prompt(request.id, tokens, request.sampling, generated, request.salt),
        request.max_tokens,
        sorted(request.stop_token_ids),
        request.objective,
        request.slo_class,
        waited_s,
    )
