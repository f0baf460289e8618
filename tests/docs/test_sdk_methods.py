"""docs/sdk-methods.md says of every SDK method what the gateway does with it."""

from __future__ import annotations

import httpx
import openai
import pytest

from tools import sdk_table
from wrapper.endpoints import ENDPOINTS, find_endpoint


def test_the_table_of_sdk_methods_is_made_of_the_sdks_and_the_endpoints() -> None:
    page = sdk_table.PAGE.read_text()
    assert page == sdk_table.page(), "run python -m tools.sdk_table"


def test_the_requests_are_those_that_the_methods_make() -> None:
    """Some of each kind, with a transport that answers nothing and keeps the request."""
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(404, json={})

    with (
        httpx.Client(transport=httpx.MockTransport(respond)) as http,
        openai.OpenAI(
            base_url="http://x", api_key="x", admin_api_key="x", max_retries=0, http_client=http
        ) as client,
    ):
        known = {each.name: each for each in sdk_table.methods(client)}
        for name, arguments in {
            "responses.compact": {"model": "m"},
            "responses.cancel": {"response_id": "{id}"},
            "vector_stores.search": {"vector_store_id": "{id}", "query": "q"},
            "conversations.items.list": {"conversation_id": "{id}"},
            "evals.delete": {"eval_id": "{id}"},
            "admin.organization.usage.costs": {"start_time": 1},
        }.items():
            method = client
            for part in name.split("."):
                method = getattr(method, part)
            with pytest.raises(openai.NotFoundError):
                method(**arguments)  # type: ignore[operator]
            found = asked.pop().replace("%7B", "{").replace("%7D", "}")
            assert found == f"{known[name].verb} {known[name].path}"


def test_every_endpoint_of_openai_is_found_by_a_method() -> None:
    client = openai.OpenAI(api_key="x", admin_api_key="x")
    found = {
        find_endpoint(each.verb, "/v1" + each.path.replace("{id}", "id"))
        for each in sdk_table.methods(client)
        if each.path
    }
    # Of other providers, or with nothing that a method of the package posts.
    others = ("/api/", "/messages", "/rerank", "/realtime", "/containers/{rest}")
    missing = {row.path for row in ENDPOINTS} - {row.path for row in found}
    assert {path for path in missing if not path.startswith(others)} == set()
