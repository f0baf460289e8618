"""keys.toml: who may call, and how much.

The rule protected here: a key that is not wholly understood is not a key. The names in this
file become metric labels and log fields, so they are short, printable and never secrets.
"""

from __future__ import annotations

import datetime
import re

from wrapper.config.fields import Table, kind
from wrapper.config.problems import shown
from wrapper.config.settings import ApiKey, is_broken_glob

RESERVED_NAMES = frozenset(("none", "client", "other"))
"""Labels with a meaning of their own in the metrics."""

PERIODS = ("month", "day")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def wrong_name(name: str) -> str | None:
    """Why `name` cannot be a key's name; None if it can."""
    if name in RESERVED_NAMES:
        return "is reserved"
    if name.startswith("sk-"):
        return "looks like a secret"
    if not _NAME.fullmatch(name):
        return "is not 1 to 64 letters, digits and . _ @ - that start with a letter or a digit"
    return None


def read_keys(top: Table) -> dict[str, ApiKey]:
    """All keys of the file; problems are noted in `top.problems`."""
    keys: dict[str, ApiKey] = {}
    holders: dict[str, str] = {}
    for name, table in top.named_tables("keys"):
        why = wrong_name(name)
        if why:
            table.problem("", f"the name {why}", "choose another name")
        key = _key(name, table)
        if key.sha256 and key.sha256 in holders:
            other = holders[key.sha256]
            table.problem("sha256", f"is also that of keys.{other}", "give each key its own")
        holders.setdefault(key.sha256, name)
        keys[name] = key
    top.close()
    return keys


def _key(name: str, table: Table) -> ApiKey:
    wanted = 'model names or globs such as "llama-*"'
    period = table.text("budget_period", "month", wanted='"month" or "day"')
    if period not in PERIODS:
        table.problem("budget_period", "is not a period", 'write "month" or "day"')
    key = ApiKey(
        name=name,
        sha256=_sha256(table),
        models=table.texts("models", ("*",), wanted=wanted),
        requests_per_minute=table.whole("requests_per_minute", None),
        tokens_per_minute=table.whole("tokens_per_minute", None),
        max_concurrent=table.whole("max_concurrent", None),
        budget_usd=table.number("budget_usd", None, high="1e9", above=True),
        budget_period=period,
        expires=_date(table),
    )
    for model in filter(is_broken_glob, key.models):
        table.problem("models", f"{shown(model)} has a bracket that is not closed", "mend the glob")
    if "budget_period" in table.data and "budget_usd" not in table.data:
        table.problem("budget_period", "has no budget", "add budget_usd, or remove it")
    table.close()
    return key


def _sha256(table: Table) -> str:
    """Never repeated in a message: somebody may have put the secret itself here."""
    value = table.get("sha256")
    wanted = "write the SHA-256 of the secret, 64 lower-case hexadecimal digits"
    if isinstance(value, str) and _SHA256.fullmatch(value):
        return value
    if value is None:
        table.problem("sha256", "is missing", wanted)
    elif not isinstance(value, str):
        table.problem("sha256", f"is {kind(value)}", wanted)
    else:
        table.problem("sha256", "is no SHA-256", wanted)
    return ""


def _date(table: Table) -> datetime.date | None:
    """A date in UTC. Of a moment only its day counts: rather too early than too late."""
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
