"""Who is calling: from an Authorization header to a `Principal`.

The rule protected here: a key is recognised by the SHA-256 of its secret, looked up in a
dictionary, and nothing that is said about a refused key repeats any part of it. The look-up needs
no constant-time compare: what it compares are digests, and whoever cannot choose the digest of
what he sends learns nothing about the stored one from how long a comparison of it takes.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from wrapper.config import ApiKey
from wrapper.errors import ApiKeyExpired, InvalidApiKey

PREFIX = "sk-wr-"
"""How the secrets begin that the gateway makes itself."""

MAX_HEADER = 1024

_HOW = "send 'Authorization: Bearer <key>'"
# RFC 6750 section 2.1, but with exactly one space. No comma: two headers arrive joined by one.
_BEARER = re.compile(r"bearer ([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=4096)
def _matcher(models: tuple[str, ...]) -> Callable[[str], object]:
    """One compiled pattern for all of a key's globs (those of `fnmatch.fnmatchcase`)."""
    return re.compile("|".join(translate(model) for model in models)).match


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `key` is None for one who brings a provider's credential of his own."""

    name: str
    models: tuple[str, ...]
    key: ApiKey | None = None

    def may_call(self, model: str) -> bool:
        """Whether the caller may use this model."""
        return _matcher(self.models)(model) is not None


CLIENT = Principal("client", ("*",))
"""A caller with his own credential for a provider with `client_credentials`."""


def bearer(authorization: str | None) -> str:
    """The token of the header. Raises `InvalidApiKey` for any form but `Bearer <token>`."""
    if not authorization:
        raise InvalidApiKey(f"No API key was given: {_HOW}.")
    if len(authorization) > MAX_HEADER:
        raise InvalidApiKey(f"The Authorization header is longer than {MAX_HEADER} bytes: {_HOW}.")
    found = _BEARER.fullmatch(authorization)
    if found is None:
        raise InvalidApiKey(f"The Authorization header is malformed: {_HOW}, exactly once.")
    return found[1]


def is_gateway_key(token: str) -> bool:
    """Whether a token looks like one of the gateway's own, valid or not.

    Such a token never leaves for a provider, also when it is revoked or misspelt.
    """
    return token[: len(PREFIX)].lower() == PREFIX


def new_secret() -> str:
    """A new key: the prefix and 256 random bits, 43 characters that need no quoting anywhere."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """The SHA-256 that is kept in place of a secret: 64 lower-case hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keyring:
    """All keys in force, by digest."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._by_digest = {
            key.sha256: (Principal(key.name, key.models, key), _end(key)) for key in keys.values()
        }

    def authenticate(self, authorization: str | None, *, now: float | None = None) -> Principal:
        """The caller behind the header's key. `now` is in seconds since 1970, UTC.

        Raises `InvalidApiKey`, or `ApiKeyExpired` for a key whose date has come.
        """
        found = self._by_digest.get(digest(bearer(authorization)))
        if found is None:
            raise InvalidApiKey("The API key is unknown or revoked.")
        principal, end = found
        if end is not None and (time.time() if now is None else now) >= end:
            raise ApiKeyExpired("The API key has expired: ask for a new one.")
        return principal


def _end(key: ApiKey) -> float | None:
    """The moment from which the key is refused: 00:00 UTC of its date."""
    if key.expires is None:
        return None
    midnight = datetime.datetime.combine(key.expires, datetime.time(), datetime.UTC)
    return midnight.timestamp()


def expired(key: ApiKey, *, now: float | None = None) -> bool:
    """Whether the key's date has come. `now` as in `Keyring.authenticate`."""
    end = _end(key)
    return end is not None and (time.time() if now is None else now) >= end
