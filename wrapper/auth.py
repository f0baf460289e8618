"""Authentication: from the header that carries an API key to a `Principal`.

Invariant: a key is recognised by the SHA-256 of its secret, looked up in a dictionary, and no
message about a refused key repeats any part of it. The look-up needs no constant-time comparison:
it compares digests, and a caller who cannot choose the digest of what they send learns nothing
about the stored one from the time that a comparison takes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import Final, NamedTuple

from wrapper.config import ApiKey
from wrapper.errors import ApiKeyExpired, InvalidApiKey
from wrapper.steps import Pause, in_steps, no_pause

PREFIX = "sk-wr-"
"""The prefix of every secret that the gateway creates."""

_EXPIRED = "The API key has expired: ask for a new one."
_REPLACED = "The API key was replaced by a new one, which is valid: use that one."
# RFC 6750 section 2.1, but with exactly one space. No comma: two headers arrive joined by one.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
_BEARER = re.compile(rf"bearer ({_TOKEN.pattern})", re.IGNORECASE | re.ASCII)


@lru_cache(maxsize=4096)
def _matcher(models: tuple[str, ...]) -> Callable[[str], object]:
    """One compiled pattern for all of a key's globs (those of `fnmatch.fnmatchcase`)."""
    return re.compile("|".join(translate(model) for model in models)).match


class Credential(NamedTuple):
    """A credential for a provider: the name of the header that carries it, and its value."""

    header: str
    value: str


AUTHORIZATION: Final = "Authorization"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    `key` is None, and `credential` what they sent, for a caller who uses a provider's credential of
    their own.
    """

    name: str
    models: tuple[str, ...] = ("*",)
    key: ApiKey | None = None
    credential: Credential | None = None
    is_restricted: bool = field(init=False)  # may use some models only

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_restricted", self.models != ("*",))

    def may_use(self, model: str) -> bool:
        """Whether the caller may use this model."""
        return _matcher(self.models)(model) is not None


CLIENT = "client"
"""The name of every caller who uses a provider's credential of their own."""


def bearer(authorization: str | None, what: str = "API key") -> str:
    """The token of the header. Raises `InvalidApiKey` for any form but `Bearer <token>`.

    `what` the token is, for the message. How long it may be is up to the limit of a header.
    """
    how = f"send 'Authorization: Bearer <{what.rpartition(' ')[2]}>'"
    if not authorization:
        raise InvalidApiKey(f"No {what} was given: {how}.")
    found = _BEARER.fullmatch(authorization)
    if found is not None:
        return found[1]
    if authorization.strip(" \t").lower() == "bearer":
        raise InvalidApiKey(f"The {what} is empty: {how}. Is the variable that holds it set?")
    raise InvalidApiKey(f"The Authorization header is malformed: {how}, exactly once.")


def is_gateway_key(token: str) -> bool:
    """Whether a token looks like one of the gateway's own, valid or not.

    Such a token is never sent to a provider, not even a revoked or misspelt one.
    """
    return token[: len(PREFIX)].lower() == PREFIX


def new_secret() -> str:
    """A new secret: the prefix and 256 random bits, 43 characters that need no quoting anywhere."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """The SHA-256 that is kept in place of a secret: 64 lower-case hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Keyring:
    """All keys in force, by digest.

    While a rotation overlaps, a key has two digests; the old one has an end of its own. `pause` is
    made now and then while many keys are taken in.
    """

    def __init__(self, keys: Mapping[str, ApiKey], pause: Pause = no_pause) -> None:
        self._by_digest: dict[str, tuple[Principal, float | None, str]] = {}
        for key in in_steps(keys.values(), pause):
            principal, end = Principal(key.name, key.models, key), key.expires_at
            self._by_digest[key.sha256] = principal, end, _EXPIRED
            if key.old_sha256 is not None:
                old_end = None if key.rotated_until is None else key.rotated_until.timestamp()
                replaced = old_end is not None and (end is None or old_end < end)
                old = (old_end, _REPLACED) if replaced else (end, _EXPIRED)
                self._by_digest[key.old_sha256] = principal, *old

    def authenticate(
        self,
        authorization: str | None,
        *,
        client_credentials: bool = False,
        now: float | None = None,
    ) -> Principal:
        """The caller with this Authorization header. `now` is in seconds since 1970, UTC.

        With `client_credentials` a bearer that is no gateway key is taken as the caller's own
        credential for the provider. Raises `InvalidApiKey`, or `ApiKeyExpired` for a key whose
        date has passed.
        """
        found = None
        if authorization and authorization[:7] == "Bearer " and (token := authorization[7:]):
            # What has a key's digest is its secret: what it is made of need not be looked at.
            found = self._by_digest.get(hashlib.sha256(token.encode()).hexdigest())
        if found is None:
            token = bearer(authorization)  # says what is wrong
            found = self._by_digest.get(digest(token))
        if found is None:
            if client_credentials and not is_gateway_key(token):
                return Principal(CLIENT, credential=Credential(AUTHORIZATION, authorization or ""))
            raise InvalidApiKey("The API key is unknown or revoked.")
        principal, end, why = found
        if end is not None and (time.time() if now is None else now) >= end:
            raise ApiKeyExpired(why)
        return principal

    def authenticate_either(
        self,
        authorization: str | None,
        given: Credential,
        *,
        client_credentials: bool = False,
        now: float | None = None,
    ) -> Principal:
        """As `authenticate`, where the key may also be `given` in a header of the provider's own.

        Of two different ones that which is a key of the gateway counts.
        """
        header, token = given
        how = f"send 'Authorization: Bearer <key>' or '{header}: <key>', exactly once"
        if not (authorization or token):
            raise InvalidApiKey(f"No API key was given: {how}.")
        if token and not _TOKEN.fullmatch(token):
            raise InvalidApiKey(f"The {header} header is malformed: {how}.")
        is_known = digest(token) in self._by_digest
        if authorization and token and (other := bearer(authorization)) != token:
            if is_known == (digest(other) in self._by_digest):
                raise InvalidApiKey(f"Two different API keys were given: {how}.")
            token = token if is_known else ""
        if token and (is_known or not client_credentials or is_gateway_key(token)):
            authorization = f"Bearer {token}"
        elif token:
            return Principal(CLIENT, credential=given)
        return self.authenticate(authorization, client_credentials=client_credentials, now=now)


def expired(key: ApiKey, *, now: float | None = None) -> bool:
    """Whether the key's date has passed. `now` as in `Keyring.authenticate`."""
    end = key.expires_at
    return end is not None and (time.time() if now is None else now) >= end
