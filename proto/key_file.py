"""Files of keys: one per line, private, never empty; read before the start and by each frontend."""

from __future__ import annotations

import stat
from pathlib import Path

MIN_KEY_CHARS = 16
MAX_FILE_BYTES = 1 << 20


class KeyFileError(ValueError):
    """A key file that would leave the server open or guessable; the text names the setting, the file and the line,
    never a key."""


def read_keys(api_key_file: str, admin_key_file: str) -> tuple[list[str], list[str]]:
    """The API keys and the admin keys; none of a file that is not given (""). Raises KeyFileError, also for a key
    that is in both."""
    api = _read("api_key_file", api_key_file)
    admin = _read("admin_key_file", admin_key_file)
    if set(api) & set(admin):
        raise KeyFileError(f"admin_key_file: {admin_key_file} has a key of api_key_file, too")
    return api, admin


def _read(setting: str, name: str) -> list[str]:
    """Blank lines and lines that begin with # do not count."""
    if not name:
        return []
    keys = []
    for number, line in enumerate(map(str.strip, _text(setting, name).splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) < MIN_KEY_CHARS:
            raise KeyFileError(
                f"{setting}: {name} line {number}: the key has {len(line)} characters,"
                f" at least {MIN_KEY_CHARS} are needed"
            )
        keys.append(line)
    if not keys:
        raise KeyFileError(f"{setting}: {name} has no key (one per line)")
    return keys


def _text(setting: str, name: str) -> str:
    path = Path(name).expanduser()
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise KeyFileError(
                f"{setting}: {name} must be a file of at most {MAX_FILE_BYTES} bytes"
            )
        if status.st_mode & stat.S_IRWXO:
            mode = stat.S_IMODE(status.st_mode)
            raise KeyFileError(
                f"{setting}: {name} is open to every user of this machine (mode {mode:04o});"
                f" chmod 600 {name}"
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise KeyFileError(f"{setting}: {name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{setting}: {name} cannot be read: it is not text") from error
