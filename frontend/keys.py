"""API keys: read from a file, compared in constant time, never shown."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

MIN_KEY_CHARS = 16
OPEN_PATHS = frozenset({"/live", "/ready", "/health"})


class KeyFileError(ValueError):
    """A key file that would leave the server open or guessable; the text names the file and the line."""


class ApiKeys:
    """The keys that open the server; none at all: everyone may come in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    @classmethod
    def from_file(cls, path: str) -> ApiKeys:
        """One key per line; blank lines and lines that begin with # do not count. "" is no file and no keys.

        Raises KeyFileError for a file without keys or with one that is too short."""
        if not path:
            return cls(())
        try:
            lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(f"api_key_file: {path} cannot be read: {error}") from error
        keys = []
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            if len(line) < MIN_KEY_CHARS:
                raise KeyFileError(
                    f"api_key_file: {path} line {number}: the key has {len(line)} characters,"
                    f" at least {MIN_KEY_CHARS} are needed"
                )
            keys.append(line)
        if not keys:
            raise KeyFileError(f"api_key_file: {path} has no key")
        return cls(keys)

    def admit(self, path: str, authorization: bytes | None) -> bool:
        """Whether a request for `path` with this Authorization header may pass."""
        if not self._digests or path in OPEN_PATHS:
            return True
        scheme, _, key = (authorization or b"").partition(b" ")
        offered = _digest(key.strip())
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == b"bearer"


def _digest(key: bytes) -> bytes:
    """Equal lengths, so that the comparison tells nothing about the key."""
    return hashlib.sha256(key).digest()
