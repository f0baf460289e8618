"""Reads a provider's usage export by day and model, CSV or JSON.

JSON, three forms:

* OpenAI's usage API (https://platform.openai.com/docs/api-reference/usage), asked with
  `bucket_width=1d` (or finer) and `group_by=model`: `{"data": [{"start_time": 1730419200,
  "results": [{"model", "num_model_requests", "input_tokens", "output_tokens",
  "input_cached_tokens"}]}]}`; of its costs API `amount.value` with the model at the start of
  `line_item`. Several pages in a list are read as one.
* a list of objects with the columns below;
* an object with such a list in `data`, `rows` or `usage`.

CSV with a header line, separated by commas, semicolons or tabs. Columns, in any order, in any
case, with any punctuation between the words; others are ignored:

==========  ======================================================================
day         date, day, start_time_iso, start_time, timestamp, time (ISO 8601, or Unix seconds)
model       model, model_id, model_name, snapshot_id, snapshot, line_item
requests    num_model_requests, requests, num_requests, n_requests, request_count, api_requests
prompt      input_tokens, prompt_tokens, n_context_tokens_total, context_tokens
completion  output_tokens, completion_tokens, n_generated_tokens_total, generated_tokens
cached      input_cached_tokens, cached_input_tokens, cached_tokens
cost        cost_usd, cost, amount_value, amount, total_cost, cost_in_usd, spend (USD)
==========  ======================================================================

Rows of the same day (UTC) and model are added up. Invariant: what cannot be read is an error that
names its place; it never counts as zero.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from wrapper.config.problems import quote

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "day": ("date", "day", "start_time_iso", "start_time", "timestamp", "time"),
    "model": ("model", "model_id", "model_name", "snapshot_id", "snapshot", "line_item"),
    "requests": (
        "num_model_requests",
        "requests",
        "num_requests",
        "n_requests",
        "request_count",
        "api_requests",
    ),
    "prompt": ("input_tokens", "prompt_tokens", "n_context_tokens_total", "context_tokens"),
    "completion": (
        "output_tokens",
        "completion_tokens",
        "n_generated_tokens_total",
        "generated_tokens",
    ),
    "cached": ("input_cached_tokens", "cached_input_tokens", "cached_tokens"),
    "cost": (
        "cost_usd",
        "cost",
        "amount_value",
        "amount",
        "total_cost",
        "cost_in_usd",
        "spend",
    ),
}
NUMBERS = ("requests", "prompt", "completion", "cached", "cost")

_HIGH = Decimal(10) ** 15
_YEARS = (1970, 9998)
_THOUSANDS = re.compile(r"-?\$?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
_OF_NUMBERS = frozenset(column for name in NUMBERS for column in COLUMNS[name])


class ExportError(Exception):
    """The export cannot be read. The text says where and why."""


@dataclass
class Total:
    """What the export says for one day and model; None where it says nothing. `cost` is in USD."""

    requests: Decimal | None = None
    prompt: Decimal | None = None
    completion: Decimal | None = None
    cached: Decimal | None = None
    cost: Decimal | None = None

    def add(self, name: str, number: Decimal) -> None:
        setattr(self, name, (getattr(self, name) or Decimal(0)) + number)


Export = dict[tuple[str, str], Total]
"""By day (2026-11-21) and model."""


def read_export(data: bytes) -> Export:
    """The sums of an export. Raises ExportError."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ExportError(f"is not UTF-8 text (byte {error.start + 1})") from error
    if not text.strip():
        raise ExportError("is empty")
    export = _sums(_json_rows(text) if text.lstrip()[0] in "[{" else _csv_rows(text))
    if not export:
        raise ExportError("holds no rows")
    if not any(getattr(total, name) is not None for total in export.values() for name in NUMBERS):
        raise ExportError(f"has no column of numbers; known are {_known(NUMBERS)}")
    return export


def read_page(page: object) -> Export:
    """The sums of a decoded page of OpenAI's usage or costs API, numbers as `Decimal`.

    Raises ExportError. A page may have no results, and results that count nothing.
    """
    return _sums((place, row) for place, row in _rows_of(page, "data") if _counts(row))


Row = tuple[str, Mapping[str, object]]
"""Its place, for messages, and its columns by normalized name."""


def _sums(rows: Iterable[Row]) -> Export:
    export: Export = {}
    for place, row in rows:
        key = (_day(_first(row, "day", place), place), _model(_first(row, "model", place), place))
        total = export.setdefault(key, Total())
        if str(row.get("amount_currency") or "usd").lower() != "usd":
            raise ExportError(f"{place}: {quote(str(row['amount_currency']))} is not USD")
        for name in NUMBERS:
            column = next((each for each in COLUMNS[name] if each in row), None)
            if column is not None and row[column] not in (None, ""):
                total.add(name, _number(row[column], f"{place}: {column}"))
    return export


def _counts(row: Mapping[str, object]) -> bool:
    return any(row.get(column) not in (None, "", 0) for column in _OF_NUMBERS)


def _first(row: Mapping[str, object], name: str, place: str) -> object:
    for column in COLUMNS[name]:
        if row.get(column) not in (None, ""):
            return row[column]
    hint = "; ask the usage API with group_by=model" if name == "model" else ""
    raise ExportError(f"{place}: has no {name} (one of {', '.join(COLUMNS[name])}){hint}")


def _known(names: Iterable[str]) -> str:
    return ", ".join(column for name in names for column in COLUMNS[name])


def _csv_rows(text: str) -> Iterable[Row]:
    header = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=header.count)
    lines = csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter)
    try:
        names = [_normal(name) for name in next(lines)]
        for needed in ("day", "model"):
            if not any(name in names for name in COLUMNS[needed]):
                raise ExportError(f"line 1: has no {needed} (one of {_known([needed])})")
        for line in lines:
            place = f"line {lines.line_num}"
            if not any(cell.strip() for cell in line):
                continue
            if len(line) != len(names):
                raise ExportError(f"{place}: has {len(line)} cells, the header has {len(names)}")
            row = _row(zip(names, (cell.strip() for cell in line), strict=True))
            if delimiter == ";":
                _refuse_commas(row, place)
            yield place, row
    except csv.Error as error:
        raise ExportError(f"line {lines.line_num}: {error}") from error


def _refuse_commas(row: Mapping[str, object], place: str) -> None:
    """Files with semicolons between cells often have decimal commas."""
    for column, cell in row.items():
        if column in _OF_NUMBERS and "," in str(cell):
            raise ExportError(f"{place}: {column}: {quote(str(cell))} has a comma; write 12.50")


def _json_rows(text: str) -> Iterable[Row]:
    try:
        document: object = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise ExportError(f"is not JSON: {error}") from error
    last = document[-1] if isinstance(document, list) and document else document
    if isinstance(last, dict) and last.get("has_more") is True:
        raise ExportError("has_more: further pages follow; put all of them into one list")
    yield from _rows_of(document, "data")


def _rows_of(value: object, place: str) -> Iterable[Row]:
    """The rows in lists, pages and buckets at any depth."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _rows_of(item, f"{place}[{index}]")
        return
    if not isinstance(value, dict):
        raise ExportError(f"{place}: is not an object")
    if isinstance(value.get("results"), list):
        start = value.get("start_time_iso") or value.get("start_time")
        for index, result in enumerate(value["results"]):
            where = f"{place}.results[{index}]"
            if not isinstance(result, dict):
                raise ExportError(f"{where}: is not an object")
            yield where, _row({"start_time": start, **result}.items())
        return
    for name in ("data", "rows", "usage"):
        if isinstance(value.get(name), list):
            yield from _rows_of(value[name], name if place == "data" else f"{place}.{name}")
            return
    yield place, _row(value.items())


def _row(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    row: dict[str, object] = {}
    for name, value in items:
        if isinstance(value, dict):  # "amount": {"value": 0.06, "currency": "usd"}
            row.update({f"{_normal(name)}_{_normal(each)}": inner for each, inner in value.items()})
        else:
            row.setdefault(_normal(name), value)
    return row


def _normal(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[^a-z0-9]+", "_", spaced.lower()).strip("_")


def _day(value: object, place: str) -> str:
    text = str(value).strip()
    try:
        if re.fullmatch(r"\d{9,11}(\.\d+)?", text):
            at = datetime.fromtimestamp(float(text), UTC)
        else:
            at = datetime.fromisoformat(text)
            at = at.astimezone(UTC) if at.tzinfo else at
    except (ValueError, OverflowError, OSError) as error:
        raise ExportError(f"{place}: {quote(text)} is not a date; write 2026-11-21") from error
    if not _YEARS[0] <= at.year <= _YEARS[1]:
        raise ExportError(f"{place}: {quote(text)} is out of range; write 2026-11-21")
    return at.date().isoformat()


def _model(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise ExportError(f"{place}: the model is not a string")
    # A line item of the costs API: "gpt-6-luna-2026-09-22, input".
    return value.partition(",")[0].strip()


def _number(value: object, place: str) -> Decimal:
    text = str(value).strip()
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "")
    text = text.removeprefix("$")
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("NaN")
    if isinstance(value, bool) or not number.is_finite() or number.copy_abs() > _HIGH:
        raise ExportError(f"{place}: {quote(str(value))} is not a number")
    return number
