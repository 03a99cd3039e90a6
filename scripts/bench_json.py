"""The result of a benchmark as JSON: the keys of vLLM's `bench serve`, then our own. Attainments are fractions 0..1."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from accelgen.scripts.bench_load import Outcome
from accelgen.scripts.bench_metrics import Attainment, Rule, Spread, per_second
from accelgen.scripts.bench_report import Report, generator, reasons, verdicts


def dump(result: dict[str, Any]) -> str:
    """As text, one line per key: lists of many numbers stay readable by eye and by diff. Figures without data are
    null."""
    lines = (f" {json.dumps(key)}: {json.dumps(_plain(value))}" for key, value in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(value: Any) -> Any:
    """`value` with None for NaN, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def as_json(report: Report, detailed: bool) -> dict[str, Any]:
    """The result with the keys of vLLM's `bench serve`, and our own after them. Attainments are fractions 0..1."""
    setting, summary = report.setting, report.summary
    duration_s = summary.duration_s
    tokens = summary.input_tokens + summary.output_tokens
    result: dict[str, Any] = {
        "date": setting.date,
        "backend": "openai",
        "endpoint_type": "openai",
        "label": setting.label or None,
        "model_id": setting.model,
        "tokenizer_id": setting.model,
        "num_prompts": setting.num_prompts,
        **setting.metadata,
        "request_rate": setting.request_rate if math.isfinite(setting.request_rate) else "inf",
        "burstiness": setting.burstiness,
        "max_concurrency": setting.max_concurrency,
        "duration": duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "total_input_tokens": summary.input_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": per_second(summary.completed, duration_s),
        "request_goodput": report.goodput[Rule.MEAN] if report.judged else None,
        "output_throughput": per_second(summary.output_tokens, duration_s),
        "total_token_throughput": per_second(tokens, duration_s),
        "max_output_tokens_per_s": float(summary.peak_output_tokens_per_s),
        "max_concurrent_requests": summary.peak_concurrency,
        "tpot_not_measurable": summary.clumped,
    }
    for name, values in summary.spreads.items():
        result |= _spread_keys(name, values)
    result |= {
        "base_url": setting.url,
        "dataset_name": setting.dataset,
        "arrivals": setting.arrivals,
        "seed": setting.seed,
        "not_sent": report.run.not_sent,
        "load_generator": generator(report.run),
        "failures": dict(reasons(report.run.outcomes)),
    }
    if report.judged:
        result["goodput_by_rule"] = report.goodput
        result["slo_attainment"] = _attainment_keys(summary.attainment)
        result["slo_attainment_by_label"] = {
            label: _attainment_keys(part) for label, part in summary.by_label.items()
        }
    result |= _stage_keys(report)
    judgements = verdicts(report.run.outcomes)
    if judgements:
        result["slo_attainment_by_server"] = sum(judgements) / summary.attainment.sent
    return result | (_details(report.run.outcomes) if detailed else {})


def _spread_keys(name: str, values: Spread) -> dict[str, float]:
    keys = {
        f"mean_{name}_ms": 1000 * values.mean_s,
        f"median_{name}_ms": 1000 * values.median_s,
        f"std_{name}_ms": 1000 * values.std_s,
    }
    for percentile, value_s in values.percentiles_s.items():
        keys[f"p{percentile:g}_{name}_ms"] = 1000 * value_s
    return keys


def _stage_keys(report: Report) -> dict[str, Any]:
    """Only where requests have stages."""
    stages = report.stages
    found: dict[str, Any] = {}
    if stages.parts:
        found["stages"] = {
            name: {
                "requests": part.requests,
                "tokens": part.tokens,
                **_spread_keys("tpot", part.tpot),
                "tpot_kept": part.kept.fraction,
            }
            for name, part in stages.parts.items()
        }
    if stages.calls:
        calls = {name: _attainment_keys(kept) for name, kept in stages.calls.items()}
        found["slo_attainment_by_stage"] = calls
        found["session_attainment"] = {
            rule: share.fraction for rule, share in stages.sessions.items()
        }
    return found


def _attainment_keys(kept: Attainment) -> dict[str, Any]:
    return {
        "sent": kept.sent,
        "ttft": kept.ttft.fraction,
        "tpot": {rule: share.fraction for rule, share in kept.tpot.items()},
        "tpot_not_judged": kept.unmeasured,
        "e2e": kept.e2e.fraction,
        "all": {rule: share.fraction for rule, share in kept.overall.items()},
    }


def _details(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Per request, in the order of sending; times in seconds. `token_times` counts from the start of the run, one
    time per token; `itls` are gaps between chunks."""
    timings = [outcome.timing for outcome in outcomes]
    return {
        "input_lens": [timing.prompt_tokens for timing in timings],
        "output_lens": [timing.output_tokens for timing in timings],
        "ttfts": [timing.ttft_s if timing.succeeded else 0.0 for timing in timings],
        "itls": [timing.chunk_gaps_s() for timing in timings],
        "start_times": [timing.sent_s for timing in timings],
        "end_times": [timing.ended_s for timing in timings],
        "token_times": [timing.token_times_s() for timing in timings],
        "labels": [timing.label for timing in timings],
        "limits_s": [
            [timing.limits.ttft_s, timing.limits.tpot_s, timing.limits.e2e_s] for timing in timings
        ],
        "thinking_limits_s": [timing.limits.thinking_s for timing in timings],
        "thinking_tokens": [timing.thinking for timing in timings],
        "request_stages": [timing.stage for timing in timings],
        "generated_texts": [outcome.text for outcome in outcomes],
        "finish_reasons": [outcome.finish_reason for outcome in outcomes],
        "verdicts": [outcome.verdict for outcome in outcomes],
        "errors": [outcome.error for outcome in outcomes],
    }
