"""PromQL that several panels share. prometheus/README.md explains the recorded series."""

from __future__ import annotations

import re

CHOSEN = 'api_key=~"$api_key", provider=~"$provider", model=~"$model"'
"""What is chosen at the top of API Key Metrics."""
ALERTS = 'ALERTS{component="llm-gateway"}'
FIRING = 'ALERTS{component="llm-gateway", alertstate="firing"}'
PROVIDERS = 'provider=~"$provider"'


def grown(metric: str, window: str, chosen: str = CHOSEN) -> str:
    """How much each counter of the ledger grew in `window`, exactly, first values included."""
    now = f"{metric}_total{{{chosen}}}"
    before = f"{now} offset {window} or min_over_time({metric}:base{{{chosen}}}[{window}])"
    return f"({now} - ({before}))"


def added(metric: str, window: str, chosen: str = CHOSEN, *, ahead: bool = False) -> str:
    """What was added in each window of a chart, from the parts of a quarter of a minute.

    `ahead`: the window begins at the point, so that a day's bar stands at its own date and grows.
    """
    inside = f"{{{chosen}}}" if chosen else ""
    shift = f" offset -{window}" if ahead else ""
    return f"sum_over_time({metric}:grown15s{inside}[{window}]{shift})"


def mean(metric: str, labels: str, chosen: str) -> str:
    """The mean of a summary or histogram between two points of a chart, by `labels`."""
    total, count = (added(f"{metric}_{part}", "$__interval", chosen) for part in ("sum", "count"))
    return f"sum by ({labels}) ({total}) / sum by ({labels}) ({count})"


def average(series: str, chosen: str = "") -> str:
    """The mean of a recorded series between two points of a chart, so that none is skipped."""
    inside = f"{{{chosen}}}" if chosen else ""
    return f"avg_over_time({series}{inside}[$__interval])"


def remaining_days() -> str:
    """Days until the month (UTC) ends."""
    return "(days_in_month() - day_of_month() + 1 - hour() / 24 - minute() / 1440)"


def forecast(metric: str, chosen: str = CHOSEN) -> str:
    """The month so far, and the pace of the last seven days for the rest of it."""
    so_far = f"sum({grown(metric, '$__range', chosen)})"
    week = f"sum({grown(metric, '7d', chosen)})"
    return f"{so_far} + {week} / 7 * {remaining_days()}"


def short(expr: str) -> str:
    """The query as grafana/README.md shows it: with the notation that is explained there."""
    expr = re.sub(
        r"\((\w+)_total(\{[^}]*\}) - \(\1_total\2 offset (\S+) or "
        r"min_over_time\(\1:base\2\[\3\]\)\)\)",
        r"grown(\1\2[\3])",
        expr,
    )
    expr = re.sub(r', "todo", "(?:[^"\\]|\\.)*", "alertname", "\w+"\)', "", expr)
    expr = re.sub(r"(label_replace\()+(label_join\(max by \(alertname.*\))", r"advised(\2", expr)
    expr = re.sub(r"sum_over_time\((\w+):grown15s", r"added(\1", expr)
    expr = expr.replace(CHOSEN, "…").replace(remaining_days(), "{days left}")
    expr = expr.replace('{api_key="$api_key"', "{key").replace('component="llm-gateway"', "ours")
    expr = re.sub(r"\s+", " ", expr)
    return expr.replace('job="wrapper", path!~"/metrics|/healthz|/readyz"', "calls")
