"""The settings as the rest of the gateway sees them: typed, frozen, complete.

The rule protected here: nobody changes a setting after it was loaded. A reload makes new
`Settings`; a request that has begun keeps those it began with. Times are in seconds, sizes in
bytes, money in USD.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

MAX_IN_FLIGHT = 950  # calls in a worker; it takes some connections more
GLOB_CHARACTERS = frozenset("*?[")

Stamp = tuple[int, int, int] | None
"""(mtime in ns, size, inode) of a file when it was read; None: it was not there."""


def frozen(mapping: Mapping[_K, _V]) -> Mapping[_K, _V]:
    """A read-only copy."""
    return MappingProxyType(dict(mapping))


class Secret:
    """A value that is never shown: `repr` and `str` hide it, `reveal()` is searched for easily."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenAI-compatible server.

    `base_url` has no trailing slash. `api_key` is None for a server that needs none, and also
    when the credential is missing: then `api_key_problem` says why. `headers` are added going up
    and may hold secrets, so they are not shown; those in `secret_headers` (lower case) are
    credentials of the gateway, for its own callers only. `ca_pem` is what `ca_file` held when
    it was read: with another one this is another provider. `stream_usage` says when a stream of
    chat reports its use: `ask` only when asked (OpenAI's `stream_options.include_usage`), `sent`
    always (Groq).
    """

    name: str
    base_url: str
    api_key: Secret | None = None
    api_key_problem: str | None = None
    client_credentials: bool = False
    connect_timeout: float = 5.0
    first_byte_timeout: float = 120.0
    idle_timeout: float = 120.0
    total_timeout: float = 900.0
    max_connections: int = 1000
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secret_headers: frozenset[str] = frozenset()
    ca_file: Path | None = None
    ca_pem: str | None = field(default=None, repr=False)
    stream_usage: str = "ask"

    @property
    def origin(self) -> str:
        """`scheme://host[:port]`."""
        return self.base_url[: len(self.base_url) - len(self.base_path)]

    @property
    def base_path(self) -> str:
        """What follows the origin, such as `/openai/v1`; empty for a bare host."""
        slash = self.base_url.find("/", self.base_url.index("://") + 3)
        return self.base_url[slash:] if slash >= 0 else ""

    @property
    def usable(self) -> bool:
        """Whether the gateway has the credential that this provider wants."""
        return self.api_key_problem is None


def is_broken_glob(model: str) -> bool:
    """Whether a bracket of it is not closed: it would be taken for the character."""
    return model.count("[") != model.count("]")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a route leads. `model` None: the caller's name of the model is kept."""

    provider: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """Models that match the glob `model` (fnmatchcase) go to `targets`, in this order."""

    model: str
    targets: tuple[Target, ...]

    @property
    def exact(self) -> bool:
        """Whether `model` is a plain name (an alias) and no glob."""
        return GLOB_CHARACTERS.isdisjoint(self.model)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A gateway key: the SHA-256 of its secret, what it may do and until when.

    The limits are per key; the budget is per UTC day or month. `expires`: the key is refused
    from 00:00 UTC of that date.
    """

    name: str
    sha256: str
    models: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    budget_usd: Decimal | None = None
    budget_period: str = "month"
    expires: datetime.date | None = None

    @property
    def limited(self) -> bool:
        """Whether a limit or a budget is recorded for this key."""
        limits = (self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)
        return self.budget_usd is not None or any(limit is not None for limit in limits)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. Without a price of its own cached input costs as much as input."""

    input: Decimal
    cached_input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class Server:
    """How the gateway itself behaves.

    `body_timeout` is the longest wait for the next piece of a request's body, and for a client
    to take the next piece of its answer. `max_in_flight` is per worker; above it callers get a
    503. `metrics_token_problem` says why there is no token although one is configured.
    """

    cors_origins: tuple[str, ...] = ("*",)
    max_body_bytes: int = 26_214_400
    max_upload_bytes: int = 536_870_912
    metrics_token: Secret | None = None
    metrics_token_problem: str | None = None
    body_timeout: float = 30.0
    max_in_flight: int = 900
    metering: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the files and the environment say.

    `prices` are the overrides of gateway.toml by model name. `files` is what to watch for a
    reload (files that are not there yet included), `stamps` their state when they were read.
    `stand_in` is the provider that answers in place of those that are not usable.
    """

    server: Server
    providers: Mapping[str, Provider]
    routes: tuple[Route, ...]
    keys: Mapping[str, ApiKey]
    prices: Mapping[str, Price] = field(default_factory=lambda: frozen({}))
    files: tuple[Path, ...] = ()
    stamps: tuple[Stamp, ...] = ()
    store: str = "sqlite:///data/usage.db"
    stand_in: str | None = None

    @property
    def usable(self) -> tuple[str, ...]:
        """The names of the providers that the gateway has a credential for."""
        return tuple(name for name, provider in self.providers.items() if provider.usable)

    @property
    def dead_routes(self) -> tuple[str, ...]:
        """The models of routes of which no target has a credential, where some provider has one:
        their calls end in a 502.
        """
        if self.stand_in or not self.usable:
            return ()
        return tuple(
            route.model
            for route in self.routes
            if not any(self.providers[target.provider].usable for target in route.targets)
        )
