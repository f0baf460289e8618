"""Who may call what: keys, models, aliases."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.defaults import CONFIG

if TYPE_CHECKING:
    from harness.gateway import Gateway, GatewayFactory
    from harness.raw import Answer
    from harness.simulator import Simulator


@pytest.fixture
def nothing_sent(simulator: Simulator) -> Iterator[str]:
    """A book of which no request may have reached the provider when the test is over."""
    book = chat.mark()
    yield book
    assert simulator.requests(book=book) == []


def ask(gateway: Gateway, *authorization: str, book: str = "", target: str = chat.PATH) -> Answer:
    headers = tuple(("Authorization", value) for value in authorization) + chat.told(book=book)
    content = chat.body()
    return raw.exchange(
        gateway.port, raw.request(gateway.port, "POST", target, content, headers=headers)
    )


def unauthorized(answer: Answer, code: str = "invalid_api_key") -> None:
    details = chat.error(answer)
    assert (answer.status, details["type"], details["code"]) == (401, "invalid_request_error", code)
    assert (answer.header("www-authenticate") or "").startswith("Bearer")


@pytest.mark.parametrize(
    "form",
    [
        "",
        "Bearer",
        "Bearer ",
        "{key}",
        "Basic {key}",
        "Token {key}",
        "BearerX {key}",
        "Bearer{key}",
        "Bearer {key}x",
        "Bearer x{key}",
        "Bearer {key} {key}",
        "Bearer {key},",
        "Bearer {key}, Bearer {key}",
        'Bearer "{key}"',
        "Bearer sk-wr-" + "A" * 43,
        "Bearer sk-wr-",
        "Bearer gsk_something-of-the-providers",
        "Bearer " + "x" * 9000,
        "Bearer \xe9\xff",
    ],
)
@pytest.mark.parametrize("target", [chat.PATH, "/groq/openai/v1/chat/completions"])
def test_only_a_bearer_with_a_known_key_gets_in(
    gateway: Gateway, key: str, nothing_sent: str, form: str, target: str
) -> None:
    unauthorized(ask(gateway, form.replace("{key}", key), book=nothing_sent, target=target))


def test_without_authorization_nobody_gets_in(gateway: Gateway, nothing_sent: str) -> None:
    unauthorized(ask(gateway, book=nothing_sent))


def test_two_authorizations_are_refused_even_if_each_is_right(
    gateway: Gateway, key: str, nothing_sent: str
) -> None:
    unauthorized(ask(gateway, f"Bearer {key}", f"Bearer {key}", book=nothing_sent))
    unauthorized(ask(gateway, "", f"Bearer {key}", book=nothing_sent))


@pytest.mark.parametrize("name", ["api-key", "X-Api-Key", "Proxy-Authorization", "Cookie"])
def test_a_key_in_another_header_is_none(
    gateway: Gateway, key: str, nothing_sent: str, name: str
) -> None:
    headers = ((name, f"Bearer {key}"), (name + "-2", key), *chat.told(book=nothing_sent))
    asked = raw.request(gateway.port, "POST", chat.PATH, chat.body(), headers=headers)
    unauthorized(raw.exchange(gateway.port, asked))


def test_a_key_in_the_query_is_none(gateway: Gateway, key: str, nothing_sent: str) -> None:
    unauthorized(ask(gateway, book=nothing_sent, target=f"{chat.PATH}?api_key={key}&key={key}"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_schemes_case_does_not_matter(gateway: Gateway, key: str, scheme: str) -> None:
    assert ask(gateway, f"{scheme} {key}").status == 200


def test_an_expired_key_is_told_so(gateway: Gateway, nothing_sent: str) -> None:
    secret = gateway.secrets["expired"]
    unauthorized(ask(gateway, f"Bearer {secret}", book=nothing_sent), "api_key_expired")


def test_a_model_that_the_key_may_not_call_is_a_403(gateway: Gateway, nothing_sent: str) -> None:
    answer = chat.call(gateway, key="narrow", model="gpt-6-luna", book=nothing_sent)
    details = chat.error(answer)
    assert (answer.status, details["code"], details["param"]) == (403, "model_not_allowed", "model")
    assert details["type"] == "invalid_request_error"


def test_an_alias_is_allowed_by_its_own_name(gateway: Gateway, nothing_sent: str) -> None:
    """The key `narrow` may call `llama-*`, which the alias `fast` is not, wherever it leads."""
    assert chat.call(gateway, key="narrow", model="fast", book=nothing_sent).status == 403
    assert chat.call(gateway, key="narrow", model="llama-anything").status == 200


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_refusal_does_not_wait_for_the_body(gateway: Gateway, length: int) -> None:
    headers = (
        ("Authorization", "Bearer sk-wr-nobody"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(length)),
    )
    asked = raw.request(gateway.port, "POST", chat.PATH, headers=headers)
    with raw.Connection(gateway.port, deadline=5).send(asked) as connection:
        began = time.monotonic()
        unauthorized(connection.read())
        assert time.monotonic() - began < 3


def test_after_a_refusal_the_connection_goes_on_with_the_next_request(gateway: Gateway) -> None:
    refused = chat.request(gateway, key="sk-wr-nobody")
    with raw.Connection(gateway.port).send(refused) as connection:
        unauthorized(connection.read())
        assert connection.send(chat.request(gateway)).read().status == 200


def test_expect_continue_with_a_wrong_key_ends_in_a_401(gateway: Gateway) -> None:
    headers = (
        ("Authorization", "Bearer sk-wr-nobody"),
        ("Expect", "100-continue"),
        ("Content-Length", "100"),
    )
    asked = raw.request(gateway.port, "POST", chat.PATH, headers=headers)
    with raw.Connection(gateway.port, deadline=5).send(asked) as connection:
        answer = connection.read()
        if answer.status == 100:
            answer = connection.read()
        unauthorized(answer)


# --- routing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "provider"),
    [("gpt-6-luna", "openai"), ("gpt-", "openai"), ("openai/gpt-oss-20b", "groq")],
)
@pytest.mark.parametrize("target", ["/chat/completions", "/v1/chat/completions"])
def test_the_first_route_that_matches_the_model_leads_the_way(
    gateway: Gateway, simulator: Simulator, target: str, model: str, provider: str
) -> None:
    book = chat.mark()
    answer = chat.call(gateway, model=model, book=book, target=target)
    assert answer.header("x-wrapper-provider") == provider
    (seen,) = simulator.requests(book=book)
    base = {"openai": "/v1", "groq": "/openai/v1"}[provider]
    assert seen["target"] == f"{base}/chat/completions"


def test_the_query_goes_up_as_it_came(gateway: Gateway, simulator: Simulator) -> None:
    book = chat.mark()
    query = "?a=1&b=%20x&b=/y?z&c=%C3%BC&d=+"
    assert chat.call(gateway, book=book, target=chat.PATH + query).status == 200
    assert simulator.requests(book=book)[0]["target"] == "/openai/v1/chat/completions" + query


UNTIDY = (
    b' {\r\n\t"messages" : [{"role":"user","content":"model \\"fast\\" \\u00fc \xc3\xbc"}],'
    b'"a": {"model": "fast"}, "model"\t:  %b  , "seed": 10000000000000000000000, "t": 1.0e-2 }\n'
)


@pytest.mark.parametrize("spelling", [b'"fast"', b'"f\\u0061st"'])
def test_an_alias_renames_exactly_the_models_bytes(
    gateway: Gateway, simulator: Simulator, spelling: bytes
) -> None:
    answer = chat.call(gateway, UNTIDY % spelling, orders="echo=raw")
    assert answer.body == UNTIDY % b'"openai/gpt-oss-20b"'


@pytest.mark.parametrize("model", [b'"llama-x"', b'"ll\\u0061ma-x"'])
def test_without_an_alias_no_byte_is_changed(gateway: Gateway, model: bytes) -> None:
    answer = chat.call(gateway, UNTIDY % model, orders="echo=raw")
    assert answer.body == UNTIDY % model


def test_a_model_that_no_route_leads_to_is_a_404(gateway_factory: GatewayFactory) -> None:
    config = CONFIG[: CONFIG.index("[[routes]]")]
    gateway = gateway_factory(config + '[[routes]]\nmodel = "known"\ntargets = ["groq"]\n')
    assert chat.call(gateway, model="known").status == 200
    answer = chat.call(gateway, model="unknown")
    details = chat.error(answer)
    assert (answer.status, details["code"], details["param"]) == (404, "model_not_found", "model")
    key = gateway.secrets["web-app"]
    asked = raw.request(gateway.port, "GET", "/v1/files", key=key)
    assert raw.exchange(gateway.port, asked).status == 404


def test_a_gateway_without_keys_lets_nobody_in(gateway_factory: GatewayFactory) -> None:
    gateway = gateway_factory(keys={})
    unauthorized(ask(gateway, "Bearer sk-wr-" + "A" * 43))
    assert json.loads(gateway.get("/healthz")[1]) == {"status": "ok"}
