"""Who inside a key a request is for: tags by header, metadata or user, bounded in number."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from harness import chat, raw
from harness.defaults import CONFIG
from wrapper.proxy.tags import MAX_MEMBER
from wrapper.telemetry.labels import KeyTags

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.redisserver import RedisServer

MODEL = "gpt-6-sol"
ALL = '\n[tags]\nheader = "X-Wrapper-Tag"\nmetadata = "team"\nuser = true\n'


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
    assert tags(app) == {"search": 1, "billing": 1, "Zoë Ω": 1, "ann": 1, "-": 2}
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
