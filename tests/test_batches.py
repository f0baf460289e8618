"""Batches: admitted as the requests in their file would be, booked by their object or output."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from harness import raw
from harness.raw import response
from wrapper.formats.multipart import FileFinder
from wrapper.proxy.asker import Asker
from wrapper.proxy.batch_input import BatchLines, ModelDemand

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.raw import Answer, Scripted

JSON = "Content-Type: application/json"
LUNA, SOL = "gpt-6-luna", "gpt-6-sol"
CONFIG = """\
[server]
deferred_poll = 0.001

[providers.openai]
base_url = "{provider}/v1"
api_key = { env = "OPENAI_API_KEY" }
client_credentials = true

[[routes]]
model = "*"
targets = ["openai"]

[prices."gpt-6-luna"]
input = 0.1
cached_input = 0.01
output = 0.5

[prices."gpt-6-sol"]
input = 2.0
cached_input = 0.2
output = 10.0
"""
LUNA_PRICES, SOL_PRICES = (100_000, 500_000), (2_000_000, 10_000_000)
KEYS: dict[str, Any] = {
    "free": {},
    "paid": {"budget_usd": 1},
    "poor": {"budget_usd": 0.00001},
    "narrow": {"models": [LUNA]},
    "named": {"models": [LUNA], "endpoints": ["batches"]},
}
BATCH = {"input_file_id": "file-1", "endpoint": "/v1/responses", "completion_window": "24h"}


def line(model: str = LUNA, url: str = "/v1/chat/completions", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    return {"custom_id": "a", "method": "POST", "url": url, "body": body}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def part(name: str, content: bytes, filename: str = "") -> bytes:
    more = f'; filename="{filename}"' if filename else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


class World:
    """A gateway before a provider that sends what the test says."""

    def __init__(self, app_factory: AppFactory, held: ExitStack) -> None:
        self.send: Callable[[bytes], bytes] = lambda _: response(b"{}", JSON)
        self.provider: Scripted = held.enter_context(raw.scripted(lambda sent: self.send(sent)))
        self.app: App = app_factory(CONFIG.replace("{provider}", self.provider.url), keys=KEYS)

    def call(
        self, method: str, path: str, content: bytes = b"", *, key: str = "free", kind: str = JSON
    ) -> Answer:
        sent = raw.request(self.app.port, method, path, content, key=self.app.secrets[key])
        return self.app.exchange(sent.replace(JSON.encode(), kind.encode(), 1))

    def answers(self, **made: Any) -> None:
        sent = response(json.dumps(made).encode(), JSON)
        self.send = lambda _: sent

    def upload(self, content: bytes, *, key: str = "free", path: str = "/v1/files") -> None:
        self.answers(id="file-1", object="file", purpose="batch")
        body = form(part("purpose", b"batch"), part("file", content, "in.jsonl"))
        kind = "Content-Type: multipart/form-data; boundary=b"
        assert self.call("POST", path, body, key=key, kind=kind).status == 200
        assert body in self.provider.requests[-1]

    def start(self, key: str = "free", **changes: Any) -> Answer:
        self.answers(id="batch_1", object="batch", status="validating", usage=None)
        body = json.dumps({**BATCH, **changes}).encode()
        return self.call("POST", "/v1/batches", body, key=key)

    def refusal(self, key: str, **changes: Any) -> str:
        """The code of the error that a batch is refused with; empty where it is not."""
        count = len(self.provider.requests)
        answer = self.start(key, **changes)
        if answer.status == 200:
            return ""
        assert len(self.provider.requests) == count, "it was sent"
        code: str = json.loads(answer.body)["error"]["code"]
        return code

    def reserved(self, key: str = "paid") -> int:
        limits = self.app.runtime.snapshot.limits.of_key(key)
        [standing] = self.app.runtime.store.standing(limits)
        return int(standing.reserved)

    def sums(self, key: str = "free") -> Any:
        rows = self.app.runtime.store.totals(by=("model",), key=key)
        return {row.group[0]: row for row in rows}

    def ask(self, later: float = 1000.0) -> None:
        self.app.runtime.store._wall = lambda: time.time() + later
        assert Asker(self.app.runtime).ask_once()


@pytest.fixture
def world(app_factory: AppFactory) -> Iterator[World]:
    with ExitStack() as held:
        yield World(app_factory, held)


@pytest.mark.parametrize("path", ["/v1/files", "/openai/v1/files"])
def test_a_keys_models_hold_in_a_batch(world: World, path: str) -> None:
    world.upload(jsonl(line(), line(max_tokens=5)), path=path)
    assert world.refusal("narrow") == ""
    world.upload(jsonl(line(), line(SOL)), path=path)
    assert world.refusal("narrow") == "model_not_allowed"
    assert world.refusal("named") == "model_not_allowed"
    assert world.refusal("free") == ""


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON\n",
        b'{"url": "/v1/chat/completions", "body": {}}\n',
        b'{"url": "/v1/x", "body": {"model": "gpt-6-luna", "model": "gpt-6-sol"}}\n',
        b'{"url": "/v1/x", "body": {"model": "gpt-6-luna"}, "Body": {"model": "gpt-6-sol"}}\n',
        b'{"url": "/v1/x", "body": [1]}\n',
        # A carriage return is white space to JSON, and to some readers the end of a line.
        jsonl(line())[:-2] + b', "x": [\r' + jsonl(line(SOL)).strip() + b"\r]}\n",
        jsonl(line()) + b"\xff\xfe\n",
        jsonl(line()) + b"[" * 100_000,
    ],
)
def test_what_cannot_be_read_in_one_way_needs_the_endpoint_by_name(
    world: World, content: bytes
) -> None:
    world.upload(content)
    assert world.refusal("narrow") == "endpoint_not_allowed"
    assert world.refusal("paid") == "endpoint_not_allowed"
    assert world.refusal("named") == ""
    assert world.refusal("free") == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"input_file_id": "file-of-somebody"},
        {"input_file_id": {"id": "file-1"}},
        {"input_files": ["file-2"]},
    ],
)
def test_a_batch_that_may_name_another_file_needs_the_endpoint_by_name(
    world: World, changes: dict[str, Any]
) -> None:
    world.upload(jsonl(line()))
    assert world.refusal("narrow", **changes) == "endpoint_not_allowed"


def test_a_batch_that_names_two_files_needs_the_endpoint_by_name(world: World) -> None:
    world.upload(jsonl(line()))
    body = b'{"input_file_id": "file-1", "input_file_id": "file-2"}'
    assert world.call("POST", "/v1/batches", body, key="narrow").status == 403


def test_other_names_of_models_in_a_request_count_too(world: World) -> None:
    tools = [{"type": "image_generation", "model": "gpt-image-1"}]
    world.upload(jsonl(line(tools=tools)))
    assert world.refusal("narrow") == "model_not_allowed"


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([part("file", b"abc", "x")], b"abc"),
        ([part("file", b"abc", "x"), part("purpose", b"batch")], b"abc"),
        ([part("file", b"a\r\n--\r\nb", "x")], b"a\r\n--\r\nb"),
        ([part("file", b"abc", "x"), part("file", b"def", "y")], None),
        ([part("file", b"abc", "x"), part("FILE", b"def")], None),
        ([part("file", b"abc", "x"), part("fil%65", b"def", "y")], None),
        ([part("file", b"abc", "x"), part("other", b"def", "y")], None),
        ([part("purpose", b"batch")], None),
    ],
)
def test_the_one_file_of_a_form_is_found(parts: list[bytes], found: bytes | None) -> None:
    sent = form(*parts)
    for size in (1, 7, len(sent)):
        content = bytearray()
        finder = FileFinder(
            "multipart/form-data; boundary=b", "model", content.extend, scan_all=True
        )
        for start in range(0, len(sent), size):
            finder.feed(sent[start : start + size])
        assert finder.has_file is (found is not None)
        if found is not None:
            assert bytes(content) == found


def test_a_form_that_is_cut_off_has_no_file() -> None:
    finder = FileFinder("multipart/form-data; boundary=b", "model", lambda _: None)
    finder.feed(part("file", b"abc", "x"))
    assert not finder.has_file


def test_what_the_requests_of_a_file_may_use() -> None:
    content = jsonl(
        line(max_tokens=7),
        line(max_completion_tokens=5, n=3),
        line(n=2),
        line(SOL, "/v1/embeddings"),
    )
    for size in (1, 50, len(content)):
        lines = BatchLines()
        for start in range(0, len(content), size):
            lines.feed(content[start : start + size])
        found = lines.result()
        assert found is not None
        assert found.names == [LUNA, SOL]
        assert found.only_model == ""
        assert found.models[SOL] == ModelDemand(1, found.models[SOL].input_bytes, 0, 0)
        assert found.models[LUNA] == ModelDemand(3, found.models[LUNA].input_bytes, 22, 2)
        bodies = [len(json.dumps(each["body"])) for each in map(json.loads, content.splitlines())]
        assert found.models[LUNA].input_bytes == sum(bodies[:3])


def test_a_file_with_a_name_that_is_no_models_is_not_known() -> None:
    for length, known in ((256, True), (257, False)):
        lines = BatchLines()
        lines.feed(jsonl(line("x" * length)))
        assert (lines.result() is not None) is known


def test_a_batch_reserves_its_budget_when_it_is_created(world: World) -> None:
    content = jsonl(line(max_tokens=100), line(max_tokens=200))
    world.upload(content)
    assert world.refusal("poor") == "insufficient_quota"
    assert world.refusal("paid") == ""
    size = sum(len(json.dumps(json.loads(each)["body"])) for each in content.splitlines())
    assert world.reserved() == size * LUNA_PRICES[0] + 300 * LUNA_PRICES[1]


def test_a_batch_of_a_model_without_a_price_is_refused_a_budget(world: World) -> None:
    world.upload(jsonl(line("some-model")))
    assert world.refusal("paid") == "model_not_priced"


USED = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 40,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 1040,
}


def test_a_batch_with_usage_is_booked_by_its_object(world: World) -> None:
    world.upload(jsonl(line(max_tokens=100)))
    world.start("paid")
    assert world.reserved() > 0
    world.answers(id="batch_1", object="batch", status="in_progress", usage=None)
    world.call("GET", "/v1/batches/batch_1")
    done = {"id": "batch_1", "object": "batch", "status": "completed", "usage": USED}
    world.answers(object="list", data=[{**done, "id": "batch_0"}, {**done, "model": LUNA}])
    for _ in range(3):
        world.call("GET", "/v1/batches?limit=2")
    row = world.sums("paid")[LUNA]
    assert (row.requests, row.prompt, row.completion) == (0, 1000, 40)
    assert row.cost == 1000 * LUNA_PRICES[0] + 40 * LUNA_PRICES[1]
    assert world.reserved() == 0
    assert world.sums("paid")["none"].requests == 1


def output(*responses: tuple[str, int, int]) -> bytes:
    lines = [
        {
            "custom_id": "a",
            "response": {
                "status_code": 200,
                "body": {
                    "object": "chat.completion",
                    "model": model,
                    "usage": {
                        "prompt_tokens": prompt,
                        "completion_tokens": completion,
                        "total_tokens": prompt + completion,
                    },
                },
            },
            "error": None,
        }
        for model, prompt, completion in responses
    ]
    lines.append({"custom_id": "b", "response": {"status_code": 400, "body": {}}})
    return jsonl(*lines)


def test_a_batch_without_usage_is_booked_by_its_output(world: World) -> None:
    world.upload(jsonl(line(), line(SOL)))
    world.start("paid")
    done = {"id": "batch_1", "object": "batch", "status": "completed", "usage": None}
    world.answers(**done, output_file_id="file-out")
    world.call("GET", "/v1/batches/batch_1")
    assert LUNA not in world.sums("paid")
    sent = response(json.dumps({**done, "output_file_id": "file-out"}).encode(), JSON)
    lines = response(
        output((LUNA, 10, 1), (SOL, 20, 2), (LUNA, 30, 3)), "Content-Type: application/jsonl"
    )
    world.send = lambda request: lines if b"/content " in request else sent
    world.ask()
    assert b"GET /v1/files/file-out/content HTTP/1.1" in world.provider.requests[-1]
    luna, sol = world.sums("paid")[LUNA], world.sums("paid")[SOL]
    assert (luna.prompt, luna.completion) == (40, 4)
    assert luna.cost == 40 * LUNA_PRICES[0] + 4 * LUNA_PRICES[1]
    assert (sol.prompt, sol.completion) == (20, 2)
    assert sol.cost == 20 * SOL_PRICES[0] + 2 * SOL_PRICES[1]
    assert world.reserved() == 0


@pytest.mark.parametrize(("age", "unmetered"), [(60, 0), (7200, 1)])
def test_the_output_of_a_batch_that_has_just_ended_may_not_be_there_yet(
    world: World, age: float, unmetered: int
) -> None:
    world.upload(jsonl(line()))
    world.start()
    running = response(b'{"id": "batch_1", "status": "in_progress"}', JSON)
    world.send = lambda _: running
    for hour in range(4):
        world.ask((hour + 1) * 10_000.0)
    ended = {"completed_at": int(time.time() - age), "output_file_id": "file-out"}
    done = response(json.dumps({"id": "batch_1", "status": "completed", **ended}).encode(), JSON)
    gone = response(b"{}", JSON, status="404 Not Found")
    world.send = lambda request: gone if b"/content " in request else done
    world.ask(90_000.0)
    assert sum(row.unmetered for row in world.sums().values()) == unmetered
    if not unmetered:
        lines = response(output((LUNA, 10, 1)))
        world.send = lambda request: lines if b"/content " in request else done
        world.ask(180_000.0)
        assert world.sums()[LUNA].prompt == 10


@pytest.mark.parametrize("status", ["failed", "cancelled", "expired"])
def test_a_batch_that_has_done_nothing_costs_nothing(world: World, status: str) -> None:
    world.upload(jsonl(line()))
    world.start("paid")
    world.answers(id="batch_1", object="batch", status=status, usage=None, output_file_id=None)
    world.ask()
    assert world.sums("paid").keys() == {"none"}
    assert world.reserved() == 0


def test_a_batch_is_priced_as_a_batch(world: World) -> None:
    """At OpenAI's list price, which is half of the standard one."""
    world.upload(jsonl(line("gpt-4o-mini")))
    world.start()
    done = {"id": "batch_1", "status": "completed", "usage": USED, "model": "gpt-4o-mini"}
    world.answers(**done)
    world.call("GET", "/v1/batches/batch_1")
    assert world.sums()["gpt-4o-mini"].cost == (1000 * 75_000) + (40 * 300_000)


def test_a_line_of_the_output_that_cannot_be_read_is_told(world: World) -> None:
    world.upload(jsonl(line()))
    world.start()
    done = {"id": "batch_1", "status": "completed", "output_file_id": "file-out"}
    sent = response(json.dumps(done).encode(), JSON)
    lines = response(output((LUNA, 10, 1)) + b'{"response": {"status_code": 200, "body": {}}}')
    world.send = lambda request: lines if b"/content " in request else sent
    world.ask()
    row = world.sums()[LUNA]
    assert (row.prompt, row.unmetered) == (10, 1)
