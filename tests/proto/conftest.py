"""A short private run directory, and the helper modules of this folder by name."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

for name in ("drawn_messages", "hostile_frames"):
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(
        tempfile.mkdtemp(prefix="ag-")
    )  # mode 0700; short, because socket paths have a limit
    yield path
    shutil.rmtree(path)
