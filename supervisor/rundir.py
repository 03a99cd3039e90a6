"""The run directory: one private folder per server, with its configuration, sockets and logs.

Layout: `$XDG_RUNTIME_DIR/accelgen/<name>/` or, without such a directory, `<temp>/accelgen-<uid>/<name>/`; every level
is ours and 0700. A lock (flock on `lock`, which holds the supervisor's pid) marks the folder of a living server: the
kernel lets go of it however the server dies, so a folder without lock is a leftover. A folder that the user named
with --run-dir is listed among the others by a symbolic link.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelgen.proto.dumps import FOLDER as RECORDER
from accelgen.proto.sockets import IPC_PATH_LIMIT
from accelgen.supervisor.errors import StartError

LOCK = "lock"
CONFIG = "config.json"
LOGS = "logs"
_LONGEST_SOCKET = "kvmanager-63.sock"


class RunDir:
    """The run directory of the server that this process is about to be. Holds the lock while the object lives."""

    def __init__(self, path: Path, lock_fd: int, link: Path | None) -> None:
        self.path, self._lock_fd, self._link = path, lock_fd, link
        self.logs = path / LOGS

    @classmethod
    def create(cls, named: str = "") -> RunDir:
        """A fresh run directory: `named`, or one under the root. Leftovers of dead servers are removed first.

        Raises StartError if a folder is not ours, not private, in use, or too long a name for sockets."""
        os.umask(0o077)
        root = private_root()
        with _locked_root(root):
            remove_leftovers(root)
            name = secrets.token_hex(5)
            path = Path(named).expanduser().absolute() if named else root / name
            _check_length(path)
            _prepare(path)
            lock_fd = _take_lock(path)
            link = None
            if path.parent != root:
                link = root / name
                link.symlink_to(path)
        (path / LOGS).mkdir(mode=0o700)
        return cls(path, lock_fd, link)

    def holder(self) -> None:
        """Writes this process's pid into the lock file: it is the supervisor."""
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)

    def remove(self) -> None:
        """Takes everything away, the folder included; for a clean end."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._link is not None:
            self._link.unlink(missing_ok=True)
        os.close(self._lock_fd)

    def keep(self) -> None:
        """Keeps configuration and logs for whoever looks for the cause; only the sockets go."""
        for socket_file in self.path.glob("*.sock"):
            socket_file.unlink(missing_ok=True)
        os.close(self._lock_fd)


def private_root() -> Path:
    """The folder that holds run directories; made if missing. Raises StartError if it is not ours alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isabs(runtime) and _is_ours(Path(runtime)):
        root = Path(runtime) / "accelgen"
    else:
        root = Path(tempfile.gettempdir()) / f"accelgen-{os.getuid()}"
    with suppress(FileExistsError):
        root.mkdir(mode=0o700)
    _check_private(root)
    return root


def is_live(path: Path) -> bool:
    """A living server holds the lock of this run directory."""
    try:
        lock_fd = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


def holder_of(path: Path) -> int:
    """Process id of the supervisor that holds (or held) this run directory, 0 if unknown."""
    try:
        return int((path / LOCK).read_text())
    except (OSError, ValueError):
        return 0


def entries() -> list[Path]:
    """All run directories, live or not, newest first."""
    found = [entry.resolve() for entry in private_root().iterdir() if (entry / LOCK).is_file()]
    return sorted(found, key=lambda path: (path / LOCK).stat().st_mtime, reverse=True)


def find_live(named: str = "") -> Path:
    """The run directory of the one living server, or the named one. Raises StartError with what there is instead."""
    if named:
        path = Path(named).expanduser().absolute()
        if not is_live(path):
            raise StartError(f"no server is running in {path}")
        return path
    live = [path for path in entries() if is_live(path)]
    if not live:
        raise StartError("no server is running (start one with `accelgen up`)")
    if len(live) > 1:
        listed = ", ".join(str(path) for path in live)
        raise StartError(f"{len(live)} servers are running; name one with --run-dir: {listed}")
    return live[0]


def find_logs(named: str = "") -> Path:
    """The folder of logs to show: of the named run, of the one living server, or of the last one that failed."""
    if named:
        run = Path(named).expanduser().absolute()
    elif any(map(is_live, entries())):
        run = find_live()
    elif entries():
        run = entries()[0]
    else:
        raise StartError("there are no logs: no server is running, and none has failed")
    if not (run / LOGS).is_dir():
        raise StartError(f"{run} is not a run directory: it has no {LOGS} folder")
    return run / LOGS


def remove_leftovers(root: Path) -> None:
    """Removes run directories whose server is dead, and links that lead nowhere."""
    for entry in root.iterdir():
        if entry.name.startswith(".") or is_live(entry):
            continue
        if entry.is_symlink():
            entry.unlink()  # the user's own folder: what is in it stays
        else:
            shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _locked_root(root: Path) -> Iterator[None]:
    """One start at a time: a folder made but not yet locked must not pass for a leftover."""
    fd = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _prepare(path: Path) -> None:
    """Makes `path`, or clears the leftover of a dead server in it; refuses a folder with anything else."""
    if not path.exists():
        try:
            path.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise StartError(f"run directory {path} cannot be made: {error.strerror}") from error
    _check_private(path)
    if is_live(path):
        raise StartError(f"run directory {path} is in use by the server with pid {holder_of(path)}")
    if any(path.iterdir()) and not (path / LOCK).is_file():
        raise StartError(f"run directory {path} is not empty and was not left by a server")
    for folder in (LOGS, RECORDER):
        shutil.rmtree(path / folder, ignore_errors=True)
    for leftover in (*path.glob("*.sock"), path / CONFIG):
        leftover.unlink(missing_ok=True)


def _take_lock(path: Path) -> int:
    lock_fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else: the root is locked
    os.utime(lock_fd)
    return lock_fd


def _check_private(path: Path) -> None:
    if not _is_ours(path):
        raise StartError(f"{path} must be a folder that belongs to user {os.getuid()}")
    mode = stat.S_IMODE(path.lstat().st_mode)
    if mode != 0o700:
        raise StartError(f"{path} has mode {mode:04o}; it must be private (0700)")


def _is_ours(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _check_length(path: Path) -> None:
    length = len(os.fsencode(path / _LONGEST_SOCKET))
    if length > IPC_PATH_LIMIT:
        raise StartError(
            f"run directory {path} is too long: its sockets' paths would have {length} bytes of"
            f" {IPC_PATH_LIMIT} allowed; name a shorter one with --run-dir"
        )
