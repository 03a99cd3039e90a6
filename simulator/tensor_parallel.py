"""A model over several devices of one host (tensor parallelism), from its fit on one device and measured all-reduces.

Each of n devices has 1/n of every layer. Reading the weights, the products and attention take 1/n of the time; what a
kernel takes whatever its size does not get less: of the fixed cost `a` only the time that the memory needs for the
weights is divided (weights / bandwidth of the data sheet). Twice per layer all devices add up the activations of all
tokens, in bf16: an all-reduce, nothing of which overlaps with anything, takes latency + bytes / bandwidth. Each device
keeps 1/n of each token's KV, and the memory that the weights leave free is KV, too.

The all-reduces are fits (least squares on relative errors, 8 KiB to 128 MiB) of `profile_aiconfigurator_allreduce`
(NVIDIA aiconfigurator, vLLM's kernels in CUDA graphs). Its sizes count bf16 elements: read as bytes they would
give half of what two A100s reach in `profile_vidur_network_medians` (195 GB/s; 199 as elements). Mean error 3 to 17 %,
largest 47 %: at 8 MiB, where vLLM changes kernels. There is no such table for RTX cards, so they are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from msgspec import structs

from accelgen.simulator.device import Device, UnknownDevice


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model matters here: layers, hidden size, heads of the KV cache, bytes of all weights in bf16."""

    layers: int
    hidden: int
    kv_heads: int
    weight_bytes: float


_SHAPES = {
    "llama-2-7b": Shape(32, 4096, 32, 13.5e9),
    "llama-3-8b": Shape(32, 4096, 8, 16.1e9),
    "opt-13b": Shape(40, 5120, 40, 25.7e9),
}
_MEMORY_BYTES_S = {"a100": 2.039e12, "h100": 3.35e12, "h200": 4.8e12, "l40s": 0.864e12}
_ALL_REDUCES = {  # (hardware, devices): latency in microseconds, GB/s
    ("a100", 2): (5.02, 169.5), ("a100", 4): (6.17, 111.2), ("a100", 8): (7.41, 96.9),
    ("h100", 2): (4.25, 242.2), ("h100", 4): (5.13, 183.7), ("h100", 8): (6.09, 191.8),
    ("h200", 2): (4.43, 252.6), ("h200", 4): (5.13, 191.3), ("h200", 8): (6.07, 204.0),
    ("l40s", 2): (5.38, 19.2), ("l40s", 4): (11.36, 2.6), ("l40s", 8): (17.69, 1.3),
}  # fmt: skip
ACTIVATION_BYTES, ALL_REDUCES = 2, 2  # per element (bf16); per layer


class NoNetwork(UnknownDevice):
    """Nothing is known of so many of these devices; the text lists what there is."""


def split(device: Device, devices: int) -> Device:
    """`device`, a fit, over so many of them; as seen by the scheduler it is one. KV bytes are those of each. Raises
    NoNetwork where nothing was measured."""
    if devices == 1:
        return device
    shape, link = _SHAPES.get(device.model), _ALL_REDUCES.get((device.hardware, devices))
    if shape is None or link is None:
        known = ", ".join(f"{n} x {hardware}" for hardware, n in _ALL_REDUCES)
        raise NoNetwork(
            f"no all-reduces were measured for {device.model} on {devices} x {device.hardware};"
            f" there is {', '.join(_SHAPES)} on {known}"
        )
    assert shape.kv_heads % devices == 0
    k = device.coefficients
    weights_s = shape.weight_bytes / _MEMORY_BYTES_S[device.hardware]
    reduces = ALL_REDUCES * shape.layers
    latency_s, bytes_s = link[0] * 1e-6, link[1] * 1e9
    token_s = reduces * shape.hidden * ACTIVATION_BYTES / bytes_s
    coefficients = structs.replace(
        k,
        a=k.a - weights_s * (1 - 1 / devices) + reduces * latency_s,
        b=k.b / devices + token_s,
        b2=k.b2 / devices,
        c=k.c / devices,
        d=k.d / devices,
        e=k.e / devices,
    )
    return replace(
        device,
        coefficients=coefficients,
        kv_token_bytes=device.kv_token_bytes // devices,
        kv_bytes=device.kv_bytes + int(shape.weight_bytes * (1 - 1 / devices)),
        mixed_context_s=device.mixed_context_s / devices,
        prior_s=device.prior_s / devices,
    )
