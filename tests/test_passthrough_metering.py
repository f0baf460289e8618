"""What passes is metered all the same: the log's numbers are those of the provider's own books."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from harness import raw

if TYPE_CHECKING:
    from harness.gateway import Gateway
    from harness.simulator import Simulator

MODEL = "gpt-6-luna"
FORM = "multipart/form-data; boundary=b"
SOUND = b"\0\1" * 60_000


def form(**fields: str) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    file = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return b"".join([file, SOUND, b"\r\n", *parts, b"--b--\r\n"])


def as_json(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, **fields}).encode()


CHAT: Any = {"messages": [{"role": "user", "content": "how are you"}]}
CALLS: dict[str, tuple[str, bytes, str, str]] = {
    "chat": ("chat/completions", as_json(**CHAT), "", ""),
    "chat stream": ("chat/completions", as_json(**CHAT, stream=True), "", "split"),
    "chat encoded": ("chat/completion%73", as_json(**CHAT, stream=True), "", ""),
    "chat gzip": ("chat/completions", as_json(**CHAT), "", "encoding=gzip"),
    "chat brotli": ("chat/completions?x", as_json(**CHAT), "", "encoding=br"),
    "completions": ("completions", as_json(prompt="one two", stream=True), "", ""),
    "engines": (f"engines/{MODEL}/completions", b'{"prompt": "one two"}', "", ""),
    "embeddings": ("embeddings", as_json(input=["one two", "three"]), "", ""),
    "responses": ("responses", as_json(input="how are you"), "", "reasoning=5; cached"),
    "responses stream": ("responses", as_json(input="how", stream=True), "", "merge=2"),
    "transcription": ("audio/transcriptions", form(model=MODEL), FORM, ""),
    "transcription stream": (
        "audio/transcriptions",
        form(model=MODEL, stream="true"),
        FORM,
        "",
    ),
    "translation": ("audio/translations", form(model=MODEL), FORM, ""),
    "speech stream": (
        "audio/speech",
        as_json(input="hello", voice="v", stream_format="sse"),
        "",
        "",
    ),
    "images": ("images/generations", as_json(prompt="a cat", n=2), "", ""),
    "images stream": ("images/generations", as_json(prompt="a cat", stream=True), "", ""),
    "edit": ("images/edits", form(model=MODEL, prompt="a dog"), FORM, ""),
}


@pytest.mark.parametrize("base", ["/v1", "/openai/v1", "the caller's own key"])
@pytest.mark.parametrize("how", CALLS)
def test_every_endpoint_is_metered_at_every_address(
    gateway: Gateway, simulator: Simulator, how: str, base: str
) -> None:
    path, body, kind, orders = CALLS[how]
    own = not base.startswith("/")
    book = f"metering-{uuid4()}"
    answer = raw.exchange(
        gateway.port,
        raw.request(
            gateway.port,
            "POST",
            f"{'/openai/v1' if own else base}/{path}",
            key="sk-the-callers-own" if own else gateway.secrets["web-app"],
            headers=(
                ("Content-Type", kind or "application/json"),
                ("Content-Length", str(len(body))),
                ("x-sim-book", book),
                ("x-sim", orders),
            ),
        )
        + body,
    )
    assert (answer.status, answer.clean_end) == (200, True), answer.body
    (booked,) = simulator.requests(book=book)
    line = gateway.log_line(answer.header("x-request-id") or "")
    assert line["api_key"] == ("client" if own else "web-app")
    assert (line["provider"], line["model"]) == ("openai", MODEL)
    assert booked["usage"] is not None
    assert (line["prompt_tokens"], line["completion_tokens"]) == (
        booked["usage"]["prompt"],
        booked["usage"]["completion"],
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "files", b""),
        ("GET", "models", b""),
        ("POST", "moderations", b'{"input": "x"}'),
        ("POST", "vector_stores", b"{}"),
        ("GET", "_bytes/10000", b""),
        ("DELETE", "_echo", b""),
    ],
)
def test_what_uses_nothing_is_not_counted_as_unmetered(
    gateway: Gateway, key: str, method: str, path: str, body: bytes
) -> None:
    before = gateway.metrics().value("unmetered_responses_total")
    answer = raw.exchange(
        gateway.port, raw.request(gateway.port, method, f"/openai/v1/{path}", body, key=key)
    )
    assert answer.status == 200
    gateway.log_line(answer.header("x-request-id") or "")
    assert gateway.metrics().value("unmetered_responses_total") == before


def test_speech_that_reports_no_use_is_counted_as_unmetered(gateway: Gateway, key: str) -> None:
    before = gateway.metrics().value("unmetered_responses_total", provider="openai")
    body = as_json(input="hello", voice="v")
    answer = raw.post(gateway.port, "/openai/v1/audio/speech", body, key=key)
    assert answer.status == 200
    gateway.log_line(answer.header("x-request-id") or "")
    assert gateway.metrics().value("unmetered_responses_total", provider="openai") == before + 1
