"""Shared by the tests of the fault library."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A private folder with a short name: the paths of sockets have a limit."""
    path = Path(tempfile.mkdtemp(prefix="ag-"))
    yield path
    shutil.rmtree(path)
