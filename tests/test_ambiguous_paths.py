"""A target that two readers could read in two ways is refused, and nothing is sent anywhere.

And whatever is put into the target or into headers that speak of hosts and paths: a request
reaches the provider that it names, and no other host.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from harness import raw

if TYPE_CHECKING:
    from harness.app import App
    from harness.gateway import Gateway
    from harness.simulator import Simulator

BASES = ["/openai/v1", "/v1", "/groq"]
AMBIGUOUS = [
    "/../admin",
    "/..",
    "/.",
    "/./models",
    "/a/../../admin",
    "/%2e%2e/admin",
    "/%2E%2e/admin",
    "/.%2e/admin",
    "/%2e./admin",
    "/%2e",
    "/..;/admin",
    "/..;x=y/admin",
    "/.%3b/admin",
    "//models",
    "/a//b",
    "/models//",
    "/a%2fb",
    "/models%2fgpt-4",
    "/models/..%2f..%2fchat%2fcompletions",
    "/models/a%2f..%2f..%2fadmin",
    "/models/a%2f%2e%2e%2Fb",
    "/models/a%2F%2fb",
    "/models/%2fa",
    "/models/a%5cb",
    "/a%2Fb",
    "/..%2fadmin",
    "/..%5cadmin",
    "/a\\b",
    "/..\\admin",
    "/a%5Cb",
    "/a%00b",
    "/a%0d%0aX-Evil:%20yes",
    "/a%09b",
    "/a%7fb",
    "/a%1fb",
    "/a%zzb",
    "/a%",
    "/a%4",
]
# Characters that no path has (RFC 3986 section 2): the server itself refuses some of them.
NO_PATH_CHARACTERS = ["/a\xe4b", "/a\x7fb"]
# Some of each kind, for what is the same in a worker.
REPRESENTATIVE = ["/../admin", "/%2e%2e/admin", "//models", "/a%2fb", "/a\\b", "/a%00b", "/a%zzb"]
# Not for any reader a path on this host (RFC 9112 section 3.2).
NOT_ORIGIN_FORM = [
    "http://{other}/v1/models",
    "http://{own}/openai/v1/_echo",
    "https://{other}/",
    "//{other}/v1/models",
    "///{other}/v1/models",
    "/\\{other}/v1/models",
    "@{other}/v1/models",
    "openai/v1/_echo",
    "*",
    "?a=b",
]


@pytest.fixture
def book() -> str:
    return f"ambiguous-{uuid4()}"


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
def elsewhere(listening: socket.socket) -> Iterator[str]:
    """Another host, which must not be connected to."""
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    with pytest.raises(BlockingIOError):
        listening.accept()


def refused(answer: raw.Answer) -> None:
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"]) == (400, "invalid_request_error")
    assert error["code"] == "invalid_path"


def send(
    app: App | Gateway,
    target: str,
    book: str,
    *headers: tuple[str, str],
    method: str = "GET",
    key: str | None = "",
) -> raw.Answer:
    secret = app.secrets["web-app"] if key == "" else key
    data = raw.request(
        app.port, method, target, key=secret, headers=(("x-sim-book", book), *headers)
    )
    return app.exchange(data)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", AMBIGUOUS)
def test_an_ambiguous_path_is_refused_and_nothing_is_sent(
    app: App, simulator: Simulator, book: str, base: str, path: str
) -> None:
    refused(send(app, base + path, book))
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", REPRESENTATIVE)
def test_a_worker_refuses_an_ambiguous_path_and_sends_nothing(
    gateway: Gateway, simulator: Simulator, book: str, base: str, path: str
) -> None:
    refused(send(gateway, base + path, book))
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", NO_PATH_CHARACTERS)
def test_a_character_that_no_path_has_is_refused_and_nothing_is_sent(
    gateway: Gateway, simulator: Simulator, book: str, base: str, path: str
) -> None:
    assert send(gateway, base + path, book).status == 400
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize(
    "path",
    [
        "/../openai/v1/models",
        "/healthz/../openai/v1/models",
        "/openai%2fv1/models",
        "/./openai/v1/models",
        "//openai/v1/models",
        "/metrics/..",
        "/%2e%2e",
        "/docs/..%2f..%2fetc/passwd",
        "/docs/%2e%2e/%2e%2e/wsgi.py",
        "/swagger/../../wsgi.py",
    ],
)
@pytest.mark.parametrize("key", ["", None, "sk-own"])
def test_it_is_refused_before_the_key_is_looked_at(
    app: App, simulator: Simulator, book: str, path: str, key: str | None
) -> None:
    answer = send(app, path, book, key=key)
    assert answer.status == 400
    assert json.loads(answer.body)["error"]["code"] == "invalid_path"
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "CONNECT"])
@pytest.mark.parametrize("target", NOT_ORIGIN_FORM)
def test_only_a_path_on_this_host_is_served(
    gateway: Gateway, simulator: Simulator, book: str, elsewhere: str, target: str, method: str
) -> None:
    target = target.format(other=elsewhere, own=f"127.0.0.1:{gateway.port}")
    assert 400 <= send(gateway, target, book, method=method).status < 500
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize(
    "target",
    [
        "/@{other}/v1/models",
        "/openai@{other}/v1/models",
        "/openai:80@{other}/v1/models",
        "/{other}/v1/models",
        "/http:{other}/v1/models",
        "/http%3a{other}/v1/models",
        "/openai.{other}/v1/models",
    ],
)
def test_a_first_segment_that_looks_like_a_host_is_no_provider(
    app: App, simulator: Simulator, book: str, elsewhere: str, target: str
) -> None:
    answer = send(app, target.format(other=elsewhere), book)
    assert answer.status == 404
    assert json.loads(answer.body)["error"]["code"] == "unknown_url"
    assert simulator.requests(book=book) == []


@pytest.mark.parametrize(
    "path",
    [
        "/@{other}/x",
        "/x@{other}",
        "/http:{other}",
        "/:{other}",
        "/%40{other}",
        "/x?@{other}/#"[:-1],
    ],
)
@pytest.mark.parametrize("base", ["/openai", "/v1", "/%6fpenai"])
def test_a_host_further_on_is_a_part_of_the_path(
    app: App, simulator: Simulator, book: str, elsewhere: str, base: str, path: str
) -> None:
    path = path.format(other=elsewhere)
    assert send(app, base + path, book).status == 200
    (seen,) = simulator.requests(book=book)
    assert seen["target"] == ("/openai/v1" if base == "/v1" else "") + path
    assert ["Host", f"127.0.0.1:{simulator.port}"] in seen["headers"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Host", "{other}"),
        ("Host", "{other}@127.0.0.1"),
        ("X-Forwarded-Host", "{other}"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Prefix", "/v1/.."),
        ("X-Forwarded-For", "{other}"),
        ("X-Forwarded-Port", "1"),
        ("Forwarded", "host={other};proto=https"),
        ("X-Original-URL", "http://{other}/admin"),
        ("X-Rewrite-URL", "/../admin"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("SCRIPT-NAME", "/groq"),
        ("Path-Info", "/groq/openai/v1/models"),
        ("Raw-Uri", "//{other}/"),
        ("Proxy", "http://{other}"),
        ("Destination", "http://{other}/"),
    ],
)
def test_no_header_sends_a_request_to_another_host(
    gateway: Gateway, simulator: Simulator, book: str, elsewhere: str, name: str, value: str
) -> None:
    headers = {
        "Host": f"127.0.0.1:{gateway.port}",
        "Authorization": f"Bearer {gateway.secrets['web-app']}",
        "x-sim-book": book,
        name: value.format(other=elsewhere),
    }
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    gateway.exchange(f"GET /openai/v1/_echo HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
    for seen in simulator.requests(book=book):
        assert (seen["method"], seen["target"]) == ("GET", "/v1/_echo")
        assert ["Host", f"127.0.0.1:{simulator.port}"] in seen["headers"]


@pytest.mark.parametrize("name", ["SCRIPT_NAME", "PATH_INFO", "X_Forwarded_Host", "RAW_URI"])
def test_a_header_that_is_called_as_a_variable_of_wsgi_changes_no_address(
    gateway: Gateway, simulator: Simulator, book: str, name: str
) -> None:
    answer = send(gateway, "/openai/v1/_echo", book, (name, "/groq"))
    assert answer.status == 200
    (seen,) = simulator.requests(book=book)
    assert seen["target"] == "/v1/_echo"
