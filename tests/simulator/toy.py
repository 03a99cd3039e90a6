"""A small server for searches and bounds: 40 blocks of 16 tokens, and nobody is refused or cut short."""

from __future__ import annotations

from accelgen.proto.config import Config, SloClass
from accelgen.scheduler.cost_model import Coefficients
from accelgen.simulator.device import Device


def toy_device(costs: Coefficients) -> Device:
    return Device("toy", "paper", costs, kv_token_bytes=1, kv_bytes=40 * 16, host_s=0.1)


def config(**fields: object) -> Config:
    patient = SloClass(max_queue_ms=86_400_000, bounds_ms=(1e-3, 86_400_000))
    given = {"pipeline_depth": 0, "slo_classes": {"standard": patient}, "max_step_s": 1e9, **fields}
    return Config(policy="vllm", **given)  # type: ignore[arg-type]
