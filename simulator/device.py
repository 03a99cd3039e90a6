"""What an iteration takes on a device: fitted cost models of GPUs, and of this machine (`accelgen profile`).

    T = a + b*N + b2*max(0, N - K) + c*D + (d + d_mixed*[P > 0])*S + p*prior + e*W + h0 + h1*(P's sequences + D)

with P prefill tokens, D decoding sequences, N = P + D, S the sum of decode contexts, W the prefill attention work (sum
of chunk * (prior + chunk/2)), prior the tokens computed before the chunks. The knee form, the penalty that prefill
puts on decode attention (d_mixed) and the numbers are fits of measured kernels, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from accelgen.scheduler.cost_model import Coefficients, Work, evaluate
from accelgen.scheduler.memory.crossover import Copies, Line
from accelgen.scheduler.slos_serve.roofline import PUBLISHED


@dataclass(frozen=True, slots=True)
class Iteration:
    """The features of one iteration: those of the cost model, `prior` tokens before the chunks, `sequences` in all."""

    work: Work
    prior: int = 0
    sequences: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """A model on a device. Times in seconds, memory in bytes.

    `mixed_context_s` per decode context token when prefill is in the batch, `prior_s` per prior token of a chunk,
    `host_s` and `host_sequence_s` for the time of the host in each iteration, all beyond the knee form. KV is copied to
    the host's memory and back at `swap_bytes_s` per second: 25 GB/s is what DistServe assumes of PCIe 4.0."""

    model: str
    hardware: str
    coefficients: Coefficients
    kv_token_bytes: int
    kv_bytes: int
    mixed_context_s: float = 0.0
    prior_s: float = 0.0
    host_s: float = 0.0
    host_sequence_s: float = 0.0
    swap_bytes_s: float = 25e9

    def seconds(self, iteration: Iteration) -> float:
        """How long the iteration takes."""
        work = iteration.work
        found = evaluate(self.coefficients, work) + self.host_s
        found += self.host_sequence_s * iteration.sequences + self.prior_s * iteration.prior
        if work.prefill_tokens:
            found += self.mixed_context_s * work.decode_context
        return found

    def saturated_seconds(self, iteration: Iteration) -> float:
        """What the same work would take as part of an endless iteration: each token at the price beyond the knee, no
        fixed cost, no host, no penalty for mixing."""
        k, work = self.coefficients, iteration.work
        tokens = work.prefill_tokens + work.decode_seqs
        attention = k.d * work.decode_context + k.e * work.prefill_work
        return (k.b + k.b2) * tokens + k.c * work.decode_seqs + attention

    def copies(self, block_size: int) -> Copies:
        """What moving blocks of `block_size` tokens to the host and back takes."""
        line = Line(0.0, 1.0 / self.swap_bytes_s)
        return Copies(line, line, self.kv_token_bytes * block_size)

    def blocks(self, block_size: int) -> int:
        """KV blocks of `block_size` tokens that its memory holds."""
        return self.kv_bytes // (self.kv_token_bytes * block_size)


class UnknownDevice(ValueError):
    """No such model on such hardware; the text lists what is near, or all there is."""


def known_devices() -> list[tuple[str, str]]:
    """(model, hardware) of every fit."""
    return list(_FITS)


def find_device(
    model: str, hardware: str, kv_bytes: int = 0, host_s: float | None = None
) -> Device:
    """The fit of `model` on `hardware`; `kv_bytes` and `host_s` instead of the usual ones. Raises UnknownDevice."""
    found = _FITS.get((model.lower(), hardware.lower()))
    if found is None:
        known = [f"{m} on {h}" for m, h in _FITS]
        near = get_close_matches(f"{model} on {hardware}".lower(), known, cutoff=0.7) or known
        raise UnknownDevice(f"no fit of {model!r} on {hardware!r}; there is {', '.join(near)}")
    found = replace(found, kv_bytes=kv_bytes) if kv_bytes else found
    return found if host_s is None else replace(found, host_s=host_s)


def _fit(
    model: str, hardware: str, ms: tuple[float, float, float, float, float, float, int],
    kv_token_bytes: int, kv_gb: float, mixed_ms: float = 0.0, prior_ms: float = 0.0,
) -> Device:  # fmt: skip
    """From coefficients in milliseconds, as published; `kv_gb` is what is left beside the weights."""
    a, b, b2, c, d, e, knee = ms
    per = 1e-3
    coefficients = Coefficients(a * per, b * per, b2 * per, c * per, d * per, e * per, knee)
    return Device(
        model, hardware, coefficients, kv_token_bytes, int(kv_gb * 1e9),
        mixed_ms * per, prior_ms * per, HOST_S, HOST_SEQUENCE_S,
    )  # fmt: skip


HOST_S, HOST_SEQUENCE_S = 1.5e-3, 0.0  # 1 to 2 ms per iteration in vLLM V1

_DEVICES = (
    _fit("llama-2-7b", "a100", (9.7818, 0.013227, 0.047769, 6.8176e-4, 3.061e-4, 3.102e-6, 64), 524_288, 55),
    _fit("llama-3-8b", "a100", (11.137, 0.027022, 0.040713, 1.2622e-3, 8.6824e-5, 2.9149e-6, 96), 131_072, 53),
    _fit("opt-13b", "a100", (19.036, 0.029339, 0.059412, 5.6947e-3, 7.1393e-4, 4.2416e-6, 96), 819_200, 12),
    _fit("llama-3-8b", "h100", (6.2791, 9.743e-3, 9.8448e-3, 1.8709e-3, 4.2126e-5, 7.5839e-7, 512), 131_072, 53),
    _fit("llama-3-8b", "h200", (4.8625, 9.1507e-3, 9.6621e-3, 3.5329e-3, 3.018e-5, 7.8375e-7, 320), 131_072, 108),
    _fit("llama-3-8b", "l40s", (22.944, 0.022242, 0.033331, 1.5673e-3, 1.8663e-4, 2.6027e-6, 512), 131_072, 26),
    _fit("llama-3.1-8b", "rtxpro6000", (11.4, 0.01192, 0.02431, 0.01112, 8.35e-5, 1.37e-6, 192), 131_072, 66,
         mixed_ms=6.53e-5, prior_ms=4.9e-4),
    _fit("llama-3.1-8b", "rtx4090", (17.36, 0.02684, 0.06628, 0.0263, 8.81e-5, 2.45e-6, 192), 131_072, 5.4,
         mixed_ms=2.5e-4, prior_ms=8.1e-4),
)  # fmt: skip

SLOS_SERVE = "2xa100-slos-serve"
"""Two A100s of 40 GB as the planner of SLOs-Serve's authors sees them (arXiv 2504.08784, public code): 31.73 ms per
iteration and 72.13 us per token, decodes at any context, the host included. Beside OPT-13B, 23 GB of each are left."""
_PIECE = PUBLISHED["opt-13b-tp2"].pieces[0]  # the other one is the drafter's alone
_THEIRS = Coefficients(_PIECE.base_s, _PIECE.per_token_s, 0.0, 0.0, 0.0, 0.0, 1)
_PUBLISHED = Device("opt-13b", SLOS_SERVE, _THEIRS, 819_200, 46_000_000_000)
_FITS = {(device.model, device.hardware): device for device in (*_DEVICES, _PUBLISHED)}
