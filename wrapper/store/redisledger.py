"""The ledger in Redis: one hash per key and day, whose fields are a letter and a row.

A row is the hour, provider, model, outcome and (if it has one) tag as JSON, so that any text may be
a name; the letter
says which of its sums the field has, in the order of `Sums`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from wrapper.store.base import Entry, Sums
from wrapper.store.limits import MAX_COST
from wrapper.store.recent import KEPT_ROWS, KEPT_SECONDS
from wrapper.store.redislink import PREFIX, Link
from wrapper.store.schema import NUMBERS, label, values
from wrapper.store.waiting import Impossible

_LETTERS = "".join(NUMBERS.values())
_SECONDS, _COST, _HIGH = map(_LETTERS.index, "s$H")
_BATCH = 200


def row(entry: Entry) -> dict[str, Any]:
    """What `settle.lua` is given for `entry`. Raises Impossible for what is no row."""
    hour, key, provider, model, outcome, tag, *sums = values(entry)
    if not all(isinstance(name, str) for name in (key, provider, model, outcome, tag)):
        raise Impossible("a name in the ledger must be a text")
    if not all(0 <= number < 2**63 for number in sums if isinstance(number, int)):
        raise Impossible("a number in the ledger must fit into 64 bits")
    names = [hour, provider, model, outcome, *([tag] if tag else [])]
    text = json.dumps(names, ensure_ascii=False)
    try:
        f"{key}{text}".encode()
    except UnicodeEncodeError as error:
        raise Impossible(f"a name in the ledger is not UTF-8: {error}") from error
    add = [
        part
        for letter, number in zip(_LETTERS, sums, strict=True)
        if number and letter != "s"
        for part in (letter, str(int(number)))
    ]
    found: dict[str, Any] = {
        "day": int(hour) // 24,
        "hour": hour,
        "key": key,
        "provider": provider,
        "row": text,
        "add": add,
        "cost": str(min(int(sums[_COST]) + int(sums[_HIGH]), MAX_COST)),
    }
    if sums[_SECONDS]:
        found["seconds"] = repr(sums[_SECONDS])
    if entry.recent is not None:
        request_id, used = entry.recent
        found["recent"] = {
            "name": recent_name(key, request_id),
            "used": used,
            "at": entry.at,
            "kept": KEPT_SECONDS,
            "most": KEPT_ROWS,
        }
    return found


def recent_name(key: object, request_id: str) -> str:
    """One text for a request of a key."""
    return json.dumps([key, request_id], ensure_ascii=False)


def totals(
    link: Link, since: float | None, until: float | None, by: tuple[str, ...], key: str | None
) -> list[Sums]:
    """As `UsageStore.totals`."""
    first = 0 if since is None else int(since // 3600)
    last = 2**40 if until is None else -int(-until // 3600) - 1
    found: dict[tuple[Any, ...], list[Any]] = {} if by else {(): _zeros()}
    for name, fields in _hashes(link, first // 24, last // 24, key):
        for text, numbers in _rows(fields).items():
            hour, provider, model, outcome, *tag = json.loads(text)
            if first <= hour <= last:
                values_of = {"key": name, "provider": provider, "model": model}
                values_of |= {
                    "tag": tag[0] if tag else "",
                    "outcome": outcome,
                    "day": hour // 24,
                    "hour": hour,
                }
                group = tuple(values_of[dimension] for dimension in by)
                sums = found.setdefault(group, _zeros())
                sums[:] = map(sum, zip(sums, numbers, strict=True))
    return [Sums(tuple(map(label, by, group)), *found[group]) for group in sorted(found)]


def _zeros() -> list[Any]:
    return [0.0 if letter == "s" else 0 for letter in _LETTERS]


def _rows(fields: list[bytes]) -> dict[str, list[Any]]:
    """Row → its numbers, out of the fields and values of one hash."""
    rows: dict[str, list[Any]] = {}
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        text = name.decode()
        index = _LETTERS.index(text[0])
        numbers = rows.setdefault(text[1:], _zeros())
        numbers[index] = float(value) if index == _SECONDS else int(value)
    return rows


def _hashes(
    link: Link, first: int, last: int, key: str | None
) -> Iterator[tuple[str, list[bytes]]]:
    """The key and the content of each hash of the days `first` to `last`."""
    names = (
        [key] if key is not None else _decoded(link.commands([("SMEMBERS", f"{PREFIX}:keys")])[0])
    )
    for some in _batches(names):
        ranges = [("ZRANGEBYSCORE", f"{PREFIX}:days:{name}", first, last) for name in some]
        days = zip(some, map(_decoded, link.commands(ranges)), strict=True)
        for pairs in _batches([(name, day) for name, found in days for day in found]):
            reads = [("HGETALL", f"{PREFIX}:usage:{day}:{name}") for name, day in pairs]
            for (name, _), fields in zip(pairs, link.commands(reads), strict=True):
                yield name, fields


def _decoded(found: list[bytes]) -> list[str]:
    return [text.decode() for text in found]


def _batches(items: list[Any]) -> Iterator[list[Any]]:
    for at in range(0, len(items), _BATCH):
        yield items[at : at + _BATCH]
