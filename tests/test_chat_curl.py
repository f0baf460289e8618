"""Chat through the gateway with curl, as the README and `make run` show it."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from harness.programs import require

if TYPE_CHECKING:
    from harness.gateway import Gateway

BODY = {
    "model": "openai/gpt-oss-20b",
    "messages": [{"role": "user", "content": "Hello!"}],
}


def curl(gateway: Gateway, path: str, secret: str, *options: str, **body: Any) -> str:
    """What curl prints for a POST of BODY with `body` added."""
    command = [
        require("curl"),
        *("--silent", "--show-error", "--no-buffer", "--max-time", "10"),
        f"{gateway.url}{path}",
        *("-H", "Content-Type: application/json", "-H", "@-"),
        *("-d", json.dumps(BODY | body)),
        *options,
    ]
    header = f"Authorization: Bearer {secret}"
    done = subprocess.run(command, input=header, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/chat/completions"])
def test_both_addresses_answer(gateway: Gateway, key: str, path: str) -> None:
    answer = json.loads(curl(gateway, path, key))
    assert answer["object"] == "chat.completion"
    assert "simulated" in answer["choices"][0]["message"]["content"]


def test_a_stream_is_printed_as_events_up_to_done(gateway: Gateway, key: str) -> None:
    events = curl(gateway, "/v1/chat/completions", key, stream=True).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_a_stream_has_the_headers_that_keep_proxies_from_holding_it_back(
    gateway: Gateway, key: str
) -> None:
    head = curl(gateway, "/v1/chat/completions", key, "-D", "-", "-o", "/dev/null", stream=True)
    assert head.startswith("HTTP/1.1 200 ")
    assert "content-type: text/event-stream" in head.lower()
    assert "content-length" not in head.lower()


def test_a_wrong_key_gets_openais_error_object(gateway: Gateway) -> None:
    answer = json.loads(curl(gateway, "/chat/completions", "sk-wr-nobody"))
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == "invalid_api_key"


def test_the_command_line_of_the_help_text_needs_nothing_but_curl(
    gateway: Gateway, key: str
) -> None:
    """`curl -d` alone sends a form's content type; the body is JSON all the same."""
    done = subprocess.run(
        [
            require("curl"),
            *("-sN", "--max-time", "10", f"{gateway.url}/v1/chat/completions"),
            *("-H", f"Authorization: Bearer {key}", "-d", json.dumps(BODY)),
        ],
        capture_output=True,
        check=True,
    )
    assert json.loads(done.stdout)["object"] == "chat.completion"
