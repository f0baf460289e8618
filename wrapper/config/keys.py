"""Reads keys.toml: keys, groups, defaults. `wrapper.config.keyfile` edits it.

The names of keys and groups become metric labels and log fields, so they are short, printable and
never secrets. Invariant: a key with a problem is not a key.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from wrapper.config.fields import Table, kind
from wrapper.config.limits import Limits, check_period, read_limits
from wrapper.config.problems import quote, suggest
from wrapper.config.settings import ApiKey, Group, frozen, is_broken_glob

RESERVED_NAMES = frozenset(("none", "client", "other"))
"""Metric labels with a meaning of their own."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ENDPOINT = re.compile(r"[a-z][a-z0-9_./-]{0,63}")
_TEXT_LENGTH = 200
SHORT_LINE = f"one line of at most {_TEXT_LENGTH} printable characters"

_DIGEST_WANTED = "write the SHA-256 of the secret, 64 lower-case hexadecimal digits"
_MODELS_WANTED = 'model names or globs such as "gpt-*"'
_ENDPOINTS_WANTED = 'endpoints that need permission, such as "fine_tuning"'


NOTHING = ApiKey("", "")


@dataclass(frozen=True, slots=True)
class KeyFile:
    """What keys.toml says."""

    keys: Mapping[str, ApiKey] = field(default_factory=lambda: frozen({}))
    groups: Mapping[str, Group] = field(default_factory=lambda: frozen({}))
    defaults: ApiKey = NOTHING  # what a key is that says nothing


def wrong_name(name: str) -> str | None:
    """Why `name` cannot be the name of a key or a group; None if it can."""
    if name in RESERVED_NAMES:
        return "is reserved"
    if name.startswith("sk-"):
        return "looks like a secret"
    if not _NAME.fullmatch(name):
        return "is not 1 to 64 letters, digits and . _ @ - that start with a letter or a digit"
    return None


def read_keys(top: Table) -> KeyFile:
    """The whole file. Problems go to `top.problems`."""
    groups = {name: _group(name, table) for name, table in top.named_tables("groups")}
    defaults = _defaults(top.table("defaults"))
    keys: dict[str, ApiKey] = {}
    holders: dict[str, str] = {}
    for name, table in top.named_tables("keys"):
        key = _key(name, table, defaults, groups)
        for digest in filter(None, key.sha256s):
            if digest in holders:
                other = holders[digest]
                table.problem("sha256", f"is also that of keys.{other}", "give each key its own")
            holders.setdefault(digest, name)
        keys[name] = key
    top.close()
    return KeyFile(frozen(keys), frozen(groups), defaults)


def _check_name(name: str, table: Table) -> None:
    why = wrong_name(name)
    if why:
        table.problem("", f"the name {why}", "choose another name")


def _group(name: str, table: Table) -> Group:
    _check_name(name, table)
    limits = read_limits(table)
    check_period(table, limits)
    group = Group(
        name=name,
        enforce=table.flag("enforce", True),
        description=_line(table, "description"),
        **limits,
    )
    table.close()
    return group


def _defaults(table: Table | None) -> ApiKey:
    """A key without a name and a secret that has the defaults of all others."""
    if table is None:
        return NOTHING
    found = _shared(table, NOTHING, read_limits(table))
    table.close()
    return found


def _key(name: str, table: Table, defaults: ApiKey, groups: Collection[str]) -> ApiKey:
    _check_name(name, table)
    limits = read_limits(table, limits_of(defaults))
    check_period(table, limits)
    sha256, old_sha256 = _digests(table)
    key = replace(
        _shared(table, defaults, limits),
        name=name,
        sha256=sha256,
        old_sha256=old_sha256,
        rotated_until=_rotated_until(table, old_sha256),
        expires=_date(table),
        group=_group_name(table, groups),
        owner=_line(table, "owner"),
        description=_line(table, "description"),
    )
    table.close()
    return key


def _shared(table: Table, defaults: ApiKey, limits: Limits) -> ApiKey:
    """What a key and `[defaults]` can say alike."""
    choices: tuple[Literal["refuse"], Literal["allow"]] = ("refuse", "allow")
    models = table.texts("models", defaults.models, wanted=_MODELS_WANTED)
    for model in filter(is_broken_glob, models):
        table.problem("models", f"{quote(model)} has a bracket that is not closed", "close it")
    return replace(
        defaults,
        models=models,
        endpoints=_endpoints(table, defaults.endpoints),
        unpriced=table.choice("unpriced", defaults.unpriced, choices),
        store_failure=table.choice("store_failure", defaults.store_failure, choices),
        enforce=table.flag("enforce", defaults.enforce),
        **limits,
    )


def limits_of(holder: ApiKey | Group) -> Limits:
    """The limits of a key or a group."""
    return Limits(
        requests_per_minute=holder.requests_per_minute,
        tokens_per_minute=holder.tokens_per_minute,
        max_concurrent=holder.max_concurrent,
        budget_usd=holder.budget_usd,
        budget_period=holder.budget_period,
    )


def _endpoints(table: Table, default: tuple[str, ...]) -> tuple[str, ...]:
    if table.data.get("endpoints") == []:
        table.get("endpoints")
        return ()  # none, whatever the defaults say
    endpoints = table.texts("endpoints", default, wanted=_ENDPOINTS_WANTED)
    for endpoint in endpoints:
        if not is_endpoint(endpoint):
            what = f"{quote(endpoint)} is not the name of an endpoint"
            table.problem("endpoints", what, f"write {_ENDPOINTS_WANTED}")
    return endpoints


def _group_name(table: Table, groups: Collection[str]) -> str | None:
    name = table.text("group", None, wanted="the name of a group")
    if name is not None and name not in groups:
        hint = "write [groups.NAME] with its limits, or remove it"
        if groups:
            known = suggest(name, groups)
            hint = f"{known}{'' if known.endswith('?') else '.'} Or {hint}"
        table.problem("group", f"there is no group {quote(name)}", hint)
    return name


def _line(table: Table, key: str) -> str | None:
    """A text for people: one printable line."""
    text = table.text(key, None, wanted="a short text")
    if text is None or is_short_line(text):
        return text
    table.problem(key, "is too long or cannot be printed", f"write {SHORT_LINE}")
    return None


def is_short_line(text: str) -> bool:
    """Whether `text` can be an owner or a description."""
    return 0 < len(text) <= _TEXT_LENGTH and text.isprintable()


def is_endpoint(name: str) -> bool:
    """Whether `name` can be in `endpoints`."""
    return _ENDPOINT.fullmatch(name) is not None


def _digests(table: Table) -> tuple[str, str | None]:
    """The digest, and the one before it while a rotation overlaps.

    Messages do not repeat a value: it may be the secret itself.
    """
    value = table.get("sha256")
    if not isinstance(value, list):
        return _digest(table, value), None
    if len(value) not in (1, 2):
        hint = "write the SHA-256 of the new secret and that of the old one"
        table.problem("sha256", f"is an array of {len(value)}", hint)
        return "", None
    digests = [_digest(table, item, index) for index, item in enumerate(value)]
    if len(digests) == 1:
        return digests[0], None
    if digests[0] and digests[0] == digests[1]:
        table.problem("sha256", "has the same digest twice", "remove one")
    return digests[0], digests[1]


def _digest(table: Table, value: object, index: int | None = None) -> str:
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value
    if value is None:
        table.problem("sha256", "is missing", _DIGEST_WANTED)
    elif not isinstance(value, str):
        table.problem("sha256", f"is {kind(value)}", _DIGEST_WANTED, index=index)
    else:
        table.problem("sha256", "is no SHA-256", _DIGEST_WANTED, index=index)
    return ""


def _rotated_until(table: Table, old_sha256: str | None) -> datetime.datetime | None:
    """When the old secret of a rotation is refused; in UTC where no zone is named."""
    value = table.get("rotated_until")
    wanted = "write a date and time without quotes, such as 2027-01-01T12:00:00Z"
    if value is None:
        return None
    if not isinstance(value, datetime.datetime):
        if not isinstance(value, datetime.date):
            table.problem("rotated_until", f"is {kind(value)}", wanted)
            return None
        value = datetime.datetime.combine(value, datetime.time())
    if old_sha256 is None:
        both = "write sha256 = [NEW, OLD], or remove it"
        table.problem("rotated_until", "there is no second digest", both)
    try:
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).astimezone(
            datetime.UTC
        )
    except OverflowError:
        table.problem("rotated_until", "is out of range", wanted)
        return None


def _date(table: Table) -> datetime.date | None:
    """A date in UTC. Of a date with a time only the day counts: the key ends early, not late."""
    value = table.get("expires")
    wanted = "write a date without quotes, such as 2027-01-01"
    if value is None:
        return None
    if isinstance(value, datetime.datetime):
        try:
            moment = value if value.tzinfo is None else value.astimezone(datetime.UTC)
        except OverflowError:
            table.problem("expires", "is out of range", wanted)
            return None
        return moment.date()
    if isinstance(value, datetime.date):
        return value
    table.problem("expires", f"is {kind(value)}", wanted)
    return None
