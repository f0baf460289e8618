"""Who inside a key a request is for: tags by header, metadata or user, bounded in number."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG
from harness.metrics import Metrics
from wrapper.metering import Usage
from wrapper.proxy.tags import MAX_MEMBER
from wrapper.record import COMPLETED, RequestRecord
from wrapper.telemetry.instruments import TAG_COST, TAG_REQUESTS, TAG_TOKENS
from wrapper.telemetry.labels import MAX_TAGS_OF_KEY, KeyTags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.app import App, AppFactory
    from harness.redisserver import RedisServer

MODEL = "gpt-6-sol"
ALL = '\n[tags]\nheader = "X-Wrapper-Tag"\nmetadata = "team"\nuser = true\n'
LISTED = ALL + 'labels = ["team-a", "nightly"]\n'
COUNTED = ("tag_requests_total", "tag_tokens_total", "tag_cost_usd_total")


@pytest.fixture
def no_series() -> Iterator[None]:
    """Metrics are of the process: other tests' tags are not seen, and leave nothing."""
    for metric in (TAG_REQUESTS, TAG_TOKENS, TAG_COST):
        metric.clear()
    yield
    for metric in (TAG_REQUESTS, TAG_TOKENS, TAG_COST):
        metric.clear()


def counted(app: App) -> dict[str, tuple[float, ...]]:
    """The requests, tokens and dollars of each tag in `/metrics`."""
    got = app.exchange(raw.request(app.port, "GET", "/metrics"))
    assert got.status == 200
    families = [Metrics(got.body.decode()).by(name, "tag") for name in COUNTED]
    assert families[0].keys() == families[1].keys() == families[2].keys()
    return {tag: tuple(family[tag,] for family in families) for (tag,) in families[0]}


def call(app: App, tag: str = "", **fields: Any) -> str:
    headers = (("X-Wrapper-Tag", tag),) if tag else ()
    answer = chat.call(app, chat.body(MODEL, **fields), headers=headers, key="web")
    assert answer.status == 200, answer.body
    return answer.header("x-request-id") or ""


def tags(app: App) -> dict[str, int]:
    return {row.group[0]: row.requests for row in app.runtime.store.totals(by=("tag",))}


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_the_first_of_header_metadata_and_user_is_the_tag(
    app_factory: AppFactory, request: pytest.FixtureRequest, store: str
) -> None:
    env = {}
    if store == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        env["WRAPPER_STORE"] = server.url
    app = app_factory(CONFIG + ALL, keys={"web": {}}, env=env)
    call(app, "search", metadata={"team": "billing"}, user="ann")
    call(app, metadata={"team": "billing"}, user="ann")
    call(app, metadata={"team": ["billing"]}, user="Zoë Ω")
    request_id = call(app, user="ann")
    call(app, metadata={"other": "x"})
    call(app)
    call(app, "Zoë Ω".encode().decode("latin-1"))  # as UTF-8
    assert tags(app) == {"search": 1, "billing": 1, "Zoë Ω": 2, "ann": 1, "-": 2}
    got = app.exchange(
        raw.request(app.port, "GET", f"/usage/requests/{request_id}", key=app.secrets["web"])
    )
    assert json.loads(got.body)["tag"] == "ann"


def test_without_the_table_nothing_is_a_tag(app_factory: AppFactory) -> None:
    app = app_factory(CONFIG, keys={"web": {}})
    call(app, "search", metadata={"team": "billing"}, user="ann")
    assert tags(app) == {"-": 1}


def test_a_tag_refuses_no_request_and_what_is_none_counts_as_other(app_factory: AppFactory) -> None:
    app = app_factory(CONFIG + ALL, keys={"web": {}})
    for user in ("x" * 65, "line\nline", "\u202eevil"):
        call(app, user=user)
    for user in (7, None, {"a": 1}, "  "):
        call(app, user=user)
    call(app, metadata="team", user="ann")
    # A large one is not decoded: it would take twenty times its size.
    call(app, metadata={"team": "billing", "more": [[]] * MAX_MEMBER}, user="ann")
    assert tags(app) == {"other": 3, "-": 4, "ann": 2}


def test_the_header_stays_here(app_factory: AppFactory, simulator: Any) -> None:
    app = app_factory(CONFIG + ALL, keys={"web": {}})
    book = chat.mark()
    headers = (("X-Wrapper-Tag", "search"),)
    assert chat.call(app, model=MODEL, key="web", book=book, headers=headers).status == 200
    [seen] = simulator.requests(book=book)
    assert "x-wrapper-tag" not in {name.lower() for name, _ in seen["headers"]}


def test_a_key_that_makes_up_tags_leaves_room_for_the_others() -> None:
    known = KeyTags(tags=6, of_key=4)
    assert [known.of("web", str(n)) for n in range(6)] == ["0", "1", "2", "3", "other", "other"]
    assert [known.of("batch", str(n)) for n in range(3)] == ["0", "1", "other"]
    assert [known.of("web", "3"), known.of("batch", "1")] == ["3", "1"]


@pytest.mark.usefixtures("no_series")
def test_a_listed_tag_is_counted_in_the_metrics_and_no_other(app_factory: AppFactory) -> None:
    app = app_factory(CONFIG + LISTED, keys={"web": {}})
    assert counted(app) == {"team-a": (0, 0, 0), "nightly": (0, 0, 0)}
    for tag in ("team-a", "team-a", "search", "", "x" * 65):
        call(app, tag)
    call(app, user="nightly")
    assert tags(app) == {"team-a": 2, "nightly": 1, "search": 1, "-": 1, "other": 1}
    booked = {row.group[0]: row for row in app.runtime.store.totals(by=("tag",))}
    assert booked["nightly"].total > 0
    assert booked["nightly"].cost > 0
    assert counted(app) == {
        tag: (row.requests, row.total, pytest.approx(row.cost / 1e12, rel=0, abs=1e-10))
        for tag, row in booked.items()
        if tag in ("team-a", "nightly")
    }


@pytest.mark.usefixtures("no_series")
def test_deferred_work_counts_tokens_and_cost_of_its_tag_and_no_request(
    app_factory: AppFactory,
) -> None:
    app = app_factory(CONFIG + LISTED, keys={"web": {}})
    for tag in ("nightly", "search"):
        record = RequestRecord("", "(deferred)", api_key="web", provider="openai", model=MODEL)
        record.usage, record.cost = Usage(10, 5, 15), 2_000_000_000_000
        record.outcome, record.tag = COMPLETED, tag
        app.runtime.telemetry.booked(record, MODEL)
    assert counted(app) == {"team-a": (0, 0, 0), "nightly": (0, 15, 2)}


@pytest.mark.usefixtures("no_series")
def test_a_reload_changes_what_is_listed(app_factory: AppFactory) -> None:
    app = app_factory(CONFIG + LISTED, keys={"web": {}})
    settings, prices = app.runtime.snapshot.settings, app.runtime.snapshot.prices
    other = dataclasses.replace(settings.tags, labels=frozenset(("search",)))
    app.runtime.apply(dataclasses.replace(settings, tags=other), prices)
    for tag in ("team-a", "search"):
        call(app, tag)
    found = counted(app)
    assert {tag: requests for tag, (requests, *_) in found.items()} == {
        "team-a": 0,
        "nightly": 0,
        "search": 1,
    }


@pytest.mark.usefixtures("no_series")
def test_no_tag_is_a_label_where_none_is_listed(app_factory: AppFactory) -> None:
    app = app_factory(CONFIG + ALL, keys={"web": {}})
    call(app, "team-a")
    call(app)
    assert counted(app) == {}


@pytest.mark.usefixtures("no_series")
def test_a_listed_tag_has_its_place_among_those_that_a_key_makes_up(
    app_factory: AppFactory,
) -> None:
    app = app_factory(CONFIG + LISTED, keys={"web": {}})
    for number in range(MAX_TAGS_OF_KEY):
        app.runtime.telemetry.tag("web", str(number))
    call(app, "search")
    call(app, "nightly")
    assert tags(app) == {"other": 1, "nightly": 1}
    assert counted(app)["nightly"][0] == 1
