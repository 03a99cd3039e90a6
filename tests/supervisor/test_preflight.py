"""What is refused before anything is started, each with one line that names the cause."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import msgspec
import pytest
from huggingface_hub import errors

from accelgen.proto.config import Config
from accelgen.supervisor import linux, preflight
from accelgen.supervisor.checkpoint import locate, open_checkpoint
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.listener import listen, url_of

SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
}


def write_weights(path: Path, **tensors: tuple[str, list[int], int]) -> None:
    """A safetensors file with zeros; each tensor is (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(offset))


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "http://hub"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "model.safetensors", a=("BF16", [8, 4], 64), b=("F32", [4], 16))
    return folder


def test_a_good_model_is_measured(model: Path) -> None:
    checkpoint = open_checkpoint(locate(str(model)))
    assert checkpoint.stored == {"BF16": 32, "F32": 4}
    assert checkpoint.weights_bytes("auto") == 80
    assert checkpoint.weights_bytes("float32") == 144
    assert checkpoint.kv_token_bytes("auto") == 2 * 2 * 2 * 16 * 2
    config, _ = preflight.check(Config(model=str(model)))
    assert (config.model, config.served_model_name) == (str(model), "tiny")


def test_the_bundled_model_is_found() -> None:
    config, _ = preflight.check(Config())
    assert config.served_model_name == "accelgen-demo"
    assert (Path(config.model) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "{", "config.json cannot be read"),
        ("config.json", "[]", "not a JSON object"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", "", "damaged"),
        ("model.safetensors", "\x10\0\0\0\0\0\0\0" + '{"a":{"dtype":1}', "damaged"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x-1.safetensors"}}', "has no x-1"),
        ("model.safetensors.index.json", '{"weight_map": 3}', "names no weights"),
    ],
)
def test_a_broken_model_is_refused(model: Path, name: str, content: str | None, says: str) -> None:
    if content is None:
        (model / name).unlink()
    else:
        (model / name).write_text(content)
    with pytest.raises(StartError, match=says):
        open_checkpoint(model)


def test_weights_that_are_cut_off_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(StartError, match="damaged: .* bytes of"):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"max_model_len": 2049}, "--max-model-len: 2049 tokens, the model allows 2048"),
        ({"max_model_len": 1}, "--max-model-len: 1 token has no room for a prompt and an answer"),
        (
            {"kv_memory_bytes": 8191},
            "--kv-memory-bytes: 8,191 bytes are too little to be of use: 2 blocks of 16 tokens have"
            " 8,192",
        ),
        (
            {"kv_blocks": 1},
            "--kv-blocks: 1 block of 16 tokens holds 16 tokens, too little to be of use; at least 2",
        ),
        (
            {"kv_blocks": 4, "max_model_len": 100},
            "--kv-blocks: 4 blocks of 16 tokens hold 64 tokens, less than --max-model-len 100,"
            " which needs 7 blocks",
        ),
    ],
)
def test_lengths_that_cannot_be(model: Path, settings: dict[str, int], line: str) -> None:
    (model / "config.json").write_text(json.dumps({**SHAPE, "max_position_embeddings": 2048}))
    with pytest.raises(StartError) as refused:
        preflight.check(Config(model=str(model), **settings))  # type: ignore[arg-type]
    assert str(refused.value).startswith(line) and refused.value.status == 2
    preflight.check(Config(model=str(model), max_model_len=2048, kv_blocks=128))


def test_cuda_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_CUDA_DEVICES", ("/none/at/all",))
    with pytest.raises(StartError, match="--device cuda: this machine has no CUDA") as refused:
        preflight.check(Config(device="cuda"))
    assert refused.value.status == 2
    with pytest.raises(StartError, match="--dtype: float16 is far too slow on CPU"):
        preflight.check(Config(dtype="float16"))
    monkeypatch.setattr(linux, "_CUDA_DEVICES", ("/none/at/all", "/dev/null"))
    preflight.check(Config(device="cuda", dtype="float16"))


@pytest.mark.parametrize(
    ("policy", "params", "line"),
    [
        ("sarathi", {"chunk": 5}, "sarathi has no parameter 'chunk'; it has chunk_size (512)"),
        ("sarathi", {"chunk_size": "x"}, "chunk_size of sarathi must be a whole number, got 'x'"),
        ("sarathi", {"chunk_size": True}, "chunk_size of sarathi must be a whole number, got True"),
        ("sarathi", {"chunk_size": 0}, "sarathi: chunk_size: 0 tokens, must be at least 1"),
        ("accelgen", {"gamma_s": 1, "raw_units": 1}, "raw_units of accelgen must be true or false"),
    ],
)
def test_parameters_that_a_policy_does_not_take(
    policy: str, params: dict[str, Any], line: str
) -> None:
    with pytest.raises(StartError) as refused:
        preflight.check(Config(policy=policy, policy_params=params))
    assert str(refused.value).startswith(f"--policy-param: {line}") and refused.value.status == 2


def test_parameters_that_a_policy_takes() -> None:
    preflight.check(Config(policy="accelgen", policy_params={"gamma_s": 1, "raw_units": True}))


def test_judging_a_policy_imports_no_torch() -> None:
    program = (
        "import sys\nfrom accelgen.proto.policies import main\n"
        "main('accelgen', '{\"gamma_s\": 1}')\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "~/none/at/all"])
def test_a_missing_folder_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(StartError, match="model not found: there is no folder"):
        locate(name)


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (OSError(28, "No space\nleft"), "downloading it failed: No space left"),
        (
            ConnectionError("Got: [Errno -2] Name or service\nnot known"),
            "the hub cannot be reached",
        ),
        (errors.LocalEntryNotFoundError("Got:\nConnectError"), "the hub cannot be reached"),
        (RuntimeError("a\nb"), "downloading it failed (RuntimeError)"),
        (
            errors.RepositoryNotFoundError("401", response=answer(401)),
            "the hub has no such model (or a private one: HF_TOKEN)",
        ),
        (
            errors.GatedRepoError("403", response=answer(403)),
            "the hub wants a token of somebody who accepted its terms (HF_TOKEN)",
        ),
        (
            errors.HfHubHTTPError("boom", response=answer(503)),
            "the hub answered with status 503",
        ),
    ],
)
def test_what_the_hub_refuses_ends_in_a_line_of_our_own(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, says: str
) -> None:
    def refuse(name: str, local_files_only: bool = False, **_: Any) -> str:
        raise FileNotFoundError if local_files_only else raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(StartError) as refused:
        locate("some/model")
    assert refused.value.status == 1 and str(refused.value) == (
        f"model not found: some/model is no folder and not in the local hub cache, and {says}"
    )


def test_a_hub_name_where_downloads_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StartError, match="HF_HUB_OFFLINE forbids"):
        locate("no-such-owner/no-such-model")


def test_memory_is_reckoned_with_numbers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(model)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 773 * 2**20)
    config = Config(device="cpu", kv_blocks=1000, block_size=16, replicas=2)
    preflight.check_memory(msgspec.structs.replace(config, kv_blocks=100), checkpoint)
    with pytest.raises(StartError) as refused:
        preflight.check_memory(config, checkpoint)
    assert str(refused.value) == (
        "not enough memory: 776 MiB needed (384 MiB for processes + 0 MiB for weights (auto)"
        " + 4 MiB for 1000 KV blocks of 16 tokens in each of 2 replicas), 773 MiB available;"
        " --replicas 1 would fit"
    )
    assert preflight.check_memory(msgspec.structs.replace(config, device="cuda"), checkpoint) == 0


def test_more_replicas_than_the_memory_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the bundled model, whose weights are nothing beside what a process takes."""
    monkeypatch.setattr(linux, "_CUDA_DEVICES", ())
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 23_444 << 20)
    with pytest.raises(StartError) as refused:
        preflight.check(Config(replicas=64))
    assert refused.value.status == 1 and str(refused.value) == (
        "not enough memory: 25,214 MiB needed (384 MiB for processes + 10 MiB for weights (auto)"
        " + 0 MiB for at least 2 KV blocks of 16 tokens in each of 64 replicas), 23,444 MiB"
        " available; --replicas 59 would fit"
    )
    preflight.check(Config(replicas=59))


def test_replicas_share_what_is_left_for_their_kv_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each worker by itself would take a quarter of what is free: more than four of them more than there is."""
    monkeypatch.setattr(linux, "_CUDA_DEVICES", ())
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 10_000 << 20)
    config, checkpoint = preflight.check(Config(replicas=8))
    beside = 8 * (preflight.REPLICA_BYTES + checkpoint.weights_bytes("auto"))
    assert beside + 8 * config.kv_memory_bytes < 10_000 << 20
    assert 2 * 8 * config.kv_memory_bytes == pytest.approx((10_000 << 20) - beside, rel=1e-3)
    assert preflight.check(Config())[0].kv_memory_bytes == 0  # one alone knows better
    assert preflight.check(Config(replicas=8, kv_blocks=64))[0].kv_memory_bytes == 0
    lower = preflight.check(Config(replicas=8, kv_memory_bytes=1 << 20))[0]
    assert lower.kv_memory_bytes == 1 << 20


@pytest.mark.parametrize(
    ("routing", "line"),
    [
        ("roundrobin", "there is no routing 'roundrobin'; did you mean round-robin?"),
        ("xyzzy", "there is no routing 'xyzzy'; known: least-load, planned, prefix-affinity, round-robin"),
        ("prefix-affinity:shore=1", "prefix-affinity has no parameter 'shore'; it has share (0.3),"),
        ("prefix-affinity:share=2", "prefix-affinity: share: 2, must be at most 1"),
        ("prefix-affinity:apart=x", "apart of prefix-affinity must be a whole number, got 'x'"),
        ("prefix-affinity:share", "'share' of 'prefix-affinity:share' is not of the form key=value"),
        ("round-robin:x=1", "round-robin has no parameter 'x'; it has none"),
    ],
)  # fmt: skip
def test_a_routing_that_cannot_be(routing: str, line: str) -> None:
    with pytest.raises(StartError) as refused:
        preflight.check(Config(routing=routing))
    assert str(refused.value).startswith(f"--routing: {line}") and refused.value.status == 2


def test_swap_space_that_the_machine_does_not_have(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(model)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 3 * 10**9)
    config = Config(device="cpu", preemption="swap", swap_gb=1.0, replicas=2)
    preflight.check_swap(config, checkpoint)
    preflight.check_swap(Config(swap_gb=1000.0), checkpoint)  # recompute: it is not asked for
    with pytest.raises(StartError) as refused:
        preflight.check_swap(msgspec.structs.replace(config, swap_gb=2.0), checkpoint)
    assert refused.value.status == 2
    assert str(refused.value) == (
        "--swap-gb: 2 GB of swap space in each of 2 replicas + 0 MiB for weights need 3,815 MiB"
        " of the host's memory, 2,861 MiB are available"
    )
    block_bytes = 16 * checkpoint.kv_token_bytes("auto")
    crowded = msgspec.structs.replace(config, kv_blocks=2 * 10**9 // block_bytes // 2)
    with pytest.raises(StartError, match=r"1,907 MiB for KV cache need 3,815 MiB of the host's"):
        preflight.check_swap(crowded, checkpoint)
    monkeypatch.setattr(preflight, "has_cuda_driver", lambda: True)
    preflight.check_swap(msgspec.structs.replace(crowded, device="cuda"), checkpoint)
    with pytest.raises(StartError, match="--swap-gb: 1e-06 GB hold no block: one of 16 tokens has"):
        preflight.check_swap(msgspec.structs.replace(config, swap_gb=1e-6), checkpoint)


@pytest.fixture
def drafter(tmp_path: Path) -> Path:
    """Another model folder; its configuration states a vocabulary of 500."""
    folder = tmp_path / "drafter"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**SHAPE, "vocab_size": 500}))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "model.safetensors", a=("BF16", [8, 4], 64))
    return folder


def test_a_drafter_is_found_and_reckoned_with(
    model: Path, drafter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(drafter.parent)
    config, checkpoint = preflight.check(Config(model=str(model), drafter="drafter"))
    assert config.drafter == str(drafter)  # wherever the worker is started
    assert preflight.check(Config(model=str(model), drafter="ngram"))[0].drafter == "ngram"
    room = preflight.REPLICA_BYTES + 5 * 2**20
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: room)
    config = Config(device="cpu", kv_blocks=1000, block_size=16)
    assert preflight.check_memory(config, checkpoint) > 0
    with pytest.raises(StartError, match="392 MiB needed .* 8 MiB for 1000 KV blocks"):
        preflight.check_memory(config, checkpoint, open_checkpoint(drafter))


def test_a_drafter_with_the_same_tokens_may_have_more_rows(model: Path, drafter: Path) -> None:
    (model / "config.json").write_text(json.dumps({**SHAPE, "vocab_size": 512}))
    (model / "tokenizer.json").write_bytes((drafter / "tokenizer.json").read_bytes())
    config, _ = preflight.check(Config(model=str(model), drafter=str(drafter)))
    assert config.drafter == str(drafter)
    (model / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(StartError, match="another vocabulary .*: 500 token ids, not 512"):
        preflight.check(Config(model=str(model), drafter=str(drafter)))


@pytest.mark.parametrize("stated", [None, [], "x"])
def test_a_configuration_whose_text_config_says_nothing(model: Path, stated: object) -> None:
    (model / "config.json").write_text(json.dumps({**SHAPE, "text_config": stated}))
    found = open_checkpoint(model)
    assert found.kv_token_bytes("auto") > 0 and found.vocab_size == SHAPE.get("vocab_size", 0)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("ngrm", "; did you mean ngram?"), ("N-Gram", "; did you mean ngram?"), ("tiny-lm", "")],
)
def test_a_drafter_with_a_name_like_ngram_gets_a_hint(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StartError) as refused:
        preflight.check(Config(model=str(model), drafter=name))
    assert str(refused.value).startswith(f"--drafter: model not found: {name} is no folder")
    assert str(refused.value).endswith(f"HF_HUB_OFFLINE forbids downloading it{hint}")


def test_a_drafter_that_cannot_be_is_refused(model: Path, drafter: Path) -> None:
    (model / "config.json").write_text(json.dumps({**SHAPE, "vocab_size": 512}))
    (model / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(StartError, match="another vocabulary .*: 500 token ids, not 512"):
        preflight.check(Config(model=str(model), drafter=str(drafter)))
    with pytest.raises(StartError, match="--drafter: model not found: there is no folder /none"):
        preflight.check(Config(model=str(model), drafter="/none"))
    (drafter / "model.safetensors").unlink()
    with pytest.raises(StartError, match="--drafter: model .* has no model.safetensors"):
        preflight.check(Config(model=str(model), drafter=str(drafter)))


def test_an_unknown_policy_gets_near_matches() -> None:
    with pytest.raises(StartError, match=r"no policy 'sarati'; did you mean sarathi\?") as refused:
        preflight.check_policy("sarati")
    assert refused.value.status == 2
    with pytest.raises(StartError, match="known: accelgen, "):
        preflight.check_policy("xyzzy")


@pytest.mark.parametrize(
    ("memory", "params", "line"),
    [
        ("cacheop", {}, "--memory: there is no memory policy 'cacheop'; did you mean cacheopt?"),
        (
            "cacheopt",
            {"pda": 1},
            "--memory-param: cacheopt has no parameter 'pda'; it has pad (True)",
        ),
        ("cacheopt", {"pad": 2}, "--memory-param: pad of cacheopt must be true or false, got 2"),
        ("cacheopt", {"reserve": -1}, "--memory-param: cacheopt: reserve: -1 tokens, must be at"),
        ("on-demand", {"pad": True}, "--memory-param: on-demand has no parameter 'pad'"),
    ],
)
def test_a_memory_policy_that_cannot_be(memory: str, params: dict[str, Any], line: str) -> None:
    with pytest.raises(StartError) as refused:
        preflight.check(Config(memory=memory, memory_params=params))
    assert str(refused.value).startswith(line) and refused.value.status == 2
    preflight.check_memory_policy("", {})
    preflight.check_memory_policy("cacheopt", {"pad": False, "reserve": 0})


def test_parameters_of_the_memory_policy_that_the_policy_brings() -> None:
    """It is chosen by them; without any it is the policy's own business."""
    config = Config(policy="cacheopt", memory_params={"reserve": 0})
    assert preflight.name_memory(config) == msgspec.structs.replace(config, memory="cacheopt")
    named = Config(policy="cacheopt", memory="on-demand")
    assert preflight.name_memory(named) == named
    assert preflight.name_memory(Config(policy="cacheopt")).memory == ""
    for policy, params, line in (
        ("cacheopt", {"pda": 1}, "cacheopt has no parameter 'pda'; it has pad (True)"),
        ("vllm", {"pad": True}, "on-demand has no parameter 'pad'; it has none (it is the one of vllm;"),
    ):  # fmt: skip
        with pytest.raises(StartError) as refused:
            preflight.check(Config(policy=policy, memory_params=params))
        assert str(refused.value).startswith(f"--memory-param: {line}")
        assert refused.value.status == 2


def test_files_named_in_the_configuration_must_be_there(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n\n")
    empty.chmod(0o600)
    for config in (
        Config(api_key_file=str(tmp_path / "none")),
        Config(api_key_file=str(empty)),
        Config(admin_key_file=str(tmp_path / "none")),
        Config(admin_key_file=str(empty)),
        Config(profile_file=str(tmp_path / "none")),
    ):
        with pytest.raises(
            StartError, match="^--(api-key-file|admin-key-file|profile-file): "
        ) as refused:
            preflight.check(config)
        assert refused.value.status == 2


def test_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(StartError, match=f"port {port} is in use"):
            listen("127.0.0.1", port)
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(StartError, match=f"--host {host} is not an address of") as refused:
            listen(host, 0)
        assert refused.value.status == 2


def test_other_systems_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    linux.check_platform()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(StartError, match="Linux only .*this is Darwin"):
        linux.check_platform()
    assert linux.usable_cores() >= 1 and linux.available_memory_bytes() > 2**20
