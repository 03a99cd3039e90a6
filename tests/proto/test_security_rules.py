"""No file of ours deserialises code or evaluates text. (Frames that try it: test_codec.py.)"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "jsonpickle",
}
BUILTINS = {"eval", "exec"}
ATTRIBUTES = {
    ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("pandas", "read_pickle"),
}  # fmt: skip
METHODS = {"send_pyobj", "recv_pyobj", "send_serialized", "recv_serialized"}
KEYWORDS = {"allow_pickle", "trust_remote_code"}


def our_files() -> list[Path]:
    """Python files that git tracks; without git, all but the environment."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        return [path for path in ROOT.rglob("*.py") if ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def offences(source: str) -> list[str]:
    """What a source text does that no file of ours may do, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                bad = [n.name for n in names if n.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                bad = [module] if module.split(".")[0] in MODULES else []
                bad += [n.name for n in names if (module, n.name) in ATTRIBUTES]
            case ast.Call(func=ast.Name(id=name)) if name in BUILTINS:
                bad = [name]
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                bad = [f"{owner}.{name}"] if (owner, name) in ATTRIBUTES or name in METHODS else []
            case ast.Attribute(attr=name):
                bad = [name] if name in METHODS else []
            case ast.keyword(arg=str(name), value=ast.Constant(value=True)):
                bad = [name] if name in KEYWORDS else []
            case _:
                continue
        found += [f"line {getattr(node, 'lineno', 0)}: {what}" for what in bad]
    return found


def test_nothing_of_ours_breaks_the_rule() -> None:
    files = our_files()
    assert len(files) > 20
    broken = {str(path.relative_to(ROOT)): offences(path.read_text()) for path in files}
    assert {name: found for name, found in broken.items() if found} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import marshal as m",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import yaml\nyaml.load('x')",
        "eval('1')",
        "exec('1')",
        "socket.send_pyobj(1)",
        "self.link.socket.recv_pyobj()",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_rule_sees(source: str) -> None:
    assert len(offences(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "np.load(f, allow_pickle=False)", "json.load(f)", "# pickle\n'eval(1)'"],
)
def test_the_rule_lets_pass(source: str) -> None:
    assert offences(source) == []
