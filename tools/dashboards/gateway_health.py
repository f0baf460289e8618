"""Gateway Health: what is wrong now and what to do, errors, providers, speed, the workers."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import yaml

from tools.dashboards.board import Board, Event, Row, Section, Variable
from tools.dashboards.parts import (
    KEY_LINK,
    NUMBER,
    PERCENT,
    SECONDS,
    SHORT,
    Column,
    Line,
    Panel,
    chart,
    heat,
    number,
    rows,
    words,
)
from tools.dashboards.queries import ALERTS, FIRING, PROVIDERS, added, average, mean

RULES = Path(__file__).resolve().parents[2] / "prometheus" / "rules" / "alerts.yml"
PAIRS = f'{PROVIDERS}, model=~"$model"'
ONLY_KEY = 'api_key=~"$api_key"'
TO_KEY = (KEY_LINK[0], KEY_LINK[1] + "${__field.labels.api_key}")
UP = 'min(up{job="wrapper"} == 1)'
FAILED = {"/5..|upstream_error|drained/": "red", "/4..|client_error|rejected/": "orange"}
GOOD = {"/^(2|3)..$/": "green", "/^completed$/": "green"}


def advice() -> dict[str, str]:
    """What to do about each alert, from the alerts' own annotations."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {
        rule["alert"]: rule["annotations"]["do"]
        for group in groups
        for rule in group["rules"]
        if "alert" in rule
    }


def _what(which: str = ALERTS, state: str = "alertstate, ") -> str:
    """An alert's subject in one label: the provider and model, the key, the budget, the gateway."""
    alerts = f"max by (alertname, severity, alertstate, provider, model, api_key, name, instance) ({which})"
    subject = (
        f'label_join({alerts}, "about", " ", "provider", "model", "api_key", "name", "instance")'
    )
    # As labels and not as mappings of values: Grafana measures a row's height by the values.
    advised = subject
    for name, text in advice().items():
        if "$" in text:
            raise ValueError(f"{name}: a dollar sign is a reference in label_replace")
        quoted = json.dumps(text, ensure_ascii=False)
        advised = f'label_replace({advised}, "todo", {quoted}, "alertname", "{name}")'
    return f"sum by (severity, {state}alertname, about, todo) ({advised})"


_SEVERITY = Column(
    "Severity", label="severity", width=75, fixed=True,
    texts={"critical": ("critical", "red"), "warning": ("warning", "orange")},
)  # fmt: skip
TO_DO = rows(
    "What to do",
    [
        _SEVERITY,
        Column("Alert", label="alertname", width=165, fixed=True),
        Column("About", label="about", width=150, fixed=True, wrap=True),
        Column("What to do", label="todo", width=380, wrap=True),
        Column("#", _what(FIRING, ""), unit=NUMBER, width=30),
    ],
    "The alerts that fire, each with what to do; critical ones first",
    more="Gateway Health says more.",
    sort="Severity", ascending=True, nothing="Nothing is wrong.",
)  # fmt: skip
WRONG_NOW = rows(
    "What is wrong now",
    [
        _SEVERITY,
        Column("State", label="alertstate", width=65, fixed=True),
        Column("Alert", label="alertname", width=165, fixed=True),
        Column("About", label="about", width=150, fixed=True, wrap=True),
        Column("What to do", label="todo", width=380, wrap=True),
        Column("#", _what(), unit=NUMBER, width=30),
    ],
    "Alerts that fire, and pending ones that will if it goes on, each with what to do",
    more="prometheus/README.md describes each.",
    sort="State, Severity", ascending=True, nothing="Nothing is wrong.",
)  # fmt: skip


def _budget_left() -> str:
    """The part of the 1 % that may fail in 30 days which has not failed yet."""
    accepted = "sum_over_time(wrapper:accepted:grown15s[30d])"
    failed = f"(sum_over_time(wrapper:failed:grown15s[30d]) or 0 * {accepted})"
    return f"1 - {failed} / {accepted} / 0.01"


TILES = [
    Row(
        4,
        [
            number(
                "Gateway", 'min(up{job="wrapper"}) or vector(0)',
                "Whether every gateway answers Prometheus",
                steps=((None, "red"), (1, "green")), unit="none",
                shown={"0": ("Down", "red"), "1": ("Up", "green")}, filled=True, width=4,
            ),
            number(
                "Answered, 5 min", "1 - wrapper:failures:ratio_rate5m",
                "Of the accepted calls, those that did not fail through the provider or the gateway",
                steps=((None, "red"), (0.9, "orange"), (0.99, "green")), unit=PERCENT, width=5,
            ),
            number(
                "Budget, 30 d", _budget_left(),
                "What is left of the errors that 30 days may have (1 % of the accepted calls)",
                more="Below 0: more failed than should.",
                steps=((None, "red"), (0, "orange"), (0.25, "green")), unit=PERCENT, width=5,
            ),
            number(
                "First token p95", "wrapper:time_to_first_token_seconds:p95_5m",
                "95 of 100 streams of the last 5 minutes began faster than this",
                steps=((None, "green"), (2.5, "orange"), (10, "red")), unit=SECONDS, width=5,
            ),
            number(
                "Overhead p95", "wrapper:overhead_seconds:p95_5m",
                "What the gateway itself added, for 95 of 100 requests of the last 5 minutes",
                steps=((None, "green"), (0.05, "orange"), (0.25, "red")), unit=SECONDS, width=5,
            ),
        ],
    ),
    Row(
        4,
        [
            number(
                "In flight", 'sum(requests_in_flight{job="wrapper"})',
                "Requests open now, over all workers", width=4,
            ),
            number(
                "Failovers, 1 h",
                f"sum({added('failovers', '1h', PROVIDERS)}) or 0 * {UP}",
                "Requests of the last hour that went on to the next target of their route",
                steps=((None, "green"), (1, "orange")), width=5,
            ),
            number(
                "Cooldowns", f"sum(max by (provider) (provider_cooldown{{{PROVIDERS}}}))",
                "Providers that keep failing now and are asked last in their routes",
                steps=((None, "green"), (1, "orange")), width=5,
            ),
            number(
                "Keys limited",
                "count(sum by (api_key) (" + added(
                    "api_key_rejections", "15m",
                    'api_key!="none", reason=~"rate_limit_exceeded|insufficient_quota"',
                ) + f") > 0) or 0 * {UP}",
                "Keys that reached a limit or budget in the last 15 minutes",
                steps=((None, "green"), (1, "orange")), width=5,
            ),
            number(
                "Restarts, 1 d", 'sum(increase(worker_restarts_total{job="wrapper"}[1d]))',
                "Workers that exited and were replaced in the last day",
                more="A restart of the whole gateway is not in it.",
                steps=((None, "green"), (1, "orange")), width=5,
            ),
        ],
    ),
]  # fmt: skip


def _requests(label: str, series: str) -> Panel:
    return chart(
        f"Requests per second by {label}",
        Line(f"{average(series)} > 0", "{{method}} {{path}}"),
        "By the route's pattern, health checks and scrapes too",
        unit="reqps", interval="15s", width=8,
    )  # fmt: skip


_STATUS = "status:http_requests:rate1m"
_OUTCOMES = 'api_key=~"$api_key", ' + PAIRS
NAMED = ', provider!="none"'
LIMITED = 'api_key=~"$api_key", reason=~"rate_limit_exceeded|insufficient_quota"'
TRAFFIC = Section(
    "Traffic",
    [
        Row(8, [
            chart(
                "Requests per second by status",
                [
                    Line(average(_STATUS, 'status=~"5.."'), "{{status}}"),
                    Line(average(_STATUS, 'status=~"4.."'), "{{status}}"),
                    Line(average(_STATUS, 'status!~"4..|5.."'), "{{status}}"),
                ],
                "As callers saw them, errors at the bottom",
                unit="reqps", stacked=True, interval="15s", width=8, colours=FAILED | GOOD,
            ),
            chart(
                "Outcomes",
                [
                    Line(f"sum by (outcome) ({added('api_key_requests', '$__interval', _OUTCOMES + _OTHER)})", "{{outcome}}")
                    for _OTHER in (', outcome!="completed"', ', outcome="completed"')
                ],
                "How calls ended, between two points; what was not answered at the bottom",
                bars=True, stacked=True, interval="1m", width=8, colours=FAILED | GOOD,
            ),
            _requests("path", "method_path:http_requests:rate1m"),
        ]),
        Row(8, [
            chart(
                "In flight and its limits",
                [
                    Line('sum by (instance) (requests_in_flight{job="wrapper"})', "{{instance}}"),
                    Line('max by (name) (limit{scope="provider", kind="concurrency"})', "limit of {{name}}"),
                ],
                "Requests that are open, over all workers, beside the limits of the providers",
                interval="15s", width=8,
            ),
            chart(
                "Error budget",
                [
                    Line(average("wrapper:failures:ratio_rate5m"), "5 minutes"),
                    Line(average("wrapper:failures:ratio_rate1h"), "1 hour"),
                    Line(average("wrapper:failures:ratio_rate6h"), "6 hours"),
                ],
                "The part of the accepted calls that failed through no fault of the caller",
                more="The dashed line is the 1 % that may fail.",
                unit=PERCENT, limit=0.01, soft_max=0.02, interval="15s", width=8,
            ),
            chart(
                "Tokens per second by model",
                Line(
                    f"sum by (model) ({added('token_usage', '$__interval', PAIRS)})"
                    " * 1000 / $__interval_ms", "{{model}}",
                ),
                "Prompt and completion", unit=SHORT, interval="1m", width=8,
            ),
        ]),
    ],
)  # fmt: skip

_RATIO = f"provider:upstream_errors:ratio5m{{{PROVIDERS}}}"
PROVIDER = Section(
    "Providers",
    [
        Row(8, [
            chart(
                "Provider failures", Line(f"max_over_time({_RATIO}[$__interval])", "{{provider}}"),
                "Of the attempts at a provider in 5 minutes, the part it failed",
                more="At the dashed line ProviderFailing begins to count.",
                unit=PERCENT, limit=0.2, soft_max=0.25, interval="15s", width=8,
            ),
            chart(
                "Provider errors by reason",
                Line(f"sum by (provider, reason) ({added('upstream_errors', '$__interval', PROVIDERS)})", "{{provider}}: {{reason}}"),
                "Failed attempts between two points", more="The section The requests behind it "
                "finds their request ids.",
                bars=True, stacked=True, interval="1m", width=8, nothing="no errors",
            ),
            chart(
                "Failovers and cooldowns",
                [
                    Line(f"sum by (provider, reason) ({added('failovers', '$__interval', PROVIDERS)})", "after {{provider}}: {{reason}}"),
                    Line(f"max by (provider) (max_over_time(provider_cooldown{{{PROVIDERS}}}[$__interval])) > 0", "{{provider}} asked last"),
                ],
                "Requests that went on to the next target, by what failed before; and when a "
                "provider kept failing and was asked last (cooldown_seconds)",
                bars=True, interval="1m", width=8, nothing="none",
            ),
        ]),
        Row(8, [
            chart(
                "Calls by provider",
                Line(f"sum by (provider) ({added('api_key_requests', '$__interval', _OUTCOMES + NAMED)})", "{{provider}}"),
                "Which provider answered the calls between two points",
                bars=True, stacked=True, interval="1m", width=12,
            ),
            chart(
                "Limited keys by reason",
                Line(f"sum by (api_key, reason) ({added('api_key_rejections', '$__interval', LIMITED)})", "{{api_key}}: {{reason}}"),
                "Refusals because a key has reached a limit or its budget",
                bars=True, stacked=True, interval="5m", width=12, nothing="no key was limited",
                to=TO_KEY,
            ),
        ]),
    ],
)  # fmt: skip


def _quantiles(series: str, quantiles: str, name: str, chosen: str = "") -> list[Line]:
    return [Line(average(f"{series}:{q}", chosen), name.format(q=q[:3])) for q in quantiles.split()]


SPEED = Section(
    "Speed",
    [
        Row(9, [
            chart(
                "Time to first token by provider",
                _quantiles("provider:time_to_first_token_seconds", "p95_5m p50_5m",
                           "{{{{provider}}}} {q}", PROVIDERS),
                "From the call to the first piece of the answer, over 5 minutes",
                unit=SECONDS, interval="15s", width=8,
            ),
            chart(
                "Time to first token by model",
                _quantiles("provider_model:time_to_first_token_seconds", "p50_5m",
                           "{{{{model}}}} ({{{{provider}}}})", PAIRS),
                "Half of the answers began faster, over 5 minutes",
                unit=SECONDS, interval="15s", width=8,
            ),
            chart(
                "Time per output token by model",
                _quantiles("provider_model:time_per_output_token_seconds", "p50_15m",
                           "{{{{model}}}} ({{{{provider}}}})", PAIRS),
                "After the first token: the time between two, for half of the answers of 15 minutes",
                unit=SECONDS, interval="15s", width=8,
            ),
        ]),
        Row(8, [
            chart(
                "Latency by model, mean",
                Line(mean("provider_model:request_duration_seconds", "provider, model", PAIRS), "{{model}} ({{provider}})"),
                "From sending a call to the last byte of its answer",
                unit=SECONDS, interval="1m", width=8,
            ),
            chart(
                "Latency by key, mean",
                Line(mean("api_key_request_duration_seconds", "api_key", ONLY_KEY), "{{api_key}}"),
                "From sending a call to the last byte of its answer",
                more="A key whose line is alone far above asks for longer answers or slower models: "
                "a click shows which.",
                unit=SECONDS, interval="1m", width=8, to=TO_KEY,
            ),
            chart(
                "First token by key, mean",
                Line(mean("api_key_time_to_first_token_seconds", "api_key", ONLY_KEY), "{{api_key}}"),
                "From sending a call to the first piece of its answer, streams only",
                unit=SECONDS, interval="1m", width=8, to=TO_KEY,
            ),
        ]),
        Row(9, [
            heat(
                "Duration of model calls",
                Line("sum by (le) (sum_over_time(wrapper:model_request_duration_seconds_bucket:increase15s[$__interval]))", "{{le}}"),
                "Each column is a moment, each row a duration, stronger where more calls ended",
            ),
            chart(
                "Duration of requests",
                _quantiles("wrapper:request_duration_seconds", "p99_5m p95_5m p50_5m", "{q}"),
                "To the last byte, streams too: half, 95 and 99 of 100 requests of 5 minutes were "
                "faster",
                unit=SECONDS, interval="15s",
            ),
        ]),
    ],
)  # fmt: skip

ITSELF = Section(
    "The gateway itself",
    [
        Row(8, [
            chart(
                "Overhead", _quantiles("wrapper:overhead_seconds", "p99_5m p95_5m p50_5m", "{q}"),
                "What the gateway adds to a request, the provider's and the caller's time taken out",
                unit=SECONDS, interval="15s", width=8,
            ),
            chart(
                "Memory of the workers",
                Line('gateway_worker_resident_memory_bytes{job="wrapper"}', "{{instance}} {{worker}}"),
                "Resident memory of each worker",
                unit="bytes", interval="15s", width=8,
            ),
            chart(
                "CPU of the workers",
                Line('rate(gateway_worker_cpu_seconds_total{job="wrapper"}[$__rate_interval])', "{{instance}} {{worker}}"),
                "Of one processor, the part that each worker uses",
                more="A worker near 100 % delays its streams: add workers.",
                unit=PERCENT, limit=0.9, soft_max=1, interval="15s", width=8,
            ),
        ]),
        Row(8, [
            chart(
                "Overhead by path, p95",
                Line(average("path:overhead_seconds:p95_5m"), "{{path}}"),
                "By the route's pattern", unit=SECONDS, interval="15s", width=8,
            ),
            chart(
                "Event loop lag",
                Line(average("wrapper:event_loop_lag_seconds:p99_5m"), "p99"),
                "How late the workers come to what is ready: it delays every stream",
                unit=SECONDS, interval="15s", width=8,
            ),
            chart(
                "Scrapes", Line('scrape_duration_seconds{job="wrapper"}', "{{instance}}"),
                "How long Prometheus waits for /metrics",
                unit=SECONDS, interval="15s", width=8,
            ),
        ]),
    ],
)  # fmt: skip

_PANES = (
    '{"a":{"datasource":"loki","queries":[{"refId":"A","expr":"{container=~\\".*gateway.*\\"}'
    ' | json | status >= 500"}],"range":{"from":"${__from}","to":"${__to}"}}}'
)
LOKI = "/explore?schemaVersion=1&${__url_time_range}&${__all_variables}&panes=" + quote(
    _PANES, safe="${}_"
)
REQUESTS = Section(
    "The requests behind it",
    [
        Row(6, [
            words(
                "From a spike to request ids",
                f"""Drag over the spike in a chart: the commands below then have its time.
The log has a line for each request, with its id and the provider's.

With Docker and `jq`:

```sh
docker compose logs --no-log-prefix --since ${{__from:date:iso}} --until ${{__to:date:iso}} gateway |
  jq -Rr 'fromjson? | select(.status >= 500) |
    [.time, .request_id, .upstream_request_id, .api_key, .endpoint, .provider, .model, .status, .code] | @tsv'
```

[With Loki]({LOKI}): `{{container=~".*gateway.*"}} | json | status >= 500`
(a data source with the uid `loki`; grafana/README.md says more).
""",
                "How to find the requests behind a spike in the log, for jq and for Loki",
            ),
        ]),
    ],
)  # fmt: skip

VARIABLES = [
    Variable(
        "api_key", "Key", "label_values(api_key_requests_total, api_key)",
        "Changes Outcomes, Calls by provider, and what is by key, and which providers can be chosen. "
        "Nothing else here is counted by key.",
    ),
    Variable(
        "provider", "Provider", 'label_values(api_key_requests_total{api_key=~"$api_key"}, provider)',
        "Providers that the chosen keys called. The section The gateway itself, and the section "
        "Traffic but Outcomes and Tokens per second, are over all.",
    ),
    Variable(
        "model", "Model",
        'label_values(api_key_requests_total{api_key=~"$api_key", provider=~"$provider"}, model)',
        "Models that answered the chosen keys. Changes what is by model, Outcomes and Calls by "
        "provider.",
    ),
]  # fmt: skip

EVENTS = [
    Event(
        "Reloads", 'changes(config_last_reload_timestamp_seconds{job="wrapper"}[1m]) > 0',
        "Configuration reloaded", "blue",
    ),
    Event(
        "Starts", 'gateway_build_info{job="wrapper"} unless gateway_build_info{job="wrapper"} offset 1m',
        "Gateway started, version {{version}}", "green",
    ),
    Event("Alerts", f'{FIRING[:-1]}, severity="critical"}}', "{{alertname}}", "red"),
]  # fmt: skip

BOARD = Board(
    uid="gateway-health",
    title="Gateway Health",
    description="Whether the gateway and the providers behind it do what they should: the alerts "
    "with what to do about them, errors, limits, speed, and the gateway's workers.",
    span="1h",
    refresh="10s",
    variables=VARIABLES,
    sections=[
        Section("", [Row(8, [WRONG_NOW]), *TILES]),
        TRAFFIC, PROVIDER, SPEED, ITSELF, REQUESTS,
    ],
    events=EVENTS,
)  # fmt: skip
