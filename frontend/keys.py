"""Keys of the clients: compared in constant time, never shown; which of them opens which path."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from accelgen.frontend.errors import ApiError

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
ADMIN = "/admin/"


class Keys:
    """Keys of one kind; all of them are valid, so that they can be rotated."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def match(self, authorization: bytes | None) -> bool:
        """Whether this Authorization header holds one of the keys."""
        scheme, _, key = (authorization or b"").partition(b" ")
        offered = _digest(key.strip())
        matches = [hmac.compare_digest(offered, digest) for digest in self._digests]
        return any(matches) and scheme.lower() == b"bearer"


class Gate:
    """Admin keys open the admin routes and nothing else, API keys everything else. Without API keys everyone may come
    in; without admin keys there are no admin routes."""

    def __init__(self, api: Iterable[str], admin: Iterable[str]) -> None:
        self._api, self._admin = Keys(api), Keys(admin)

    @property
    def has_admin(self) -> bool:
        return bool(self._admin)

    def check(self, path: str, authorization: bytes | None) -> None:
        """Raises ApiError if a request for `path` may not pass: 403 with a key of the other kind, else 401."""
        if self._admin and path.startswith(ADMIN):
            kind, wanted, other = "admin", self._admin, self._api
        elif self._api and path not in OPEN_PATHS:
            kind, wanted, other = "API", self._api, self._admin
        else:
            return
        belongs, belongs_elsewhere = wanted.match(authorization), other.match(authorization)
        if belongs:
            return
        if belongs_elsewhere:
            message = f"this key is of another kind; an {kind} key is required"
            raise ApiError(403, message, code="insufficient_permissions")
        raise ApiError(401, f"a valid {kind} key is required", code="invalid_api_key")


def _digest(key: bytes) -> bytes:
    """Equal lengths, so that the comparison tells nothing about the key."""
    return hashlib.sha256(key).digest()
