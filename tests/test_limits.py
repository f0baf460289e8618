"""Limits and budgets as a client sees them: what passes, what is refused, and what it is told."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from harness import chat, raw
from harness.app import App, AppFactory
from harness.metrics import Metrics
from harness.poll import eventually
from harness.processes import ReservedPort
from harness.programs import require
from harness.raw import Answer
from harness.redisserver import RedisServer
from harness.simulator import Simulator
from wrapper.metering.pricing import Prices
from wrapper.store.sqlite import SqliteStore

MODEL = "sim-priced"
# One token is 1 pico-USD times a million: of input 1e6, of output 2e6.
CONFIG = """\
[server]
default_output_tokens = 100
{server}

[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = {{ env = "GROQ_API_KEY" }}
{groq}

[providers.openai]
base_url = "{simulator}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}
client_credentials = true
{openai}

[providers.refusing]
base_url = "http://127.0.0.1:{refusing}/v1"
api_key = {{ env = "OPENAI_API_KEY" }}

[[routes]]
model = "either"
targets = ["groq:sim-priced", "openai:sim-priced"]

[[routes]]
model = "failing"
targets = ["groq:sim-priced?status=500", "openai:sim-priced"]

[[routes]]
model = "refused"
targets = ["refusing:sim-priced"]

[[routes]]
model = "unpriced-alias"
targets = ["openai:sim-unheard-of"]

[[routes]]
model = "*"
targets = ["openai"]

[prices."sim-priced*"]
input = 1.0
output = 2.0
"""
USE = "prompt=100; completion=50"  # 200e6 pico-USD
COST = 200_000_000
DAY = timedelta(days=1)
SCOPES = ("key", "group", "provider")

Make = Callable[..., App]


@pytest.fixture(params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that names the store."""
    if request.param == "sqlite":
        return {}
    server: RedisServer = request.getfixturevalue("redis_server")
    server.command("FLUSHALL")
    return {"WRAPPER_STORE": server.url}


@pytest.fixture
def make(app_factory: AppFactory) -> Iterator[Make]:
    """An application on SQLite, or on what `env` says, with limits in any place."""
    refusing = ReservedPort()

    def made(
        keys: Any = None, *, groq: str = "", openai: str = "", server: str = "", **options: Any
    ) -> App:
        config = CONFIG.format(
            simulator="{simulator}",
            groq=groq,
            openai=openai,
            server=server,
            refusing=refusing.number,
        )
        return app_factory(
            config, keys={"web": {}, "mate": {}} if keys is None else keys, **options
        )

    yield made
    refusing.release()


def limited(make: Make, scope: str, store: dict[str, str], **limits: Any) -> App:
    """The limits for the key `web`, for its group with `mate`, or for the account at openai."""
    if scope == "provider":
        return make(
            openai="\n".join(f"{k} = {json.dumps(v)}" for k, v in limits.items()), env=store
        )
    if scope == "group":
        keys = {"web": {"group": "team"}, "mate": {"group": "team"}}
        return make(keys, groups={"team": limits}, env=store)
    return make({"web": limits, "mate": {}}, env=store)


def call(
    app: App, key: str = "web", orders: str = USE, model: str = MODEL, **fields: Any
) -> Answer:
    content = chat.body(model, **{"max_tokens": 100, **fields})
    return chat.call(app, content, orders=orders, key=key)


def refused(answer: Answer, code: str = "rate_limit_exceeded") -> dict[str, Any]:
    assert answer.status == 429, answer
    error = chat.error(answer)
    assert error["code"] == code
    return error


def standings(app: App) -> dict[str, Any]:
    """How much each subject uses of its limits."""
    runtime = app.runtime
    found = runtime.admission.standing(list(runtime.snapshot.limits))
    return {standing.subject.name: standing for standing in found}


def scrape(app: App) -> Metrics:
    return Metrics(app.exchange(raw.request(app.port, "GET", "/metrics")).body.decode())


def usage(app: App, key: str = "web") -> dict[str, Any]:
    answer = app.exchange(raw.request(app.port, "GET", "/usage", key=app.secrets[key]))
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def callers(scope: str) -> tuple[str, str]:
    """Two keys that share the limit, or the one that has it."""
    return ("web", "web") if scope == "key" else ("web", "mate")


def rate_limits(answer: Answer) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {
        name.lower().removeprefix(prefix): value
        for name, value in answer.headers
        if name.lower().startswith(prefix)
    }


# --- each kind of limit, in each place ----------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
def test_requests_per_minute(make: Make, store: dict[str, str], scope: str) -> None:
    app = limited(make, scope, store, requests_per_minute=2)
    one, other = callers(scope)
    answers = [call(app, one), call(app, other)]
    assert [answer.status for answer in answers] == [200, 200]
    no = call(app, one)
    assert "requests per minute" in refused(no)["message"]
    assert 1 <= int(no.header("retry-after") or 0) <= 61
    if scope == "provider":  # what the operator has left there is not the caller's business
        assert rate_limits(no) == {}
        assert " 2 " not in refused(no)["message"]
    else:
        left = [rate_limits(answer)["remaining-requests"] for answer in (*answers, no)]
        assert left == ["1", "0", "0"]
        assert rate_limits(no)["limit-requests"] == "2"
        assert rate_limits(no)["reset-requests"] in ("1m1s", "1m0s", "59s", "58s")
    if scope == "key":
        assert call(app, "mate").status == 200


@pytest.mark.parametrize("scope", SCOPES)
def test_tokens_per_minute(make: Make, store: dict[str, str], scope: str) -> None:
    app = limited(make, scope, store, tokens_per_minute=500)
    one, other = callers(scope)
    demand = len(chat.body(MODEL, max_tokens=100)) + 100
    assert 150 < demand < 350
    first, second = call(app, one), call(app, other)
    assert (first.status, second.status) == (200, 200)
    no = call(app, one, max_tokens=300)
    assert "tokens per minute" in refused(no)["message"]
    assert 1 <= int(no.header("retry-after") or 0) <= 61
    if scope != "provider":
        found = [rate_limits(answer)["remaining-tokens"] for answer in (first, second, no)]
        assert found == [str(500 - demand), str(500 - 150 - demand), "200"]
    assert call(app, one, max_tokens=20).status == 200  # which still fits
    assert [standing.tokens for standing in standings(app).values()] == [450]


@pytest.mark.parametrize("scope", SCOPES)
def test_max_concurrent(make: Make, store: dict[str, str], scope: str) -> None:
    app = limited(make, scope, store, max_concurrent=2)
    one, other = callers(scope)
    with contextlib.ExitStack() as open_:
        for key in (one, other):
            content = chat.request(app, stream=True, model=MODEL, orders=USE, key=key)
            assert open_.enter_context(app.holding(content)).status == 200
        no = call(app, one)
        assert "concurrent requests" in refused(no)["message"]
        assert no.header("retry-after") == "1"
    assert call(app, one).status == 200
    assert [standing.concurrent for standing in standings(app).values()] == [0]


@pytest.mark.parametrize("scope", SCOPES)
def test_budget(make: Make, store: dict[str, str], scope: str) -> None:
    app = limited(make, scope, store, budget_usd=0.0008, budget_period="day")
    one, other = callers(scope)
    assert [call(app, key).status for key in (one, other, one)] == [200, 200, 200]
    no = call(app, other)  # 200 of 800 are left, and it may cost more
    assert "budget" in refused(no, "insufficient_quota")["message"]
    assert no.header("x-should-retry") == "false"
    assert no.header("retry-after") is None
    [standing] = standings(app).values()
    assert (standing.spent, standing.reserved) == (3 * COST, 0)
    assert call(app, other, max_tokens=1, orders="prompt=9; completion=1").status == 200


def test_the_limit_that_lasts_longest_says_when_to_come_again(make: Make) -> None:
    app = make({"web": {"requests_per_minute": 1, "max_concurrent": 1}})
    with app.holding(chat.request(app, stream=True, model=MODEL, key="web")):
        assert int(call(app).header("retry-after") or 0) > 50


def test_of_several_full_accounts_the_first_with_room_says_when_to_come_again(make: Make) -> None:
    app = make(groq="requests_per_minute = 1", openai="max_concurrent = 1")
    assert call(app, model="either").header("x-wrapper-provider") == "groq"
    content = chat.request(app, stream=True, model="either", orders=USE, key="web")
    with app.holding(content) as held:
        assert held.header("x-wrapper-provider") == "openai"
        no = call(app, model="either")
        assert "'openai'" in refused(no)["message"]
        assert no.header("retry-after") == "1"


@pytest.mark.parametrize("period", ["day", "total"])
def test_a_budget_says_when_it_begins_anew_or_that_it_does_not(make: Make, period: str) -> None:
    tomorrow = datetime.now(UTC) + DAY
    app = make({"web": {"budget_usd": 0.0004, "budget_period": period}})
    assert call(app, max_tokens=10, orders="prompt=300; completion=10").status == 200
    message = refused(call(app, max_tokens=10), "insufficient_quota")["message"]
    assert message.startswith("The budget of this API key has no room: 0.000320 of 0.000400 USD in")
    anew = [f"{day:It begins anew on %Y-%m-%d 00:00 UTC.}" for day in (tomorrow, tomorrow + DAY)]
    assert message.endswith(("in use.",) if period == "total" else tuple(anew))


def test_a_budget_that_is_only_reserved_is_to_be_tried_again(
    make: Make, store: dict[str, str]
) -> None:
    """By the SDKs, too: most of an estimate is free again when the response has ended."""
    app = make({"web": {"budget_usd": 0.0008}}, env=store)
    assert call(app).status == 200
    body = chat.body(MODEL, stream=True, max_tokens=200)
    content = chat.request(app, body, orders=USE, key="web")
    with app.holding(content):
        [reserved] = [standing.reserved for standing in standings(app).values()]
        no = call(app)
        assert no.header("retry-after") == "1"
        assert no.header("x-should-retry") is None
        assert refused(no, "insufficient_quota")["message"] == (
            "The budget of this API key has no room: 0.000200 of 0.000800 USD spent,"
            f" {reserved / 1e12:.6f} reserved by requests in progress. Try again shortly."
        )
        no = call(app, max_tokens=300)  # which does not fit beside what is spent either
        assert "begins anew" in refused(no, "insufficient_quota")["message"]
        assert no.header("x-should-retry") == "false"


def test_of_an_account_whose_money_is_reserved_no_numbers_are_told(make: Make) -> None:
    app = make(openai="budget_usd = 0.0006")
    body = chat.body(MODEL, stream=True, max_tokens=200)
    content = chat.request(app, body, orders=USE, key="web")
    with app.holding(content):
        no = call(app)
        message = "The budget of the gateway's account at 'openai' has no room. Try again shortly."
        assert refused(no, "insufficient_quota")["message"] == message
        assert no.header("retry-after") == "1"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"tokens_per_minute": 50}, "rate_limit_exceeded"),
        ({"budget_usd": 0.00001}, "insufficient_quota"),
    ],
)
def test_a_request_above_the_whole_limit_is_never_to_be_retried(
    make: Make, limits: dict[str, Any], code: str
) -> None:
    app = make({"web": limits})
    no = call(app)
    assert "max_completion_tokens" in refused(no, code)["message"]
    assert no.header("x-should-retry") == "false"
    assert no.header("retry-after") is None


def test_a_refusal_names_the_member_that_limits_the_output(make: Make) -> None:
    app = make({"web": {"tokens_per_minute": 10}})
    members = {
        "/v1/chat/completions": "max_completion_tokens",
        "/v1/responses": "max_output_tokens",
        "/openai/v1/messages": "max_tokens",
    }
    for path, member in members.items():
        no = chat.call(app, chat.body(MODEL), target=path, key="web")
        advice = f"The request alone may use more: limit its output ({member})."
        assert refused(no)["message"].endswith(advice)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/vector_stores", {"name": "a"}),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"}),
        ("/v1/moderations", {"model": "omni-moderation-latest", "input": "a"}),
    ],
)
def test_no_output_is_reserved_or_asked_to_be_limited_where_no_model_writes(
    make: Make, path: str, body: dict[str, Any]
) -> None:
    app = make({"web": {"tokens_per_minute": 500}})
    assert chat.call(app, json.dumps(body).encode(), target=path, key="web").status == 200
    large = json.dumps({**body, "metadata": {"a": "b" * 500}}).encode()
    no = chat.call(app, large, target=path, key="web")
    assert refused(no)["message"].endswith("The request alone may use more: send less.")


# --- headers ------------------------------------------------------------------------------------


def test_where_a_key_has_no_limit_of_a_kind_the_providers_headers_pass(make: Make) -> None:
    app = make({"web": {"requests_per_minute": 10}, "mate": {}})
    providers = {"limit-requests": "14400", "limit-tokens": "18000", "remaining-tokens": "17997"}
    free = rate_limits(call(app, "mate"))
    assert free.items() >= providers.items()
    own = rate_limits(call(app))
    assert (own["limit-requests"], own["remaining-requests"]) == ("10", "9")
    assert (own["limit-tokens"], own["remaining-tokens"]) == ("18000", "17997")


def test_the_headers_are_of_the_limit_with_the_least_left(make: Make) -> None:
    keys = {"web": {"group": "team", "requests_per_minute": 10}, "mate": {"group": "team"}}
    app = make(keys, groups={"team": {"requests_per_minute": 11}})
    assert rate_limits(call(app))["limit-requests"] == "10"
    assert call(app, "mate").status == call(app, "mate").status == 200
    found = rate_limits(call(app))
    assert (found["limit-requests"], found["remaining-requests"]) == ("11", "7")


def test_defaults_hold_for_keys_that_say_nothing(make: Make) -> None:
    keys = {"web": {}, "mate": {"requests_per_minute": False}}
    app = make(keys, defaults={"requests_per_minute": 1})
    assert [call(app, key).status for key in ("web", "mate", "web", "mate")] == [200, 200, 429, 200]


# --- prices -------------------------------------------------------------------------------------


def test_a_key_with_a_budget_may_not_use_a_model_without_a_price(make: Make) -> None:
    keys = {
        "web": {"budget_usd": 1.0},
        "mate": {"budget_usd": 1.0, "unpriced": "allow"},
        "free": {},
        "dry": {"budget_usd": 1.0, "enforce": False},
    }
    app = make(keys)
    no = call(app, model="sim-unheard-of")
    assert no.status == 403
    assert chat.error(no)["code"] == "model_not_priced"
    assert chat.error(no)["message"] == (
        "The price of 'sim-unheard-of' is not known, and a key with a budget may not call it."
        " Is the name right? GET /v1/models lists the models. The operator can add"
        ' [prices."sim-unheard-of"] to gateway.toml, or unpriced = "allow" to the key.'
    )
    for key in ("mate", "free", "dry"):
        assert call(app, key, model="sim-unheard-of").status == 200
    reasons = scrape(app).by("api_key_rejections_total", "api_key", "reason")
    assert reasons["web", "model_not_priced"] == 1
    assert reasons["dry", "model_not_priced_dry_run"] == 1
    get = raw.request(app.port, "GET", "/v1/files", key=app.secrets["web"])
    assert app.exchange(get).status != 403


def test_a_model_without_a_price_is_named_as_the_caller_named_it(make: Make) -> None:
    app = make({"web": {"budget_usd": 1.0}})
    alias = chat.error(call(app, model="unpriced-alias"))
    named = "The price of 'sim-unheard-of' (asked for as 'unpriced-alias') is not known"
    assert alias["message"].startswith(named)
    long = "x" * 3000
    assert '[prices."MODEL"]' in chat.error(call(app, model=long))["message"]
    asked = raw.request(app.port, "POST", "/v1/images/variations", b"{}", key=app.secrets["web"])
    none = chat.error(app.exchange(asked))
    assert none["code"] == "model_not_priced"
    assert "the request names none" in none["message"]
    assert "[prices" not in none["message"]


def test_a_budget_knows_prices_of_more_than_text(make: Make) -> None:
    """Embeddings have no price of what they write, recordings one by the hour, speech one by the
    character, transcripts two of what they read.
    """
    app = make({"web": {"budget_usd": 1.0}})

    def reserved(target: str, body: bytes, *headers: tuple[str, str]) -> int:
        length = ("Content-Length", str(len(body)))
        head = raw.request(
            *(app.port, "POST", target), key=app.secrets["web"], headers=(*headers, length)
        )
        before = app.exchange(head + body)
        assert before.status != 403, before
        with app.holding(head + body):
            return int(standings(app)["key:web"].reserved)

    json_type = ("Content-Type", "application/json")
    embedding = b'{"model": "text-embedding-3-small", "input": "some text"}'
    assert reserved("/v1/embeddings", embedding, json_type) == 20_000 * len(embedding)
    speech = b'{"model": "tts-1", "input": "some text", "voice": "alloy"}'
    assert reserved("/v1/audio/speech", speech, json_type) == 15_000_000 * len(speech)
    for model in (b"whisper-1", b"gpt-4o-transcribe"):
        form = FORM.replace(b"sim-priced", model)
        assert reserved("/v1/audio/transcriptions", form, FORM_TYPE) > 0
    no = call(app, model="text-embedding-3-small")
    assert (no.status, chat.error(no)["code"]) == (403, "model_not_priced")


# --- dry run ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"requests_per_minute": 1, "tokens_per_minute": 1}, "rate_limit_exceeded_dry_run"),
        ({"budget_usd": 0.000001}, "insufficient_quota_dry_run"),
    ],
)
@pytest.mark.parametrize("scope", ["key", "group"])
def test_a_dry_run_counts_what_it_would_have_refused_and_refuses_nothing(
    make: Make, store: dict[str, str], scope: str, limits: dict[str, Any], reason: str
) -> None:
    app = limited(make, scope, store, enforce=False, **limits)
    before = scrape(app).value("api_key_rejections_total", api_key="web", reason=reason)
    answers = [call(app) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    # Those of the provider pass: a client must not slow down for a limit that does not hold.
    assert {rate_limits(answer)["limit-requests"] for answer in answers} == {"14400"}
    after = scrape(app).value("api_key_rejections_total", api_key="web", reason=reason)
    assert after - before == 3
    assert next(iter(standings(app).values())).requests == 3


# --- what operators and key owners see ----------------------------------------------------------


def test_a_key_sees_its_limits_its_use_what_is_left_and_when_it_resets(
    make: Make, store: dict[str, str]
) -> None:
    limits = {"requests_per_minute": 5, "budget_usd": 1.0, "budget_period": "week"}
    app = make(
        {"web": {"group": "team", **limits}, "mate": {"group": "team"}},
        groups={"team": {"tokens_per_minute": 1000, "max_concurrent": 3}},
        env=store,
    )
    assert call(app).status == 200
    with app.holding(chat.request(app, stream=True, model=MODEL, orders=USE, key="mate")):
        found = usage(app)["limits"]
    assert (found["group"], found["requests_per_minute"], found["enforced"]) == ("team", 5, True)
    assert found["budget_left_usd"] == pytest.approx(1 - COST / 1e12)
    own, group = found["in_use"]
    assert (own["scope"], own["name"], group["scope"], group["name"]) == (
        *("key", "web", "group", "team"),
    )
    requests = own["requests"]
    assert (requests["limit"], requests["used"], requests["left"]) == (5, 1, 4)
    assert 0 < requests["resets_in_seconds"] <= 61
    assert requests["resets_in_seconds"] == round(requests["resets_in_seconds"], 1)
    budget = own["budget_usd"]
    assert (budget["limit"], budget["used"]) == (1.0, pytest.approx(COST / 1e12))
    assert 0 < budget["resets_in_seconds"] <= 7 * 86_400
    concurrency = group["concurrency"]
    assert (concurrency["limit"], concurrency["used"], concurrency["left"]) == (3, 1, 2)
    assert group["tokens"]["used"] > 150
    assert not {"tokens", "concurrency"} & own.keys()
    assert usage(app, "mate")["limits"]["in_use"][0]["scope"] == "group"


def test_metrics_say_what_each_limit_is_and_how_much_of_it_is_left(
    make: Make, store: dict[str, str]
) -> None:
    app = make(
        {
            "web": {
                "group": "team",
                "owner": "ann",
                "expires": date(2099, 1, 1),
                "requests_per_minute": 5,
                "budget_usd": 1.0,
            },
            "mate": {},
        },
        groups={"team": {"tokens_per_minute": 1000}},
        openai="max_concurrent = 4",
        env=store,
    )
    assert call(app).status == 200
    metrics = scrape(app)
    rows = {
        ("key", "web", "requests"): (5, 1, 4),
        ("key", "web", "budget_usd"): (1.0, COST / 1e12, 1 - COST / 1e12),
        ("group", "team", "tokens"): (1000, 150, 850),
        ("provider", "openai", "concurrency"): (4, 0, 4),
    }
    for index, name in enumerate(("limit", "limit_used", "limit_remaining")):
        found = metrics.by(name, "scope", "name", "kind")
        assert found == {at: pytest.approx(row[index]) for at, row in rows.items()}
    assert metrics.value("api_key_info", api_key="web", group="team", owner="ann") == 1
    assert metrics.value("api_key_info", api_key="mate", group="", owner="") == 1
    [expiry] = metrics.find("api_key_expiry_timestamp_seconds")
    assert (expiry.labels, expiry.value) == ({"api_key": "web"}, 4070908800)
    checked = subprocess.run(
        [require("promtool"), "check", "metrics"],
        input=metrics.text.encode(),
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


# --- every way in -------------------------------------------------------------------------------

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsim-priced\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    + b"x" * 4000
    + b"\r\n--b--\r\n"
)
FORM_TYPE = ("Content-Type", "multipart/form-data; boundary=b")
WAYS = {
    "chat": ("POST", "/chat/completions", chat.body(MODEL), ()),
    "v1": ("POST", "/v1/embeddings", b'{"model": "sim-priced", "input": "a"}', ()),
    "get": ("GET", "/v1/files", b"", ()),
    "head": ("HEAD", "/v1/files", b"", ()),
    "passthrough": ("POST", "/openai/v1/chat/completions", chat.body(MODEL), ()),
    "groq-dialect": ("POST", "/groq/openai/v1/chat/completions", chat.body(MODEL), ()),
    "passthrough-get": ("GET", "/openai/v1/models", b"", ()),
    "form": ("POST", "/v1/audio/transcriptions", FORM, (FORM_TYPE,)),
    "passthrough-form": ("POST", "/openai/v1/audio/transcriptions", FORM, (FORM_TYPE,)),
    "unknown": ("POST", "/openai/v1/anything/at/all", b"text", (("Content-Type", "text/plain"),)),
}


def send(app: App, way: str, key: str) -> Answer:
    method, target, body, headers = WAYS[way]
    content = raw.request(app.port, method, target, key=key, headers=headers)
    if body:
        kind = () if headers else (("Content-Type", "application/json"),)
        length = ("Content-Length", str(len(body)))
        content = raw.request(app.port, method, target, key=key, headers=(*headers, *kind, length))
        content += body
    return app.exchange(content, head_only=method == "HEAD")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_counts_and_is_refused(make: Make, way: str) -> None:
    keys = {"web": {"requests_per_minute": 1, "tokens_per_minute": 10**6, "budget_usd": 1.0}}
    app = make(keys)
    assert send(app, way, app.secrets["web"]).status < 429
    found = standings(app)["key:web"]
    assert (found.requests, found.concurrent, found.reserved) == (1, 0, 0)
    assert send(app, way, app.secrets["web"]).status == 429


@pytest.mark.parametrize("way", ["passthrough", "passthrough-get", "passthrough-form"])
def test_callers_with_a_credential_of_their_own_have_no_limits_here(make: Make, way: str) -> None:
    app = make(openai="requests_per_minute = 1\nmax_concurrent = 1")
    assert {send(app, way, "sk-of-the-callers-own").status for _ in range(3)} == {200}
    assert standings(app)["provider:openai"].requests == 0


def test_a_form_reserves_by_the_length_of_its_recording(make: Make) -> None:
    app = make({"web": {"tokens_per_minute": 10_000, "budget_usd": 1.0}})
    method, target, body, headers = WAYS["form"]
    body = body.replace(b"x" * 4000, b"x" * 400_000)
    length = ("Content-Length", str(len(body)))
    head = raw.request(
        *(app.port, method, target), key=app.secrets["web"], headers=(*headers, length)
    )
    with app.holding(head + body) as held:
        assert held.status == 200
        found = standings(app)["key:web"]
        assert 2000 < found.tokens < 2200
        assert 2_000_000_000 < found.reserved < 3_000_000_000
    assert standings(app)["key:web"].reserved == 0


def test_embeddings_reserve_no_output(make: Make) -> None:
    app = make({"web": {"tokens_per_minute": 90}})
    assert send(app, "v1", app.secrets["web"]).status == 200


# --- failover, failures, aborts -----------------------------------------------------------------


def test_a_full_account_is_passed_over_for_the_next_target(
    make: Make, store: dict[str, str]
) -> None:
    app = make(groq="max_concurrent = 1", openai="tokens_per_minute = 100000", env=store)
    content = chat.request(app, stream=True, model="either", orders=USE, key="web")
    with app.holding(content) as held:
        assert held.header("x-wrapper-provider") == "groq"
        assert call(app, model="either").header("x-wrapper-provider") == "openai"
    found = standings(app)
    groq, openai = found["provider:groq"], found["provider:openai"]
    assert (groq.requests, groq.concurrent) == (1, 0)
    assert (openai.requests, openai.tokens, openai.concurrent) == (1, 150, 0)


def test_after_a_failover_both_accounts_are_right(make: Make, store: dict[str, str]) -> None:
    limits = "tokens_per_minute = 100000\nbudget_usd = 1.0\nmax_concurrent = 5"
    app = make({"web": {"tokens_per_minute": 9999}}, groq=limits, openai=limits, env=store)
    answer = call(app, model="failing")
    assert (answer.status, answer.header("x-wrapper-provider")) == (200, "openai")
    found = standings(app)
    groq, openai, web = found["provider:groq"], found["provider:openai"], found["key:web"]
    assert (groq.requests, groq.tokens, groq.concurrent) == (1, 0, 0)
    assert (groq.spent, groq.reserved) == (0, 0)
    assert (openai.requests, openai.tokens, openai.concurrent) == (1, 150, 0)
    assert (openai.spent, openai.reserved) == (COST, 0)
    assert (web.requests, web.tokens, web.concurrent) == (1, 150, 0)


def test_a_failover_to_a_full_account_gives_everything_back(
    make: Make, store: dict[str, str]
) -> None:
    app = make({"web": {"tokens_per_minute": 9999}}, openai="max_concurrent = 1", env=store)
    with app.holding(chat.request(app, stream=True, model=MODEL, orders=USE, key="web")):
        before = standings(app)["key:web"]
        no = call(app, model="failing")
        assert (no.status, chat.error(no)["code"]) == (503, "overloaded")
        assert no.header("retry-after") == "1"
        after = standings(app)["key:web"]
        assert (after.tokens, after.concurrent) == (before.tokens, 1)


@pytest.mark.parametrize(
    ("model", "orders", "status"),
    [(MODEL, "status=500", 500), (MODEL, "status=400", 400), ("refused", "", 502)],
)
def test_what_a_provider_did_not_do_is_given_back(
    make: Make, store: dict[str, str], model: str, orders: str, status: int
) -> None:
    app = make({"web": {"tokens_per_minute": 1000, "budget_usd": 1.0}}, env=store)
    assert call(app, model=model, orders=orders).status == status
    found = standings(app)["key:web"]
    assert (found.requests, found.tokens, found.concurrent) == (1, 0, 0)
    assert (found.spent, found.reserved) == (0, 0)


def test_a_stream_that_is_aborted_costs_what_was_reserved_for_it(
    make: Make, store: dict[str, str], simulator: Simulator
) -> None:
    app = make({"web": {"tokens_per_minute": 1000, "budget_usd": 1.0}}, env=store)
    content = chat.body(MODEL, stream=True, max_tokens=80)
    orders = "events=20; gap=0.02"
    high = "api_key_cost_bounded_usd_total"
    spent = scrape(app).value(high, api_key="web", bound="high")
    with app.holding(chat.request(app, content, orders=orders, key="web")):
        reserved = standings(app)["key:web"].reserved
        assert reserved == (len(content) + 2 * 80) * 1_000_000
    eventually(lambda: simulator.stats()["open"] == 0, what="no open upstream request")
    found = standings(app)["key:web"]
    assert (found.tokens, found.concurrent) == (len(content) + 80, 0)
    assert (found.spent, found.reserved) == (reserved, 0)
    # The ledger and the metrics say the same.
    [row] = app.runtime.store.totals(by=("key",))
    assert (row.cost, row.unmetered, row.bounded) == (0, 0, 1)
    assert (row.cost_low, row.cost_high) == (0, reserved)  # nothing of it was read
    cost = scrape(app).value(high, api_key="web", bound="high") - spent
    assert cost == pytest.approx(reserved / 1e12)


def test_without_metering_leases_end_too(make: Make, store: dict[str, str]) -> None:
    app = make({"web": {"max_concurrent": 1}}, server="metering = false", env=store)
    assert [call(app).status for _ in range(3)] == [200, 200, 200]
    assert standings(app)["key:web"].concurrent == 0


# --- reload -------------------------------------------------------------------------------------


def test_a_scrape_reads_the_limits_on_a_connection_of_its_own(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of keys that takes a while, in which the worker's requests go on."""
    app = make({"web": {"budget_usd": 1}})
    asked = []
    standing = SqliteStore.standing

    def recorded(store: SqliteStore, subjects: Any) -> Any:
        asked.append(store)
        return standing(store, subjects)

    monkeypatch.setattr(SqliteStore, "standing", recorded)
    scrape(app)
    [store] = asked
    assert store is not app.runtime.store


def test_a_request_whose_cost_cannot_be_worked_out_ends_its_lease(
    make: Make, store: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make({"web": {"max_concurrent": 1}}, env=store)
    with monkeypatch.context() as broken, contextlib.suppress(ZeroDivisionError):
        broken.setattr(Prices, "price", lambda *_: 1 / 0)
        call(app, stream=True)
    assert standings(app)["key:web"].concurrent == 0
    [row] = app.runtime.store.totals()
    assert (row.requests, row.unpriced) == (1, 1)


def test_a_limit_lowered_below_what_is_in_use_holds_for_the_next_request(
    make: Make, store: dict[str, str]
) -> None:
    app = make({"web": {"max_concurrent": 5, "requests_per_minute": 50}}, env=store)
    stream = chat.request(app, stream=True, model=MODEL, orders=USE, key="web")
    with app.holding(stream), app.holding(stream):
        app.rekey({"web": {"max_concurrent": 1}})
        assert "2 of 1 concurrent" in refused(call(app))["message"]
    assert call(app).status == 200
    app.rekey({"web": {"requests_per_minute": 2}})
    assert "4 of 2" in refused(call(app))["message"] or "3 of 2" in refused(call(app))["message"]
    app.rekey({"web": {}})
    assert call(app).status == 200


def test_what_a_deleted_key_reserved_is_settled(make: Make, store: dict[str, str]) -> None:
    limits = {"max_concurrent": 5, "budget_usd": 1.0}
    app = make({"web": {"group": "team", **limits}}, groups={"team": limits}, env=store)
    with app.holding(chat.request(app, stream=True, model=MODEL, orders="events=1", key="web")):
        own = app.runtime.snapshot.limits.of_key("web")
        app.rekey({})
    assert call(app).status == 401
    for standing in app.runtime.admission.standing(own):
        assert (standing.concurrent, standing.reserved) == (0, 0)
        assert standing.spent > 0


# --- a store that is away -----------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request finds out whether the store can be written, and what waits is tried again."""
    monkeypatch.setattr("wrapper.store.sqlite.DRAIN_SECONDS", 0.0)
    monkeypatch.setattr("wrapper.store.waiting.RETRY_SECONDS", 0.1)


FAILING = {
    "web": {"requests_per_minute": 100},
    "mate": {"requests_per_minute": 100, "store_failure": "allow"},
    "free": {},
}


def _check_failing(app: App, usage: int) -> None:
    failures = scrape(app).value("store_failures_total")
    no = call(app)
    assert (no.status, chat.error(no)["code"]) == (503, "store_unavailable")
    assert int(no.header("retry-after") or 0) >= 1
    assert call(app, "mate").status == 200
    assert call(app, "free").status == 200
    asked = app.exchange(raw.request(app.port, "GET", "/usage", key=app.secrets["web"]))
    assert asked.status == usage
    assert scrape(app).value("store_failures_total") >= failures + 3
    ready = app.exchange(raw.request(app.port, "GET", "/readyz"))
    assert json.loads(ready.body)["store"] == "failing"


def _check_recovered(app: App) -> None:
    """As before, without a restart: what waited is written, and nothing is missing."""
    eventually(lambda: call(app).status == 200, what="the store is used again")
    ready = raw.request(app.port, "GET", "/readyz")
    eventually(
        lambda: call(app).status == 200 and json.loads(app.exchange(ready).body)["store"] == "ok",
        what="all is written",
    )
    rows = app.runtime.store.totals(by=("key",))
    assert {row.group[0]: row.requests for row in rows}.items() >= {"mate": 1, "free": 1}.items()
    assert standings(app)["key:web"].concurrent == 0


@pytest.mark.usefixtures("soon")
def test_while_another_program_locks_the_file_only_keys_with_limits_are_refused(make: Make) -> None:
    app = make(FAILING)
    assert call(app).status == 200
    other = sqlite3.connect(app.directory / "usage.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        _check_failing(app, usage=200)  # a lock stops writers alone
        other.execute("COMMIT")
        _check_recovered(app)


@pytest.mark.usefixtures("soon")
def test_without_the_store_an_accounts_limits_refuse_no_key_without_limits(
    make: Make, redis_server: RedisServer
) -> None:
    redis_server.command("FLUSHALL")
    keys = {"web": {"requests_per_minute": 100}, "mate": {}}
    limits = "requests_per_minute = 100"
    app = make(keys, groq=limits, openai=limits, env={"WRAPPER_STORE": redis_server.url})
    redis_server.stop()
    try:
        assert [call(app, key).status for key in ("web", "mate")] == [503, 200]
        assert call(app, "mate", model="failing").status == 200
    finally:
        redis_server.start()
    eventually(lambda: call(app).status == 200, what="the store is used again")


@pytest.mark.usefixtures("soon")
def test_without_redis_only_keys_with_limits_are_refused(
    make: Make, redis_server: RedisServer
) -> None:
    redis_server.command("FLUSHALL")
    app = make(FAILING, env={"WRAPPER_STORE": redis_server.url})
    assert call(app).status == 200
    redis_server.stop()
    try:
        _check_failing(app, usage=503)
    finally:
        redis_server.start()
    _check_recovered(app)
