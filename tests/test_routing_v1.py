"""`/v1/<path>` goes where its model lives, without a byte of it disturbed; no key gets round it.

The model stands in the JSON body, in a form's field, wherever that is, or in the path. An
alias's name is the one thing that changes on the way. What `in_a_worker` does runs over a socket.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from harness import raw

if TYPE_CHECKING:
    from harness.app import App, AppFactory
    from harness.gateway import Gateway
    from harness.simulator import Simulator

BOUNDARY = "----bound'ary+_.42"
FORM = f'multipart/form-data; boundary="{BOUNDARY}"'
SOUND = bytes(range(256)) * 40 + b"\r\n--" + BOUNDARY.encode()[:-1] + b"\r\n"
JSON = "application/json"


def naming(members: bytes) -> bytes:
    """A body of a model that the key `narrow` may call, with further members."""
    return b'{"model": "llama-x", ' + members + b"}"


@dataclass
class Sent:
    """What the gateway answered, and what arrived at the provider."""

    status: int
    answer: bytes
    requests: list[dict[str, Any]]

    @property
    def code(self) -> str | None:
        code: str | None = json.loads(self.answer)["error"]["code"]
        return code

    @property
    def seen(self) -> dict[str, Any]:
        (found,) = self.requests
        return found

    @property
    def body(self) -> bytes:
        return base64.b64decode(self.seen["body_base64"])


class Caller:
    """Sends bodies with a key of the gateway's."""

    def __init__(self, app: App | Gateway, simulator: Simulator, key: str) -> None:
        self._app = app
        self._simulator = simulator
        self._key = app.secrets[key]

    def send(
        self, target: str, body: bytes = b"", kind: str | None = JSON, *, method: str = "POST"
    ) -> Sent:
        book = f"routing-{uuid4()}"
        headers = [("x-sim-book", book), ("Content-Length", str(len(body)))]
        headers += [("Content-Type", kind)] if kind else []
        head = raw.request(self._app.port, method, target, key=self._key, headers=tuple(headers))
        answer = self._app.exchange(head + body)
        return Sent(answer.status, answer.body, self._simulator.requests(book=book))


@pytest.fixture
def caller(app: App, simulator: Simulator) -> Caller:
    return Caller(app, simulator, "web-app")


@pytest.fixture
def in_a_worker(gateway: Gateway, simulator: Simulator) -> Caller:
    return Caller(gateway, simulator, "web-app")


@pytest.fixture
def narrow(app: App, simulator: Simulator) -> Caller:
    """A key that may call `llama-*` only."""
    return Caller(app, simulator, "narrow")


def field(name: str, value: bytes, extra: str = "") -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n'
    if "filename" in extra:
        head += "Content-Type: application/octet-stream\r\n"
    return head.encode() + b"\r\n" + value + b"\r\n"


def form(*fields: bytes) -> bytes:
    return b"".join(fields) + f"--{BOUNDARY}--\r\n".encode()


FILE = field("file", SOUND, '; filename="talk.wav"')


def form_of(model: bytes, *, model_first: bool) -> bytes:
    named = field("model", model)
    parts = (named, FILE) if model_first else (FILE, named)
    return form(*parts, field("language", b"en"))


def chat(model: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}).encode()


# --- where it goes -----------------------------------------------------------------------------

PREFIX = {"gpt-6-luna": "/v1", "openai/gpt-oss-20b": "/openai/v1"}


@pytest.mark.parametrize("model", PREFIX)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embeddings", '{"input": "x", "model": "%s"}'),
        ("/responses", '{"model" :"%s","input":"x"}'),
        ("/images/generations", '{"prompt": "x", "model":\t"%s"}'),
        ("/brand/new", '{"anything": {"model": "other"}, "model": "%s"}'),
    ],
)
def test_json_goes_where_its_model_lives(caller: Caller, model: str, path: str, body: str) -> None:
    data = (body % model).encode()
    sent = caller.send(f"/v1{path}?a=b", data)
    assert sent.status == 200
    assert sent.seen["target"] == f"{PREFIX[model]}{path}?a=b"
    assert sent.body == data


@pytest.mark.parametrize("model", PREFIX)
def test_a_worker_sends_json_where_its_model_lives(in_a_worker: Caller, model: str) -> None:
    sent = in_a_worker.send("/v1/embeddings?a=b", b'{"input": "x", "model": "%b"}' % model.encode())
    assert (sent.status, sent.seen["target"]) == (200, f"{PREFIX[model]}/embeddings?a=b")


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize("model", PREFIX)
def test_a_form_goes_where_its_model_field_says_and_stays_the_same(
    in_a_worker: Caller, model: str, model_first: bool
) -> None:
    data = form_of(model.encode(), model_first=model_first)
    sent = in_a_worker.send("/v1/audio/transcriptions", data, FORM)
    assert sent.status == 200
    assert sent.seen["target"] == f"{PREFIX[model]}/audio/transcriptions"
    assert sent.body == data
    assert ["Content-Type", FORM] in sent.seen["headers"]
    assert ["Content-Length", str(len(data))] in sent.seen["headers"]


@pytest.mark.parametrize(("model", "prefix"), [("gpt-6-luna", "/v1"), ("llama-x", "/openai/v1")])
@pytest.mark.parametrize("kind", ["engines", "deployments"])
def test_the_old_paths_go_where_the_model_in_them_lives(
    caller: Caller, model: str, prefix: str, kind: str
) -> None:
    sent = caller.send(f"/v1/{kind}/{model}/completions", b'{"prompt": "x"}')
    assert sent.seen["target"] == f"{prefix}/{kind}/{model}/completions"
    assert sent.body == b'{"prompt": "x"}'


@pytest.mark.parametrize("model", PREFIX)
def test_a_model_is_deleted_where_it_lives(caller: Caller, model: str) -> None:
    sent = caller.send(f"/v1/models/{model}", method="DELETE")
    assert (sent.seen["method"], sent.seen["target"]) == (
        "DELETE",
        f"{PREFIX[model]}/models/{model}",
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"purpose": "batch"}', JSON),
        (form(field("purpose", b"batch"), FILE), FORM),
        (SOUND, "audio/wav"),
        (b"model=gpt-6-luna", "application/x-www-form-urlencoded"),
        (b"", None),
    ],
)
def test_what_names_no_model_goes_to_the_catch_all(
    in_a_worker: Caller, body: bytes, kind: str | None
) -> None:
    sent = in_a_worker.send("/v1/somewhere", body, kind)
    assert sent.status == 200
    assert sent.seen["target"] == "/openai/v1/somewhere"
    assert sent.body == body


def test_without_a_catch_all_there_is_no_such_url(
    app_factory: AppFactory, simulator: Simulator
) -> None:
    app = app_factory(
        """
[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }

[[routes]]
model = "gpt-*"
targets = ["openai"]
"""
    )
    caller = Caller(app, simulator, "web-app")
    assert caller.send("/v1/files", method="GET").code == "unknown_url"
    assert caller.send("/v1/embeddings", chat("llama")).code == "model_not_found"
    assert caller.send("/v1/embeddings", b'{"model": "gpt-x", "input": "x"}').status == 200


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_an_endpoint_that_takes_json_reads_it_whatever_its_type_is_called(
    caller: Caller, kind: str | None
) -> None:
    """`curl -d` alone says that the body is a form."""
    data = b'{"model": "gpt-6-luna", "input": "x"}'
    sent = caller.send("/v1/embeddings", data, kind)
    assert sent.seen["target"] == "/v1/embeddings"
    assert sent.body == data


@pytest.mark.parametrize("path", ["/v1/embeddings", "/openai/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"not JSON", "invalid_json"),
        (b'{"model": "gpt-\xff"}', "invalid_json"),
        (b"[]", "invalid_body"),
        (b'"model"', "invalid_body"),
        (b'{"model": 5}', "invalid_body"),
        (b'{"model": "gpt-4", "stream": "yes"}', "invalid_body"),
        (b'{"model": "gpt-4", "model": "gpt-5"}', "invalid_body"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "invalid_json"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_json_that_cannot_be_read_in_one_way_is_refused(
    caller: Caller, path: str, body: bytes, code: str
) -> None:
    sent = caller.send(path, body)
    assert (sent.status, sent.code, sent.requests) == (400, code, [])


def test_a_compressed_request_body_is_refused(gateway: Gateway, key: str) -> None:
    headers = (("Content-Encoding", "gzip"),)
    answer = raw.post(gateway.port, "/openai/v1/embeddings", b"\x1f\x8b", key=key, headers=headers)
    assert answer.status == 415
    assert json.loads(answer.body)["error"]["code"] == "unsupported_encoding"


# --- an alias ----------------------------------------------------------------------------------

ALIASED = b"openai/gpt-oss-20b"


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": @, "input": "x"}',
        b'{"input":"fast",\n\t"model"  :\r\n @  ,"model ":"fast", "big": 1e400, "n": 1.0}',
        b'{ "user": "\\u0066ast \\ud83d\\ude00 \xf0\x9f\x98\x80", "model":@, "a": [[], {}] }\n',
        b'{"nested": {"model": "fast"}, "seed": 12345678901234567890, "model": @}',
    ],
)
def test_an_alias_in_json_changes_that_one_value(caller: Caller, body: bytes) -> None:
    sent = caller.send("/v1/somewhere", body.replace(b"@", b'"fast"'))
    assert sent.status == 200
    assert sent.body == body.replace(b"@", b'"' + ALIASED + b'"')
    assert ["Content-Length", str(len(sent.body))] in sent.seen["headers"]


def test_an_alias_in_another_spelling_is_the_same_alias(caller: Caller) -> None:
    sent = caller.send("/v1/somewhere", b'{"mod\\u0065l": "f\\u0061st", "x": 1}')
    assert sent.body == b'{"mod\\u0065l": "' + ALIASED + b'", "x": 1}'


@pytest.mark.parametrize("model_first", [True, False])
def test_an_alias_in_a_form_changes_that_one_field(in_a_worker: Caller, model_first: bool) -> None:
    sent = in_a_worker.send(
        "/v1/audio/transcriptions", form_of(b"fast", model_first=model_first), FORM
    )
    assert sent.status == 200
    assert sent.body == form_of(ALIASED, model_first=model_first)
    assert ["Content-Length", str(len(sent.body))] in sent.seen["headers"]


def test_an_alias_in_the_path_changes_that_one_segment(caller: Caller) -> None:
    sent = caller.send("/v1/engines/f%61st/completions?fast=fast", b'{"prompt": "fast"}')
    name = quote(ALIASED, safe="")
    target = f"/openai/v1/engines/{name}/completions?fast=fast"
    assert (sent.seen["target"], sent.body) == (target, b'{"prompt": "fast"}')


@pytest.mark.parametrize("alias", ["or-429", "or-refused"])
def test_a_form_is_sent_whole_to_each_target_under_its_own_name_of_the_model(
    impatient_gateway: Gateway, simulator: Simulator, alias: str
) -> None:
    caller = Caller(impatient_gateway, simulator, "web-app")
    sent = caller.send("/v1/audio/transcriptions", form_of(alias.encode(), model_first=False), FORM)
    assert sent.status == 200, sent.answer
    first = [b"a?status=429"] if alias == "or-429" else []
    arrived = [base64.b64decode(seen["body_base64"]) for seen in sent.requests]
    assert arrived == [form_of(name, model_first=False) for name in [*first, b"b"]]


def test_what_has_flowed_by_or_names_no_model_is_not_sent_to_a_second_target(
    app_factory: AppFactory, simulator: Simulator
) -> None:
    app = app_factory(
        """
[providers.openai]
base_url = "{simulator}/v1"
api_key = { env = "OPENAI_API_KEY" }

[providers.groq]
base_url = "{simulator}/openai/v1"
api_key = { env = "GROQ_API_KEY" }
headers = { "x-sim" = "status=503" }

[[routes]]
model = "*"
targets = ["groq", "openai"]
"""
    )
    caller = Caller(app, simulator, "web-app")
    sent = caller.send("/v1/engines/m/somewhere", SOUND, "audio/wav")
    assert (sent.status, len(sent.requests)) == (503, 1)
    sent = caller.send("/v1/engines/m/somewhere", b'{"a": 1}')
    assert (sent.status, len(sent.requests)) == (200, 2)
    # Its object lives with the first provider, and the other one could only say that it has none.
    sent = caller.send("/v1/files/file-1", method="DELETE")
    assert (sent.status, len(sent.requests)) == (503, 1)


def test_on_a_providers_own_path_an_alias_is_just_a_name(caller: Caller) -> None:
    data = b'{"model": "fast", "input": "x"}'
    assert caller.send("/openai/v1/embeddings", data).body == data


def test_two_model_fields_that_say_the_same_are_one(caller: Caller) -> None:
    twice = form(field("model", b"fast"), FILE, field("model", b"fast"))
    sent = caller.send("/v1/audio/transcriptions", twice, FORM)
    assert sent.body == form(field("model", ALIASED), FILE, field("model", ALIASED))


# --- a key for some models only ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "body", "kind"),
    [
        ("/v1/chat/completions", chat("llama-x"), JSON),
        ("/groq/openai/v1/chat/completions", chat("llama-x"), JSON),
        ("/openai/v1/audio/transcriptions", form_of(b"llama-x", model_first=False), FORM),
        ("/v1/audio/transcriptions", form_of(b"llama-x", model_first=True), FORM),
        ("/openai/v1/engines/llama-x/completions", b'{"prompt": "x"}', JSON),
        ("/openai/v1/files", form(field("purpose", b"batch"), FILE), FORM),
        ("/openai/v1/moderations", b'{"input": "x"}', JSON),
        ("/v1/responses/resp_1/cancel", b"", None),
        ("/openai/v1/vector_stores", b'{"name": "gpt-4"}', JSON),
        ("/groq/api/generate", chat("llama-x"), JSON),
        ("/groq/api/show?verbose=1", b'{"name": "llama-x"}', JSON),
        ("/groq/model/llama-x/invoke?model=llama-y", b'{"inputText": "gpt-4"}', JSON),
        ("/v1/chat/completions", naming(b'"models": ["llama-y"], "fallbacks": ["llama-z"]'), JSON),
        ("/v1/chat/completions", naming(b'"fallbacks": [{"llama-x": ["llama-y"]}]'), JSON),
        ("/v1/chat/completions", naming(b'"fallbacks": true, "models": 1'), JSON),
        ("/v1/chat/completions", naming(b'"messages": [{"model": "gpt-4"}]'), JSON),
        ("/v1/chat/completions", naming(b'"tools": [1e999, -1E+999, %b]' % (b"1" * 5000)), JSON),
        ("/v1/chat/completions", naming(b'"seed": %b, "top_p": 1e999' % (b"1" * 5000)), JSON),
        (
            "/v1/chat/completions",
            naming(
                b'"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type":'
                b' "object", "required": ["model"], "properties": {"model": {"type": "string",'
                b' "enum": ["gpt-4"]}, "models": {"default": "gpt-4"}}}}}]'
            ),
            JSON,
        ),
    ],
)
def test_a_narrow_key_may_call_its_own_models_everywhere(
    narrow: Caller, target: str, body: bytes, kind: str
) -> None:
    sent = narrow.send(target, body, kind)
    assert sent.requests, sent.answer
    assert sent.body == body


def test_a_narrow_key_may_look_at_what_names_no_model(narrow: Caller) -> None:
    for target in ("/groq/", "/groq/api/tags", "/v1/files", "/openai/v1/responses/resp_1"):
        for method in ("GET", "HEAD", "OPTIONS"):
            assert len(narrow.send(target, method=method).requests) == 1
    for target in ("/v1/files/file-1", "/openai/v1/vector_stores/vs_1"):
        assert len(narrow.send(target, method="DELETE").requests) == 1


DENIED: dict[str, tuple[str, bytes, str | None]] = {
    "json": ("/v1/chat/completions", chat("gpt-4"), JSON),
    "passthrough": ("/openai/v1/chat/completions", chat("gpt-4"), JSON),
    "json-suffix": ("/openai/v1/chat/completions", chat("gpt-4"), "application/vnd.x+json"),
    "json-upper": ("/openai/v1/chat/completions", chat("gpt-4"), "APPLICATION/JSON ;x=y"),
    "text": ("/openai/v1/chat/completions", chat("gpt-4"), "text/plain"),
    "curl": ("/openai/v1/chat/completions", chat("gpt-4"), "application/x-www-form-urlencoded"),
    "untyped": ("/openai/v1/chat/completions", chat("gpt-4"), None),
    "text-elsewhere": ("/openai/api/chat", chat("gpt-4"), "text/plain"),
    "multipart-mixed": ("/openai/v1/chat/completions", chat("gpt-4"), "multipart/mixed"),
    "duplicate": ("/openai/v1/embeddings", b'{"model":"llama-x","model":"gpt-4"}', JSON),
    "duplicate-first": ("/v1/embeddings", b'{"model":"gpt-4","model":"llama-x"}', JSON),
    "escaped": ("/openai/v1/embeddings", b'{"mod\\u0065l":"gpt-4"}', JSON),
    "escaped-twice": ("/v1/embeddings", b'{"model":"llama-x","\\u006dodel":"gpt-4"}', JSON),
    "utf16": ("/openai/v1/embeddings", chat("gpt-4").decode().encode("utf-16"), JSON),
    "bom": ("/openai/v1/embeddings", b"\xef\xbb\xbf" + chat("gpt-4"), JSON),
    "list": ("/openai/v1/embeddings", b"[" + chat("gpt-4") + b"]", JSON),
    "none": ("/openai/v1/embeddings", b'{"input": "x"}', JSON),
    "null": ("/openai/v1/embeddings", b'{"model": null}', JSON),
    "empty": ("/openai/v1/embeddings", b'{"model": ""}', JSON),
    "nothing": ("/openai/v1/embeddings", b"", None),
    "space": ("/openai/v1/embeddings", b'{"model": " gpt-4"}', JSON),
    "form": ("/openai/v1/audio/transcriptions", form_of(b"gpt-4", model_first=True), FORM),
    "form-late": ("/openai/v1/audio/transcriptions", form_of(b"gpt-4", model_first=False), FORM),
    "form-twice": (
        "/openai/v1/images/edits",
        form(field("model", b"llama-x"), FILE, field("model", b"gpt-4")),
        FORM,
    ),
    "form-twice-v1": (
        "/v1/images/edits",
        form(field("model", b"gpt-4"), field("model", b"llama-x"), FILE),
        FORM,
    ),
    "form-file": (
        "/openai/v1/images/edits",
        form(field("model", b"gpt-4", '; filename="m"'), FILE),
        FORM,
    ),
    "form-none": ("/openai/v1/images/edits", form(FILE), FORM),
    "form-escaped": ("/openai/v1/images/edits", form(field("m%6fdel", b"gpt-4"), FILE), FORM),
    "form-cut": ("/openai/v1/images/edits", form(FILE)[:-6], FORM),
    "form-no-boundary": ("/openai/v1/images/edits", form(FILE), "multipart/form-data"),
    "form-two-boundaries": ("/openai/v1/images/edits", form(FILE), FORM + "; boundary=x"),
    "form-upper": (
        "/openai/v1/images/edits",
        form_of(b"gpt-4", model_first=True),
        FORM.replace("multipart/form-data", "Multipart/Form-Data"),
    ),
    "path": ("/openai/v1/engines/gpt-4/completions", b'{"prompt": "x"}', JSON),
    "path-v1": ("/v1/engines/gpt-4/completions", b'{"prompt": "x"}', JSON),
    "path-encoded": ("/openai/v1/%65ngines/gpt-4/completions", b'{"prompt": "x"}', JSON),
    "path-upper": ("/openai/v1/Engines/gpt-4/completions", b'{"prompt": "x"}', JSON),
    "path-azure": ("/openai/openai/deployments/gpt-4/chat/completions", b"{}", JSON),
    "path-model-encoded": ("/openai/v1/engines/%67pt-4/completions", b"{}", JSON),
    "path-and-body": ("/openai/v1/engines/gpt-4/completions", chat("llama-x"), JSON),
    "body-and-path": ("/openai/v1/engines/llama-x/completions", chat("gpt-4"), JSON),
    "end-encoded": ("/openai/v1/chat/completion%73", b'{"messages": []}', JSON),
    "end-slash": ("/openai/v1/chat/completions/", b'{"messages": []}', JSON),
    "provider-encoded": ("/%6fpenai/v1/chat/completions", chat("gpt-4"), JSON),
    "tool": (
        "/openai/v1/responses",
        b'{"model": "llama-x", "tools": [{"type": "image_generation", "model": "gpt-4"}]}',
        JSON,
    ),
    "compound": (
        "/v1/chat/completions",
        b'{"model": "llama-x", "compound_custom": {"models": {"answering_model": "gpt-4"}}}',
        JSON,
    ),
    "fallback": ("/v1/chat/completions", b'{"model": "llama-x", "fallbacks": ["gpt-4"]}', JSON),
    "batch": ("/openai/v1/batches", b'{"input_file_id": "f"}', JSON),
    "session": ("/v1/realtime/client_secrets", b'{"session": {"model": "gpt-4"}}', JSON),
    "ollama-nothing": ("/groq/api/chat", b'{"messages": []}', JSON),
    "ollama-empty": ("/groq/api/pull", b"", None),
    "ollama-name": ("/groq/api/show", b'{"name": "gpt-4"}', JSON),
    "ollama-two-names": ("/groq/api/push", b'{"model": "llama-x", "name": "gpt-4"}', JSON),
    "ollama-source": ("/groq/api/x", b'{"model": "llama-x", "From": "gpt-4"}', JSON),
    "root": ("/groq/", b'{"prompt": "x"}', JSON),
    "own-form": ("/groq/api/x", form(FILE), FORM),
    "own-form-model": ("/groq/api/x", form_of(b"gpt-4", model_first=True), FORM),
    "looks-known": ("/groq/files", b'{"prompt": "x"}', JSON),
    "looks-known-v1": ("/v1/files;x/run", b'{"prompt": "x"}', JSON),
    "unknown-v1": ("/v1/generate", b'{"prompt": "x"}', JSON),
    "bedrock": ("/groq/model/gpt-4/invoke", b'{"inputText": "x"}', JSON),
    "bedrock-v1": ("/v1/model/gpt-4/converse", chat("llama-x"), JSON),
    "bedrock-upper": ("/groq/MODEL/gpt-4/invoke", chat("llama-x"), JSON),
    "path-parameters": ("/v1/engines;x=1/gpt-4", chat("llama-x"), JSON),
    "path-parameters-encoded": ("/openai/v1/engines%3Bx/gpt-4", chat("llama-x"), JSON),
    "path-second": ("/v1/engines/llama-x/deployments/gpt-4", chat("llama-x"), JSON),
    "path-in-name": ("/v1/models/llama-x/engines/gpt-4", chat("llama-x"), JSON),
    "query": ("/v1/realtime?model=gpt-4", b'{"model": "llama-x"}', JSON),
    "query-none": ("/v1/realtime", b'{"type": "realtime"}', JSON),
    "query-chat": ("/v1/chat/completions?model=gpt-4", chat("llama-x"), JSON),
    "query-twice": ("/v1/chat/completions?model=llama-x&MODEL=gpt-4", chat("llama-x"), JSON),
    "query-semicolon": ("/v1/chat/completions?a=b;model=gpt-4", chat("llama-x"), JSON),
    "query-encoded": ("/v1/chat/completions?mod%65l=gpt-%34", chat("llama-x"), JSON),
    "query-engine": ("/groq/api/x?engine=gpt-4", chat("llama-x"), JSON),
    **{
        name: ("/v1/chat/completions", naming(members), JSON)
        for name, members in {
            "fallback-of": b'"fallbacks": [{"llama-x": ["gpt-4"]}]',
            "fallback-for": b'"fallbacks": [{"gpt-4": ["llama-x"]}]',
            "fallback-model": b'"fallbacks": [{"model": "gpt-4", "messages": []}]',
            "fallback-context": b'"context_window_fallbacks": [{"llama-x": ["gpt-4"]}]',
            "fallback-policy": b'"content_policy_fallbacks": {"llama-x": "gpt-4"}',
            "fallback-default": b'"default_fallbacks": ["gpt-4"]',
            "fallback-one": b'"fallback": "gpt-4"',
            "fallback-first": b'"fallbacks": ["gpt-4"], "fallbacks": []',
            "fallback-last": b'"fallbacks": [], "fallbacks": ["gpt-4"]',
            "fallback-capitals": b'"Fallbacks": ["gpt-4"]',
            "fallback-escaped": b'"fallb\\u0061cks": ["gpt-\\u0034"]',
            "tools-capitals": b'"TOOLS": [{"type": "image_generation", "model": "gpt-4"}]',
            "tools-first": b'"tools": [{"model": "gpt-4"}], "tools": []',
            "tools-last": b'"tools": [], "tools": [{"model": "gpt-4"}]',
            "tool-twice": b'"tools": [{"model": "gpt-4", "model": "llama-x"}]',
            "tool-capitals": b'"tools": [{"model": "llama-x", "Model": "gpt-4"}]',
            "tool-deep": b'"tools": [{"type": "x", "parameters": {"models": ["gpt-4"]}}]',
            "tool-and-number": b'"tools": [1e999, {"model": "gpt-4"}]',
            "compound-twice": b'"compound_custom": {"models": {"a": "gpt-4"}, "models": {}}',
            "compound-capitals": b'"Compound_Custom": {"MODELS": {"reasoning_model": "gpt-4"}}',
            "models-text": b'"models": "gpt-4"',
            "models-odd": b'"models": [["gpt-4"], 1]',
            "plugin": b'"plugins": [{"id": "fusion", "model": "gpt-4"}]',
            "plugin-list": b'"plugins": [{"id": "auto", "allowed_models": ["gpt-4"]}]',
            "preset": b'"preset": "any"',
            "extra": b'"extra_body": {"model": "gpt-4"}',
            "list": b'"model_list": [{"litellm_params": {"model": "gpt-4"}}]',
            "azure": b'"data_sources": [{"embedding": {"deployment_name": "gpt-4"}}]',
            "unheard-of": b'"speculation": {"draft_model": "gpt-4"}',
            "deep": b'"tools": ' + b"[" * 5000 + b"]" * 5000,
            "many": b'"tools": [' + b"{}," * 60_000 + b"{}]",
            "large": b'"tools": ["' + b"x" * (1 << 20) + b'"]',
            "many-members": b",".join(b'"%d": []' % number for number in range(1100)),
        }.items()
    },
}


@pytest.mark.parametrize("how", DENIED)
def test_a_narrow_key_reaches_no_other_model_in_any_way(narrow: Caller, how: str) -> None:
    denied(narrow.send(*DENIED[how]))


def denied(sent: Sent) -> None:
    assert sent.status in (400, 403), sent.answer
    codes = ("model_not_allowed", "endpoint_not_allowed", "invalid_body", "invalid_json")
    assert sent.code in codes
    assert sent.requests == []


@pytest.mark.parametrize("how", ["json", "passthrough", "form", "form-late", "path"])
def test_a_worker_says_that_the_model_is_not_allowed(
    gateway: Gateway, simulator: Simulator, how: str
) -> None:
    sent = Caller(gateway, simulator, "narrow").send(*DENIED[how])
    assert (sent.status, sent.code) == (403, "model_not_allowed")


def test_a_narrow_key_deletes_no_model_of_others(narrow: Caller) -> None:
    for base in ("/openai/v1", "/v1", "/openai/%761"):
        sent = narrow.send(f"{base}/models/gpt-4", method="DELETE")
        assert (sent.status, sent.requests) == (403, [])
    sent = narrow.send("/groq/api/delete", b'{"name": "gpt-4"}', JSON, method="DELETE")
    assert (sent.status, sent.requests) == (403, [])
