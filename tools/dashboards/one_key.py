"""One Key: everything about one key on a page, for those who answer for it."""

from __future__ import annotations

from tools.dashboards.api_key_metrics import (
    CALLS,
    COST,
    HALVES,
    MONTH,
    RED,
    TOKENS,
    answered,
    bounded,
    budgets,
    cost_columns,
    kinds,
)
from tools.dashboards.board import Board, Row, Section, Variable
from tools.dashboards.parts import (
    HEALTH_LINK,
    NUMBER,
    PERCENT,
    SECONDS,
    SHORT,
    USD,
    Column,
    Line,
    Panel,
    chart,
    number,
    rows,
)
from tools.dashboards.queries import added, forecast, grown, mean

KEY = 'api_key="$api_key"'
OWN = 'scope="key", name="$api_key"'
SOON = ((None, "red"), (7 * 86400, "orange"), (30 * 86400, "green"))


def _limit(kind: str) -> str:
    return f'max by (kind) ({kind}{{{OWN}, kind!="budget_usd"}})'


SUMMARY = Section(
    "",
    [
        Row(4, [
            number(
                "This month", f"sum({grown(COST, MONTH, KEY)})",
                "What the key has cost this month (UTC)",
                more="Answers without a known price count as 0.", unit=USD, width=4, month=0,
            ),
            number(
                "Forecast", forecast(COST, KEY), "What the whole month will cost",
                more="The month so far, and the pace of the last seven days for the rest.",
                unit=USD, width=4, month=0,
            ),
            number(
                "Last month", f"sum({grown(COST, MONTH, KEY)})", "What the month before cost",
                unit=USD, width=4, month=1,
            ),
            number(
                "Broken off",
                [
                    Line(bounded("low", KEY), "at least"),
                    Line(bounded("high", KEY), "at most"),
                ],
                "What calls that broke off or were given up this month have cost: not in the month "
                "so far, because only its bounds are known",
                more="Budgets count the high end.",
                unit=USD, width=4, steps=((None, "green"), (0.005, "orange")), month=0,
            ),
            number(
                "Budget", f"100 * min({budgets(', ' + OWN)[0]})",
                "What is left of the key's budget in its period",
                unit="suffix: % left", width=4, decimals=0, nothing="no budget",
                steps=((None, "red"), (10, "orange"), (25, "green")),
            ),
            number(
                "Answered", f"sum({answered('api_key', '24h', KEY)})",
                "Of the key's accepted calls of the last 24 hours, those answered to their end",
                unit=PERCENT, width=4, steps=((None, "red"), (0.95, "orange"), (0.99, "green")),
                to=HEALTH_LINK,
            ),
        ]),
        Row(5, [
            rows(
                "Whose it is",
                [
                    Column("Group", label="group", width=110, fixed=True),
                    Column("Owner", label="owner", width=140),
                    Column("", f"max by (group, owner) (api_key_info{{{KEY}}})", width=30),
                ],
                "The key's group and owner, as keys.toml has them",
                width=8, nothing="not in keys.toml",
            ),
            number(
                "Expires in", f"min(api_key_expiry_timestamp_seconds{{{KEY}}}) - time()",
                "How long the key is still valid", unit="s", width=4, steps=SOON,
                nothing="never", decimals=0,
            ),
            number(
                "Last used", f"time() - max(api_key_last_used_timestamp_seconds{{{KEY}}})",
                "How long ago the key was used", unit="s", width=4, decimals=0,
                nothing="never",
            ),
            rows(
                "Limits",
                [
                    Column("Kind", label="kind", width=90),
                    Column(
                        "Left", f"{_limit('limit_remaining')} / {_limit('limit')}",
                        unit=PERCENT, width=110, bar="green", full=1, steps=HALVES,
                    ),
                    Column("Limit", _limit("limit"), unit=NUMBER, width=90),
                ],
                "What is left now of the key's limits for requests and tokens per minute, and at "
                "once",
                width=8, sort="Left", ascending=True, nothing="no limits",
            ),
        ]),
    ],
)  # fmt: skip


def _per_hour(metric: str, title: str, shows: str, unit: str, width: int = 12) -> Panel:
    line = Line(f"sum by (model) ({added(metric, '1h', KEY)})", "{{model}}")
    return chart(title, line, shows, unit=unit, interval="1m", width=width)


COST_PER_DAY = chart(
    "Cost per day by model",
    Line(f"sum by (model) ({added(COST, '1d', KEY, ahead=True)})", "{{model}}"),
    "What was spent in each day (UTC), one model on top of the other",
    more="The last bar still grows.",
    unit=USD, bars=True, stacked=True, interval="1d", days=30, width=10,
)  # fmt: skip


MODELS = rows(
    "Models, this month",
    [
        Column("Model", label="model", width=150),
        *cost_columns("model", MONTH, KEY),
    ],
    "What the key used each model for this month",
    sort="Cost", month=0,
)  # fmt: skip

USE = Section(
    "What it used",
    [
        Row(8, [
            COST_PER_DAY,
            _per_hour(COST, "Cost per hour by model", "At each moment: the cost of the hour before it", USD, 10),
            kinds(4, KEY),
        ]),
        Row(7, [MODELS]),
        Row(8, [
            _per_hour(CALLS, "Calls per hour by model", "At each moment: the calls of the hour before it", NUMBER),
            _per_hour(TOKENS, "Tokens per hour by model", "At each moment: the tokens of the hour before it", SHORT),
        ]),
    ],
)  # fmt: skip

_NOT = KEY + ', outcome!="completed"'
_GOOD = KEY + ', outcome="completed"'
WRONG = Section(
    "What went wrong, and how fast it was",
    [
        Row(8, [
            chart(
                "Outcomes",
                [
                    Line(f"sum by (outcome) ({added(CALLS, '$__interval', _NOT)})", "{{outcome}}"),
                    Line(f"sum by (outcome) ({added(CALLS, '$__interval', _GOOD)})", "{{outcome}}"),
                ],
                "How the key's calls ended, between two points; what was not answered at the bottom",
                bars=True, stacked=True, interval="5m", width=8,
                colours=RED | {"/^completed/": "green"},
            ),
            chart(
                "Refusals by reason",
                Line(f"sum by (reason) ({added('api_key_rejections', '$__interval', KEY)})", "{{reason}}"),
                "Calls that the gateway refused: the error code that the caller got",
                bars=True, stacked=True, interval="5m", width=8, nothing="nothing was refused",
            ),
            chart(
                "Latency, mean",
                [
                    Line(mean("api_key_request_duration_seconds", "api_key", KEY), "to the last byte"),
                    Line(mean("api_key_time_to_first_token_seconds", "api_key", KEY), "to the first token"),
                ],
                "How long the key's answers take, and how long its streams take to begin",
                more="The time at the provider: Gateway Health has it by model.",
                unit=SECONDS, interval="1m", width=8,
            ),
        ]),
    ],
)  # fmt: skip

BOARD = Board(
    uid="one-key",
    title="One Key",
    description="Everything about one key: what it costs, its budget and limits, what it used, "
    "and what went wrong. A click on a key anywhere leads here.",
    span="24h",
    refresh="30s",
    timezone="utc",
    variables=[
        Variable(
            "api_key", "Key", 'label_values(api_key_requests_total{api_key!="none"}, api_key)',
            "The key that is shown.", several=False,
        ),
    ],
    sections=[SUMMARY, USE, WRONG],
)  # fmt: skip
