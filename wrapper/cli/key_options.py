"""What the options of the `keys` actions accept; all else is an argument error that says why."""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation

from wrapper.cli import count
from wrapper.config import ApiKey
from wrapper.config.keys import SHORT_LINE, is_short_line, wrong_name
from wrapper.config.limits import MAX_BUDGET, MIN_BUDGET
from wrapper.config.problems import quote, suggest
from wrapper.config.settings import is_broken_glob
from wrapper.endpoints import SURFACES

MAX_OVERLAP = datetime.timedelta(days=366)

_SPAN = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


def key_name(text: str) -> str:
    """A name that a key or a group can have."""
    why = wrong_name(text)
    if why:
        raise argparse.ArgumentTypeError(f"the name {why}")
    return text


def short_line(text: str) -> str:
    """A line of text."""
    if not is_short_line(text):
        raise argparse.ArgumentTypeError(f"not {SHORT_LINE}")
    return text


def model_list(text: str) -> list[str]:
    """Models and globs, separated by commas."""
    models = [model.strip() for model in text.split(",")]
    if not all(model and model.isprintable() for model in models):
        raise argparse.ArgumentTypeError("a model's name is empty or cannot be printed")
    if any(map(is_broken_glob, models)):
        raise argparse.ArgumentTypeError("a bracket is not closed")
    return models


def endpoint_list(text: str) -> list[str]:
    """Endpoints that need permission, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in SURFACES:
            raise argparse.ArgumentTypeError(_unknown_endpoint(name))
    return names


def _unknown_endpoint(name: str) -> str:
    hint, known = suggest(name, SURFACES), f"known are: {', '.join(SURFACES)}"
    hints = known if hint == known else f"{hint} {known.capitalize()}"
    return f"no endpoint that needs permission is called {quote(name)}; {hints}"


def endpoint_notes(keys: Mapping[str, ApiKey]) -> Iterator[str]:
    """The endpoints of `keys` that do not exist. They allow nothing, so they are no problem: a keys
    file that an older or a newer gateway accepts stays valid.
    """
    found: dict[str, list[str]] = {}
    for key in keys.values():
        for name in key.endpoints:
            if name not in SURFACES:
                found.setdefault(name, []).append(key.name)
    for name, (first, *others) in found.items():
        more = f" and {count(len(others), 'other key')}" if others else ""
        yield f"keys.{first}.endpoints{more}: {_unknown_endpoint(name)}"


def limit_up_to(high: int) -> Callable[[str], int]:
    """What reads an integer from 1 to `high`."""

    def read(text: str) -> int:
        digits = text.replace("_", "")
        if digits.isascii() and digits.isdigit() and len(digits) < 16 and 0 < int(digits) <= high:
            return int(digits)
        raise argparse.ArgumentTypeError(f"not an integer from 1 to {high}")

    return read


def usd(text: str) -> Decimal:
    """An amount in USD."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not (amount.is_finite() and MIN_BUDGET <= amount <= MAX_BUDGET):
        raise argparse.ArgumentTypeError(
            f"not an amount from {MIN_BUDGET:f} to {MAX_BUDGET:f}, such as 20 or 0.50"
        )
    return amount


def coming_date(text: str) -> datetime.date:
    """A date after today, UTC."""
    try:
        date = datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not a date such as 2027-01-31") from None
    if date <= datetime.datetime.now(datetime.UTC).date():
        raise argparse.ArgumentTypeError("the key would be expired at once")
    return date


def overlap(text: str) -> datetime.timedelta:
    """A span of at most a year."""
    if text == "0":
        return datetime.timedelta()
    span = _SPAN.fullmatch(text)
    found = datetime.timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else None
    if found is None or found > MAX_OVERLAP:
        raise argparse.ArgumentTypeError("not a span of at most a year: write 12h, 7d, 2w or 0")
    return found
