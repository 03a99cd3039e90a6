"""A World for memory policies: the KV core is checked after every plan, and the scheduler's table against it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from world import World

from accelgen.proto.messages import Body, Plan
from accelgen.scheduler.predictors.estimate import Direction, Estimate, Traits


class Told:
    """A length predictor that knows outputs by what the client allows, off by nothing unless said."""

    def __init__(self, outputs: dict[int, int], spread: int = 0) -> None:
        self.outputs, self.spread = outputs, spread

    def predict(self, traits: Traits) -> Estimate:
        tokens = self.outputs.get(traits.max_tokens, traits.max_tokens)
        return Estimate(tokens, tokens, tokens + self.spread, Direction.UNDER)

    def observe(self, traits: Traits, tokens: int) -> None:
        """Nothing to learn."""


class MemoryWorld(World):
    """`compares`: each running request holds as many blocks as the scheduler believes. (It does not count the last one,
    which is shared, of a forked choice, nor that of a request taken over before it runs again.) `each_plan` is called
    after every plan."""

    def __init__(self, *arguments: Any, compares: bool = True, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.compares = compares
        self.each_plan: Callable[[], None] = lambda: None

    def tell(self, outputs: dict[int, int], spread: int = 0) -> None:
        """Output lengths by `max_tokens`, to the scheduler."""
        self.core.predictor = Told(outputs, spread)

    def _to_kv(self, index: int, body: Body) -> None:
        super()._to_kv(index, body)
        assert self.kvs[index].check() == []
        if isinstance(body, Plan):
            self.each_plan()

    def _handle(self, event: object) -> None:
        super()._handle(event)
        if event[0] == "report" and self.compares and not self.epoch:  # type: ignore[index]
            self._compare(event[1])  # type: ignore[index]

    def _compare(self, index: int) -> None:
        replica, requests = self.core.replicas[index], self.kvs[index]._requests
        if any(not flight.reported for flight in replica.flights):
            return
        table = replica.table
        for slot in table.running.tolist():
            request = requests[int(table.ids[slot])]
            assert len(request.table) == table.blocks[slot], request.id
        assert not table.has_terms and not table.lenders
        assert not table.padding.any() and not table.offered.any()
