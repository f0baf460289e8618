"""The whole stack at work: four workers, the simulator, mixed traffic and a real Prometheus.

Every query that is shipped is run, macros and variables filled in: none is empty, none errs. The
sums by key are those of the simulator's own books, and a restart of the gateway changes nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
from monitoring.stack import (
    ROOT,
    Prometheus,
    Query,
    dashboards,
    demo_config,
    filled,
    queries,
    rules,
    traffic,
)

from harness.gateway import Gateway
from harness.poll import eventually
from harness.programs import require
from harness.simulator import Simulator
from tools.dashboards import queries as queries_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EVERYTHING = {"api_key": ".*", "provider": ".*", "model": ".*"}
ONE = {"api_key": "demo-web-app"}
# Prometheus' own series, and those of `reconcile`, which another exporter reads from its file; all
# others are the gateway's or recorded from them.
OWN = {"up", "scrape_duration_seconds", "ALERTS"}
RECONCILED = {"ledger_drift_ratio", "ledger_reconciled_timestamp_seconds"}
# Of limits and single keys: asked only where the gateway has them.
LIMITS = re.compile(
    r"\b(limit(_used|_remaining)?|api_key_(info|\w+_timestamp_seconds)|event_loop_\w+"
    r"|model_shutdown_timestamp_seconds)\b"
)
# What the demo's traffic does not cause; the queries are run all the same.
QUIET = {
    "Limited keys by reason",
    "Refusals by reason",
    "Failovers and cooldowns",
    "Expires in",  # another key does
    "Paid for, by key, this month (C)",  # no provider there writes to a cache for money
}
ONCE, OTHERS = 'api_key="once"', 'api_key!="once"'
RANGES = ("1h", "24h", "30d")


class Stack(NamedTuple):
    gateway: Gateway
    simulator: Simulator
    prometheus: Prometheus
    busy: float  # a moment (Unix time) in the last seconds of the traffic
    exposed: frozenset[str]  # the names of the gateway's samples, after the traffic


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with (
        Simulator() as simulator,
        Gateway(demo_config(simulator.url), workers=4) as gateway,
        Prometheus(f"127.0.0.1:{gateway.port}") as prometheus,
    ):
        # The rules take a counter for a new one if its gateway was there 20 s before.
        eventually(lambda: prometheus.query("up{job='wrapper'} offset 20s == 1"), deadline=90)
        traffic(gateway.url, gateway.keys_file, "--seconds", "12", "--rate", "8", "--threads", "20")
        busy = time.time() - 1
        exposed = frozenset(sample.name for sample in gateway.metrics().samples)
        yield Stack(gateway, simulator, prometheus, busy, exposed)


def at(stack: Stack, expr: str) -> list[float]:
    """The query's values now; of what stands at the beginning of its day, then; of rates over
    seconds, at the end of the traffic.
    """
    now = stack.busy if "[20s]" in expr else time.time()
    moment = now // 86400 * 86400 if "offset -1d" in expr else now
    vector = stack.prometheus.api("query", query=expr, time=moment)["result"]
    return [float(sample["value"][1]) for sample in vector]


def chosen(query: Query) -> dict[str, str]:
    return ONE if query.dashboard == "one-key" else EVERYTHING


def names(expr: str) -> set[str]:
    """The metrics that a query names."""
    text = re.sub(r'"(?:[^"\\]|\\.)*"', " ", expr)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|on|without|ignoring|group_left)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\boffset\s+-?\w+|\b\d\w*", " ", text)
    words = re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", text)
    return {w for w in words if w not in {"or", "and", "unless", "offset", "bool"}} - {"s", "m"}


ids = [f"{q.dashboard}: {q.panel} ({q.ref})" for q in queries()]


@pytest.mark.parametrize("query", queries(), ids=ids)
def test_a_panels_query_gives_numbers_over_an_hour_a_day_and_a_month(
    stack: Stack, query: Query
) -> None:
    expr = filled(query.expr, chosen(query), "1h")
    for range_ in RANGES:
        at(stack, filled(query.expr, chosen(query), range_))
    if {query.panel, f"{query.panel} ({query.ref})"} & QUIET or missing(stack, expr):
        return
    # The last minutes of a chart may have none of a kind.
    over = re.sub(r"\[1m\]", "[10m]", expr)
    values = eventually(lambda: at(stack, over), 60, what="data")
    assert any(value == value for value in values), "only NaN"


def missing(stack: Stack, expr: str) -> bool:
    """Whether the query is about something that this gateway does not count."""
    asked = {found[0] for found in LIMITS.finditer(expr)}
    return bool(asked - stack.exposed)


@pytest.mark.parametrize("query", queries(), ids=ids)
def test_a_panels_query_takes_a_choice_of_several_keys(stack: Stack, query: Query) -> None:
    choice = {
        "api_key": "(demo-web-app|demo-reports)",
        "provider": "(simulated-groq)",
        "model": "(gpt-6-sol|x)",
    }
    at(stack, filled(query.expr, choice))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("record") or rule["alert"])
def test_a_rule_is_evaluated_and_a_recorded_one_gives_numbers(
    stack: Stack, rule: dict[str, str]
) -> None:
    stack.prometheus.query(rule["expr"])
    if "record" in rule:
        recorded = f"last_over_time({rule['record']}[10m])"
        eventually(lambda: stack.prometheus.query(recorded), deadline=90, what=rule["record"])


def test_every_rule_is_healthy(stack: Stack) -> None:
    groups = stack.prometheus.api("rules")["groups"]
    unhealthy = {
        r["name"]: r["lastError"] for g in groups for r in g["rules"] if r["health"] == "err"
    }
    assert unhealthy == {}
    assert stack.prometheus.log() == ""


def test_every_variable_has_values(stack: Stack) -> None:
    for dashboard in dashboards():
        for variable in dashboard["templating"]["list"]:
            query = variable["query"]["query"]
            parts = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
            assert parts, query
            series = filled(parts[1], EVERYTHING)
            values = stack.prometheus.api(f"label/{parts[2]}/values", **{"match[]": series})
            assert values, query


def test_every_metric_that_is_named_exists_in_a_live_scrape(stack: Stack) -> None:
    exposed = {sample.name for sample in stack.gateway.metrics().samples}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    texts = [filled(q.expr, EVERYTHING) for q in queries()] + [rule["expr"] for rule in rules()]
    texts += [event["expr"] for d in dashboards() for event in d["annotations"]["list"]]
    named = {name for text in texts for name in names(text)}
    named = {name for name in named if not LIMITS.fullmatch(name)} | (named & exposed)
    buckets = {name for name in named if LIMITS.match(name)}
    assert named - buckets - exposed - recorded - OWN - RECONCILED == set()
    assert {name for name in recorded if name not in named} == set()


def test_the_readme_describes_every_metric_of_a_live_scrape_with_its_labels(stack: Stack) -> None:
    readme = (ROOT / "prometheus" / "README.md").read_text()
    rows = [line.split("|") for line in readme.splitlines() if re.match(r"\| `\w+`", line)]
    described = {
        name: set(re.findall(r"`(\w+)`", row[3]))
        for row in rows
        if len(row) == 5
        for name in re.findall(r"`(\w+)`", row[1])
    }
    for sample in stack.gateway.metrics().samples:
        name = re.sub(r"_(bucket|sum|count|created)$", "", sample.name)
        assert described.get(name) == set(sample.labels) - {"le"}, name


def test_the_totals_by_key_are_those_of_the_providers_books(stack: Stack) -> None:
    books: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in stack.simulator.books():
        for kind in ("prompt", "completion", "total", "cached"):
            books[kind][line["book"]] += line[kind]
    for kind, metric in {
        "prompt": "token_usage_prompt_total",
        "completion": "token_usage_completion_total",
        "total": "token_usage_total",
        "cached": "token_usage_cached_total",
    }.items():
        counted = f"sum by (api_key) ({metric}) > 0"
        expected = {key: tokens for key, tokens in books[kind].items() if tokens}
        assert len(expected) >= 4
        eventually(
            partial(agree, stack.prometheus, counted, expected),
            deadline=60,
            what=f"{counted} == {expected}",
        )


def agree(prometheus: Prometheus, expr: str, expected: dict[str, float]) -> bool:
    return prometheus.sums(expr, "api_key") == expected


@pytest.mark.parametrize("range_", RANGES)
def test_the_tables_totals_are_those_of_the_providers_books(stack: Stack, range_: str) -> None:
    """Exactly, whatever the time: nothing is extrapolated, and no first value is missing."""
    books: dict[str, float] = defaultdict(float)
    for line in stack.simulator.books():
        books[line["book"]] += line["total"]
    expected = {key: tokens for key, tokens in books.items() if tokens}
    total = f"sum by (api_key) ({queries_of.grown('token_usage', range_, OTHERS)}) > 0"
    bars = f"sum by (api_key) ({queries_of.added('token_usage', range_, OTHERS)})"
    for counted in (total, bars):
        eventually(partial(agree, stack.prometheus, counted, expected), 60, what=counted)


def test_a_month_is_compared_from_a_few_samples_of_each_counter(stack: Stack) -> None:
    """Not from all that lie between, which would be half a million of each."""
    expr = f"sum({queries_of.grown('token_usage', '30d', '')})"
    data = stack.prometheus.api("query", query=expr, stats="all")
    series = float(stack.prometheus.query("count(token_usage_total)")[0]["value"][1])
    assert data["stats"]["samples"]["totalQueryableSamples"] <= 4 * series


def test_a_native_histogram_has_the_quantiles_of_the_classic_one(stack: Stack) -> None:
    if stack.prometheus.version < 3:
        pytest.skip("Prometheus 2 does not convert histograms")
    name, by_path = "http_request_duration_seconds", 'path="/v1/chat/completions"'
    for metric, chosen in ((name, by_path), ("gen_ai_server_request_duration_seconds", "")):
        native = f"histogram_quantile(0.9, sum({metric}{{{chosen}}}))"
        classic = f"histogram_quantile(0.9, sum by (le) ({metric}_bucket{{{chosen}}}))"
        found = eventually(partial(stack.prometheus.query, native), 20, what=native)
        expected = stack.prometheus.query(classic)
        value, other = (float(each[0]["value"][1]) for each in (found, expected))
        assert value == pytest.approx(other)


def test_the_annotations_are_queries(stack: Stack) -> None:
    for dashboard in dashboards():
        for event in dashboard["annotations"]["list"]:
            stack.prometheus.query(filled(event["expr"], EVERYTHING))


def test_the_sums_over_a_time_count_a_keys_first_call_too(stack: Stack) -> None:
    """Counted as the dashboards do; `increase` alone has no second sample to compare with."""
    gateway, prometheus = stack.gateway, stack.prometheus
    body = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "Hello"}]})
    answer = requests.post(
        f"{gateway.url}/v1/chat/completions",
        data=body,
        headers={
            "Authorization": f"Bearer {gateway.key('once')}",
            "x-sim": "prompt=700; completion=70",
        },
        timeout=10,
    )
    assert answer.status_code == 200
    alone = 'sum(increase(token_usage_total{api_key="once"}[1h]))'
    eventually(lambda: prometheus.query(alone), deadline=20)
    assert prometheus.sums(alone, "") == {"": 0.0}
    whole = f"sum({queries_of.grown('token_usage', '1h', ONCE)})"
    eventually(lambda: prometheus.sums(whole, "") == {"": 770.0}, deadline=10)


def test_the_traffic_raises_the_alerts_it_should_and_no_others(stack: Stack) -> None:
    firing = eventually(
        lambda: stack.prometheus.sums('ALERTS{alertstate="firing"}', "alertname"), deadline=15
    )
    assert set(firing) == {"UnpricedModel"}


def test_the_pictures_of_the_documentation_can_be_drawn(stack: Stack, tmp_path: Path) -> None:
    require("chromium", "google-chrome")
    command = [sys.executable, str(ROOT / "tools" / "render_dashboards.py")]
    subprocess.run(
        [*command, "--prometheus", stack.prometheus.url, "--range", "5m", "--out", str(tmp_path)],
        check=True,
        timeout=110,
    )
    for dashboard in dashboards():
        picture = (tmp_path / f"{dashboard['uid']}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 20_000


def test_a_restart_of_the_gateway_changes_no_sum(stack: Stack) -> None:
    prometheus, gateway = stack.prometheus, stack.gateway
    exact = "sum by (api_key) (token_usage_total)"
    week = f"sum by (api_key) ({queries_of.grown('token_usage', '7d', '')})"
    before, over_week = prometheus.sums(exact, "api_key"), prometheus.sums(week, "api_key")
    gateway.stop()
    eventually(lambda: prometheus.query('up{job="wrapper"} == 0'), deadline=15)
    assert prometheus.sums(exact, "api_key") == {}
    # Nor is anything shown as open, or as well.
    stats = {q.panel: filled(q.expr, EVERYTHING) for q in queries() if q.instant}
    assert prometheus.query(stats["In flight"]) == []
    assert "no alert" not in prometheus.sums(stats["Is it healthy?"], "alertname")
    gateway.restart()
    # Long enough that a counter could be taken for a new one.
    eventually(lambda: prometheus.query('min_over_time(up{job="wrapper"}[13s]) == 1'), deadline=40)
    # A value lower by the last bit would be a reset to Prometheus, and count twice from then on.
    seeded = (
        "token_usage_total|token_usage_prompt_total|api_key_requests_total|api_key_cost_usd_total"
    )
    fallen = {name: prometheus.query(f"resets({name}[10m]) > 0") for name in seeded.split("|")}
    assert not any(fallen.values()), fallen
    after = prometheus.sums(exact, "api_key")
    assert {key: tokens for key, tokens in after.items() if tokens} == before
    assert prometheus.sums(week, "api_key") == over_week
