"""Who may call what: keys, models, aliases.

What depends on the connection, and one refusal of each kind, runs over a socket.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.defaults import CONFIG

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.gateway import Gateway
    from harness.raw import Answer
    from harness.simulator import Simulator


@pytest.fixture
def key(app: App) -> str:
    """The secret of the key `web-app`, which may call every model."""
    return app.secrets["web-app"]


@pytest.fixture
def nothing_sent(simulator: Simulator) -> Iterator[str]:
    """A book of which no request may have reached the provider when the test is over."""
    book = chat.mark()
    yield book
    assert simulator.requests(book=book) == []


def ask(app: App | Gateway, *authorization: str, book: str = "", target: str = chat.PATH) -> Answer:
    headers = tuple(("Authorization", value) for value in authorization) + chat.told(book=book)
    content = chat.body()
    return app.exchange(raw.request(app.port, "POST", target, content, headers=headers))


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
def test_anything_but_a_bearer_with_a_known_key_is_refused(
    app: App, key: str, nothing_sent: str, form: str, target: str
) -> None:
    unauthorized(ask(app, form.replace("{key}", key), book=nothing_sent, target=target))


def test_a_request_without_authorization_is_refused(app: App, nothing_sent: str) -> None:
    unauthorized(ask(app, book=nothing_sent))


def test_two_authorizations_are_refused_even_if_each_is_right(
    app: App, key: str, nothing_sent: str
) -> None:
    unauthorized(ask(app, f"Bearer {key}", f"Bearer {key}", book=nothing_sent))
    unauthorized(ask(app, "", f"Bearer {key}", book=nothing_sent))


@pytest.mark.parametrize("name", ["api-key", "X-Api-Key", "Proxy-Authorization", "Cookie"])
def test_a_key_in_another_header_is_not_accepted(
    app: App, key: str, nothing_sent: str, name: str
) -> None:
    headers = ((name, f"Bearer {key}"), (name + "-2", key), *chat.told(book=nothing_sent))
    asked = raw.request(app.port, "POST", chat.PATH, chat.body(), headers=headers)
    unauthorized(app.exchange(asked))


def test_a_key_in_the_query_is_not_accepted(app: App, key: str, nothing_sent: str) -> None:
    unauthorized(ask(app, book=nothing_sent, target=f"{chat.PATH}?api_key={key}&key={key}"))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_case_of_the_scheme_does_not_matter(app: App, key: str, scheme: str) -> None:
    assert ask(app, f"{scheme} {key}").status == 200


@pytest.mark.parametrize("length", [1_100, 10_000, 16_000])
def test_a_callers_own_credential_may_be_as_long_as_a_header(
    gateway: Gateway, simulator: Simulator, length: int
) -> None:
    """JSON web tokens are of one to ten thousand characters."""
    token = "eyJhbGciOi." + "A-_b" * (length // 4) + ".c2ln"
    book, target = chat.mark(), "/openai/v1/chat/completions"
    assert ask(gateway, f"Bearer {token}", book=book, target=target).status == 200
    (seen,) = simulator.requests(book=book)
    assert ["Authorization", f"Bearer {token}"] in seen["headers"]


def test_an_expired_key_gets_its_own_error_code(app: App, nothing_sent: str) -> None:
    secret = app.secrets["expired"]
    unauthorized(ask(app, f"Bearer {secret}", book=nothing_sent), "api_key_expired")


def test_a_model_that_the_key_may_not_call_is_a_403(app: App, nothing_sent: str) -> None:
    answer = chat.call(app, key="narrow", model="gpt-6-luna", book=nothing_sent)
    details = chat.error(answer)
    assert (answer.status, details["code"], details["param"]) == (403, "model_not_allowed", "model")
    assert details["type"] == "invalid_request_error"


def test_an_alias_is_allowed_by_its_own_name(app: App, nothing_sent: str) -> None:
    """The key `narrow` may call `llama-*`, which the alias `fast` is not, wherever it leads."""
    assert chat.call(app, key="narrow", model="fast", book=nothing_sent).status == 403
    assert chat.call(app, key="narrow", model="llama-anything").status == 200


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_refusal_does_not_wait_for_the_body(gateway: Gateway, length: int) -> None:
    headers = (
        ("Authorization", "Bearer sk-wr-nobody"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(length)),
    )
    asked = raw.request(gateway.port, "POST", chat.PATH, headers=headers)
    with raw.Connection(gateway.port).send(asked) as connection:
        unauthorized(connection.read())  # a 408, if it waited


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
    with raw.Connection(gateway.port).send(asked) as connection:
        answer = connection.read()
        if answer.status == 100:
            answer = connection.read()
        unauthorized(answer)


@pytest.mark.parametrize("form", ["", "Basic {key}", "Bearer {key}x", "Bearer {key}, Bearer {key}"])
def test_a_worker_refuses_keys_in_the_same_way(
    gateway: Gateway, nothing_sent: str, form: str
) -> None:
    secret = gateway.secrets["web-app"]
    unauthorized(ask(gateway, form.replace("{key}", secret), book=nothing_sent))
    unauthorized(ask(gateway, f"Bearer {secret}", f"Bearer {secret}", book=nothing_sent))
    expired = gateway.secrets["expired"]
    unauthorized(ask(gateway, f"Bearer {expired}", book=nothing_sent), "api_key_expired")


def test_a_worker_refuses_models_in_the_same_way(gateway: Gateway, nothing_sent: str) -> None:
    answer = chat.call(gateway, key="narrow", model="gpt-6-luna", book=nothing_sent)
    assert (answer.status, chat.error(answer)["code"]) == (403, "model_not_allowed")


# --- routing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "provider"),
    [("gpt-6-luna", "openai"), ("gpt-", "openai"), ("openai/gpt-oss-20b", "groq")],
)
@pytest.mark.parametrize("target", ["/chat/completions", "/v1/chat/completions"])
def test_the_first_route_that_matches_the_model_is_used(
    app: App, simulator: Simulator, target: str, model: str, provider: str
) -> None:
    book = chat.mark()
    answer = chat.call(app, model=model, book=book, target=target)
    assert answer.header("x-wrapper-provider") == provider
    (seen,) = simulator.requests(book=book)
    base = {"openai": "/v1", "groq": "/openai/v1"}[provider]
    assert seen["target"] == f"{base}/chat/completions"


def test_the_query_goes_up_as_it_came(app: App, simulator: Simulator) -> None:
    book = chat.mark()
    query = "?a=1&b=%20x&b=/y?z&c=%C3%BC&d=+"
    assert chat.call(app, book=book, target=chat.PATH + query).status == 200
    assert simulator.requests(book=book)[0]["target"] == "/openai/v1/chat/completions" + query


UNTIDY = (
    b' {\r\n\t"messages" : [{"role":"user","content":"model \\"fast\\" \\u00fc \xc3\xbc"}],'
    b'"a": {"model": "fast"}, "model"\t:  %b  , "seed": 10000000000000000000000, "t": 1.0e-2 }\n'
)


@pytest.mark.parametrize("spelling", [b'"fast"', b'"f\\u0061st"'])
def test_an_alias_renames_exactly_the_models_bytes(
    app: App, simulator: Simulator, spelling: bytes
) -> None:
    answer = chat.call(app, UNTIDY % spelling, orders="echo=raw")
    assert answer.body == UNTIDY % b'"openai/gpt-oss-20b"'


@pytest.mark.parametrize("model", [b'"llama-x"', b'"ll\\u0061ma-x"'])
def test_without_an_alias_no_byte_is_changed(app: App, model: bytes) -> None:
    answer = chat.call(app, UNTIDY % model, orders="echo=raw")
    assert answer.body == UNTIDY % model


def test_a_model_that_no_route_leads_to_is_a_404(app_factory: AppFactory) -> None:
    config = CONFIG[: CONFIG.index("[[routes]]")]
    app = app_factory(config + '[[routes]]\nmodel = "known"\ntargets = ["groq"]\n')
    assert chat.call(app, model="known").status == 200
    answer = chat.call(app, model="unknown")
    details = chat.error(answer)
    assert (answer.status, details["code"], details["param"]) == (404, "model_not_found", "model")
    key = app.secrets["web-app"]
    asked = raw.request(app.port, "GET", "/v1/files", key=key)
    assert app.exchange(asked).status == 404


def test_a_gateway_without_keys_refuses_every_key(app_factory: AppFactory) -> None:
    app = app_factory(keys={})
    unauthorized(ask(app, "Bearer sk-wr-" + "A" * 43))
    assert app.client.get("/healthz").json == {"status": "ok"}
