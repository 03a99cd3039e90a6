"""How large the KV cache becomes, and what is refused."""

from __future__ import annotations

import pytest
import torch

from accelgen.proto.config import Config
from accelgen.worker import memory
from accelgen.worker.faults import LoadError
from accelgen.worker.memory import size_kv, verification_bytes

CPU = torch.device("cpu")
BLOCK = 16 * 1024  # bytes: 16 tokens of 1 KiB


@pytest.fixture(autouse=True)
def one_gib_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1 << 30)


def test_automatic_size_is_bounded_by_use_and_by_a_share_of_what_is_free() -> None:
    size = size_kv(Config(max_num_seqs=4), BLOCK, 2048, CPU)
    assert (size.num_blocks, size.max_model_len, size.note) == (4 * 2048 // 16, 2048, "")
    assert size_kv(Config(max_num_seqs=64), BLOCK, 2048, CPU).num_blocks == 64 * 512 // 16
    large = size_kv(Config(max_num_seqs=10_000), BLOCK, 2048, CPU)
    assert large.total_bytes == (1 << 30) // 4
    capped = size_kv(Config(kv_memory_bytes=50 << 20), BLOCK, 2048, CPU)
    assert capped.total_bytes == 50 << 20


def test_what_is_asked_for_is_given_or_refused_with_numbers() -> None:
    assert size_kv(Config(kv_blocks=200, max_model_len=64), BLOCK, 2048, CPU).num_blocks == 200
    with pytest.raises(LoadError, match=r"kv_blocks: 100000 blocks need 1,562 MiB, 1,024 MiB free"):
        size_kv(Config(kv_blocks=100_000), BLOCK, 2048, CPU)
    with pytest.raises(LoadError, match="max_model_len: 4096 is more than the 2048 positions"):
        size_kv(Config(max_model_len=4096), BLOCK, 2048, CPU)
    with pytest.raises(
        LoadError, match=r"one request of 1024 tokens needs 64 blocks .*room for 10 "
    ):
        size_kv(Config(kv_blocks=10, max_model_len=1024), BLOCK, 2048, CPU)


def test_an_automatic_length_is_lowered_to_what_fits_and_says_so() -> None:
    size = size_kv(Config(kv_blocks=10), BLOCK, 2048, CPU)
    assert size.max_model_len == 160
    assert size.note == "max_model_len lowered from 2048 to 160: the KV cache has 10 blocks"


def test_replicas_on_one_gpu_have_equal_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes first must not take what the others need, and none sees what those that load will take."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (5 << 30, 20 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 << 30)
    beside = (2 << 30) + memory.CUDA_CONTEXT + memory.CPU_RESERVE
    for replicas in (2, 4):
        size = size_kv(Config(replicas=replicas), BLOCK, 2048, gpu)
        share = int(0.9 * (20 << 30)) // replicas
        assert size.total_bytes == (share - beside) // BLOCK * BLOCK
        assert replicas * (size.total_bytes + beside) <= 0.9 * (20 << 30)
    with pytest.raises(LoadError) as refused:
        size_kv(Config(replicas=8), BLOCK, 2048, gpu)
    assert str(refused.value) == (
        "replicas: 8 on one GPU have 2,304 MiB each of 20,480 MiB (gpu_memory_utilization 0.9);"
        " weights, the process and activations need 3,160 MiB, and no KV block is left"
    )


def test_the_limit_of_the_control_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    numbers = {"memory.max": 700 << 20, "memory.current": 200 << 20}
    monkeypatch.setattr(memory, "_cgroup_number", numbers.get)
    assert memory.available_bytes(CPU) <= 500 << 20


def test_verification_of_drafts_is_reckoned_with() -> None:
    """256 decodes of 1 + 4 tokens over 152,064 ids: 16 bytes for each logit, 24 more with distributions in float64. No
    more tokens than an iteration may have."""
    vocab = 152_064
    assert verification_bytes(Config(), vocab) == 0
    assert verification_bytes(Config(drafter="ngram", max_num_seqs=256), vocab) == 1280 * vocab * 16
    few = Config(drafter="ngram", max_num_seqs=256, max_num_batched_tokens=100)
    assert verification_bytes(few, vocab) == 100 * vocab * 16
    own = Config(drafter="small", draft_sampling="rejection", max_num_seqs=8, max_draft_tokens=1)
    assert verification_bytes(own, vocab) == 16 * vocab * 40
    found = Config(drafter="ngram", draft_sampling="rejection", max_num_seqs=8, max_draft_tokens=1)
    assert verification_bytes(found, vocab) == 16 * vocab * 16


def test_a_gpu_keeps_back_what_is_needed_beside_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (20 << 30, 24 << 30))
    monkeypatch.setattr(memory, "available_bytes", lambda _: 20 << 30)
    gpu = torch.device("cuda", 0)
    plain = size_kv(Config(), BLOCK, 2048, gpu)
    kept = size_kv(Config(), BLOCK, 2048, gpu, reserve=3 << 30)
    assert plain.total_bytes - kept.total_bytes == 3 << 30
