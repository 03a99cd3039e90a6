"""`accelgen swap`: what it asks the server for, and what it refuses by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from accelgen.proto.messages import Swap, Swapped
from accelgen.scripts import swap


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Swap]:
    """The swaps that a server would have been asked for."""
    swaps: list[Swap] = []

    def ask(run_dir: Path, what: Swap, timeout_s: float) -> Swapped:
        swaps.append(what)
        return Swapped(True, "done")

    monkeypatch.setattr(swap, "find_live", Path)
    monkeypatch.setattr(swap, "ask_to_swap", ask)
    return swaps


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["vllm"], Swap("vllm", {})),
        (["--memory", "cacheopt"], Swap("", {}, memory="cacheopt")),
        (["--routing", "round-robin"], Swap("", {}, routing="round-robin")),
        (["cacheopt", "--memory-param", "reserve=3"],
         Swap("cacheopt", {}, memory="cacheopt", memory_params={"reserve": 3})),
        (["vllm", "--memory", "cacheopt", "--memory-param", "pad=false"],
         Swap("vllm", {}, memory="cacheopt", memory_params={"pad": False})),
    ],
)  # fmt: skip
def test_what_is_asked_for(asked: list[Swap], words: list[str], wanted: Swap) -> None:
    done = CliRunner().invoke(swap.command, words)
    assert done.exit_code == 0 and done.output == "done\n", done.output
    assert asked == [wanted]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which policy? State POLICY, or what else is to change: --memory, --routing"),
        (["--memory-param", "reserve=3"], "of which memory policy? State POLICY or --memory, too"),
        (["--routing", "planned", "--memory-param", "reserve=3"],
         "of which memory policy? State POLICY or --memory, too"),
        (["vllm", "--memory-param", "reserve=3"], "on-demand has no parameter 'reserve'; it has none"),
        (["cacheopt", "--memory-param", "reserv=3"], "cacheopt has no parameter 'reserv'"),
        (["--memory", "cacheop"], "did you mean cacheopt?"),
    ],
)  # fmt: skip
def test_what_cannot_be(asked: list[Swap], words: list[str], said: str) -> None:
    done = CliRunner().invoke(swap.command, words)
    assert done.exit_code == 2 and said in " ".join(done.output.split()) and not asked
