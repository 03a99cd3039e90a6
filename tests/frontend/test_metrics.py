"""`/metrics`: valid Prometheus text, vLLM's names, the sum over frontends."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from accelgen.frontend.metrics import PREFIX, Histogram, Metrics, collect, render
from accelgen.frontend.objectives import Met, Verdict
from accelgen.proto.messages import Directory, Member, Role


def families(text: str) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Any], family: str, sample: str = "", **labels: str) -> float:
    name = PREFIX + (sample or family)
    (match,) = [
        one for one in found[PREFIX + family].samples if one.name == name and one.labels == labels
    ]
    return float(match.value)


def member(role: Role, index: int, gauges: dict[str, float], phase: str = "ready") -> Member:
    return Member(role, index, 1, "", 1, 1, phase, 1, 1.0, 0.0, 42, None, gauges)


def test_after_requests(stage: Any) -> None:
    stage.says("the quick fox")
    stage.client.completions.create(
        model="tiny", prompt="fox", extra_body={"accelgen": {"slo_class": "chat"}}
    )
    before = families(stage.http.get("/metrics").text)
    stage.client.completions.create(
        model="tiny", prompt="fox", extra_body={"accelgen": {"slo_class": "chat"}}
    )
    reply = stage.http.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    after = families(reply.text)
    tokens = len(stage.tokenizer.encode("the quick fox").ids) + 1

    def grown(family: str, sample: str = "", **labels: str) -> float:
        return value(after, family, sample, **labels) - value(before, family, sample, **labels)

    assert grown("generation_tokens", "generation_tokens_total") == tokens
    assert grown("request_success", "request_success_total", finished_reason="stop") == 1
    assert grown("time_to_first_token_seconds", "time_to_first_token_seconds_count") == 1
    assert grown("inter_token_latency_seconds", "inter_token_latency_seconds_count") == tokens - 1
    assert grown("e2e_request_latency_seconds", "e2e_request_latency_seconds_count") == 1
    assert grown("request_slo_met", "request_slo_met_total", slo="all", slo_class="chat") == 1
    assert after[PREFIX + "time_to_first_token_seconds"].type == "histogram"
    assert after[PREFIX + "generation_tokens"].type == "counter"
    assert stage.http.head("/metrics").status_code == 200


def test_samples_travel_in_heartbeats(stage: Any, wait: Any) -> None:
    name = PREFIX + "generation_tokens_total"
    wait(lambda: stage.supervisor.beats and name in stage.supervisor.beats[-1].gauges, "gauges")


def test_sum_over_frontends_and_the_others() -> None:
    directory = Directory(
        [
            member(Role.FRONTEND, 0, {"accelgen:x_total": 100.0}),
            member(Role.FRONTEND, 1, {"accelgen:x_total": 5.0, "accelgen:y_total": 1.0}),
            member(Role.SCHEDULER, 0, {"accelgen:num_requests_waiting": 3.0}),
            member(Role.KVMANAGER, 0, {"accelgen:kv_cache_usage_perc": 0.25}),
            member(Role.WORKER, 1, {'accelgen:steps_total{kind="mixed"}': 7.0}, phase="dead"),
        ],
        ready=True,
        draining=False,
    )
    found = families(render(collect({"accelgen:x_total": 2.0}, 0, directory)).decode())
    assert value(found, "x", "x_total") == 7, "its own samples fresh, not from the directory"
    assert value(found, "y", "y_total") == 1
    assert value(found, "num_requests_waiting") == 3
    assert value(found, "kv_cache_usage_perc", replica="0") == 0.25
    assert value(found, "steps", "steps_total", kind="mixed", replica="1") == 7
    assert value(found, "process_up", process="worker-1") == 0
    assert value(found, "process_resident_bytes", process="frontend-1") == 42


def test_broken_names_of_others_do_not_break_the_page() -> None:
    others = {"no good": 1.0, 'x{a="b"}\nevil 1': 1.0, "fine": float("inf"), "nan": float("nan")}
    directory = Directory([member(Role.SCHEDULER, 0, others)], ready=True, draining=False)
    found = families(render(collect({}, 0, directory)).decode())
    assert "fine" in found and "evil" not in found


def test_kinds_and_words_of_what_others_report() -> None:
    others = {
        "accelgen:scheduler_step_seconds_sum": 3.0,
        "accelgen:scheduler_step_seconds_count": 2.0,
        "accelgen:kv_blocks": 64.0,
        "accelgen:kv_copies_total": 1.0,
        "accelgen:lone_sum": 1.0,
        "of_a_policy": 1.0,
    }
    directory = Directory([member(Role.SCHEDULER, 0, others)], ready=True, draining=False)
    text = render(collect({}, 0, directory)).decode()
    found = families(text)
    kinds = {name.removeprefix(PREFIX): family.type for name, family in found.items()}
    assert kinds["scheduler_step_seconds"] == "summary" and kinds["kv_blocks"] == "gauge"
    assert kinds["kv_copies"] == "counter" and kinds["lone_sum"] == kinds["of_a_policy"] == "gauge"
    assert found[PREFIX + "kv_blocks"].documentation == "Blocks of the KV cache."
    assert "HELP of_a_policy" not in text


@given(st.lists(st.floats(0, 1e4), max_size=30))
def test_histogram_is_cumulative(values: list[float]) -> None:
    histogram = Histogram("h", (0.1, 1.0, 10.0))
    for one in values:
        histogram.observe(one)
    samples = dict(histogram.samples())
    for bound, edge in ((0.1, "0.1"), (1.0, "1"), (10.0, "10"), (float("inf"), "+Inf")):
        count = sum(one <= bound for one in values)
        assert samples[f'{PREFIX}h_bucket{{le="{edge}"}}'] == count


def test_objectives_are_counted_by_class() -> None:
    metrics = Metrics()
    metrics.judge(Verdict("chat", 1, 1, 1, 1, 0, 0, Met(True, False, None)))
    samples = metrics.samples({})
    assert samples['accelgen:request_slo_met_total{slo="ttft",slo_class="chat"}'] == 1
    assert samples['accelgen:request_slo_violation_total{slo="tpot",slo_class="chat"}'] == 1
    assert samples['accelgen:request_slo_violation_total{slo="all",slo_class="chat"}'] == 1
    assert not any('slo="e2e"' in name for name in samples)
