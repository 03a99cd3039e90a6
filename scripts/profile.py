"""`accelgen profile`: times iterations of a model on this device, for the scheduler's cost model.

A server does a rough fit of at most three seconds when it starts; the profile is measured at leisure, once, and found
by the next `accelgen up` with the same model, device and dtype."""

from __future__ import annotations

import datetime
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, ConfigError, make_config
from accelgen.proto.messages import Role
from accelgen.proto.profiles import Profile, profile_path, save_profile
from accelgen.supervisor import preflight
from accelgen.supervisor.children import environment
from accelgen.supervisor.errors import StartError

if TYPE_CHECKING:
    from accelgen.proto.messages import Facts, Sample, SwapSample
    from accelgen.scheduler.cost_model import Coefficients

_DEFAULT_BUDGET_S = 60.0
_COSTLY_TOKENS = 512
_SWAPS_SHARE = 0.1  # of the budget, for copies to the host and back
_SWAPS_BYTES = 1 << 29  # the most that is copied at a time


@click.command(name="profile", context_settings={"show_default": True})
@click.option(
    "--model", default="", show_default="the bundled demo model", help="Folder or hub name."
)
@click.option("--dtype", default="auto", help="auto (as stored), float32, bfloat16 or float16.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option(
    "--kv-blocks", type=int, default=0, help="Blocks of the KV cache; 0: from free memory."
)
@click.option("--max-num-seqs", type=int, default=256, help="Most requests in one iteration.")
@click.option(
    "--max-num-batched-tokens", type=int, default=8192, help="Most tokens in one iteration."
)
@click.option(
    "--budget-s",
    type=click.FloatRange(3, 3600),
    default=_DEFAULT_BUDGET_S,
    help="Seconds to measure; what does not fit is left out.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="the cached one, which `accelgen up` finds by itself",
    help="File to write; name it to `accelgen up` with --profile-file.",
)
def command(budget_s: float, output: Path | None, **given: str | int) -> int:
    """Measure this device for the cost model, once per model.

    Nothing else should be running meanwhile, a server least of all: its work would be measured, too. The result is
    picked up at the next start of a server with the same model, device and dtype; one that runs goes on as before."""
    try:
        config, _ = preflight.check(make_config(None, given))
    except (ConfigError, StartError) as error:
        bad_option = isinstance(error, ConfigError) or error.status == 2
        kind = click.UsageError if bad_option else click.ClickException
        raise kind(str(error)) from error
    # The thread settings of a served worker, before torch reads them.
    os.environ.update(environment(Role.WORKER, replicas=1, listen_fd=-1))
    facts, samples, swaps = _measure(config, budget_s)
    if len(samples) < 3:
        raise click.ClickException(
            f"only {len(samples)} shapes could be measured in {budget_s:g} s; give more with --budget-s"
        )
    path = output or profile_path(facts.model, facts.device, facts.dtype)
    taken = datetime.date.today().isoformat()
    save_profile(Profile(facts.model, facts.device, facts.dtype, taken, samples, swaps), path)
    click.echo(report(samples))
    if swaps:
        click.echo("\n" + report_swaps(swaps))
    click.echo(f"\nWrote {len(samples)} samples and {len(swaps)} of swapping to {path}")
    click.echo(
        "The next `accelgen up` with this model, device and dtype uses it."
        if output is None
        else f"Name it to the next `accelgen up`: --profile-file {path}"
    )
    return 0


def _measure(config: Config, budget_s: float) -> tuple[Facts, list[Sample], list[SwapSample]]:
    """What the model is, its timed iterations, and copies of its KV to the host and back. Raises ClickException when it
    cannot be loaded."""
    from accelgen.worker.engine import start_engine
    from accelgen.worker.faults import LoadError
    from accelgen.worker.hostcache import HostCache
    from accelgen.worker.swap_timing import measure_swaps
    from accelgen.worker.timing import full_grid, measure

    # A profile file named means: no rough fit at start.
    config = msgspec.structs.replace(config, profile_file="measured now")
    try:
        engine = start_engine(config, lambda phase, _: click.echo(f"{phase} ...", err=True))
    except LoadError as error:
        raise click.ClickException(str(error)) from error
    facts = engine.facts
    grid = list(full_grid(config.max_num_batched_tokens, config.max_num_seqs, facts.max_model_len))
    # Wherever the budget ends, all kinds of iterations are there; the costly ones wait.
    random.Random(0).shuffle(grid)
    grid.sort(key=lambda shape: shape.chunk + shape.decodes > _COSTLY_TOKENS)
    click.echo(f"measuring {facts.architecture} in {facts.dtype} on {facts.device} ...", err=True)
    with click.progressbar(length=100, label=f"at most {budget_s:g} s") as bar:
        start_s = now_s()

        def beat() -> None:
            done = min(100, int(100 * (now_s() - start_s) / budget_s))
            bar.update(max(0, done - bar.pos))

        cache = engine.core.runner.cache
        swaps_s = _SWAPS_SHARE * budget_s
        block_bytes = cache.total_bytes // cache.num_blocks
        blocks = min(cache.num_blocks, max(1, _SWAPS_BYTES // block_bytes))
        swaps = measure_swaps(HostCache(cache, blocks), swaps_s, beat=beat)
        left_s = budget_s - swaps_s
        samples = measure(engine.core.runner, left_s, facts.max_model_len, grid, beat=beat)
    return facts, samples, swaps


def report_swaps(swaps: list[SwapSample]) -> str:
    """Both curves at their ends: what one block takes, and at what rate the most blocks go."""
    lines = ["Swapping KV, to the host's memory and back:"]
    for out, name in ((True, "out"), (False, "in")):
        curve = sorted((s for s in swaps if s.out is out), key=lambda sample: sample.blocks)
        if curve:
            few, many = curve[0], curve[-1]
            rate = many.bytes / max(many.run_s, 1e-9) / 1e9
            lines.append(
                f"  {name:3} {1e6 * few.run_s:10.1f} us for {few.blocks} block,"
                f" {1e3 * many.run_s:8.2f} ms for {many.blocks} ({rate:.1f} GB/s)"
            )
    return "\n".join(lines)


def report(samples: list[Sample]) -> str:
    """The fitted coefficients, in milliseconds and microseconds, and how well they describe the samples."""
    from accelgen.scheduler.cost_model import CostModel, evaluate, fit, work_of

    k: Coefficients = fit(samples)
    errors = sorted(abs(evaluate(k, work_of(s)) / s.run_s - 1) for s in samples)
    pivot, pivot_s = CostModel(k).pivot(1 << 20)
    return "\n".join(
        [
            "Iteration time = a + b*N + b2*max(0, N - knee) + c*D + d*S + e*W, with N tokens,",
            "D decoding sequences, S their summed context, W prefill attention work (token^2):",
            f"  a  {1e3 * k.a:10.3f} ms           fixed",
            f"  b  {1e6 * k.b:10.3f} us/token     below the knee of {k.knee:.0f} tokens",
            f"  b2 {1e6 * k.b2:10.3f} us/token     more above it",
            f"  c  {1e6 * k.c:10.3f} us/sequence  decoding",
            f"  d  {1e9 * k.d:10.3f} ns/token     of decode context",
            f"  e  {1e9 * k.e:10.3f} ns/token^2   of prefill attention",
            f"Error of the fit: median {errors[len(errors) // 2]:.1%}, largest {errors[-1]:.1%}"
            f" of {len(samples)} shapes.",
            f"Pivot forward size: {pivot} tokens in {1e3 * pivot_s:.1f} ms.",
        ]
    )
