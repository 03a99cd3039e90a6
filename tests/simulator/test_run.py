"""The simulator's engine: the live cores under a virtual clock, against arithmetic done by hand."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective, Reason
from accelgen.proto.policies import known_policies
from accelgen.scheduler.cost_model import Coefficients, Work
from accelgen.scheduler.policy import Decision, load_policy
from accelgen.simulator.device import Device, Iteration, UnknownDevice, find_device
from accelgen.simulator.run import Run, Simulation, Stuck
from accelgen.simulator.workload import Arrival, Workload, session

SECOND_PER_TOKEN = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
DEVICE = Device("toy", "paper", SECOND_PER_TOKEN, kv_token_bytes=1, kv_bytes=64 * 16)
PATIENT = SloClass(max_queue_ms=86_400_000)


def simulate(
    policy: str, arrivals: list[Arrival], device: Device = DEVICE, **config: object
) -> Run:
    given = {"pipeline_depth": 0, "slo_classes": {"standard": PATIENT}, **config}
    settings = Config(policy=policy, **given)  # type: ignore[arg-type]
    simulation = Simulation(
        load_policy(policy, {}), Workload.of("test", arrivals), device, settings
    )
    run = simulation.go()
    for kv in simulation.kvs:
        assert kv.check() == []
    return run


@pytest.mark.parametrize("policy", known_policies())
def test_one_request_by_hand(policy: str) -> None:
    """A prompt of 100 tokens takes 1 + 1 s, each further token 1.01 s."""
    [fate] = simulate(policy, [Arrival(5.0, 100, 4)]).fates
    assert list(fate.token_s) == pytest.approx([7.0, 8.01, 9.02, 10.03])
    assert fate.end is Reason.LENGTH


@pytest.mark.parametrize("depth", [0, 1])
def test_two_requests_share_their_iterations(depth: int) -> None:
    arrivals = [Arrival(0.0, 100, 3), Arrival(0.5, 50, 2)]
    first, second = simulate("sarathi", arrivals, pipeline_depth=depth).fates
    assert list(first.token_s) == pytest.approx([2.0, 3.51, 4.53])
    assert list(second.token_s) == pytest.approx([3.51, 4.53])


def test_a_shared_prefix_is_computed_once() -> None:
    arrivals = [
        Arrival(0.0, 64, 2, prefix=(7, 8), prefix_block=32),
        Arrival(50.0, 70, 2, prefix=(7, 8), prefix_block=32),
        Arrival(99.0, 70, 2, prefix=(7, 9), prefix_block=32),
    ]
    run = simulate("vllm", arrivals)
    assert [fate.cached_tokens for fate in run.fates] == [0, 64, 32]
    assert run.workers[0].prefill_tokens == 64 + 6 + 38


def test_mixing_prefill_and_decode_has_its_price() -> None:
    device = find_device("llama-3.1-8b", "rtxpro6000", host_s=0.002)
    work = Work(prefill_tokens=16, decode_seqs=8, decode_context=8000, prefill_work=128)
    alone = Work(decode_seqs=8, decode_context=8000)
    extra = device.seconds(Iteration(work)) - device.seconds(Iteration(alone))
    assert extra > 8000 * 6.5e-8
    assert device.seconds(Iteration(work, prior=1000)) > device.seconds(Iteration(work))
    with pytest.raises(UnknownDevice, match="opt-13b on a100"):
        find_device("opt-13b", "abacus")


def test_an_answer_may_end_before_its_limit() -> None:
    """The policy knows only that it takes at most 50 tokens; the request ends by itself after 4."""
    for depth in (0, 1):
        run = simulate("sarathi", [Arrival(0.0, 100, 4, max_tokens=50)], pipeline_depth=depth)
        [fate] = run.fates
        assert len(fate.token_s) == 4 and fate.end is Reason.STOP
        assert run.end_s == fate.token_s[-1] == pytest.approx(2 + 3 * 1.01)


def test_a_follow_up_comes_after_answer_and_thought_and_finds_both_in_the_cache() -> None:
    stages = [
        Arrival(1.0, 60, 4, think_s=10.0),
        Arrival(0.0, 100, 2, think_s=5.0),  # 63 of its tokens are in the cache: 3 blocks
        Arrival(0.0, 40, 2, shared_tokens=16),  # begins like them, but only for a block
    ]
    run = simulate("vllm", [session(stages), Arrival(2.0, 100, 2)])
    first, other, second, third = run.fates
    assert second.arrival.at_s == first.token_s[-1] + 10.0
    assert third.arrival.at_s == second.token_s[-1] + 5.0
    assert [fate.cached_tokens for fate in run.fates] == [0, 0, 48, 16]
    assert other.end is third.end is Reason.LENGTH


def test_a_session_whose_answer_fails_goes_no_further() -> None:
    stages = [Arrival(0.0, 2000, 4), Arrival(0.0, 10, 2)]  # 1,024 tokens of KV in all
    [fate] = simulate("vllm", [session(stages)]).fates
    assert fate.end is Reason.REFUSED_TOO_LONG and not fate.token_s


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    """Two requests outgrow the cache: one is preempted and computes again what was overwritten meanwhile only."""
    arrivals = [Arrival(0.0, 400, 200), Arrival(1.0, 400, 200)]
    runs = [simulate("vllm", arrivals, prefix_caching=caching) for caching in (True, False)]
    cached, uncached = (run.workers[0].prefill_tokens for run in runs)
    assert [sum(fate.preemptions for fate in run.fates) for run in runs] == [1, 1]
    assert uncached > 1200 > cached >= 800


def test_what_is_watched_can_be_given_up() -> None:
    seen = []

    def watch(run: Run, now_s: float) -> bool:
        seen.append((run.steps, now_s))
        return now_s > 500

    workload = Workload.of("test", [Arrival(0.0, 10, 1000), Arrival(1e6, 10, 10)])
    run = Simulation(load_policy("vllm", {}), workload, DEVICE, Config(pipeline_depth=0)).go(
        watch=watch
    )
    assert run.given_up and len(run.fates) == 1 and run.fates[0].end is None
    assert [steps for steps, _ in seen] == [256, 512] and run.end_s == seen[-1][1]


class Idle:
    """Never plans anything."""

    def __init__(self) -> None:
        self._live = load_policy("vllm", {})

    def __getattr__(self, name: str) -> object:
        return getattr(self._live, name)

    def plan(self, view: object, state: None, start_s: float) -> tuple[Decision, None]:
        return Decision([], [], []), state


def test_a_policy_that_starves_is_found_out() -> None:
    workload = Workload.of("test", [Arrival(0.0, 5, 5)])
    config = Config(policy="vllm", pipeline_depth=0)
    with pytest.raises(Stuck, match="1 requests are left"):
        Simulation(Idle(), workload, DEVICE, config).go()  # type: ignore[arg-type]


arrivals_drawn = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0, 200),
        prompt_tokens=st.integers(1, 400),
        output_tokens=st.integers(1, 40),
        objective=st.builds(Objective, ttft_s=st.floats(1, 50), tpot_s=st.floats(0.5, 5)),
    ),
    min_size=1,
    max_size=25,
)


@settings(deadline=None, max_examples=40)
@given(
    arrivals=arrivals_drawn, policy=st.sampled_from(known_policies()), depth=st.sampled_from([0, 1]),
    replicas=st.sampled_from([1, 2]), seqs=st.sampled_from([2, 64]),
)  # fmt: skip
def test_whatever_is_asked(
    arrivals: list[Arrival], policy: str, depth: int, replicas: int, seqs: int
) -> None:
    """Every request gets its tokens, in order, after its arrival; and a run repeats itself exactly."""
    config = {"pipeline_depth": depth, "replicas": replicas, "max_num_seqs": seqs}
    run = simulate(policy, arrivals, **config)
    for fate in run.fates:
        assert fate.end is Reason.LENGTH
        times = list(fate.token_s)
        assert len(times) == fate.arrival.output_tokens
        assert times == sorted(times) and times[0] > fate.arrival.at_s
    again = simulate(policy, arrivals, **config)
    assert [fate.token_s for fate in again.fates] == [fate.token_s for fate in run.fates]
