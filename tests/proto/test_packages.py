"""The list of packages is complete, and everything can be imported from a wheel built of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "setuptools"
]

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
IMPORT_ALL = """
import importlib, sys, zipfile
site, wheel = sys.argv[1:]
sys.path.insert(0, site)
for name in zipfile.ZipFile(wheel).namelist():
    if name.endswith(".py"):
        module = name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        found = importlib.import_module(module).__file__
        assert found.startswith(site), f"{module} came from {found}"
        print(module)
"""


def folder_of(package: str) -> Path:
    """Where a package's sources lie, by `package-dir`; nested ones below their parent."""
    places: dict[str, str] = SETTINGS["package-dir"]
    if package in places:
        return ROOT / places[package]
    parent, _, name = package.rpartition(".")
    return folder_of(parent) / name


def test_every_package_is_listed() -> None:
    listed = {package: folder_of(package) for package in SETTINGS["packages"]}
    for package, folder in listed.items():
        assert (folder / "__init__.py").is_file(), f"{package}: {folder} is no package"
    found = set()
    for place in SETTINGS["package-dir"].values():
        found |= {path.parent for path in (ROOT / place).rglob("__init__.py")}
    assert found == set(listed.values())


def test_no_package_is_forgotten_at_the_top() -> None:
    top = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert top == set(SETTINGS["package-dir"].values())


def test_type_checkers_see_every_package() -> None:
    links = {path.name for path in (ROOT / "typings" / "accelgen").iterdir()}
    assert links == {*SETTINGS["package-dir"].values(), "__init__.py"} - {"accelgen"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing is left in the checkout. Uses the environment's setuptools."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    for place in SETTINGS["package-dir"].values():
        shutil.copytree(ROOT / place, copy / place, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-P", "-c", BUILD, str(out)],
        cwd=copy, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.split()[-1]


def test_the_wheel_has_every_source_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETTINGS["packages"]
        for path in folder_of(package).glob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == expected
    assert "accelgen/py.typed" in names
    assert any(name.endswith("entry_points.txt") for name in names)
    assert not any(part in name for name in names for part in ("tests/", "benchmarks/"))


def test_everything_can_be_imported_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, str(tmp_path), str(wheel)],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"accelgen.proto.messages", "accelgen.kvmanager.__main__"} <= set(done.stdout.split())
