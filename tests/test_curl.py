"""curl against the gateway, with the options that people paste from the providers' own pages."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.programs import require

if TYPE_CHECKING:
    from harness.gateway import Gateway

BASES = ["/v1", "/openai/v1", "/groq/openai/v1"]


class Curl:
    """Runs curl with a key, in a directory of its own."""

    def __init__(self, gateway: Gateway, directory: Path) -> None:
        self._gateway = gateway
        self.directory = directory

    def __call__(self, path: str, *options: str) -> bytes:
        secret = self._gateway.secrets["web-app"]
        command = [
            require("curl"),
            *("--silent", "--show-error", "--fail", "--max-time", "20"),
            *("-H", "@-", *options, self._gateway.url + path),
        ]
        done = subprocess.run(
            command,
            input=f"Authorization: Bearer {secret}".encode(),
            cwd=self.directory,
            capture_output=True,
            check=True,
        )
        return done.stdout


@pytest.fixture
def curl(gateway: Gateway, tmp_path: Path) -> Curl:
    (tmp_path / "talk.wav").write_bytes(b"\0\1" * 50_000)
    (tmp_path / "batch.jsonl").write_bytes(b'{"custom_id": "1"}\n' * 1000)
    return Curl(gateway, tmp_path)


@pytest.mark.parametrize("base", BASES)
def test_a_transcription_of_a_file(curl: Curl, base: str) -> None:
    told = curl(f"{base}/audio/transcriptions", "-F", "file=@talk.wav", "-F", "model=gpt-whisper")
    assert "simulated" in json.loads(told)["text"]


@pytest.mark.parametrize("base", BASES)
def test_speech_into_a_file(curl: Curl, base: str) -> None:
    body = '{"model": "gpt-4o-mini-tts", "input": "hello", "voice": "alloy"}'
    options = ("-H", "Content-Type: application/json", "-d", body, "-o", "speech.mp3")
    curl(f"{base}/audio/speech", *options)
    assert (curl.directory / "speech.mp3").read_bytes().startswith(b"RIFF")


@pytest.mark.parametrize("base", BASES)
def test_a_file_up_and_down_again_also_in_parts(curl: Curl, base: str) -> None:
    sent = (curl.directory / "batch.jsonl").read_bytes()
    made = json.loads(curl(f"{base}/files", "-F", "purpose=batch", "-F", "file=@batch.jsonl"))
    content = f"{base}/files/{made['id']}/content"
    assert made["bytes"] == len(sent)
    assert curl(content) == sent
    assert curl(content, "--range", "10-29") == sent[10:30]
    (curl.directory / "part").write_bytes(sent[:7000])
    curl(content, "--continue-at", "-", "-o", "part")
    assert (curl.directory / "part").read_bytes() == sent
    assert json.loads(curl(f"{base}/files/{made['id']}", "-X", "DELETE"))["deleted"]


@pytest.mark.parametrize("base", BASES)
def test_a_list_with_a_query(curl: Curl, base: str) -> None:
    options = ("-G", "--data-urlencode", "purpose=user data", "-d", "limit=1")
    assert json.loads(curl(f"{base}/files", *options))["object"] == "list"


@pytest.mark.parametrize("base", BASES)
def test_only_the_head(curl: Curl, base: str) -> None:
    head = curl(f"{base}/_bytes/12345", "-I").decode().lower()
    assert head.startswith("http/1.1 200 ok\r\n")
    assert "\r\ncontent-length: 12345\r\n" in head


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("coding", ["gzip", "br", "deflate"])
def test_compressed_answers(curl: Curl, base: str, coding: str) -> None:
    body = '{"model": "gpt-6-luna", "input": "how are you"}'
    told = curl(
        f"{base}/responses",
        *("--compressed", "-H", "Content-Type: application/json"),
        *("-H", f"x-sim: encoding={coding}", "-d", body),
    )
    assert json.loads(told)["object"] == "response"


@pytest.mark.parametrize("base", BASES)
def test_events_of_the_responses_api(curl: Curl, base: str) -> None:
    body = '{"model": "gpt-6-luna", "input": "how are you", "stream": true}'
    told = curl(f"{base}/responses", "-N", "-H", "Content-Type: application/json", "-d", body)
    events = [line for line in told.decode().splitlines() if line.startswith("event: ")]
    assert events[0] == "event: response.created"
    assert events[-1] == "event: response.completed"


@pytest.mark.parametrize("base", BASES)
def test_a_large_body_that_asks_first_whether_it_may_come(curl: Curl, base: str) -> None:
    (curl.directory / "large").write_bytes(b"x" * 2_000_000)
    options = ("-H", "Expect: 100-continue", "-T", "large", "-X", "POST")
    assert json.loads(curl(f"{base}/_echo", *options))["body_length"] == 2_000_000
