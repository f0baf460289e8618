"""Chat calls as the tests make them: a body, orders to the simulator, a mark to find them again."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

from . import raw
from .poll import PATIENCE

if TYPE_CHECKING:
    from .app import App
    from .gateway import Gateway
    from .raw import Answer, Connection

PATH = "/v1/chat/completions"
MODEL = "openai/gpt-oss-20b"
MESSAGES = [{"role": "user", "content": "Say hello to the two of us."}]

Headers = tuple[tuple[str, str], ...]


def mark() -> str:
    """A new book: what one test's requests are found by at the simulator."""
    return secrets.token_hex(8)


def body(model: str = MODEL, *, stream: bool = False, **fields: Any) -> bytes:
    """A chat request's body."""
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, **fields}
    if stream:
        asked["stream"] = True
    return json.dumps(asked).encode()


def told(orders: str = "", book: str = "") -> Headers:
    """The headers that order the simulator about, and mark the request."""
    return tuple((n, v) for n, v in (("x-sim", orders), ("x-sim-book", book)) if v)


def request(
    gateway: Gateway | App,
    content: bytes | None = None,
    *,
    orders: str = "",
    book: str = "",
    stream: bool = False,
    model: str = MODEL,
    target: str = PATH,
    headers: Headers = (),
    key: str = "web-app",
) -> bytes:
    """The bytes of a chat call with the secret of the key of that name."""
    return raw.request(
        gateway.port,
        "POST",
        target,
        body(model, stream=stream) if content is None else content,
        key=gateway.secrets.get(key, key),
        headers=(*told(orders, book), *headers),
    )


def call(
    gateway: Gateway | App, content: bytes | None = None, *, deadline: float = PATIENCE, **how: Any
) -> Answer:
    """Make the call and read the whole answer; takes what `request` takes."""
    return gateway.exchange(request(gateway, content, **how), deadline=deadline)


def begin(
    gateway: Gateway, content: bytes | None = None, *, deadline: float = PATIENCE, **how: Any
) -> Connection:
    """Make the call and leave the answer to be read; close what this gives."""
    connection = raw.Connection(gateway.port, deadline=deadline)
    return connection.send(request(gateway, content, **how))


def error(answer: Answer) -> dict[str, Any]:
    """The error object of an answer, held against OpenAI's shape."""
    assert answer.header("content-type") == "application/json", answer
    found = json.loads(answer.body)
    assert found.keys() == {"error"}, found
    details: dict[str, Any] = found["error"]
    assert details.keys() == {"message", "type", "param", "code"}, details
    return details


def events(text: bytes) -> list[bytes]:
    """The data of each event of a stream, as sent."""
    found = [event for event in text.split(b"\n\n") if event]
    assert all(event.startswith(b"data: ") for event in found), found
    return [event.removeprefix(b"data: ") for event in found]
