"""Responses, files, batches: a request for one goes to the provider where it was created."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import brotli
import pytest

from harness import raw
from harness.raw import response

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.raw import Answer, Scripted
    from harness.redisserver import RedisServer

JSON = "Content-Type: application/json"
EVENTS = "Content-Type: text/event-stream"

CONFIG = """\
[providers.a]
base_url = "{a}/v1"
client_credentials = true

[providers.b]
base_url = "{b}/v1"

[[routes]]
model = "at-a"
targets = ["a"]

[[routes]]
model = "both"
targets = ["b", "a:at-a"]

[[routes]]
model = "*"
targets = ["b"]
"""


class Two:
    """A gateway before two providers; requests without a model go to `b`."""

    def __init__(self, app_factory: AppFactory, held: ExitStack, env: dict[str, str]) -> None:
        self.sent = response(b"{}", JSON)
        self.a: Scripted = held.enter_context(raw.scripted(lambda _: self.sent))
        self.b: Scripted = held.enter_context(raw.scripted(lambda _: self.sent))
        self.app: App = app_factory(CONFIG.format(a=self.a.url, b=self.b.url), env=env)

    def call(self, method: str, path: str, body: Any = None, key: str = "") -> Answer:
        content = b"" if body is None else json.dumps(body).encode()
        key = key or self.app.secrets["web-app"]
        return self.app.exchange(raw.request(self.app.port, method, path, content, key=key))

    def create(self, path: str, body: Any, sent: bytes) -> None:
        """Create an object by a request to which the provider sends this."""
        self.sent = sent
        assert self.call("POST", path, body).status == 200
        self.sent = response(b"{}", JSON)

    def provider_of(self, method: str, path: str, body: Any = None) -> str | None:
        return self.call(method, path, body).header("x-wrapper-provider")


@pytest.fixture(params=["sqlite", "redis"])
def two(request: pytest.FixtureRequest, app_factory: AppFactory) -> Iterator[Two]:
    env = {}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.command("FLUSHALL")
        env = {"WRAPPER_STORE": server.url}
    with ExitStack() as held:
        yield Two(app_factory, held, env)


def whole(object_id: str, **fields: Any) -> bytes:
    return response(json.dumps({"id": object_id, **fields}).encode(), JSON)


CREATED = json.dumps(
    {"type": "response.created", "response": {"id": "resp_1", "output": []}}
).encode()
FORMS = {
    "whole": whole("resp_1", object="response"),
    "not-first": response(b'{"object": "response", "id": "resp_1"}', JSON),
    "large": response(b'{ "id" : "resp_1", "output": "%b"}' % (b"x" * 200_000), JSON),
    "gzip": response(gzip.compress(b'{"id": "resp_1"}'), JSON, "Content-Encoding: gzip"),
    "br": response(brotli.compress(b'{"id": "resp_1"}'), JSON, "Content-Encoding: br"),
    "stream": response(b"event: response.created\ndata: %b\n\ndata: {}\n\n" % CREATED, EVENTS),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_response_is_asked_for_where_it_was_created(two: Two, form: str) -> None:
    assert two.provider_of("GET", "/v1/responses/resp_1") == "b", "not known yet"
    two.create("/v1/responses", {"model": "at-a", "input": "x"}, FORMS[form])
    assert two.provider_of("GET", "/v1/responses/resp_1") == "a"
    assert two.provider_of("DELETE", "/v1/responses/resp_1") == "a"
    assert two.provider_of("POST", "/v1/responses/resp_1/cancel") == "a"
    assert two.provider_of("GET", "/v1/responses/resp_1/input_items?limit=2") == "a"
    assert two.a.requests[-1].startswith(b"GET /v1/responses/resp_1/input_items?limit=2 ")
    assert two.provider_of("GET", "/v1/responses/resp_2") == "b"
    assert two.provider_of("GET", "/v1/files") == "b"


def test_what_builds_on_an_object_goes_there(two: Two) -> None:
    two.create("/v1/responses", {"model": "at-a"}, whole("resp_1"))
    follows = {"previous_response_id": "resp_1", "input": "x"}
    assert two.provider_of("POST", "/v1/responses", follows) == "a"
    # Where the model has several targets, the one that has the object; else the model decides.
    assert two.provider_of("POST", "/v1/responses", {"model": "both"}) == "b"
    assert two.provider_of("POST", "/v1/responses", {"model": "both", **follows}) == "a"
    assert b'"at-a"' in two.a.requests[-1]
    assert two.provider_of("POST", "/v1/responses", {"model": "else", **follows}) == "b"
    two.create("/a/v1/conversations", {}, whole("conv_1"))
    for named in ("conv_1", {"id": "conv_1"}):
        assert two.provider_of("POST", "/v1/responses", {"conversation": named}) == "a"


def test_files_and_what_is_made_of_them_stay_together(two: Two) -> None:
    two.create("/a/v1/files", {"purpose": "batch"}, whole("file-1"))
    assert two.provider_of("GET", "/v1/files/file-1/content") == "a"
    two.create("/v1/batches", {"input_file_id": "file-1"}, whole("batch_1"))
    assert two.provider_of("GET", "/v1/batches/batch_1") == "a"
    two.create("/a/v1/threads", {}, whole("thread_1"))
    assert two.provider_of("GET", "/v1/threads/thread_1/runs/run_1") == "a"


@pytest.mark.parametrize(
    "sent",
    [
        response(b'{"id": "resp_1"}', JSON, status="400 Bad Request"),
        response(b'{"output": {"id": "resp_1"}}', JSON),
        response(b'{"id": 7}', JSON),
        response(b'["resp_1"]', JSON),
        response(b"\x1f\x8bbroken", JSON, "Content-Encoding: gzip"),
        response(b"", JSON),
    ],
)
def test_what_names_no_object_is_not_remembered(two: Two, sent: bytes) -> None:
    two.sent = sent
    two.call("POST", "/v1/responses", {"model": "at-a"})
    assert two.provider_of("GET", "/v1/responses/resp_1") == "b"


def test_an_object_in_a_callers_own_account_is_not_the_gateways(two: Two) -> None:
    two.sent = whole("resp_1")
    assert two.call("POST", "/a/v1/responses", {}, key="sk-their-own-key").status == 200
    assert two.provider_of("GET", "/v1/responses/resp_1") == "b"


@pytest.mark.parametrize(
    "field", [7, None, [], {}, {"id": 7}, "", "x" * 1000, {"id": "resp_1", "more": "x" * 1000}]
)
def test_a_field_that_is_no_id_is_the_providers_business(two: Two, field: Any) -> None:
    asked = {"previous_response_id": field, "conversation": field}
    assert two.provider_of("POST", "/v1/responses", asked) == "b"
