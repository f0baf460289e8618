"""The settings as the rest of the gateway sees them: typed, frozen, complete.

Invariant: settings do not change after they were loaded. A reload makes new `Settings`; a request
keeps those it began with. Times are in seconds, sizes in bytes, money in USD.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")

MAX_IN_FLIGHT = 4000  # requests in a worker; it accepts more connections: idle ones are kept
DEFAULT_STORE = "sqlite:///data/usage.db"
DEFAULT_OUTPUT_TOKENS = 4096
MAX_OUTPUT_TOKENS = 10_000_000
MAX_TAG = 64  # characters
MAX_TAG_LABELS = 50
BUDGET_PERIODS = ("day", "week", "month", "total")
"""Days, weeks from Monday and months are UTC; "total" is a prepaid pot."""

ADMIN_KEY = "OPENAI_ADMIN_KEY"
"""The variable of the organization's admin key, which `reconcile --fetch` alone uses.

Invariant: no serving process holds it. A configuration that names it is refused, and the start
drops it from the environment.
"""

GLOB_CHARACTERS = frozenset("*?[")

Stamp = tuple[int, int, int] | None
"""(mtime in ns, size, inode) of a file when it was read; None if there was none."""


def frozen(mapping: Mapping[_K, _V]) -> Mapping[_K, _V]:
    """A read-only copy."""
    return MappingProxyType(dict(mapping))


class Secret:
    """A value that `repr`, `str` and pickle do not give away; only `reveal()` does."""

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
    when the credential is missing: then `api_key_problem` says why. `headers` are added to upstream
    requests and may hold secrets, so they are not in the `repr`; those in `secret_headers` (lower
    case) are credentials of the gateway, sent for its own keys only. `ca_pem` is the content of
    `ca_file`: with another content this is another provider. `auth` is how the credential is sent:
    `bearer`, or the name of the header that has it. `stream_usage` says when a chat stream
    reports its usage: `ask` on request (OpenAI's `stream_options.include_usage`), `sent` always
    (Groq). `websockets` says whether handshakes are sent to it. `keepalive` is how long an idle
    connection may serve again. The limits hold for the whole account. `default_output_tokens`
    overrides that of the server. When a client leaves, the request is cancelled, or (`on_abort`:
    "drain") its response read on for its usage, for at most `drain_timeout` seconds. One that keeps
    failing is asked last in its routes, at first for `cooldown_seconds` (0: never).
    """

    name: str
    base_url: str
    api_key: Secret | None = None
    api_key_problem: str | None = None
    auth: str = "bearer"
    client_credentials: bool = False
    connect_timeout: float = 5.0
    first_byte_timeout: float = 600.0
    idle_timeout: float = 600.0
    total_timeout: float = 3600.0
    keepalive: float = 4.0
    max_connections: int = MAX_IN_FLIGHT
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secret_headers: frozenset[str] = frozenset()
    ca_file: Path | None = None
    ca_pem: str | None = field(default=None, repr=False)
    stream_usage: str = "ask"
    websockets: bool = True
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    budget_usd: Decimal | None = None
    budget_period: str = "month"
    default_output_tokens: int | None = None
    on_abort: str = "cancel"
    drain_timeout: float = 30.0
    cooldown_seconds: float = 5.0

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
        """Whether the gateway has the credential that this provider requires."""
        return self.api_key_problem is None


def is_broken_glob(model: str) -> bool:
    """Whether a bracket is not closed: fnmatch would take it for the character."""
    return model.count("[") != model.count("]")


@dataclass(frozen=True, slots=True)
class Target:
    """A provider, and the model's name there; None keeps the name in the request."""

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
    """A gateway key: the SHA-256 of its secret, what it may use, its limits.

    Limits that keys.toml does not give are those of its `[defaults]`. The key is refused from
    00:00 UTC of `expires`. While a rotation overlaps, `old_sha256` is the digest of the secret
    before; it is refused from `rotated_until` on (None: as long as the file has it). `endpoints`
    are the surfaces that need permission and have it. `enforce = False` is a dry run.
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
    group: str | None = None
    owner: str | None = None
    description: str | None = None
    endpoints: tuple[str, ...] = ()
    unpriced: Literal["refuse", "allow"] = "refuse"
    store_failure: Literal["refuse", "allow"] = "refuse"
    enforce: bool = True
    old_sha256: str | None = None
    rotated_until: datetime.datetime | None = None

    @property
    def sha256s(self) -> tuple[str, ...]:
        """The digests of the secrets that authenticate, the newest first."""
        return (self.sha256,) if self.old_sha256 is None else (self.sha256, self.old_sha256)

    @property
    def expires_at(self) -> float | None:
        """The Unix time from which the key is refused: 00:00 UTC of `expires`."""
        if self.expires is None:
            return None
        midnight = datetime.datetime.combine(self.expires, datetime.time(), datetime.UTC)
        return midnight.timestamp()

    @property
    def limited(self) -> bool:
        """Whether the key has a limit or a budget of its own."""
        return has_limits(self)


@dataclass(frozen=True, slots=True)
class Group:
    """Limits over all keys of a group together, beside each key's own."""

    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    budget_usd: Decimal | None = None
    budget_period: str = "month"
    enforce: bool = True
    description: str | None = None

    @property
    def limited(self) -> bool:
        """Whether the group has a limit or a budget."""
        return has_limits(self)


def has_limits(holder: ApiKey | Group | Provider) -> bool:
    """Whether any limit or a budget is set."""
    limits = (holder.requests_per_minute, holder.tokens_per_minute, holder.max_concurrent)
    return holder.budget_usd is not None or any(limit is not None for limit in limits)


@dataclass(frozen=True, slots=True)
class Price:
    """USD per million tokens. `cached_input` defaults to the price of `input`."""

    input: Decimal
    cached_input: Decimal
    output: Decimal


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The first day (UTC) on which a provider does not have a model any more."""

    day: datetime.date
    replacement: str | None = None

    @property
    def at(self) -> float:
        """The Unix time of its beginning."""
        return datetime.datetime.combine(self.day, datetime.time(), datetime.UTC).timestamp()


@dataclass(frozen=True, slots=True)
class Tags:
    """Where a request says who inside its key it is for: the first of a header (as WSGI names it),
    a member of the body's `metadata`, and its `user`. Those in `labels` are labels of metrics.
    """

    header: str | None = None
    metadata: str | None = None
    user: bool = False
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Server:
    """How the gateway itself behaves.

    `body_timeout` limits the wait for the next piece of a request body, and for a client to take
    the next piece of a response. `max_in_flight` is per worker; requests above it get 503.
    `max_in_flight_unauthenticated` of them may be callers with a provider credential of their own
    that no provider has accepted yet. `body_memory_bytes` and `upload_disk_bytes` are what a worker
    may hold of request bodies.
    `metrics_token_problem` says why there is no token although one is configured. `root_path` is
    the prefix that a proxy in front leaves in the paths; empty or `/…` without a slash at the end.
    `default_output_tokens` is reserved for a request that does not limit its output itself.
    `deferred_poll` seconds after deferred work was created the gateway begins to ask for it.
    """

    root_path: str = ""
    cors_origins: tuple[str, ...] = ("*",)
    max_body_bytes: int = 26_214_400
    max_upload_bytes: int = 536_870_912
    metrics_token: Secret | None = None
    metrics_token_problem: str | None = None
    body_timeout: float = 30.0
    max_in_flight: int = MAX_IN_FLIGHT
    max_in_flight_unauthenticated: int = 90
    body_memory_bytes: int = 268_435_456
    upload_disk_bytes: int = 4_294_967_296
    metering: bool = True
    default_output_tokens: int = DEFAULT_OUTPUT_TOKENS
    deferred_poll: float = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the files and the environment say.

    `prices` are the overrides of gateway.toml by model name, `shutdowns` the dates of models.toml
    by provider and model. `files` are to be watched for a reload (also those that do not exist
    yet), `stamps` is their state when they were read. `stand_in` is the demo provider, which serves
    the models of providers that are not usable. `tags`: None where requests have none.
    """

    server: Server
    providers: Mapping[str, Provider]
    routes: tuple[Route, ...]
    keys: Mapping[str, ApiKey]
    groups: Mapping[str, Group] = field(default_factory=lambda: frozen({}))
    prices: Mapping[str, Price] = field(default_factory=lambda: frozen({}))
    shutdowns: Mapping[str, Mapping[str, Shutdown]] = field(default_factory=lambda: frozen({}))
    files: tuple[Path, ...] = ()
    stamps: tuple[Stamp, ...] = ()
    store: str = DEFAULT_STORE
    stand_in: str | None = None
    tags: Tags | None = None

    @property
    def usable(self) -> tuple[str, ...]:
        """The names of the providers that can be used."""
        return tuple(name for name, provider in self.providers.items() if provider.usable)

    @property
    def dead_routes(self) -> tuple[str, ...]:
        """The models of the routes without a usable target; their requests get 502. Empty where no
        provider is usable at all.
        """
        if self.stand_in or not self.usable:
            return ()
        return tuple(
            route.model
            for route in self.routes
            if not any(self.providers[target.provider].usable for target in route.targets)
        )
