"""DistServe's two stages, against arithmetic done by hand, and whatever is asked."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from accelgen.proto.config import Config
from accelgen.proto.messages import Reason
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import UnknownPolicy
from accelgen.simulator.device import Device
from accelgen.simulator.distserve import DistServe
from accelgen.simulator.experiment import Setting, run_setting
from accelgen.simulator.metrics import summarise
from accelgen.simulator.run import Fate, Run
from accelgen.simulator.scenarios import ScenarioError, make_scenario
from accelgen.simulator.stages import Decode, Prefill, Rules, Task
from accelgen.simulator.worker import SimulatedWorker
from accelgen.simulator.workload import Arrival, Workload, session

SECOND_PER_TOKEN = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
BYTES = 10**8  # of KV per token: a block of 16 tokens is 1.6 GB


def serve(arrivals: list[Arrival], blocks: int = 64, replicas: int = 2, **rules: float) -> Run:
    device = Device(
        "toy", "paper", SECOND_PER_TOKEN, BYTES, blocks * 16 * BYTES, swap_bytes_s=1.6e9
    )
    given = {"link_gb_s": 16.0, **rules}
    config = Config(policy="distserve", replicas=replicas)
    workload = Workload.of("test", arrivals)
    server = DistServe(Rules(**given), workload, device, config)  # type: ignore[arg-type]
    run = server.go()
    assert server.ended == len(run.fates)
    assert all(one.used == 0 for one in (*server.prefills, *server.decodes))
    return run


def test_one_request_by_hand() -> None:
    """100 tokens take 2 s; their 7 blocks 0.7 s on the link; each further token 1.01 s, on the other device."""
    run = serve([Arrival(5.0, 100, 4)])
    assert list(run.fates[0].token_s) == pytest.approx([7.0, 8.71, 9.72, 10.73])
    prefill, decode = run.workers
    assert (prefill.prefill_tokens, decode.decode_tokens) == (100, 3)
    assert (prefill.busy_s, decode.busy_s) == pytest.approx((2.0, 3.03))
    # 7 of 64 blocks: from the start until they are pulled there, from the pull to the end here
    assert run.kv_used_s == pytest.approx(7 / 64 * (2.7 + 3.73))


def test_prompts_do_not_delay_decodes() -> None:
    """Alone and beside a long prompt, the times of the first request are the same."""
    alone = serve([Arrival(0.0, 100, 5)]).fates[0]
    beside = serve([Arrival(0.0, 100, 5), Arrival(2.5, 500, 1)]).fates
    assert list(beside[0].token_s) == list(alone.token_s)
    assert list(beside[1].token_s) == pytest.approx([8.5])


def test_prompts_are_batched_whole_within_the_limits() -> None:
    """While the first one runs, four queue: two of them fill the tokens of a batch, a third one is too many."""
    arrivals = [Arrival(0.0, 10, 1), *(Arrival(0.1, 40, 1) for _ in range(3)), Arrival(0.1, 300, 1)]
    run = serve(arrivals, context_max_tokens=100)
    first = [fate.token_s[0] for fate in run.fates]
    assert first == pytest.approx([1.1, 2.9, 2.9, 4.3, 8.3])  # the one longer than a batch is alone
    run = serve(arrivals, context_max_batch_size=1)
    assert [fate.token_s[0] for fate in run.fates][1:4] == pytest.approx([2.5, 3.9, 5.3])


def test_pulling_holds_up_the_decodes_and_frees_the_prefill_device() -> None:
    """8 blocks each: the second prompt of 5 blocks needs those of the first one, which leave with its KV."""
    run = serve([Arrival(0.0, 80, 2), Arrival(0.0, 80, 2)], blocks=8)
    assert run.fates[0].token_s[0] == pytest.approx(1.8)
    assert run.fates[1].token_s[0] == pytest.approx(1.8 + 0.5 + 1.8)


def test_no_more_is_pulled_while_much_waits() -> None:
    """5 % of 100 blocks are 5: prompts of 3 blocks are pulled while less than that waits, two of them; the next one
    when one has joined the batch."""
    device = Device("toy", "paper", SECOND_PER_TOKEN, BYTES, 100 * 16 * BYTES)
    prefill, decode = (kind(SimulatedWorker(device), 100) for kind in (Prefill, Decode))
    tasks = [Task(Fate(Arrival(0.0, 48, 3)), 16, generated=1) for _ in range(4)]
    decode.unaccepted.extend((task, prefill) for task in tasks)
    assert [decode.accept(0.05) is not None for _ in range(3)] == [True, True, False]
    assert (decode.pulled, decode.used) == (6, 6)
    decode.form(Rules(decoding_max_batch_size=1))
    assert decode.batch == tasks[:1] and (decode.pulled, decode.used) == (3, 7)
    assert [decode.accept(0.05) is not None for _ in range(2)] == [True, False]


def test_out_of_blocks_the_last_is_swapped_out_and_comes_back_first() -> None:
    """9 blocks: both hold 4, and need a fifth for their 65th token. The last one goes until the first is done, and the
    third one, pulled meanwhile, does not begin before it is back."""
    run = serve([Arrival(0.0, 60, 10), Arrival(0.0, 60, 10), Arrival(9.0, 60, 2)], blocks=9)
    first, second, third = run.fates
    assert (first.preemptions, second.preemptions, third.preemptions) == (0, 1, 0)
    gaps = [b - a for a, b in zip(second.token_s, list(second.token_s)[1:], strict=False)]
    assert max(gaps) > first.token_s[-1] - first.token_s[5]
    assert third.token_s[0] < second.token_s[5] <= third.token_s[1]
    assert run.workers[1].copies_s == pytest.approx(10.0)  # 5 blocks of 1.6 GB, there and back


def test_sessions_and_refusals() -> None:
    stages = [Arrival(0.0, 20, 2, think_s=3.0), Arrival(0.0, 40, 2)]
    run = serve([session(stages), Arrival(0.0, 2000, 2)])
    assert [fate.end for fate in run.fates].count(Reason.REFUSED_TOO_LONG) == 1
    last = run.fates[-1]
    assert last.arrival.prompt_tokens == 40 and last.end is Reason.LENGTH
    assert last.arrival.at_s == pytest.approx(run.fates[0].token_s[-1] + 3.0)


def test_an_answer_that_ends_before_its_limit() -> None:
    run = serve([Arrival(0.0, 20, 3, max_tokens=50)])
    assert run.fates[0].end is Reason.STOP and len(run.fates[0].token_s) == 3


arrivals_drawn = st.lists(
    st.builds(
        Arrival, at_s=st.floats(0, 60), prompt_tokens=st.integers(1, 150), output_tokens=st.integers(1, 40)
    ),
    min_size=1, max_size=25,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(
    arrivals=arrivals_drawn, blocks=st.integers(12, 40), replicas=st.integers(2, 4),
    batch=st.integers(1, 8), share=st.floats(0.01, 1.0),
)  # fmt: skip
def test_whatever_is_asked(
    arrivals: list[Arrival], blocks: int, replicas: int, batch: int, share: float
) -> None:
    """Every request gets its tokens, in order, whatever the memory; and a run repeats itself exactly."""
    rules = {"decoding_max_batch_size": batch, "waiting_share": share}
    run = serve(arrivals, blocks, replicas, **rules)
    for fate in run.fates:
        times = list(fate.token_s)
        assert fate.end is Reason.LENGTH and len(times) == fate.arrival.output_tokens
        assert times == sorted(times) and times[0] > fate.arrival.at_s
    assert run.kv_used_s <= replicas * (run.end_s + 1)
    again = serve(arrivals, blocks, replicas, **rules)
    assert [fate.token_s for fate in again.fates] == [fate.token_s for fate in run.fates]
    assert summarise(run).machine.kv_utilisation <= 1


def setting(replicas: int, **params: object) -> Setting:
    scenario = make_scenario(
        {
            "about": "x", "model": "llama-3-8b", "hardware": "a100", "rates": [1.0], "seeds": [0], "replicas": replicas,
            "parts": [{"name": "a", "source": "synthetic:azure2023_code", "ttft": {"base_s": 0.5}}],
        }
    )  # fmt: skip
    return Setting(
        name="s", scenario=scenario, policy="distserve", params=params, rate=4.0, requests=40
    )  # fmt: skip


def test_it_is_run_by_name() -> None:
    told = []
    result = run_setting(setting(2), lambda ended, of: told.append((ended, of)))
    assert result.summary is not None and result.summary.succeeded == 40
    with pytest.raises(ScenarioError, match="replicas: distserve needs at least 2"):
        run_setting(setting(1))
    with pytest.raises(ScenarioError, match="3 of 3 cannot be for prefill"):
        run_setting(setting(3, prefill_devices=3))
    with pytest.raises(UnknownPolicy, match="waiting_share: 0.0, must be above 0"):
        run_setting(setting(2, waiting_share=0.0))
    with pytest.raises(UnknownPolicy, match="context_max_tokens: 0, must be at least 1"):
        run_setting(setting(2, context_max_tokens=0))
