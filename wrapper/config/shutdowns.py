"""models.toml: the days on which providers shut models down.

    [providers.groq]
    match = ["api.groq.com"]       # the hosts of `base_url` that this table applies to

    [providers.groq.models]
    "some-model" = { shutdown = 2027-03-01, replacement = "another-model",
                               source = "https://…", date = 2026-11-26 }

`shutdown` is the first day without the model (UTC). `source` and `date` say where and when it was
read. It is for providers that do not report such days themselves, and for checks that ask nobody;
OpenAI's `GET /models` has them as `shutdown_date`.

Invariant: a date that cannot be read is a problem with its place, never a model without an end.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from wrapper.config.fields import Table
from wrapper.config.files import ProblemFound, Sources, open_toml
from wrapper.config.problems import Problem
from wrapper.config.settings import Provider, Shutdown, frozen

_DATE = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|20\d{6})\Z", re.ASCII)


class _Listed(NamedTuple):
    hosts: tuple[str, ...]
    models: Mapping[str, Shutdown]


def read_shutdowns(
    path: Path, sources: Sources, providers: Mapping[str, Provider], problems: list[Problem]
) -> Mapping[str, Mapping[str, Shutdown]]:
    """By configured provider and model, in lower case; empty where there is no file."""
    sources.watch(path)
    if not path.exists():
        return frozen({})
    try:
        data, _ = open_toml(sources, path, "")
    except ProblemFound as error:
        problems.append(error.problem)
        return frozen({})
    top = Table(data, "", str(path), problems)
    listed = {name: _provider(table) for name, table in top.named_tables("providers")}
    top.close()
    found = ((name, _of(provider, listed)) for name, provider in providers.items())
    return frozen({name: models for name, models in found if models})


def find_shutdown(models: Mapping[str, Shutdown], name: str) -> Shutdown | None:
    """That of the model, else of the model without its version's date, else of the model that it
    was fine-tuned from (`ft:MODEL:…`), which goes with it.
    """
    name = name.lower()
    if name.startswith("ft:"):
        name = name.split(":")[1]
    return models.get(name) or models.get(_DATE.sub("", name))


def _of(provider: Provider, listed: Mapping[str, _Listed]) -> Mapping[str, Shutdown]:
    """The table that matches the provider's host, else the one with the provider's name."""
    host = (urlsplit(provider.base_url).hostname or "").lower()
    for each in listed.values():
        if any(host == name or host.endswith("." + name) for name in each.hosts):
            return each.models
    named = listed.get(provider.name)
    return named.models if named else frozen({})


def _provider(table: Table) -> _Listed:
    hosts = table.texts("match", (), wanted='an array of host names such as ["api.example.com"]')
    models = {name.lower(): _shutdown(each) for name, each in table.named_tables("models")}
    table.close()
    found = {name: shutdown for name, shutdown in models.items() if shutdown is not None}
    return _Listed(tuple(host.lower() for host in hosts), frozen(found))


def _shutdown(table: Table) -> Shutdown | None:
    day = _day(table, "shutdown")
    replacement = table.text("replacement", None, wanted="the name of another model")
    table.text("source", None, wanted="the address where the date was read")
    for name in ("source", "date"):
        if table.data.get(name) is None:
            table.problem(name, "is missing", "say where and when the date was read")
    if table.get("date") is not None:
        _day(table, "date")
    table.close()
    return None if day is None else Shutdown(day, replacement)


def _day(table: Table, key: str) -> datetime.date | None:
    value = table.get(key)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    message = "is missing" if value is None else "is no date"
    table.problem(key, message, "write a date such as 2027-01-14, without quotes")
    return None
