"""What is refused before anything is started, each with one line that names the cause."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

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


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "~/none/at/all"])
def test_a_missing_folder_is_not_looked_for_elsewhere(name: str) -> None:
    with pytest.raises(StartError, match="model not found: there is no folder"):
        locate(name)


def test_a_hub_name_without_network_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def refuse(name: str, **_: Any) -> str:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(StartError, match=r"no folder some/model, .*\(OSError: no network\)"):
        locate("some/model")


def test_memory_is_reckoned_with_numbers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(model)
    monkeypatch.setattr(preflight, "available_memory_bytes", lambda: 5 * 2**20)
    config = Config(device="cpu", kv_blocks=1000, block_size=16, replicas=2)
    preflight.check_memory(msgspec.structs.replace(config, kv_blocks=100), checkpoint)
    with pytest.raises(StartError) as refused:
        preflight.check_memory(config, checkpoint)
    assert str(refused.value) == (
        "not enough memory: 8 MiB needed (0 MiB for weights (auto) + 8 MiB for 1000 KV blocks of"
        " 16 tokens in 2 replicas), 5 MiB available"
    )
    preflight.check_memory(msgspec.structs.replace(config, device="cuda"), checkpoint)


def test_an_unknown_policy_gets_near_matches() -> None:
    with pytest.raises(StartError, match=r"no policy 'sarati'; did you mean sarathi\?") as refused:
        preflight.check_policy("sarati")
    assert refused.value.status == 2
    with pytest.raises(StartError, match="known: accelgen, "):
        preflight.check_policy("xyzzy")


def test_files_named_in_the_configuration_must_be_there(tmp_path: Path) -> None:
    empty = tmp_path / "keys"
    empty.write_text("\n\n")
    for config in (
        Config(api_key_file=str(tmp_path / "none")),
        Config(api_key_file=str(empty)),
        Config(profile_file=str(tmp_path / "none")),
    ):
        with pytest.raises(StartError, match="^--(api-key|profile)-file: "):
            preflight.check(config)


def test_listening(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)):
            pass
        with pytest.raises(StartError, match=f"port {port} is in use"):
            listen("127.0.0.1", port)
    with pytest.raises(StartError, match="192.0.2.1.*not an address of this machine"):
        listen("192.0.2.1", 0)


def test_other_systems_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    linux.check_platform()
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(StartError, match="Linux only .*this is Darwin"):
        linux.check_platform()
    assert linux.usable_cores() >= 1 and linux.available_memory_bytes() > 2**20
