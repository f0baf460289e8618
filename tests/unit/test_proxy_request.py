"""Reading a proxy request: what is refused before it is sent; the bytes stay the client's."""

from __future__ import annotations

import contextlib
import json
import math
import socket
from collections.abc import Iterable, Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrapper import errors
from wrapper.auth import Principal
from wrapper.cancellation import CancelScope, Scopes
from wrapper.capacity import Capacity, Holding
from wrapper.config import Server
from wrapper.endpoints import find_endpoint
from wrapper.proxy.body import RequestBody, content_length, keep
from wrapper.proxy.model_access import requested_model
from wrapper.proxy.request import ProxyRequest, is_json_type, read_request, split_target
from wrapper.proxy.timeouts import body_seconds
from wrapper.record import RequestRecord
from wrapper.runtime import RequestContext

BOUNDARY = "----7MA4YWxk"


class Input:
    """What gunicorn gives to read from: the bytes, cut short at will, or a failure."""

    def __init__(self, data: bytes, failure: Exception | None = None) -> None:
        self._data = BytesIO(data)
        self._failure = failure
        self.closing = False

    def read(self, size: int) -> bytes:
        data = self._data.read(size)
        if not data and self._failure is not None:
            raise self._failure
        return data

    def force_close(self) -> None:
        self.closing = True


def environ(
    body: bytes = b"",
    *,
    length: int | None = -1,
    kind: str = "application/json",
    target: str = "/v1/chat/completions",
    method: str = "POST",
    failure: Exception | None = None,
) -> dict[str, Any]:
    """As gunicorn makes it; `length` None is a chunked body, -1 the right length."""
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": target,
        "CONTENT_TYPE": kind,
        "wsgi.input": Input(body, failure),
    }
    if length is None:
        made["HTTP_TRANSFER_ENCODING"] = "chunked"
    else:
        made["CONTENT_LENGTH"] = str(len(body) if length < 0 else length)
    return made


def context(made: dict[str, Any], server: Server | None = None) -> RequestContext:
    """What a request with this environ is read with."""
    scopes: Any = Scopes()
    runtime: Any = SimpleNamespace(scopes=scopes, capacity=Capacity())
    snapshot: Any = SimpleNamespace(
        settings=SimpleNamespace(server=server or Server(), tags=None),
        limits=SimpleNamespace(has_budget=lambda _: False),
    )
    scope = CancelScope(scopes, made.get("gunicorn.socket"))
    record, target = RequestRecord(made["REQUEST_METHOD"]), split_target(made)
    return RequestContext(made, target, record, runtime, snapshot, scope)


UNRESTRICTED = Principal("web")


def request_body(made: dict[str, Any], limit: int) -> RequestBody:
    return RequestBody(made, content_length(made), limit)


def read_json(body: bytes, **how: Any) -> ProxyRequest:
    return read_request(context(environ(body, **how)), UNRESTRICTED, routed=True)


def taken(body: bytes | Iterable[bytes] | None) -> bytes:
    return body if isinstance(body, bytes) else b"".join(body or ())


# --- the target -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("/v1/models", ("/v1/models", "")),
        ("/v1/models?", ("/v1/models", "?")),
        ("/v1/a%20b%C3%BC?x=%2F..//&y=?", ("/v1/a%20b%C3%BC", "?x=%2F..//&y=?")),
        ("/v1/a.b/..c/c..", ("/v1/a.b/..c/c..", "")),
        ("/v1/a;b=c:d@e,f", ("/v1/a;b=c:d@e,f", "")),
        ("/", ("/", "")),
    ],
)
def test_a_target_is_taken_as_it_came(uri: str, parts: tuple[str, str]) -> None:
    assert split_target({"RAW_URI": uri}) == parts


@pytest.mark.parametrize(
    "uri",
    [
        *("", "v1", "*", "http://a/v1", "//a/v1", "/a//b", "/a/", "/./a", "/a/..", "/a/%2e%2E/b"),
        *("/a%2fb", "/a%5Cb", "/a\\b", "/a%00", "/a%7f", "/a%", "/a%g0", "/a b", "/a#b", "/\xe9"),
        *("/a?x#y", "/a?x y", "/a?\x01"),
    ],
)
def test_a_target_with_two_readings_is_refused(uri: str) -> None:
    if uri == "/a/":
        assert split_target({"RAW_URI": uri}) == ("/a/", "")
        return
    with pytest.raises(errors.InvalidPath):
        split_target({"RAW_URI": uri})


@given(st.text(alphabet=st.characters(max_codepoint=255), max_size=40))
def test_whatever_passes_has_one_reading(text: str) -> None:
    try:
        path, query = split_target({"RAW_URI": "/" + text})
    except errors.InvalidPath:
        return
    assert path + query == "/" + text
    assert not {"", ".", ".."} & set(path.lower().replace("%2e", ".").split("/")[1:-1])
    assert "\\" not in path
    assert path.isprintable()
    assert path.isascii()
    # A query's bytes beyond ASCII pass as they are; controls and blanks never do.
    assert not any(letter <= " " or letter == "\x7f" for letter in query)


# --- JSON -------------------------------------------------------------------------------------


def test_model_and_stream_are_read_and_the_bytes_stay() -> None:
    body = b' {"stream" : true, "x":1e400, "model":"a\\u0062", "y":"\xc3\xbc"}\n'
    request = read_json(body)
    assert (request.model, request.stream, request.body) == ("ab", True, body)


@pytest.mark.parametrize("length", [-1, None])
def test_a_body_is_whole_with_a_length_and_with_chunks(length: int | None) -> None:
    body = json.dumps({"model": "m", "x": "x" * 200_000}).encode()
    how = context(environ(body, length=length))
    assert read_request(how, UNRESTRICTED, routed=True).body == body
    assert how.record.content is not None
    assert (how.record.content.received, how.record.content.ended) == (len(body), True)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", errors.InvalidJson),
        (b'{"model": "\xff"}', errors.InvalidJson),
        (b'{"a": NaN}', errors.InvalidJson),
        (b"[" * 100_000 + b"]" * 100_000, errors.InvalidBody),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", errors.InvalidJson),
        (b"[]", errors.InvalidBody),
        (b'{"model": 1}', errors.InvalidBody),
        (b'{"stream": "yes"}', errors.InvalidBody),
        (b'{"model": "a", "model": "b"}', errors.InvalidBody),
        (b'{"model": "a", "\\u006dodel": "b"}', errors.InvalidBody),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value.__name__,
)
def test_what_cannot_be_read_is_refused(body: bytes, error: type[errors.GatewayError]) -> None:
    with pytest.raises(error) as caught:
        read_json(body)
    assert caught.value.status == 400


@given(st.binary(max_size=200))
def test_any_bytes_are_a_call_or_a_refusal(body: bytes) -> None:
    try:
        request = read_json(body)
    except errors.BadRequest:
        return
    assert request.body == body


@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.lists(inner)))
def test_any_object_is_taken_as_it_is(value: Any) -> None:
    body = json.dumps({"x": value, "model": "m"}).encode()
    assert read_json(body).body == body


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [-1, None])
def test_a_body_over_the_limit_is_refused_and_the_connection_closed(length: int | None) -> None:
    made = environ(b"x" * 11, length=length)
    with pytest.raises(errors.RequestTooLarge):
        request_body(made, 10).read_all()
    assert made["wsgi.input"].closing


@pytest.mark.parametrize("length", [-1, None])
def test_a_body_of_exactly_the_limit_is_taken(length: int | None) -> None:
    made = environ(b"x" * 10, length=length)
    assert request_body(made, 10).read_all() == b"x" * 10
    assert not made["wsgi.input"].closing


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (None, errors.IncompleteBody),
        (ConnectionResetError(), errors.IncompleteBody),
        (ValueError(), errors.IncompleteBody),
        (TimeoutError(), errors.RequestTimeout),
    ],
)
def test_a_body_that_breaks_off_is_refused_and_the_connection_closed(
    failure: Exception | None, error: type[errors.GatewayError]
) -> None:
    made = environ(b"half", length=8, failure=failure)
    with pytest.raises(error):
        request_body(made, 100).read_all()
    assert made["wsgi.input"].closing


def test_nothing_is_read_after_the_end() -> None:
    raw = request_body(environ(b"abc"), 10)
    assert b"".join(raw) == b"abc"
    assert raw.ended
    assert raw.read(10) == b""


def test_a_full_disk_is_no_bug_of_the_callers() -> None:
    with (
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
        pytest.raises(errors.Overloaded) as caught,
    ):
        keep(b"x", full)
    assert caught.value.headers == (("Retry-After", "10"),)


def test_a_bodys_time_grows_with_its_size() -> None:
    server = Server(max_upload_bytes=10**9)
    assert 30 <= body_seconds(10, server) < 31
    assert 1000 < body_seconds(100_000_000, server) < 10_000
    assert body_seconds(None, Server(max_upload_bytes=1_000_000)) > 60


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 0),
        ({"CONTENT_LENGTH": ""}, 0),
        ({"CONTENT_LENGTH": "0"}, 0),
        ({"CONTENT_LENGTH": "1"}, 1),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, None),
    ],
)
def test_the_length_of_the_body_after_the_head(
    fields: dict[str, str], expected: int | None
) -> None:
    assert content_length(fields) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("application/scim+json", True),
        ("application/jsonl", False),
        ("text/json", False),
        ("", False),
    ],
)
def test_what_counts_as_json(kind: str, expected: bool) -> None:
    assert is_json_type(kind) is expected


# --- what goes to a target --------------------------------------------------------------------


def test_without_a_change_the_same_bytes_go_up_with_the_same_headers() -> None:
    request, headers = read_json(b'{"model": "m"}'), {"A": "b"}
    prepared = request.prepare(None, headers, ask_usage=False)
    assert prepared.body is request.body
    assert prepared.headers is headers


@given(model=st.text(min_size=1), before=st.text(), after=st.text())
def test_a_renamed_model_changes_nothing_else(model: str, before: str, after: str) -> None:
    start = b'{"b":%b , "model" : ' % json.dumps(before, ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    end = b',"model2":"x", "a":%b}' % json.dumps(after).encode()
    request = read_json(start + b'"m\\u006fdel-\xc3\xbc"' + end)
    assert request.prepare("other", {}, ask_usage=False).body == start + b'"other"' + end
    named = request.prepare(model, {}, ask_usage=False).body
    assert json.loads(taken(named))["model"] == model
    assert request.body == start + b'"m\\u006fdel-\xc3\xbc"' + end


def test_a_body_that_came_with_its_head_has_no_deadline_and_is_not_read_at_a_workers_stop() -> None:
    made = environ(b'{"model": "m"}')
    made["wsgi.input"].has_come = True
    at_work = context(made)
    assert read_request(at_work, UNRESTRICTED, routed=True).model == "m"
    assert at_work.scope._deadline == math.inf
    stopping = context(environ(b'{"model": "m"}'))
    stopping.environ["wsgi.input"].has_come = True
    stopping.runtime.scopes.drain()
    with pytest.raises(errors.Drained):
        read_request(stopping, UNRESTRICTED, routed=True)
    assert stopping.record.outcome == "drained"


def test_a_streams_usage_is_asked_for_and_then_must_come_uncompressed() -> None:
    request = read_json(b'{"model": "m", "stream": true}')
    prepared = request.prepare(None, {"Accept-Encoding": "gzip"}, ask_usage=True)
    assert json.loads(taken(prepared.body))["stream_options"] == {"include_usage": True}
    assert prepared.headers == {"Accept-Encoding": "identity"}
    assert prepared.strip_usage
    assert not request.prepare(None, {}, ask_usage=False).strip_usage, "the next target may differ"


def test_usage_that_the_client_asked_for_is_left_to_them() -> None:
    request = read_json(b'{"stream": true, "stream_options": {"include_usage": true}}')
    headers = {"Accept-Encoding": "gzip"}
    prepared = request.prepare(None, headers, ask_usage=True)
    assert prepared.body is request.body
    assert prepared.headers is headers
    assert not prepared.strip_usage


# --- forms ------------------------------------------------------------------------------------


def form(*parts: tuple[str, bytes]) -> bytes:
    made = b""
    for name, value in parts:
        more = '; filename="a.bin"' if name == "file" else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
        made += head.encode() + value + b"\r\n"
    return made + f"--{BOUNDARY}--\r\n".encode()


FILE = bytes(range(256)) * 12_000  # beyond what is kept in memory


@contextlib.contextmanager
def read_form(body: bytes, *, routed: bool = True) -> Iterator[ProxyRequest]:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    how = context(environ(body, kind=kind, target="/v1/audio/transcriptions"))
    try:
        yield read_request(how, UNRESTRICTED, routed=routed)
    finally:
        how.record.finish()


@pytest.mark.parametrize("last", [False, True], ids=["model-first", "model-last"])
def test_a_forms_model_is_found_and_renamed_and_no_other_byte_is(last: bool) -> None:
    parts = [("model", b"whisper"), ("file", FILE), ("prompt", b"model")]
    if last:
        parts.reverse()
    with read_form(form(*parts)) as request:
        assert request.model == "whisper"
        assert taken(request.prepare(None, {}, ask_usage=False).body) == form(*parts)
        renamed = request.prepare("other-ü", {}, ask_usage=False).body
        expected = form(*[(n, "other-ü".encode() if n == "model" else v) for n, v in parts])
        assert taken(renamed) == expected
        assert getattr(renamed, "length", 0) == len(expected)
        assert taken(renamed) == expected, "the next target gets it all again"


def test_a_form_with_two_models_is_refused() -> None:
    with (
        pytest.raises(errors.InvalidBody),
        read_form(form(("model", b"a"), ("model", b"b"))),
    ):
        pass


def test_a_form_whose_model_does_not_decide_flows_by_and_is_read_beside() -> None:
    body = form(("file", FILE), ("model", b"whisper"))
    with read_form(body, routed=False) as request:
        assert request.model is None
        assert isinstance(request.body, RequestBody)
        assert b"".join(request.body) == body
        assert request.named_model == "whisper"


def test_a_missing_body_stays_missing_and_an_empty_one_empty() -> None:
    for length, expected in ((0, b""), (None, None)):
        made = environ(length=length)
        if length is None:
            del made["HTTP_TRANSFER_ENCODING"]
        assert read_request(context(made), UNRESTRICTED, routed=True).body == expected


@pytest.mark.parametrize("value", [b"5", b'"x"', b"{}", b"[]", b"null", b'[1, "x", {"model": 2}]'])
@pytest.mark.parametrize("name", [b"tools", b"compound_custom"])
def test_odd_values_where_a_model_may_stand_name_none(name: bytes, value: bytes) -> None:
    restricted = Principal("web", ("a",))
    made = environ(b'{"model":"a","%b":%b}' % (name, value))
    request = read_request(context(made), restricted, routed=True)
    assert requested_model(restricted, request, "/chat/completions") == "a"


def test_a_body_that_is_refused_leaves_no_deadline_behind() -> None:
    """A chunked one's would have run for hours."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        made = environ(b"[]", length=None)
        made["gunicorn.socket"] = FakeSocket(ours)
        how = context(made)
        with pytest.raises(errors.InvalidBody):
            read_request(how, UNRESTRICTED, routed=True)
        scopes = how.runtime.scopes
        assert how.scope in scopes
        how.scope.close()
        assert how.scope not in scopes  # whose deadlines are looked at


class FakeSocket:
    """As much of gunicorn's socket as reading a request needs."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock


# --- the table of endpoints ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "used"),
    [
        ("/v1/chat/completions", "POST", True),
        ("/openai/v1/responses", "POST", True),
        ("/v1/moderations", "POST", True),
        ("/v1/responses/resp_1", "GET", False),
        ("/v1/chat/completions/chatcmpl-1", "POST", False),
        ("/openai/v1/responses/resp_1/cancel", "POST", False),
        ("/v1/threads/t/runs", "POST", True),
        ("/v1/threads/t/runs/r", "POST", False),
        ("/v1/threads/t/runs/r/cancel", "POST", False),
        ("/v1/batches", "POST", False),
        ("/v1/batches/b/cancel", "POST", False),
    ],
)
def test_the_usage_in_a_stored_object_was_counted_before(
    path: str, method: str, used: bool
) -> None:
    assert find_endpoint(method, path).reports_stored_usage is not used


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/openai/v1/chat/completions", "/v1/engines/ada/completions"]
)
def test_an_endpoint_is_found_by_the_end_of_its_path(path: str) -> None:
    assert find_endpoint("POST", path).ask_stream_usage
    assert not find_endpoint("POST", path + "/x/y").metered


@pytest.mark.parametrize(
    ("method", "path", "pattern"),
    [
        ("POST", "/v1/embeddings", "/embeddings"),
        ("POST", "/v1/vector_stores/vs_1/files/search", "/vector_stores/{id}/files/{rest}"),
        ("POST", "/v1/own", ""),
        ("GET", "/v1/responses/resp_1", "/responses/{id}"),
        ("GET", "/v1/files/file-1/content", "/files/{id}/content"),
        ("DELETE", "/openai/v1/files/file-1", "/files/{id}"),
        ("GET", "/groq/openai/v1/models/openai/gpt-oss-20b", "/models/{id}"),
        ("GET", "/v1/own", ""),
        ("GET", "/v1" + "/files/own" * 9, ""),
        ("DELETE", "/v1/organization/own/x", "/organization/{rest}"),
    ],
)
def test_an_endpoint_has_a_name_without_anything_of_the_callers(
    method: str, path: str, pattern: str
) -> None:
    assert find_endpoint(method, path).path == pattern


def test_an_upload_leaves_room_on_the_volume_for_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    form += b"a" * (20 << 20) + b"\r\n--b--\r\n"

    def read(free: int, length: int = -1) -> RequestRecord:
        volume = SimpleNamespace(f_frsize=1, f_blocks=400 << 20, f_bavail=free)
        monkeypatch.setattr("os.statvfs", lambda _: volume)
        made = environ(
            form,
            target="/v1/audio/transcriptions",
            kind="multipart/form-data; boundary=b",
            length=length or None,
        )
        reading = context(made)
        try:
            assert read_request(reading, UNRESTRICTED, routed=True).model == "m"
        finally:
            reading.record.finish()
        return reading.record

    assert read(free=80 << 20).bytes_in == len(form)
    for length in (-1, 0):  # known at the start, and found out on the way
        with pytest.raises(errors.NoRoom):
            read(free=60 << 20 if length else 40 << 20, length=length)


def test_uploads_on_the_disk_have_a_quota_and_give_it_back() -> None:
    budget = Capacity().disk
    mine, theirs = Holding(budget, "a", 100), Holding(budget, "b", 100)
    assert [mine.take(40), mine.take(40), theirs.take(50), theirs.take(50)] == [
        True,
        False,
        True,
        False,
    ]
    mine.release()
    theirs.release()
    assert budget.held == 0
    assert Holding(budget, "a", 100).take(1000)  # nothing else is held
