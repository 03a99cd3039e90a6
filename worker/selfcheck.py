"""At load: does the packed, paged, chunked road compute what the model's own forward pass computes?

Two requests of random tokens run through the runner in chunks, mixed with decodes, over scattered blocks; their logits
are compared with the model's own full pass ("eager" attention, which honours soft caps), taken before its layers are
packed. It catches architectures whose attention means something that the calls do not say, and packing that goes wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelgen.worker.attention import NAME
from accelgen.worker.faults import LoadError, one_line
from accelgen.worker.kvcache import KvCache
from accelgen.worker.memory import name_of
from accelgen.worker.model import Loaded
from accelgen.worker.packing import Span
from accelgen.worker.runner import MakePass, Runner

LENGTHS = (21, 9)
LONGEST_WINDOW = 256  # longer windows are not reached: the check must stay short
FLOAT32_TOLERANCE = 1e-4  # of the largest logit, or absolute where logits are small
ROUNDING_STEPS = (
    4.0  # allowed error in units of the type's rounding, per root of the number of layers
)


@dataclass(frozen=True)
class Expected:
    """Random prompts, and the model's own logits at each of their positions."""

    prompts: list[list[int]]
    logits: list[Tensor]


def own_logits(loaded: Loaded) -> Expected:
    """What the model computes by itself. To be called while its layers are still its own."""
    windows = [shape.window for shape in loaded.shapes if 0 < shape.window <= LONGEST_WINDOW]
    positions = loaded.checkpoint.max_positions
    lengths = [max([LENGTHS[0], *(window + 9 for window in windows)]), LENGTHS[1]]
    random = np.random.default_rng(0)
    prompts = [
        random.integers(0, loaded.vocab_size, size=min(length, positions)).tolist()
        for length in lengths
    ]
    try:
        return Expected(prompts, [_full_pass(loaded, prompt) for prompt in prompts])
    except Exception as error:  # anything a foreign model's forward pass may raise
        path = loaded.checkpoint.path
        raise LoadError(f"model {path}: its own forward pass fails: {one_line(error)}") from error


def self_check(loaded: Loaded, make_pass: MakePass, expected: Expected, block_size: int) -> float:
    """The relative error found. Raises LoadError when it is more than rounding explains."""
    packed = _packed_logits(loaded, make_pass, expected.prompts, block_size)
    got = torch.stack(list(packed.values()))
    want = torch.stack([expected.logits[i][at] for i, at in packed])
    error, limit = _error(got, want, loaded)
    if not error <= limit:
        raise LoadError(
            f"model {loaded.checkpoint.path}: self-check failed: packed logits of {loaded.architecture} differ"
            f" from its own forward pass by {error:.2g} (limit {limit:.2g}, {name_of(loaded.dtype)});"
            " this architecture cannot be served"
        )
    return error


def _packed_logits(
    loaded: Loaded, make_pass: MakePass, prompts: list[list[int]], block_size: int
) -> dict[tuple[int, int], Tensor]:
    """Logits by (request, position), each request's tokens fed as chunk, chunk, single tokens; blocks scattered."""
    needed = [-(-len(prompt) // block_size) for prompt in prompts]
    cache = KvCache(loaded.shapes, sum(needed), block_size, loaded.dtype, loaded.device)
    blocks = list(range(sum(needed)))[::-1]
    tables = [blocks[0::2][: needed[0]], blocks[1::2]]
    tables[0] += [block for block in blocks if block not in {*tables[0], *tables[1][: needed[1]]}]
    runner = Runner(loaded, cache, make_pass)
    done = [0] * len(prompts)
    found: dict[tuple[int, int], Tensor] = {}
    for sizes in _schedule([len(prompt) for prompt in prompts]):
        spans, owners = [], []
        for i, size in enumerate(sizes):
            if size:
                tokens = prompts[i][done[i] : done[i] + size]
                spans.append(Span(tokens, done[i], tables[i]))
                done[i] += size
                owners.append(i)
        logits = runner.forward(spans)
        for row, at in enumerate(logits.order):
            i = owners[at]
            found[i, done[i] - 1] = logits.rows[row]
    return found


def _schedule(lengths: list[int]) -> list[list[int]]:
    """Tokens of each request per pass: a first chunk beside a whole prompt, a second beside a decode, decodes."""
    first = max(1, lengths[0] // 2)
    second = max(0, lengths[0] - first - 1)
    rest = lengths[1]
    return [
        sizes
        for sizes in ([first, max(rest - 2, 0)], [second, min(rest, 1)], [min(1, lengths[0] - first), min(rest - 1, 1)])
        if any(sizes)
    ]  # fmt: skip


def _full_pass(loaded: Loaded, prompt: list[int]) -> Tensor:
    model: Any = loaded.model
    ids = torch.tensor([prompt], device=loaded.device)
    model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            out: Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        model.set_attn_implementation(NAME)
    return out


def _error(got: Tensor, want: Tensor, loaded: Loaded) -> tuple[float, float]:
    """(error, limit): of the largest difference for float32, of the root mean square for rounded types."""
    if loaded.dtype is torch.float32:
        scale = max(1.0, float(want.abs().max()))
        return float((got - want).abs().max()) / scale, FLOAT32_TOLERANCE
    spread = float((want - want.mean(-1, keepdim=True)).pow(2).mean().sqrt())
    error = float((got - want).pow(2).mean().sqrt()) / max(spread, 1e-6)
    epsilon = torch.finfo(loaded.dtype).eps
    return error, ROUNDING_STEPS * epsilon * len(loaded.shapes) ** 0.5
