"""Reads the limits of a key, a group or a provider: the same settings in each of their tables.

Invariant: a limit is a positive number or there is none. Zero is a mistake and not "no limit" or
"nothing allowed": the file must not mean the opposite of what its author thinks.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TypedDict

from wrapper.config.fields import Table
from wrapper.config.settings import BUDGET_PERIODS

MAX_LIMITS = {
    "requests_per_minute": 10**9,
    "tokens_per_minute": 10**12,
    "max_concurrent": 10**6,
}
MIN_BUDGET, MAX_BUDGET = Decimal("0.000001"), Decimal(4_000_000)  # USD; kept in 63 bits of pico-USD


class Limits(TypedDict):
    """The limits as the settings' dataclasses have them; None is no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    budget_usd: Decimal | None
    budget_period: str


NO_LIMITS = Limits(
    requests_per_minute=None,
    tokens_per_minute=None,
    max_concurrent=None,
    budget_usd=None,
    budget_period="month",
)


def read_limits(table: Table, defaults: Limits | None = None) -> Limits:
    """The limits of `table`. Where there are `defaults`, `false` switches one of them off."""
    default = defaults or NO_LIMITS

    def whole(key: str, otherwise: int | None) -> int | None:
        if _is_off(table, key, defaults):
            return None
        return table.whole(key, otherwise, high=MAX_LIMITS[key])

    budget = None
    if not _is_off(table, "budget_usd", defaults):
        budget = table.number(
            "budget_usd", default["budget_usd"], low=str(MIN_BUDGET), high=str(MAX_BUDGET)
        )
    return Limits(
        requests_per_minute=whole("requests_per_minute", default["requests_per_minute"]),
        tokens_per_minute=whole("tokens_per_minute", default["tokens_per_minute"]),
        max_concurrent=whole("max_concurrent", default["max_concurrent"]),
        budget_usd=budget,
        budget_period=table.choice("budget_period", default["budget_period"], BUDGET_PERIODS),
    )


def check_period(table: Table, limits: Limits) -> None:
    """A period without a budget is a problem, except in `[defaults]`."""
    wrong = "budget_usd" in table.data and table.data["budget_usd"] is not False
    if "budget_period" in table.data and limits["budget_usd"] is None and not wrong:
        table.problem("budget_period", "has no budget", "add budget_usd, or remove it")


def _is_off(table: Table, key: str, defaults: Limits | None) -> bool:
    return defaults is not None and table.get(key) is False
