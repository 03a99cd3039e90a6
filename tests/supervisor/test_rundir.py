"""Run directories: private, alive or left over, found again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from accelgen.supervisor import rundir
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import RunDir


@pytest.fixture(autouse=True)
def same_umask() -> object:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_every_level_is_private(runtime: Path) -> None:
    run = RunDir.create()
    assert run.path.parent == runtime / "accelgen"
    for folder in (run.path.parent, run.path, run.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((run.path / rundir.LOCK).stat().st_mode) == 0o600
    run.remove()


def test_without_a_runtime_folder_it_lies_in_the_temporary_one(
    monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(runtime))
    run = RunDir.create()
    assert run.path.parent == runtime / f"accelgen-{os.getuid()}"
    run.remove()


@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_a_root_that_is_not_ours_alone_is_refused(runtime: Path, trap: str) -> None:
    root = runtime / "accelgen"
    if trap == "open":
        root.mkdir()
        root.chmod(0o755)
    elif trap == "link":
        (runtime / "elsewhere").mkdir(mode=0o700)
        root.symlink_to(runtime / "elsewhere")
    else:
        root.touch()
    with pytest.raises(StartError, match=r"accelgen.*(mode 0755|must be a folder)"):
        RunDir.create()


def test_live_until_removed_and_found_by_default(runtime: Path) -> None:
    with pytest.raises(StartError, match="no server is running"):
        rundir.find_live()
    run = RunDir.create()
    run.holder()
    assert rundir.is_live(run.path) and rundir.holder_of(run.path) == os.getpid()
    assert rundir.find_live() == run.path == rundir.find_live(str(run.path))
    run.remove()
    assert not run.path.exists()
    with pytest.raises(StartError, match="no server is running in"):
        rundir.find_live(str(run.path))


def test_a_kept_one_has_its_logs_and_goes_at_the_next_start(runtime: Path) -> None:
    failed = RunDir.create()
    (failed.logs / "worker-0.log").write_text("cause\n")
    (failed.path / "worker-0.sock").touch()
    failed.keep()
    assert rundir.find_logs() == failed.logs and not list(failed.path.glob("*.sock"))
    run = RunDir.create()
    assert not failed.path.exists() and rundir.is_live(run.path)
    run.remove()


def test_a_named_one_is_listed_and_can_be_used_again(runtime: Path) -> None:
    named = runtime / "mine"
    first = RunDir.create(str(named))
    assert rundir.find_live() == named
    with pytest.raises(StartError, match="in use by the server with pid"):
        RunDir.create(str(named))
    first.keep()
    second = RunDir.create(str(named))
    second.remove()
    assert not named.exists() and os.listdir(runtime / "accelgen") == [".lock"]


def test_a_named_one_with_other_peoples_things_is_left_alone(runtime: Path) -> None:
    named = runtime / "mine"
    named.mkdir(mode=0o700)
    (named / "thesis.txt").touch()
    with pytest.raises(StartError, match="not empty"):
        RunDir.create(str(named))
    named.chmod(0o770)
    with pytest.raises(StartError, match="mode 0770"):
        RunDir.create(str(named))
    assert (named / "thesis.txt").exists()


def test_a_path_too_long_for_sockets_is_named(runtime: Path) -> None:
    with pytest.raises(StartError, match=r"too long.*of 107 allowed.*--run-dir"):
        RunDir.create(str(runtime / ("x" * 90)))
    assert not list((runtime / "accelgen").glob("[!.]*"))
