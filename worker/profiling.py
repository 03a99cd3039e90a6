"""`accelgen profile`: the worker's measurement of a model on this device, for the scheduler's cost model."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from msgspec import structs

from accelgen.proto.config import Config
from accelgen.proto.profiles import Profile
from accelgen.worker.engine import Announce, start_engine
from accelgen.worker.timing import full_grid, measure


def take_profile(
    config: Config,
    budget_s: float,
    announce: Announce = lambda _, __: None,
    beat: Callable[[], None] = lambda: None,
) -> Profile:
    """Loads the model of `config` and times iterations up to its limits for at most `budget_s` (loading not counted).

    Raises LoadError. The file name under which servers look for it is `proto.profiles.profile_path`."""
    engine = start_engine(structs.replace(config, profile_file="none"), announce)
    facts = engine.facts
    announce("measuring", budget_s + 60.0)
    grid = full_grid(config.max_num_batched_tokens, config.max_num_seqs, facts.max_model_len)
    samples = measure(engine.core.runner, budget_s, facts.max_model_len, grid, beat=beat)
    taken = datetime.now(UTC).strftime("%Y-%m-%d")
    return Profile(facts.model, facts.device, facts.dtype, taken, samples)
