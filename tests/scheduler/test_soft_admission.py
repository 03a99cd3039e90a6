"""Soft admission from a call to its verdict: the frontend's journal before the whole server of `world.py`, with
`slos-serve`. Declined requests are best effort, or refused if they ask for that; best effort gives way and resumes."""

from __future__ import annotations

import msgspec
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from world import World, expected

from accelgen.frontend.errors import from_end
from accelgen.frontend.events import Demand, Ended, Event, Refused
from accelgen.frontend.journal import Journal
from accelgen.frontend.metrics import Metrics
from accelgen.frontend.objectives import Stated, Verdict, judge
from accelgen.proto.messages import Body, Objective, Sampling

TIGHT = Objective(0.06, 0.2)
NEAR_MS = 70.0  # a promise, and what the model that it is made with is wrong


class Served(World):
    """Calls are given to the journal; `ends` has what came of each, by call."""

    def __init__(self, **options: object) -> None:
        super().__init__("slos-serve", **options)  # type: ignore[arg-type]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
        tokenizer.decoder = decoders.ByteLevel()
        self.calls = Journal(tokenizer, incarnation=1, max_replays=3)
        self.ends: dict[int, Ended | Refused] = {}
        self.demands: dict[int, Demand] = {}
        self.ids: dict[int, int] = {}

    def call(
        self, number: int, prompt: list[int], objective: Objective, max_tokens: int = 4,
        at_s: float = 0.0,
    ) -> None:  # fmt: skip
        demand = Demand(
            [prompt], 1, [max_tokens], Sampling(), (), (), objective, "standard", b"", False, at_s
        )
        [submit] = self.calls.open(number, demand, at_s)
        self.demands[number], self.ids[number] = demand, submit.prompt.id
        self._at(at_s, ("submit", submit))

    def tokens(self, number: int) -> list[int]:
        return self.delivered[self.ids[number]]

    def verdict(self, number: int) -> Verdict:
        """The answer's `accelgen` object."""
        end = self.ends[number]
        assert isinstance(end, Ended)
        return judge(Stated("standard", self.demands[number].objective), [end.outcome])

    def _receive(self, body: Body) -> None:
        super()._receive(body)
        events: list[Event] = self.calls.take(body, self.now_s).events
        self.ends |= {one.call: one for one in events if isinstance(one, Ended | Refused)}


def test_declined_requests_are_best_effort_and_their_clients_hear_of_it() -> None:
    """200 tokens take about 22 ms: of twenty such prompts at once, due in 60 ms, two or three can be promised."""
    world, metrics = Served(blocks=2000), Metrics()
    prompts = {number: [number] * 200 for number in range(1, 21)}
    for number, prompt in prompts.items():
        world.call(number, prompt, TIGHT)
    world.run()
    verdicts = {number: world.verdict(number) for number in prompts}
    promised = [number for number, one in verdicts.items() if not one.best_effort]
    assert 2 <= len(promised) <= 3
    assert all((verdicts[number].ttft_ms or 0.0) <= NEAR_MS for number in promised)
    assert sum((one.ttft_ms or 0.0) <= NEAR_MS for one in verdicts.values()) < 6
    for number, prompt in prompts.items():
        assert world.tokens(number) == expected(prompt, 4)
        metrics.judge(verdicts[number])
    said = msgspec.json.decode(msgspec.json.encode(verdicts[promised[0]]))
    assert said["best_effort"] is False
    counted = metrics.samples({})['accelgen:request_best_effort_total{slo_class="standard"}']
    assert counted == 20 - len(promised)
    world.check_idle()


@pytest.mark.parametrize("others", [0, 10])
def test_who_asks_for_it_is_refused_with_a_reason(others: int) -> None:
    """At once, with 429 and when to come back; who is not refused is in time, also beside calls that do not ask for
    it."""
    world = Served(blocks=2000)
    prompts = {number: [number] * 200 for number in range(1, 21)}
    for number, prompt in prompts.items():
        soft = number > 20 - others
        world.call(number, prompt, TIGHT if soft else msgspec.structs.replace(TIGHT, refuses=True))
    world.run()
    asked = range(1, 21 - others)
    refused = {n: world.ends[n] for n in asked if isinstance(world.ends[n], Refused)}
    taken = [number for number in asked if number not in refused]
    assert 2 <= len(taken) <= 3
    for number in taken:
        found = world.verdict(number)
        assert (found.ttft_ms or 0.0) <= NEAR_MS and found.slo_met.tpot and not found.best_effort
        assert world.tokens(number) == expected(prompts[number], 4)
    for end in refused.values():
        assert isinstance(end, Refused)
        error = from_end(end.end)
        assert error.status == 429 and "no replica of 1 can keep its objective" in error.message
        assert int(error.headers["retry-after-ms"]) > 0
    soft_ones = range(21 - others, 21)
    assert all(world.verdict(number).best_effort for number in soft_ones)
    assert world.core.refused == len(refused)
    world.check_idle()


@pytest.mark.parametrize(
    "objective", [Objective(0.001, 0.2), Objective(1.0, 0.001), Objective(e2e_s=0.001), Objective(0.001)]
)  # fmt: skip
@pytest.mark.parametrize("busy", [False, True])
def test_what_no_idle_replica_could_keep_is_no_overload(objective: Objective, busy: bool) -> None:
    """400, no word of coming back, and how long things take here; whatever else the server does."""
    world = Served(blocks=2000)
    for number in range(2, 9 if busy else 2):
        world.call(number, [number] * 200, TIGHT)
    world.call(1, [1] * 50, msgspec.structs.replace(objective, refuses=True), at_s=0.01)
    world.run()
    end = world.ends[1]
    assert isinstance(end, Refused)
    error = from_end(end.end)
    assert error.status == 400 and error.param == "accelgen.slo"
    assert "an idle replica could not keep this objective either" in error.message
    assert not error.headers
    world.check_idle()


@pytest.mark.parametrize(
    ("objective", "max_tokens"), [(Objective(0.015, 0.2), 4), (Objective(e2e_s=5.0), 60)]
)
def test_in_doubt_it_is_overload(objective: Objective, max_tokens: int) -> None:
    """200 tokens take about 22 ms, and 15 are asked for: half of them may be cached. An answer of 60 tokens in 5 s is
    beyond what is planned with, and not beyond the device."""
    world = Served(blocks=2000)
    asked = msgspec.structs.replace(objective, refuses=True)
    world.call(1, [1] * 200, asked, max_tokens=max_tokens)
    world.run()
    end = world.ends[1]
    assert isinstance(end, Refused) and from_end(end.end).status == 429


def test_the_last_best_effort_request_gives_way_and_resumes_by_recompute() -> None:
    """60 blocks of 4 tokens: two of 80 tokens without an objective hold 40 to 50 of them when one with an objective
    comes that needs 30."""
    world = Served(blocks=60)
    for number, at_s in ((1, 0.0), (2, 0.001)):
        world.call(number, [number] * 80, Objective(), max_tokens=20, at_s=at_s)
    world.call(3, [3] * 100, Objective(1.0, 0.2), max_tokens=20, at_s=0.05)
    world.run()
    first, second, third = (world.verdict(number) for number in (1, 2, 3))
    assert (first.best_effort, second.best_effort, third.best_effort) == (True, True, False)
    assert third.slo_met.ttft and third.preemptions == first.preemptions == 0
    assert second.preemptions == 1
    for number, prompt in ((1, 80), (2, 80), (3, 100)):
        assert world.tokens(number) == expected([number] * prompt, 20)
    world.check_idle()
