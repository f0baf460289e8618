"""The page at /docs in a real browser: a newcomer pastes a key, presses Execute, gets an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness.browser import Browser
from harness.gateway import Gateway
from harness.programs import require
from harness.simulator import Simulator

CHAT = "#operations-Chat-createChat"
USAGE = "#operations-Your_key-getUsage"
PASSTHROUGH = "#operations-Everything_else-passthrough_post"
TRANSCRIPTION = "#operations-Audio-createTranscription"
LIVE = ".live-responses-table"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(require("chromium", "chromium-browser", "google-chrome")) as running:
        yield running


@pytest.fixture
def page(browser: Browser, gateway: Gateway) -> Iterator[Browser]:
    """The page, open. At the end: no error in the console, and no request to anyone else."""
    browser.errors.clear()
    browser.requested.clear()
    browser.open(f"{gateway.url}/docs")
    browser.see(f"{CHAT} .opblock-summary-path", "/v1/chat/completions")
    yield browser
    assert browser.errors == []
    hosts = {(urlsplit(url).scheme, urlsplit(url).netloc) for url in browser.requested}
    assert hosts <= {("http", f"127.0.0.1:{gateway.port}"), ("data", ""), ("blob", "")}


def authorize(page: Browser, secret: str) -> None:
    page.click(".auth-wrapper .authorize")
    page.type(".auth-container input", secret)
    page.click(".auth-container .auth-btn-wrapper .authorize")
    page.see(".auth-container", "Logout")
    page.click(".auth-container .btn-done")


def execute(page: Browser, operation: str) -> None:
    page.click(f"{operation} .opblock-summary-control")
    page.click(f"{operation} .execute")


def answer(page: Browser, operation: str, status: int) -> str:
    page.see(f"{operation} {LIVE} .response-col_status", str(status))
    return page.see(f"{operation} {LIVE} .response-col_description .highlight-code pre")


def test_a_chat_request_is_authorized_sent_and_answered(
    page: Browser, gateway: Gateway, simulator: Simulator
) -> None:
    simulator.reset()
    authorize(page, gateway.secrets["web-app"])
    execute(page, CHAT)
    shown = json.loads(answer(page, CHAT, 200))
    assert shown["object"] == "chat.completion"
    assert shown["choices"][0]["message"]["content"]
    assert [request["target"] for request in simulator.requests(method="POST")] == [
        "/openai/v1/chat/completions"
    ]


def test_the_streaming_example_shows_the_whole_stream(page: Browser, gateway: Gateway) -> None:
    authorize(page, gateway.secrets["web-app"])
    page.click(f"{CHAT} .opblock-summary-control")
    page.choose(f"{CHAT} .examples-select-element", "Streaming: the response in pieces")
    page.click(f"{CHAT} .execute")
    shown = answer(page, CHAT, 200)
    assert '"chat.completion.chunk"' in shown
    assert shown.rstrip().endswith("data: [DONE]")


def test_without_a_key_the_page_shows_what_is_wrong(page: Browser) -> None:
    execute(page, CHAT)
    assert json.loads(answer(page, CHAT, 401))["error"]["code"] == "invalid_api_key"
    # The browser itself puts every 4xx in its console.
    assert all("401" in error for error in page.errors)
    page.errors.clear()


def test_a_newcomer_sees_what_the_key_used(page: Browser, gateway: Gateway) -> None:
    authorize(page, gateway.secrets["web-app"])
    execute(page, USAGE)
    assert json.loads(answer(page, USAGE, 200))["api_key"] == "web-app"


def test_a_passthrough_path_keeps_its_slashes(
    page: Browser, gateway: Gateway, simulator: Simulator
) -> None:
    simulator.reset()
    authorize(page, gateway.secrets["web-app"])
    page.click(f"{PASSTHROUGH} .opblock-summary-control")
    fill(page, f"{PASSTHROUGH} tr[data-param-name=path] input", "openai/v1/embeddings")
    page.click(f"{PASSTHROUGH} .execute")
    assert json.loads(answer(page, PASSTHROUGH, 200))["object"] == "list"
    assert [request["target"] for request in simulator.requests(method="POST")] == [
        "/openai/v1/embeddings"
    ]


def test_a_recording_is_uploaded_from_the_page(
    page: Browser, gateway: Gateway, simulator: Simulator, tmp_path: Path
) -> None:
    recording = tmp_path / "hello.mp3"
    recording.write_bytes(bytes(range(256)) * 400)
    simulator.reset()
    authorize(page, gateway.secrets["web-app"])
    page.click(f"{TRANSCRIPTION} .opblock-summary-control")
    page.attach(f"{TRANSCRIPTION} input[type=file]", recording)
    page.click(f"{TRANSCRIPTION} .execute")
    assert json.loads(answer(page, TRANSCRIPTION, 200))["text"]
    (request,) = simulator.requests(method="POST")
    assert request["target"] == "/openai/v1/audio/transcriptions"
    assert request["model"] == "whisper-large-v3-turbo"
    assert request["body_length"] > 400 * 256


def fill(page: Browser, selector: str, text: str) -> None:
    """Replaces what stands in a field."""
    page.click(selector)
    page.evaluate(f"document.querySelector({json.dumps(selector)}).select()")
    page.command("Input.insertText", text=text)


def test_the_other_address_shows_the_same_page(browser: Browser, gateway: Gateway) -> None:
    browser.open(f"{gateway.url}/swagger/index.html")
    browser.see(f"{CHAT} .opblock-summary-path", "/v1/chat/completions")
