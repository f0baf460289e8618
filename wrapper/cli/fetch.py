"""Asks OpenAI's usage and costs APIs, by day (UTC) and model, for `reconcile --fetch`.

They need an admin key of the organization, which is not the key that the gateway serves with.
Invariant: no serving process holds it (see `config.ADMIN_KEY`), and no message repeats it.

Sources: https://platform.openai.com/docs/api-reference/usage and …/admin-api-keys
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from urllib.parse import urlencode

from wrapper import errors
from wrapper.cli import CommandError
from wrapper.cli.exports import NUMBERS, Export, ExportError, Total, read_page
from wrapper.config import ADMIN_KEY, Provider, Secret, Settings
from wrapper.upstream import Upstream

TIMEOUT = 60.0  # seconds, for each page
MAX_PAGE = 16 << 20  # bytes
MAX_PAGES = 100  # of one API
_USAGE = ("completions", "embeddings", "images", "audio_speeches", "audio_transcriptions")
"""The usage APIs that count by model. Moderations are not among them: they are free, and their
responses report no usage to compare with.
"""
_USAGE_DAYS, _COST_DAYS = 31, 180  # the most in a page
MAX_KEY = 8192
_KEY = re.compile(rf"[\x21-\x7e]{{1,{MAX_KEY}}}")


def admin_key(settings: Settings, environ: Mapping[str, str], file: Path | None) -> Secret:
    """The admin key, from `file` or the variable. Raises CommandError.

    `environ` is the environment as the gateway reads it, `.env` included.
    """
    if ADMIN_KEY in environ and ADMIN_KEY not in os.environ:
        raise CommandError(
            f"{ADMIN_KEY} is in .env, which the gateway reads too: set it for this command alone"
        )
    if file is None:
        text, where = os.environ.get(ADMIN_KEY, ""), f"environment variable {ADMIN_KEY}"
        if not text:
            raise CommandError(f"--fetch needs an admin key: set {ADMIN_KEY} or --admin-key-file")
    else:
        if file.resolve() in {each.resolve() for each in settings.files}:
            raise CommandError(f"{file}: is a file of the gateway, which must not hold this key")
        where = str(file)
        try:
            with file.open(encoding="utf-8") as opened:
                text = opened.read(MAX_KEY + 1)  # a device has no end
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is not text"
            raise CommandError(f"{file}: {reason}") from None
    secret = Secret(text.strip())
    if not _KEY.fullmatch(secret.reveal()):
        raise CommandError(f"{where} holds no key: one word of printable ASCII characters is right")
    for name, provider in settings.providers.items():
        if provider.api_key == secret:
            raise CommandError(
                f"the admin key is also the api_key of providers.{name}, with which the gateway"
                " serves: make an admin key of its own"
            )
    return secret


def fetch(
    provider: Provider, key: Secret, first: date, end: date, projects: Sequence[str] = ()
) -> Export:
    """What the provider counted from `first` to the day before `end`. Raises CommandError.

    With `projects` of these alone. A model without a cost has the cost zero here: the costs API
    was asked for everything.
    """
    upstream = Upstream(
        replace(provider, api_key=key, api_key_problem=None, headers=(), secret_headers=frozenset())
    )
    export: Export = {}
    span: dict[str, str | int] = {
        "start_time": _unix(first),
        "end_time": _unix(end),
        "bucket_width": "1d",
    }
    asked: list[tuple[str, str, int]] = [(f"usage/{kind}", "model", _USAGE_DAYS) for kind in _USAGE]
    asked.append(("costs", "line_item", _COST_DAYS))
    try:
        for path, group, days in asked:
            query: list[tuple[str, str | int]] = [
                *span.items(),
                ("group_by[]", group),
                ("limit", days),
            ]
            query += [("project_ids[]", project) for project in projects]
            for page in _pages(upstream, f"/organization/{path}", query):
                _add(export, page, f"{path}: ")
    finally:
        upstream.close()
    for total in export.values():
        total.add("cost", Decimal(0))
    return export


def _unix(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


def _add(export: Export, page: object, place: str) -> None:
    try:
        found = read_page(page)
    except ExportError as error:
        raise CommandError(f"{place}{error}") from error
    for key, total in found.items():
        sums = export.setdefault(key, Total())
        for name in NUMBERS:
            number = getattr(total, name)
            if number is not None:
                sums.add(name, number)


def _pages(
    upstream: Upstream, path: str, query: Sequence[tuple[str, str | int]]
) -> Iterator[object]:
    cursor: list[tuple[str, str]] = []
    for _ in range(MAX_PAGES):
        page = _page(upstream, f"{path}?{urlencode([*query, *cursor])}", path)
        yield page
        if page.get("has_more") is not True:
            return
        following = [("page", str(page.get("next_page")))]
        if following == cursor or not page.get("next_page"):
            break
        cursor = following
    raise CommandError(f"{upstream.provider.base_url}{path}: its pages have no end")


def _page(upstream: Upstream, target: str, path: str) -> dict[str, object]:
    where = f"{upstream.provider.base_url}{path}"
    try:
        text = upstream.fetch(target, timeout=TIMEOUT, limit=MAX_PAGE)
        page = json.loads(text, parse_float=Decimal)
    except errors.UpstreamAuth as error:
        raise CommandError(
            f"{where}: the admin key is refused ({error}). It needs an admin key of the"
            " organization (sk-admin-…) that may read usage"
        ) from error
    except errors.UpstreamError as error:
        raise CommandError(f"{where}: {error}") from error
    except (ValueError, RecursionError, ArithmeticError) as error:
        raise CommandError(f"{where}: the response is not JSON") from error
    if not isinstance(page, dict) or not isinstance(page.get("data"), list):
        raise CommandError(f"{where}: the response is no page of results")
    return page
