"""API Key Metrics: who spends how much on what, this month, and what is left of the budgets."""

from __future__ import annotations

from tools.dashboards.board import Board, Row, Section, Variable
from tools.dashboards.gateway_health import TO_DO
from tools.dashboards.parts import (
    HEALTH_LINK,
    KEY_LINK,
    NUMBER,
    PERCENT,
    SECONDS,
    SHORT,
    USD,
    Column,
    Line,
    Panel,
    bars,
    chart,
    number,
    rows,
)
from tools.dashboards.queries import CHOSEN, FIRING, PROVIDERS, added, average, forecast, grown

COST, CALLS, TOKENS = "api_key_cost_usd", "api_key_requests", "token_usage"
KINDS, BOUNDED = "api_key_cost_by_kind_usd", "api_key_cost_bounded_usd"
PROMPT, COMPLETION, CACHED = (f"token_usage_{kind}" for kind in ("prompt", "completion", "cached"))
WITH_KEY = f'{CHOSEN}, api_key!="none"'
COMPLETED = f'{CHOSEN}, outcome="completed"'
NOT_COMPLETED = f'{CHOSEN}, outcome!="completed"'
PAIRS = f'{PROVIDERS}, model=~"$model"'
ONLY_KEY = 'api_key=~"$api_key"'
BY_KEY = (KEY_LINK[0], KEY_LINK[1] + "${__field.labels.api_key}")
BY_ROW = (KEY_LINK[0], KEY_LINK[1] + "${__data.fields.Key}")
MONTH = "$__range"
HALVES = ((None, "red"), (0.1, "orange"), (0.25, "green"))
ANSWERED = ((None, "red"), (0.95, "orange"), (0.99, "green"))
RED = {"/^(5..|upstream_error|drained)/": "red", "/^(4..|client_error|rejected)/": "orange"}


def by(labels: str, expr: str) -> str:
    """The sum by labels, without the rows of what was not used."""
    return f"sum by ({labels}) ({expr}) > 0"


def group_of(expr: str) -> str:
    """The groups of what is summed by key; `no group` where a key has none or is not known."""
    known = 'max by (api_key, group) (api_key_info{group!=""})'
    grouped = f"({expr}) * on (api_key) group_left (group) {known}"
    rest = f'label_replace(({expr}) unless on (api_key) {known}, "group", "no group", "", "")'
    return f"sum by (group) ({grouped} or {rest})"


def costs(labels: str, window: str, chosen: str = CHOSEN) -> list[str]:
    """Cost, calls, cost per call and per million tokens, prompt, cached and completion tokens."""
    cost = by(labels, grown(COST, window, chosen))
    calls = by(labels, grown(CALLS, window, f'{chosen}, api_key!="none"'))
    tokens = by(labels, grown(TOKENS, window, chosen))
    return [
        cost,
        calls,
        f"({cost}) / ({calls})",
        f"1e6 * ({cost}) / ({tokens})",
        *(by(labels, grown(kind, window, chosen)) for kind in (PROMPT, CACHED, COMPLETION)),
    ]


def cost_columns(labels: str, window: str, chosen: str = CHOSEN) -> list[Column]:
    """The columns of `costs`."""
    cost, calls, per_call, per_million, prompt, cached, completion = costs(labels, window, chosen)
    return [
        Column("Cost", cost, unit=USD, width=140, bar="blue"),
        Column("Calls", calls, unit=NUMBER, width=80),
        Column("Per call", per_call, unit=USD, decimals=4, width=85),
        Column("Per 1M tok.", per_million, unit=USD, width=95),
        Column("Prompt", prompt, unit=SHORT, width=85),
        Column("Cached", cached, unit=SHORT, width=85),
        Column("Completion", completion, unit=SHORT, width=95),
    ]


def answered(labels: str, window: str, chosen: str = CHOSEN) -> str:
    """Of the accepted calls, the part that was answered to its end."""
    good = grown(CALLS, window, f'{chosen}, outcome="completed"')
    all_ = grown(CALLS, window, f'{chosen}, outcome=~"completed|upstream_error|drained"')
    return f"sum by ({labels}) ({good}) / (sum by ({labels}) ({all_}) > 0)"


def budgets(named: str = "") -> list[str]:
    """What is left of each budget as a part of it, what is used, and the budget itself."""
    chosen = f'kind="budget_usd"{named}'
    limit = f"max by (scope, name) (limit{{{chosen}}})"
    left = f"max by (scope, name) (limit_remaining{{{chosen}}})"
    return [f"{left} / {limit}", f"max by (scope, name) (limit_used{{{chosen}}})", limit]


def of_whom(expr: str) -> str:
    """Budgets by one label: what they are of, such as `key web-app`."""
    return f'sum by (of) (label_join({expr}, "of", " ", "scope", "name"))'


def lasts() -> str:
    """The seconds until what is left of each budget is used at the pace of the last 24 hours."""
    day = f"sum by (api_key) ({grown(COST, '24h', ONLY_KEY)})"
    by_key = f'label_replace(label_replace({day}, "name", "$1", "api_key", "(.*)"), "scope", "key", "", "")'
    by_group = f'label_replace(label_replace({group_of(day)}, "name", "$1", "group", "(.*)"), "scope", "group", "", "")'
    spent = f"(sum by (scope, name) ({by_key} or {by_group}) > 0)"
    left = 'max by (scope, name) (limit_remaining{kind="budget_usd"})'
    return f"86400 * {left} / {spent}"


def healthy(width: int = 6) -> Panel:
    """Whether any alert is firing."""
    critical, warning = (f'{FIRING[:-1]}, severity="{s}"}}' for s in ("critical", "warning"))
    worst = f"sort_desc(topk(3, max by (alertname) (2 * {critical} or {warning})))"
    fine = f'0 * min(up{{job="wrapper"}} == 1) unless on () {FIRING}'
    named = f'label_replace({fine}, "alertname", "no alert", "", "")'
    return number(
        "Is it healthy?",
        Line(f"{worst} or {named}", "{{alertname}}"),
        "OK: the gateway answers and no alert is firing",
        more="Otherwise the alerts that fire, three at most, critical ones first. A click leads "
        "to Gateway Health, which says what to do.",
        unit="none",
        width=width,
        steps=((None, "green"), (1, "orange"), (2, "red")),
        shown={
            "0": ("OK", "green"), "1": ("warning", "orange"), "2": ("critical", "red"),
        },
        nothing="no answer",
        filled=True,
        to=HEALTH_LINK,
    )  # fmt: skip


def not_in_cost(width: int) -> Panel:
    """How much the spend leaves out."""
    metered = PROVIDERS + ', reason!~"not_metered_type"'
    unpriced = f"sum({added('unpriced_responses', MONTH, PAIRS)}) or vector(0)"
    unmetered = f"sum({added('unmetered_responses', MONTH, metered)}) or vector(0)"
    return number(
        "Not in cost",
        [
            Line(bounded("high"), "broken off", unit=USD),
            Line(f"({unpriced}) + ({unmetered})", "not priced"),
        ],
        "What the spend leaves out this month: what calls that broke off or were given up cost at "
        "most, and how many answers have no known price or no readable usage",
        more="Answers without usage are in the cost of keys with a budget, as their budget was charged. "
        "Calls that broke off, Answers without a price and Unmetered answers say more. The "
        "second number is of all keys: it is not counted by key.",
        width=width,
        steps=((None, "green"), (0.005, "orange")),
        month=0,
    )


def bounded(bound: str, chosen: str = CHOSEN) -> str:
    """What calls that broke off have cost this month, at least (low) or at most (high)."""
    either = f'{chosen}, bound="{bound}"'
    return f"sum({grown(BOUNDED, MONTH, either)}) or vector(0)"


OTHER = (
    "Other: audio by length, tools, characters, and what a budget was charged for answers whose "
    "use could not be read."
)


def kinds(width: int, chosen: str) -> Panel:
    """What the cost is for: the kinds of tokens, in dollars."""
    return bars(
        "Paid for",
        Line(f"sort_desc(sum by (kind) ({grown(KINDS, MONTH, chosen)}) > 0)", "{{kind}}"),
        "Input, cached input, cache writes and output in dollars, this month",
        more=f"{OTHER} Not counted by provider and model.",
        width=width, month=0,
    )  # fmt: skip


FIRST_SCREEN = Section(
    "",
    [
        Row(
            4,
            [
                number(
                    "Month so far", f"sum({grown(COST, MONTH)})",
                    "What this month (UTC) has cost so far",
                    more="List prices, or yours from gateway.toml; answers without a known price "
                    "count as 0.",
                    unit=USD, width=5, month=0,
                ),
                number(
                    "Forecast", forecast(COST), "What the whole month will cost",
                    more="The month so far, and the pace of the last seven days for the rest.",
                    unit=USD, width=4, month=0,
                ),
                number(
                    "Last month", f"sum({grown(COST, MONTH)})", "What the month before cost",
                    more="As far back as Prometheus keeps samples (PROMETHEUS_RETENTION).",
                    unit=USD, width=4, month=1,
                ),
                not_in_cost(5),
                healthy(6),
            ],
        ),
        Row(4, [TO_DO]),
        Row(
            7,
            [
                rows(
                    "Who: keys by cost, this month",
                    [
                        Column("Key", label="api_key", width=150, link=BY_ROW),
                        *cost_columns("api_key", MONTH),
                        Column(
                            "Answered", answered("api_key", MONTH), unit=PERCENT, width=85,
                            steps=ANSWERED,
                        ),
                    ],
                    "What each key cost this month, its calls and tokens, what a call and a "
                    "million tokens cost, and how many accepted calls were answered",
                    more="A click on a key shows everything about it.",
                    sort="Cost", month=0,
                )
            ],
        ),
        Row(
            6,
            [
                rows(
                    "On what, this month",
                    [
                        Column("Key", label="api_key", width=140, fixed=True, link=BY_ROW),
                        Column("Model", label="model", width=150),
                        Column(
                            "Cost",
                            f"topk(20, sum by (api_key, model) ({grown(COST, MONTH)})) > 0",
                            unit=USD, width=75,
                        ),
                    ],
                    "What the keys spent it on: the twenty pairs of key and model that cost most",
                    width=10, sort="Cost", month=0,
                ),
                bars(
                    "Groups",
                    Line(f"sort_desc(topk(8, {group_of('sum by (api_key) (' + grown(COST, MONTH) + ')')}) > 0)", "{{group}}"),
                    "What the keys of each group cost this month",
                    more="A group is a setting of a key in keys.toml.",
                    width=5, month=0,
                ),
                rows(
                    "Budgets",
                    [
                        Column("Of", label="of", width=145),
                        Column(
                            "Left", of_whom(budgets()[0]), unit=PERCENT, width=105, bar="green",
                            full=1, steps=HALVES,
                        ),
                        Column("Lasts", of_whom(lasts()), unit=SECONDS, decimals=1, width=80),
                    ],
                    "What is left of the budgets of keys and groups in their current period, and how "
                    "long it lasts at the pace of the last 24 hours",
                    more="Budgets of a day, a week or a month begin anew (UTC); one that lasts longer "
                    "than the rest of its period is enough.",
                    width=9, sort="Left", ascending=True, nothing="no key has a budget",
                ),
            ],
        ),
    ],
)  # fmt: skip


def per_day(label: str) -> Panel:
    """Bars of cost by key or model, one for each day."""
    of = "key" if label == "api_key" else label
    return chart(
        f"Cost per day by {of}",
        Line(f"sum by ({label}) ({added(COST, '1d', ahead=True)})", f"{{{{{label}}}}}"),
        f"What was spent in each day (UTC), one {of} on top of the other",
        more="The last bar still grows.",
        unit=USD,
        bars=True,
        stacked=True,
        interval="1d",
        days=30,
        to=BY_KEY if label == "api_key" else None,
    )


def kinds_per_day(chosen: str) -> Panel:
    """Bars of cost by kind, one for each day."""
    return chart(
        "Cost per day by kind",
        Line(f"sum by (kind) ({added(KINDS, '1d', chosen, ahead=True)})", "{{kind}}"),
        "What was spent in each day (UTC) on input, cached input, cache writes and output",
        more=f"{OTHER} The last bar still grows.",
        unit=USD,
        bars=True,
        stacked=True,
        interval="1d",
        days=30,
    )


def kind(name: str) -> str:
    """What each key's tokens of a kind cost this month."""
    either = f'{ONLY_KEY}, kind="{name}"'
    return by("api_key", grown(KINDS, MONTH, either))


KINDS_BY_KEY = rows(
    "Paid for, by key, this month",
    [
        Column("Key", label="api_key", width=100, link=BY_ROW),
        *(
            Column(title, kind(name), unit=USD, width=68)
            for title, name in (
                ("Input", "input"), ("Cached", "cached_input"), ("To cache", "cache_write"),
                ("Output", "output"), ("Other", "other"),
            )
        ),
    ],
    "What the cost of each key is for: input, cached input, writes to the cache and output",
    more=f"{OTHER} Not counted by provider and model.",
    width=12, sort="Output", month=0,
)  # fmt: skip


def per_hour(title: str, metric: str, label: str, what: str, unit: str) -> Panel:
    """A line of the last hour's sum at each moment."""
    chosen = WITH_KEY if metric == CALLS else CHOSEN
    return chart(
        title,
        Line(f"sum by ({label}) ({added(metric, '1h', chosen)})", f"{{{{{label}}}}}"),
        f"At each moment: {what} of the hour before it",
        unit=unit,
        interval="1m",
        to=BY_KEY if label == "api_key" else None,
    )


PER_DAY = Section(
    "Per day, the last 30",
    [
        Row(9, [per_day("api_key"), per_day("model")]),
        Row(8, [KINDS_BY_KEY, kinds_per_day(ONLY_KEY)]),
    ],
)
PER_HOUR = Section(
    "Per hour",
    [
        Row(9, [
            per_hour("API calls per hour by key", CALLS, "api_key", "the calls with a key", NUMBER),
            per_hour("Tokens per hour by key", TOKENS, "api_key", "the tokens", SHORT),
        ]),
        Row(9, [
            per_hour("Cost per hour by key", COST, "api_key", "the cost", USD),
            per_hour("Cost per hour by model", COST, "model", "the cost", USD),
        ]),
    ],
)  # fmt: skip


def total(title: str, metric: str, what: str, unit: str) -> Panel:
    """A line for each key's sum of all time."""
    return chart(
        title,
        Line(f'max by (api_key) (key:{metric}:sum{{api_key=~"$api_key"}})', "{{api_key}}"),
        f"{what} on record, by key",
        more="Since the gateway's first request, over all providers and models.",
        unit=unit,
        width=8,
        to=BY_KEY,
    )


ALL_TIME = Section(
    "Since the beginning",
    [
        Row(9, [
            total("API calls by key (cumulative)", CALLS, "All calls", NUMBER),
            total("Total tokens by key (cumulative)", TOKENS, "All tokens", SHORT),
            total("Cost by key (cumulative)", COST, "All cost", USD),
        ]),
    ],
)  # fmt: skip

DETAIL = Section(
    "In detail, over the selected time",
    [
        Row(
            10,
            [
                rows(
                    "Use by key and model, selected time",
                    [
                        Column("Key", label="api_key", width=120, link=BY_ROW),
                        Column("Model", label="model", width=150),
                        *(
                            c for c in cost_columns("api_key, model", MONTH)
                            if c.title != "Cached"
                        ),
                    ],
                    "Cost, calls and tokens over the time chosen above",
                    sort="Cost",
                )
            ],
        ),
        Row(
            8,
            [
                chart(
                    "Tokens by model", Line(
                        f"sum by (model) ({added(TOKENS, '$__interval')})", "{{model}}",
                    ),
                    "Tokens between two points, prompt and completion",
                    unit=SHORT, bars=True, stacked=True, interval="1m", width=8,
                ),
                chart(
                    "Cost per call", Line(
                        f"sum by (model) ({added(COST, '$__interval')}) "
                        f"/ sum by (model) ({added(CALLS, '$__interval')})", "{{model}}",
                    ),
                    "What a call of each model cost on average",
                    unit=USD, decimals=4, interval="5m", width=8,
                ),
                chart(
                    "Cost per million tokens", Line(
                        f"1e6 * sum by (model) ({added(COST, '$__interval')}) "
                        f"/ sum by (model) ({added(TOKENS, '$__interval')})", "{{model}}",
                    ),
                    "What a million tokens of each model cost, prompt and completion together",
                    unit=USD, interval="5m", width=8,
                ),
            ],
        ),
    ],
)  # fmt: skip

REASONS = (
    "no_usage: a whole answer without it. unreadable, encoding, too_large: it could not be read. "
    "not_metered_type: audio and files, which have none. not_reported: a format that has none. "
    "deferred: work that is done later and not followed. never_finished, not_found: background "
    "responses, batches and videos whose end nobody has seen. unknown_endpoint: a POST to a path "
    "that the gateway does not know."
)
BROKEN_OFF = rows(
    "Calls that broke off, selected time",
    [
        Column("Key", label="api_key", width=120, link=BY_ROW),
        Column("Model", label="model", width=150),
        Column("Calls", by("api_key, model", grown("api_key_bounded_requests", MONTH)), unit=NUMBER, width=80),
        *(
            Column(title, by("api_key, model", grown(metric, MONTH, f'{CHOSEN}, bound="{bound}"')), unit=unit, width=width)
            for title, metric, bound, unit, width in (
                ("Fewest tokens", "token_usage_bounded", "low", SHORT, 110),
                ("Most tokens", "token_usage_bounded", "high", SHORT, 110),
                ("Lowest cost", BOUNDED, "low", USD, 100),
                ("Highest cost", BOUNDED, "high", USD, 100),
            )
        ),
    ],
    "Calls that were given up or broke off before their use was told: it lies between these bounds",
    more="They are in no sum of tokens or cost; budgets count the high end.",
    sort="Highest cost", nothing="no call broke off",
)  # fmt: skip
WRONG = Section(
    "What was refused, and what went wrong",
    [
        Row(
            9,
            [
                chart(
                    "Rejections by reason",
                    Line(f"sum by (reason) ({added('api_key_rejections', '$__interval', ONLY_KEY)})", "{{reason}}"),
                    "Calls that the gateway refused between two points: the error code that the "
                    "caller got",
                    more="With _dry_run: a limit that is not enforced would have refused it.",
                    bars=True, stacked=True, interval="5m", width=7, nothing="nothing was refused",
                ),
                rows(
                    "Rejections by key, selected time",
                    [
                        Column("Key", label="api_key", width=140, fixed=True, link=BY_ROW),
                        Column("Reason", label="reason", width=140),
                        Column("Refused", by("api_key, reason", added("api_key_rejections", MONTH, ONLY_KEY)), unit=NUMBER, width=70),
                    ],
                    "Which keys were refused, and why",
                    width=10, sort="Refused", nothing="nothing was refused",
                ),
                chart(
                    "Outcomes",
                    [
                        Line(f"sum by (outcome) ({added(CALLS, '$__interval', NOT_COMPLETED)})", "{{outcome}}"),
                        Line(f"sum by (outcome) ({added(CALLS, '$__interval', COMPLETED)})", "{{outcome}}"),
                    ],
                    "How calls ended, between two points; what was not answered at the bottom",
                    bars=True, stacked=True, interval="1m", width=7,
                    colours=RED | {"/^completed/": "green"},
                ),
            ],
        ),
        Row(
            8,
            [
                chart(
                    "Errors by provider",
                    Line(f"sum by (provider) ({added('upstream_errors', '$__interval', PROVIDERS)})", "{{provider}}"),
                    "Attempts that a provider failed between two points, also where the next "
                    "target of the route answered",
                    bars=True, stacked=True, interval="5m", width=8, nothing="no errors",
                ),
                chart(
                    "Unmetered answers",
                    Line(f"sum by (provider, reason) ({added('unmetered_responses', '$__interval', PROVIDERS)})", "{{provider}}: {{reason}}"),
                    "Answers that were delivered but whose use could not be read: tokens and cost "
                    "are too low by them",
                    more=REASONS,
                    bars=True, stacked=True, interval="5m", width=8, nothing="all were metered",
                ),
                chart(
                    "Answers without a price",
                    Line("sum by (provider, model) (" + added("unpriced_responses", "$__interval", PAIRS) + ")", "{{provider}}: {{model}}"),
                    "Metered, but no price is known: they count as 0 USD",
                    bars=True, stacked=True, interval="5m", width=8, nothing="all have a price",
                ),
            ],
        ),
        Row(7, [BROKEN_OFF]),
    ],
)  # fmt: skip

SPEED = Section(
    "Speed, in brief",
    [
        Row(
            8,
            [
                chart(
                    "Time to first token",
                    [
                        Line(average("provider_model:time_to_first_token_seconds:p50_5m", PAIRS), "{{model}}"),
                        Line(average("wrapper:time_to_first_token_seconds:p95_5m"), "all, p95"),
                    ],
                    "From the call to the first piece of the answer, streams only: half of a "
                    "model's answers began faster than its line, 95 of 100 of all than the line "
                    "of all",
                    unit=SECONDS, interval="15s",
                ),
                chart(
                    "Gateway overhead",
                    [
                        Line(average("wrapper:overhead_seconds:p50_5m"), "p50"),
                        Line(average("wrapper:overhead_seconds:p95_5m"), "p95"),
                    ],
                    "What the gateway itself adds to a call, the provider's and the caller's time "
                    "taken out",
                    unit=SECONDS, interval="15s",
                ),
            ],
        )
    ],
)  # fmt: skip

VARIABLES = [
    Variable(
        "api_key", "Key", "label_values(api_key_requests_total, api_key)",
        "Names of gateway keys; none: calls without a valid key; client: callers with a "
        "credential of their own.",
    ),
    Variable(
        "provider", "Provider", 'label_values(api_key_requests_total{api_key=~"$api_key"}, provider)',
        "Providers that the chosen keys called. Rejections, cumulative lines and the overhead are "
        "over all.",
    ),
    Variable(
        "model", "Model",
        'label_values(api_key_requests_total{api_key=~"$api_key", provider=~"$provider"}, model)',
        "Models that answered the chosen keys. Rejections, cumulative lines, errors by provider, "
        "unmetered answers and the overhead are over all.",
    ),
]  # fmt: skip

BOARD = Board(
    uid="api-key-metrics",
    title="API Key Metrics",
    description="Who uses what and what it costs: dollars, calls and tokens by key and model. "
    "The exact numbers are in the gateway's ledger: python -m wrapper usage.",
    span="24h",
    refresh="30s",
    timezone="utc",
    variables=VARIABLES,
    sections=[FIRST_SCREEN, PER_DAY, PER_HOUR, ALL_TIME, DETAIL, WRONG, SPEED],
)
