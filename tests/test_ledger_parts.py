"""The books balance for everything that has a price of its own, to the pico-USD.

Service tiers, cache writes, hosted tools, compound systems, speech, transcriptions, images and
videos: the simulator books what it sends by model and tier. Its books at the prices below are what
the gateway's table, its request log and `GET /usage` must come to. The prices are written down from
config/prices.toml, which the gateway reads.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from harness import raw
from harness.app import App
from harness.poll import eventually
from harness.simulator import Simulator

CONFIG = """\
[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = { env = "GROQ_API_KEY" }

[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }

[providers.anthropic]
base_url = "{simulator}/v1"
api_key = { env = "ANTHROPIC_API_KEY" }
auth = "x-api-key"

[[routes]]
model = "claude-*"
targets = ["anthropic"]

[[routes]]
model = "groq/*"
targets = ["groq"]

[[routes]]
model = "openai/*"
targets = ["groq"]

[[routes]]
model = "whisper-large-*"
targets = ["groq"]

[[routes]]
model = "*"
targets = ["openai"]
"""
ENV = {name: name for name in ("GROQ_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY")}


class Price(NamedTuple):
    """USD per million tokens, per second and for one call of a tool or one character."""

    fresh: float = 0
    cached: float = 0
    written: float = 0
    output: float = 0
    image: float = 0
    second: float = 0
    least: int = 0  # seconds
    search: float = 0
    file: float = 0
    character: float = 0


LUNA, MINI, OPUS = "gpt-6-luna", "gpt-5-mini", "claude-opus-5"
OSS, LLAMA = "openai/gpt-oss-120b", "llama-3.3-70b-versatile"
LONG = "long"  # a prompt of more than 272,000 tokens
PRICES = {
    (LUNA, ""): Price(0.1, 0.01, 0.125, 0.5, search=0.01, file=0.0025),
    (LUNA, "batch"): Price(0.05, 0.005, 0.0625, 0.25),
    (LUNA, "flex"): Price(0.05, 0.005, 0.0625, 0.25),
    (LUNA, "priority"): Price(0.2, 0.02, 0.25, 1, search=0.01, file=0.0025),
    (LUNA, "fast"): Price(0.2, 0.02, 0.25, 1),
    (LUNA, LONG): Price(0.2, 0.02, 0.25, 0.75),
    (LUNA, "flex " + LONG): Price(0.1, 0.01, 0.125, 0.375),
    (MINI, "flex"): Price(0.125, 0.0125, 0, 1),
    (OPUS, ""): Price(5, 0.5, 6.25, 25, search=0.01),
    (OPUS, "batch"): Price(2.5, 0.25, 3.125, 12.5),
    (OPUS, "fast"): Price(10, 1, 12.5, 50),
    (OSS, ""): Price(0.15, 0.075, 0, 0.6),
    (OSS, "flex"): Price(0.15, 0.075, 0, 0.6),
    (OSS, "batch"): Price(0.075, 0.075, 0, 0.3),
    (LLAMA, ""): Price(0.59, 0.59, 0, 0.79),
    ("tts-1", ""): Price(character=0.000015),
    ("gpt-4o-mini-tts", ""): Price(0.6, 0, 0, 12),
    ("gpt-4o-transcribe", ""): Price(6, 0, 0, 10),  # all of the prompt is audio
    ("whisper-1", ""): Price(second=0.36 / 3600),
    ("whisper-large-v3-turbo", ""): Price(second=0.04 / 3600, least=10),
    ("gpt-image-1", ""): Price(5, 0, 0, 40, image=10),
    ("sora-2", ""): Price(second=0.1),
}

CHAT, RESPONSES, MESSAGES = "chat/completions", "responses", "messages"
TIERS = ("", "batch", "flex", "priority", "fast")
USE = "prompt=5000; completion=321; cached=1200"
WRITTEN = f"{USE}; cache-write=700"


class Case(NamedTuple):
    path: str
    model: str
    orders: str = ""
    fields: tuple[tuple[str, Any], ...] = ()

    @property
    def content(self) -> bytes:
        """The body: JSON, or the form of an upload."""
        if self.path.endswith(("transcriptions", "translations")):
            return upload({"model": self.model, **dict(self.fields)})
        turns = [{"role": "user", "content": "how are you"}]
        body: dict[str, Any] = {"model": self.model}
        if self.path == CHAT:
            body["messages"] = turns
        elif self.path == MESSAGES:
            body |= {"messages": turns, "max_tokens": 50}
        elif self.path == "audio/speech":
            body |= {"input": "héllo wörld, how are you", "voice": "v"}
        elif self.path == RESPONSES:
            body["input"] = "how are you"
        else:
            body["prompt"] = "a cat"
        return json.dumps({**body, **dict(self.fields)}).encode()


def upload(fields: dict[str, str]) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
    return ("".join(parts) + file + "--b--\r\n").encode()


STREAM = (("stream", True),)
ASKED = (*STREAM, ("stream_options", {"include_usage": True}))
SSE = (("stream_format", "sse"),)
COMPOUND = f"compound={OSS},{LLAMA}; prompt=1107; completion=223"


def cases() -> Iterator[tuple[str, Case]]:
    """Every part with a price of its own, whole and as a stream where there are both."""
    for tier in TIERS:
        ordered = f"{WRITTEN}; tier={tier}" if tier else WRITTEN
        yield f"chat-{tier}", Case(CHAT, LUNA, ordered)
        yield f"chat-stream-{tier}", Case(CHAT, LUNA, ordered, STREAM)
        yield f"responses-{tier}", Case(RESPONSES, LUNA, ordered)
        yield f"responses-stream-{tier}", Case(RESPONSES, LUNA, ordered, STREAM)
    for tier in ("", "batch", "fast"):
        ordered = f"{WRITTEN}; tier={tier}" if tier else WRITTEN
        yield f"messages-{tier}", Case(MESSAGES, OPUS, ordered)
        yield f"messages-stream-{tier}", Case(MESSAGES, OPUS, ordered, STREAM)
    for tier in ("", "flex", "batch"):
        ordered = f"{USE}; tier={tier}" if tier else USE
        yield f"groq-{tier}", Case(CHAT, OSS, ordered)
        yield f"groq-stream-{tier}", Case(CHAT, OSS, ordered, ASKED)
    long = "prompt=300000; completion=99; cached=1000; cache-write=2000"
    yield "long", Case(CHAT, LUNA, long)
    yield "long-flex", Case(RESPONSES, LUNA, f"{long}; tier=flex", STREAM)
    yield "flex-mini", Case(CHAT, MINI, f"{USE}; tier=flex; reasoning=7")
    for kind, fields in (("", ()), ("-stream", STREAM)):
        yield f"web{kind}", Case(RESPONSES, LUNA, f"{WRITTEN}; tool=web_search:2", fields)
        orders = f"{USE}; tool=file_search:3; tier=priority"
        yield f"files{kind}", Case(RESPONSES, LUNA, orders, fields)
        yield f"messages-web{kind}", Case(MESSAGES, OPUS, f"{USE}; tool=web_search:4", fields)
        yield f"compound{kind}", Case(CHAT, "groq/compound", COMPOUND, fields)
        image = "prompt=350; completion=1056; image=323"
        yield f"image{kind}", Case("images/generations", "gpt-image-1", image, fields)
    yield "speech-characters", Case("audio/speech", "tts-1")
    yield "speech-tokens", Case("audio/speech", "gpt-4o-mini-tts", "prompt=9; completion=70", SSE)
    use = "prompt=114; completion=45"
    heard = "audio/transcriptions"
    yield "heard-tokens", Case(heard, "gpt-4o-transcribe", use)
    yield "heard-tokens-stream", Case(heard, "gpt-4o-transcribe", use, (("stream", "true"),))
    yield "heard-seconds", Case(heard, "whisper-1", "seconds=90")
    verbose = (("response_format", "verbose_json"),)
    for seconds in (45, 3):
        at = Case(heard, "whisper-large-v3-turbo", f"seconds={seconds}", verbose)
        yield f"heard-groq-{seconds}", at
    yield "translated", Case("audio/translations", "whisper-1", "seconds=30")
    size = (("seconds", "8"), ("size", "720x1280"))
    yield "video", Case("videos", "sora-2", "polls=0", size)


# Keys and books of their own: the simulator serves other tests too.
CASES = {f"parts-{name.strip('-')}": case for name, case in cases()}


@pytest.fixture(scope="module")
def app(simulator: Simulator) -> Iterator[App]:
    """The application, with a key for each case."""
    keys: dict[str, dict[str, Any]] = {name: {} for name in CASES}
    with App(CONFIG.replace("{simulator}", simulator.url), keys=keys, env=ENV) as made:
        yield made
        made.assert_clean()


def send(app: App, name: str, method: str, target: str, content: bytes = b"") -> raw.Answer:
    headers = (("x-sim", CASES[name].orders), ("x-sim-book", name))
    request = raw.request(app.port, method, target, content, key=app.secrets[name], headers=headers)
    if content.startswith(b"--b"):
        request = request.replace(b"application/json", b"multipart/form-data; boundary=b", 1)
    answer = app.exchange(request)
    assert answer.status == 200, answer
    return answer


def theirs(lines: list[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """The sums of the provider's books with their cost in pico-USD, and its units."""
    sums, units = Counter[str](), Counter[str]()
    for line in lines:
        for name in ("requests", "prompt", "completion", "cached", "reasoning"):
            sums[name] += line[name]
        units["web_search"] += line["web_search"]
        units["file_search"] += line["file_search"]
        units["character"] += line["characters"]
        if line["endpoint"] == "videos":
            units["video_second 720x1280"] += line["seconds"]
        else:
            sums["seconds"] += line["seconds"]
        used = line["prompt"] + line["seconds"] + line["characters"]
        if used:
            sums.update(cost(line))
    return +sums, +units


def cost(line: dict[str, Any]) -> dict[str, int]:
    """What a line costs, in pico-USD: all of it, and its parts."""
    tier = line["tier"]
    if line["prompt"] > 272_000:
        tier = f"{tier} {LONG}".strip()
    price = PRICES[line["model"], tier]
    plain = line["prompt"] - line["cached"] - line["cache_write"] - line["image"]
    seconds = max(line["seconds"], price.least) if line["seconds"] else 0
    tools = (
        line["web_search"] * price.search
        + line["file_search"] * price.file
        + line["characters"] * price.character
    )
    parts = {
        "cost_input": round((plain * price.fresh + line["image"] * price.image) * 1e6),
        "cost_cached": round(line["cached"] * price.cached * 1e6),
        "cost_cache_write": round(line["cache_write"] * price.written * 1e6),
        "cost_output": round(line["completion"] * price.output * 1e6),
        # A fraction of a pico-USD is left out.
        "cost_other": round(tools * 1e12) + int(seconds * price.second * 1e12 + 1e-6),
    }
    return {"cost": sum(parts.values()), **parts}


@pytest.mark.parametrize("name", CASES)
def test_the_books_of_both_sides_agree(app: App, simulator: Simulator, name: str) -> None:
    case = CASES[name]
    written: list[bytes] = []
    app.runtime.telemetry.log._output.write = written.append
    answer = send(app, name, "POST", f"/v1/{case.path}", case.content)
    if case.path == "videos":
        for _ in range(2):
            send(app, name, "GET", f"/v1/videos/{json.loads(answer.body)['id']}")

    # The provider writes its own books a moment after the last byte of a response.
    eventually(lambda: all(r["ended"] for r in simulator.requests(book=name)))
    sums, units = theirs(simulator.books(book=name))
    assert sums["cost"] > 0

    [row] = app.runtime.store.totals(key=name)
    table = {field: value for field, value in row._asdict().items() if field in FIELDS and value}
    assert table == sums
    assert (row.unpriced, row.unmetered, row.bounded) == (0, 0, 0)

    log, counted = Counter[str](), Counter[str]()
    for line in map(json.loads, written):
        log["requests"] += line["path"] != "(deferred)"
        for field in ("prompt", "completion", "cached"):
            log[field] += line[f"{field}_tokens"] or 0
        log["cost"] += round((line["cost_usd"] or 0) * 10**12)
        counted.update(line["units"] or {})
    assert log == Counter({field: sums[field] for field in log})
    assert counted == units

    told = json.loads(send(app, name, "GET", "/usage?since=24h").body)
    assert round(sum(one["cost_usd"] for one in told["by_model"]) * 10**12) == sums["cost"]


FIELDS = (
    *("requests", "prompt", "completion", "cached", "reasoning", "seconds", "cost"),
    *("cost_input", "cost_cached", "cost_cache_write", "cost_output", "cost_other"),
)
