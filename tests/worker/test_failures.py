"""What goes wrong in one request stays in that request; what goes wrong at load is one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from accelgen.proto.config import Config
from accelgen.proto.messages import Batch, Prompt, Sampling
from accelgen.worker.attention_torch import TorchPass
from accelgen.worker.checkpoint import find_model, inspect_checkpoint
from accelgen.worker.core import FAILED_PASS, MAX_FAILURES, WorkerCore
from accelgen.worker.faults import FatalError, LoadError
from accelgen.worker.model import load_model
from accelgen.worker.selfcheck import own_logits, self_check

GREEDY = Sampling(temperature=0.0)


def batch(
    step: int,
    entries: list[tuple[int, int, int, int, list[int]]],
    new: list[Prompt] | None = None,
    **others: Any,
) -> Batch:
    """entries: (id, start, count, table_at, blocks)"""
    lists = {"copy_from": [], "copy_to": [], "release": [], **others}
    return Batch(
        step=step,
        new=new or [],
        ids=[e[0] for e in entries],
        starts=[e[1] for e in entries],
        counts=[e[2] for e in entries],
        table_at=[e[3] for e in entries],
        table_counts=[len(e[4]) for e in entries],
        table_blocks=[block for e in entries for block in e[4]],
        predicted_s=0.01,
        bound_s=1.0,
        **lists,
    )


@pytest.fixture
def core(bench: Any) -> WorkerCore:
    return WorkerCore(bench("llama").core.runner)


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        ((99, 0, 4, 0, [5]), "request 99 is not known"),
        ((2, 2, 2, 1, []), "block table has 0 entries, update is at 1"),
        ((2, 0, 5, 0, [5, 6]), "entry covers [0, 5) of 4 tokens"),
        ((2, 0, 0, 0, [5]), "entry covers [0, 0) of 4 tokens"),
        ((2, 0, 4, 0, []), "block table of 0 blocks does not cover 4 tokens"),
        ((2, 0, 4, 0, [96]), "block 96 of 96 does not exist"),
        ((2, 0, 513, 0, [5, 6]), "position 513 is beyond the 512 that the model has"),
        ((3, 0, 2, 0, [5]), "token id 97 is outside of the vocabulary of 97"),
        ((4, 0, 1, 0, [5]), "prompt has no tokens"),
    ],
)
def test_an_entry_that_does_not_fit_fails_alone(core: WorkerCore, entry: Any, cause: str) -> None:
    new = [
        Prompt(1, [1, 2, 3], GREEDY),
        Prompt(2, [1, 2, 3, 4], GREEDY),
        Prompt(3, [1, 97], GREEDY),
        Prompt(4, [], GREEDY),
    ]
    result = core.execute(batch(0, [entry, (1, 0, 3, 0, [7])], new))
    assert result.failed == [entry[0]] and cause in result.causes[0]
    assert result.ids == [1] and result.counts == [1] and len(result.tokens) == 1


def test_a_gap_in_the_computed_tokens_fails(core: WorkerCore) -> None:
    core.execute(batch(0, [(1, 0, 2, 0, [3])], [Prompt(1, list(range(9)), GREEDY)]))
    result = core.execute(batch(1, [(1, 4, 2, 1, [4])]))
    assert result.failed == [1] and "only 2 tokens are computed" in result.causes[0]


def test_a_repeated_prompt_keeps_its_cache_and_truncates_to_the_journal(core: WorkerCore) -> None:
    first = core.execute(batch(0, [(1, 0, 3, 0, [3])], [Prompt(1, [5, 6, 7], GREEDY)]))
    more = core.execute(batch(1, [(1, 3, 1, 1, [])]))
    journal = [5, 6, 7, first.tokens[0]]  # the second token was never confirmed
    again = core.execute(batch(2, [(1, 3, 1, 1, [])], [Prompt(1, journal, GREEDY, generated=1)]))
    assert again.failed == [] and again.tokens == more.tokens
    assert [(h.id, h.computed, h.blocks) for h in core.inventory().held] == [(1, 4, [3])]


def test_an_iteration_without_work_is_not_the_last_or_longest_one(bench: Any) -> None:
    """Found by the benchmark of a long prefill: the metrics showed the empty iteration that follows it."""
    moments_s = iter([0.0, 10.0, 22.0, 30.0, 31.0, 40.0, 40.5])
    core = WorkerCore(bench("llama").core.runner, clock=lambda: next(moments_s))
    core.execute(batch(0, [(1, 0, 3, 0, [4])], [Prompt(1, [5, 6, 7], GREEDY)]))
    core.execute(batch(1, []))
    assert (core.last_s, core.longest_s, core.run_s) == (12.0, 12.0, 13.0)
    core.execute(batch(2, [(1, 0, 3, 0, [4])], [Prompt(1, [5, 6, 7], GREEDY)]))
    assert (core.last_s, core.longest_s) == (0.5, 12.0)


def test_released_requests_are_forgotten(core: WorkerCore) -> None:
    core.execute(batch(0, [(1, 0, 3, 0, [3])], [Prompt(1, [5, 6, 7], GREEDY)]))
    core.execute(batch(1, [], release=[1, 77]))
    assert not core.requests and core.inventory().held == [] and core.inventory().step == 1


def test_logits_that_are_not_numbers_fail_one_request_and_leave_no_trace(
    bench: Any, drive: Any
) -> None:
    made = bench("llama")
    core = WorkerCore(made.core.runner)
    Driver, Live = drive
    weight = core.runner.loaded.model.get_input_embeddings().weight
    saved = weight[13].clone()
    weight[13] = float("nan")
    try:
        new = [Prompt(1, [13, 1, 2, 3, 4, 5], GREEDY), Prompt(2, [6, 7, 8], GREEDY)]
        result = core.execute(batch(0, [(1, 0, 6, 0, [10, 11]), (2, 0, 3, 0, [12])], new))
    finally:
        weight[13] = saved
    assert result.failed == [1] and "not finite" in result.causes[0] and result.ids == [2]
    core.execute(batch(1, [], release=[1, 2]))
    for seed in range(3):  # whoever gets its blocks next is not touched by them
        driver = Driver(core, Random(seed))
        driver.free = [10, 11, 12]
        driver.add(Live(5, [1, 2, 3, 4, 5, 6], 3))
        driver.run(preempt=0.0)
        assert torch.isfinite(driver.logits[5, 6]).all()


def test_a_raising_forward_pass_fails_its_batch_and_repeats_are_fatal(
    core: WorkerCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("no kernel\nsecond line")

    new = [Prompt(1, [1, 2], GREEDY)]
    with monkeypatch.context() as patch, capture_logs() as logged:
        patch.setattr(core.runner, "forward", broken)
        for step in range(MAX_FAILURES - 1):
            result = core.execute(batch(step, [(1, 0, 2, 0, [3])], new))
            assert result.failed == [1] and result.causes == [FAILED_PASS]
        assert [(line["event"], line["requests"]) for line in logged] == [
            ("iteration failed", [1])
        ] * 2
    assert core.execute(batch(8, [(1, 0, 2, 0, [3])])).counts == [1]
    monkeypatch.setattr(core.runner, "forward", broken)
    with pytest.raises(
        FatalError, match="3 iterations in a row failed, last: RuntimeError: no kernel"
    ):
        for step in range(9, 9 + MAX_FAILURES):
            core.execute(batch(step, [(1, 0, 2, 0, [3])]))


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model folder with other entries in config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised weights \(gptq\)"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "multimodal"),
        ({"vision_config": {}}, "vision_config"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is not a causal language model"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "unheard_of"}, "transformers refuses its configuration"),
        ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "attention interface"),
        ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, "recurrent"),
        ({"model_type": "lfm2", "architectures": ["Lfm2ForCausalLM"], "layer_types": ["conv"] * 2}, "conv"),
        ({"hidden_size": 64}, "another shape"),
        ({"num_hidden_layers": 3}, "weights are missing"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "layer 0 has a sliding window of 8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_models_that_do_not_fit_are_refused(
    tiny: Any, tmp_path: Path, changes: Any, cause: str
) -> None:
    folder = edited(tiny("llama"), tmp_path / "model", **changes)
    with pytest.raises(LoadError, match=cause) as caught:
        load_model(Config(model=str(folder), device="cpu"))
    assert "\n" not in str(caught.value)


def test_damaged_folders_are_refused(tiny: Any, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(tiny("llama"), tmp_path / name))

    with pytest.raises(LoadError, match="no such folder"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(LoadError, match="the hub has not given it"):
        find_model("accelgen-tests/no-such-model")
    folder = broken("empty")
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"has no config.json"):
        inspect_checkpoint(folder)
    folder = broken("pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"only safetensors are loaded\); found pytorch_model.bin"):
        inspect_checkpoint(folder)
    folder = broken("cut")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(LoadError, match="is cut off"):
        inspect_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(LoadError, match="not a whole safetensors file"):
        inspect_checkpoint(folder)
    folder = broken("sharded")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )
    with pytest.raises(LoadError, match=r"1 weight files are missing, first gone.safetensors"):
        inspect_checkpoint(folder)


def test_not_enough_memory_names_both_numbers(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelgen.worker.memory.available_bytes", lambda _: 500 << 20)
    with pytest.raises(
        LoadError, match=r"not enough memory: 600 MiB needed .*, 500 MiB free on cpu"
    ):
        load_model(Config(model=str(tiny("llama")), device="cpu"))


def test_float16_on_cpu_is_refused_or_becomes_bfloat16(tiny: Any) -> None:
    folder = str(tiny("llama", torch.float16))
    with pytest.raises(LoadError, match="float16 is far too slow on CPU"):
        load_model(Config(model=folder, device="cpu", dtype="float16"))
    assert load_model(Config(model=folder, device="cpu")).dtype is torch.bfloat16
    with pytest.raises(LoadError, match="no CUDA device"):
        load_model(Config(model=folder, device="cuda"))


class Deaf(TorchPass):
    """A backend with a typical fault: it does not see the window."""

    def attend(self, layer: int, query: Any, key: Any, value: Any, call: Any) -> Any:
        call.window = 0
        return super().attend(layer, query, key, value, call)


class Forgetful(TorchPass):
    """Another: it does not write what it is given."""

    def attend(self, layer: int, query: Any, key: Any, value: Any, call: Any) -> Any:
        return super().attend(layer, query, key * 0, value, call)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("architecture", "fault"), [("mistral", Deaf), ("llama", Forgetful)])
def test_the_self_check_finds_wrong_attention(
    tiny: Any, dtype: Any, architecture: str, fault: Any
) -> None:
    loaded = load_model(Config(model=str(tiny(architecture, dtype)), device="cpu"))
    limit = 1e-5 if dtype is torch.float32 else 0.03
    expected = own_logits(loaded)
    assert self_check(loaded, TorchPass, expected, 4) < limit
    with pytest.raises(LoadError, match="self-check failed: packed logits of .* differ"):
        self_check(loaded, fault, expected, 4)
