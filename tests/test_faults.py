"""What a provider can do wrong, and what the caller gets: never a success that is none."""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import chat, raw
from harness.poll import eventually
from harness.processes import ReservedPort
from harness.simulator import Simulator

if TYPE_CHECKING:
    from harness.gateway import Gateway, GatewayFactory
    from harness.raw import Answer

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def limited(orders: str) -> str:
    """The model of a provider with little time where that is what ends the call."""
    return "quick" if "stall" in orders else "steady"


def failed(answer: Answer, status: int, code: str) -> None:
    details = chat.error(answer)
    assert (answer.status, details["type"], details["code"]) == (status, "api_error", code)


def broke_off(answer: Answer) -> dict[str, object]:
    """The error of a stream's last event; the connection must not have ended cleanly."""
    assert answer.status == 200
    assert not answer.clean_end
    last = chat.events(answer.body)[-1]
    found = json.loads(last)
    assert found.keys() == {"error"}
    details: dict[str, object] = found["error"]
    assert details.keys() == {"message", "type", "param", "code"}
    assert (details["type"], details["code"]) == ("api_error", "upstream_interrupted")
    assert b"[DONE]" not in answer.body
    return details


# --- the provider's own errors ---------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    "status", [400, 402, 403, 404, 409, 413, 422, 429, 498, 500, 502, 503, 529]
)
def test_a_providers_error_comes_down_as_it_came(
    gateway: Gateway, simulator: Simulator, status: int, stream: bool
) -> None:
    book = chat.mark()
    orders = f"status={status}; code=its_code; type=its_type; message=its words; retry-after=7"
    answer = chat.call(gateway, orders=orders, book=book, stream=stream)
    details = chat.error(answer)
    assert answer.status == status
    assert (details["message"], details["type"], details["code"]) == (
        "its words",
        "its_type",
        "its_code",
    )
    assert answer.header("retry-after") == "7"
    assert answer.header("x-ratelimit-remaining-tokens") == "17997"
    assert answer.header("x-ratelimit-reset-requests") == "2m59.56s"
    assert answer.header("x-wrapper-provider") == "groq"
    assert len(simulator.requests(book=book)) == 1
    assert answer.clean_end


def test_the_gateways_refused_credential_is_not_the_callers_fault(gateway: Gateway) -> None:
    answer = chat.call(gateway, orders="status=401")
    failed(answer, 502, "upstream_auth")
    assert answer.header("www-authenticate") is None
    assert answer.header("x-should-retry") == "false"


@pytest.mark.parametrize("model", ["keyless-then-refusing", "refusing-then-keyless"])
def test_a_missing_credential_beside_a_provider_that_may_come_back_is_worth_a_retry(
    impatient_gateway: Gateway, model: str
) -> None:
    answer = chat.call(impatient_gateway, model=model)
    assert answer.status == 502
    assert answer.header("x-should-retry") is None


def test_a_redirect_is_not_followed(gateway: Gateway, simulator: Simulator) -> None:
    book = chat.mark()
    elsewhere = "http://127.0.0.1:9/elsewhere"
    answer = chat.call(gateway, orders=f"redirect={elsewhere}", book=book)
    assert answer.status == 307
    assert answer.header("location") == elsewhere
    assert len(simulator.requests(book=book)) == 1


def test_malformed_json_of_a_provider_comes_down_as_it_came(gateway: Gateway) -> None:
    answer = chat.call(gateway, orders="malformed-json")
    assert answer.status == 200
    assert answer.clean_end
    with pytest.raises(ValueError):
        json.loads(answer.body)


def test_an_error_event_of_the_provider_comes_down_as_it_came(gateway: Gateway) -> None:
    answer = chat.call(gateway, orders="error-event=2; events=9", stream=True)
    assert b"simulated error in the middle" in chat.events(answer.body)[2]
    assert b"upstream_interrupted" not in answer.body


# --- bad framing ------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    "framing",
    [
        "cl-te",
        "bad-te",
        "cl-negative",
        "cl-double",
        "cl-list",
        "cl-garbage",
        "nul-header",
        "101",
        "bad-chunk",
        "long-header",
        "bad-status",
        "lf",
        "fold",
        "garbage",
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_a_502(
    gateway: Gateway, simulator: Simulator, framing: str, stream: bool
) -> None:
    book = chat.mark()
    answer = chat.call(gateway, orders=f"framing={framing}", book=book, stream=stream)
    failed(answer, 502, "upstream_protocol_error")
    assert len(simulator.requests(book=book)) == 1


@both_ways
@pytest.mark.parametrize("framing", ["100", "103"])
def test_an_interim_answer_is_passed_over(gateway: Gateway, framing: str, stream: bool) -> None:
    answer = chat.call(gateway, orders=f"framing={framing}", stream=stream)
    assert answer.status == 200
    assert b"simulated" in answer.body
    assert answer.clean_end


@both_ways
@pytest.mark.parametrize(
    "framing", ["chunk-ext", "trailers", "no-length", "http10", "many-headers"]
)
def test_unusual_framing_that_http_allows_is_understood(
    gateway: Gateway, framing: str, stream: bool
) -> None:
    answer = chat.call(gateway, orders=f"framing={framing}", stream=stream)
    assert answer.status == 200
    assert answer.clean_end
    if stream:
        assert chat.events(answer.body)[-1] == b"[DONE]"
    else:
        assert json.loads(answer.body)["object"] == "chat.completion"


@both_ways
def test_what_follows_an_answer_unasked_never_reaches_the_next_caller(
    impatient_gateway: Gateway, simulator: Simulator, stream: bool
) -> None:
    for _ in range(3):
        answer = chat.call(impatient_gateway, orders="framing=long-body", stream=stream)
        eventually(lambda: simulator.stats()["open"] == 0, what="all of it has been sent")
        assert answer.status == 200
        assert b"more than was declared" not in answer.body
        assert answer.body.endswith(b"data: [DONE]\n\n" if stream else b"}\n")


def test_a_body_shorter_than_it_said_never_looks_whole(gateway: Gateway) -> None:
    failed(chat.call(gateway, orders="framing=short-body"), 502, "upstream_protocol_error")
    answer = chat.call(gateway, orders="framing=short-body; size=50000; events=4")
    assert answer.status == 200
    assert not answer.clean_end


def test_a_stream_shorter_than_it_said_is_not_filled_up_by_our_last_event(gateway: Gateway) -> None:
    answer = chat.call(gateway, orders="framing=short-body; events=3", stream=True)
    assert not answer.clean_end
    assert b"upstream_interrupted" not in answer.body


def test_a_compressed_stream_that_breaks_is_just_cut(gateway: Gateway) -> None:
    answer = chat.call(gateway, orders="encoding=gzip; cut=3", stream=True)
    assert not answer.clean_end
    assert zlib.decompressobj(wbits=31).decompress(answer.body).count(b"data: ") == 3
    assert b"upstream_interrupted" not in answer.body


def test_a_target_has_its_own_time_whatever_the_one_before_took(impatient_gateway: Gateway) -> None:
    answer = chat.call(impatient_gateway, model="slow-then-brief", stream=True)
    assert answer.clean_end
    assert answer.header("x-wrapper-provider") == "brief"


# --- before the first byte --------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("refusing", 502, "upstream_unreachable"),
        ("notls", 502, "upstream_unreachable"),
        ("keyless", 502, "upstream_auth"),
        ("deaf", 504, "upstream_timeout"),
    ],
)
def test_a_provider_that_cannot_be_reached_gets_another_error_than_a_slow_one(
    impatient_gateway: Gateway, model: str, status: int, code: str, stream: bool
) -> None:
    answer = chat.call(impatient_gateway, model=model, stream=stream)
    failed(answer, status, code)
    assert answer.header("x-request-id")
    hopeless = "false" if code == "upstream_auth" else None  # nothing was sent
    assert answer.header("x-should-retry") == hopeless


@both_ways
@pytest.mark.parametrize(
    "orders",
    ["delay=600", "stall-before", "header-drip=0.2", "stall=0"],
    ids=["delay", "stall-before", "dripping-head", "stall-after-head"],
)
def test_a_provider_that_is_too_slow_is_a_504_and_its_work_is_cancelled(
    impatient_gateway: Gateway, simulator: Simulator, orders: str, stream: bool
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model="quick", orders=orders, book=book, stream=stream)
    failed(answer, 504, "upstream_timeout")
    eventually(lambda: simulator.requests(book=book)[0]["outcome"] == "aborted")
    assert len(simulator.requests(book=book)) == 1


@pytest.mark.parametrize("orders", ["stall-before", "close-on-receipt", "cut=40"])
def test_the_sdk_does_not_make_a_provider_work_twice(
    impatient_gateway: Gateway, simulator: Simulator, orders: str
) -> None:
    import openai

    book = chat.mark()
    client = openai.OpenAI(
        base_url=f"{impatient_gateway.url}/v1",
        api_key=impatient_gateway.secrets["web-app"],
        default_headers=dict(chat.told(orders, book)),
    )
    with client, pytest.raises(openai.InternalServerError):  # it repeats twice by default
        client.chat.completions.create(
            model=limited(orders), messages=[{"role": "user", "content": "x"}]
        )
    assert len(simulator.requests(book=book)) == 1


@both_ways
@pytest.mark.parametrize("orders", ["close-on-receipt", "reset=0", "cut=0"])
def test_a_provider_that_closes_before_answering_got_the_call_once(
    impatient_gateway: Gateway, simulator: Simulator, orders: str, stream: bool
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model="steady", orders=orders, book=book, stream=stream)
    failed(answer, 502, "upstream_protocol_error")
    assert len(simulator.requests(book=book)) == 1


def test_a_kept_connection_that_closes_on_receipt_does_not_repeat_the_call(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    assert chat.call(impatient_gateway, model="steady").status == 200
    book = chat.mark()
    orders = "close-on-receipt=kept"
    answer = chat.call(impatient_gateway, model="steady", orders=orders, book=book)
    (seen,) = simulator.requests(book=book)
    assert seen["nth_on_connection"] > 0, "the connection was not kept"
    failed(answer, 502, "upstream_protocol_error")


def test_a_connection_that_the_provider_closed_while_idle_costs_no_call(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    orders = "idle-close=0.3"
    assert chat.call(impatient_gateway, model="steady", orders=orders).status == 200
    before = simulator.stats()["connections"]
    eventually(lambda: simulator.stats()["connections"] < before, what="the idle one's end")
    assert chat.call(impatient_gateway, model="steady").status == 200


@both_ways
def test_a_provider_that_restarts_costs_no_call_that_comes_after(
    gateway_factory: GatewayFactory, stream: bool
) -> None:
    reserved = ReservedPort()
    try:
        config = f"""\
[providers.restarting]
base_url = "http://127.0.0.1:{reserved.number}/v1"

[[routes]]
model = "*"
targets = ["restarting"]
"""
        gateway = gateway_factory(config)
        for _ in range(3):
            with Simulator(port=reserved.number) as restarted:
                for _ in range(2):  # on connections that the last one closed, then on kept ones
                    statuses = calls_at_once(gateway, "events=4; gap=0.02", stream)
                    assert statuses == [200] * 4
                seen = restarted.requests()
                assert len(seen) == 8, "nothing was sent twice"
                assert any(request["nth_on_connection"] for request in seen), "none was kept"
    finally:
        reserved.release()


def calls_at_once(gateway: Gateway, orders: str, stream: bool) -> list[int]:
    with contextlib.ExitStack() as held:
        begun = [
            held.enter_context(
                contextlib.closing(chat.begin(gateway, orders=orders, stream=stream))
            )
            for _ in range(4)
        ]
        answers = [connection.read() for connection in begun]
    gateway.idle()  # its connections to the provider are free again
    assert all(answer.clean_end for answer in answers)
    return [answer.status for answer in answers]


# --- in the middle of the answer ---------------------------------------------------------------


@pytest.mark.parametrize("orders", ["cut=4", "reset=4", "stall=4"])
def test_a_stream_that_breaks_says_so_and_never_ends_cleanly(
    impatient_gateway: Gateway, simulator: Simulator, orders: str
) -> None:
    book = chat.mark()
    answer = chat.call(
        impatient_gateway,
        model=limited(orders),
        orders=f"{orders}; events=20; gap=0.01",
        book=book,
        stream=True,
    )
    broke_off(answer)
    assert len(chat.events(answer.body)) == 5
    assert len(simulator.requests(book=book)) == 1
    request_id = answer.header("x-request-id")
    assert request_id
    line = impatient_gateway.log_line(request_id)
    assert (line["outcome"], line["status"]) == ("upstream_error", 200)


@pytest.mark.parametrize(
    ("orders", "status", "code"),
    [
        ("cut=40", 502, "upstream_protocol_error"),
        ("reset=40", 502, "upstream_protocol_error"),
        ("stall=40", 504, "upstream_timeout"),
        ("cut=40; framing=chunk-ext", 502, "upstream_protocol_error"),
    ],
)
def test_a_small_whole_answer_that_breaks_is_an_error(
    impatient_gateway: Gateway, simulator: Simulator, orders: str, status: int, code: str
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model=limited(orders), orders=orders, book=book)
    failed(answer, status, code)
    assert answer.header("x-should-retry") == "false"
    assert len(simulator.requests(book=book)) == 1


LARGE = "size=50000; events=4"  # more than is waited for before the head goes down


@pytest.mark.parametrize("orders", ["cut=90000", "reset=90000", "stall=90000"])
def test_a_large_whole_answer_that_breaks_never_looks_whole(
    impatient_gateway: Gateway, orders: str
) -> None:
    answer = chat.call(impatient_gateway, model=limited(orders), orders=f"{orders}; {LARGE}")
    assert answer.status == 200
    assert not answer.clean_end
    assert b"upstream_interrupted" not in answer.body


def test_a_broken_whole_answer_of_unknown_length_never_looks_whole_to_an_old_client(
    impatient_gateway: Gateway,
) -> None:
    """To an HTTP/1.0 client the end of the connection is the end of the answer: reset it."""
    asked = chat.request(
        impatient_gateway, model="steady", orders=f"cut=90000; framing=chunk-ext; {LARGE}"
    )
    with raw.Connection(impatient_gateway.port) as connection:
        connection.send(asked.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1))
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: connection.socket.recv(65536), b""))


def test_a_provider_that_drips_for_ever_is_ended_by_the_total_deadline(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    book, began = chat.mark(), time.monotonic()
    orders = "events=100000; gap=0.1"
    answer = chat.call(impatient_gateway, model="quick", orders=orders, book=book, stream=True)
    broke_off(answer)
    assert time.monotonic() - began > 2
    eventually(lambda: simulator.requests(book=book)[0]["outcome"] == "aborted")


@both_ways
@pytest.mark.parametrize(
    "orders", ["drip=0.0005", "header-drip=0.0005", "split", "merge=5", "close"]
)
def test_an_answer_in_odd_pieces_is_the_same_answer(
    gateway: Gateway, simulator: Simulator, orders: str, stream: bool
) -> None:
    book = chat.mark()
    answer = chat.call(gateway, orders=f"{orders}; events=3", book=book, stream=stream)
    assert answer.status == 200
    assert answer.clean_end
    if stream:
        events = chat.events(answer.body)
        assert events[-1] == b"[DONE]"
        assert [json.loads(event) for event in events[:-1]]
    else:
        assert json.loads(answer.body)["object"] == "chat.completion"
    assert simulator.requests(book=book)[0]["outcome"] == "completed"


# --- a provider that answers before it has the whole call --------------------------------------


def test_a_provider_that_refuses_early_is_heard(gateway: Gateway) -> None:
    content = chat.body(filler="x" * 4_000_000)
    answer = chat.call(gateway, content, orders="early-413")
    assert answer.status == 413
    assert answer.header("x-wrapper-provider") == "groq"


# --- the next target of the route ---------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    "model",
    [
        "or-refused",
        "or-deaf",
        "or-notls",
        "or-keyless",
        "or-429",
        "or-500",
        "or-503",
        "or-silent",
        "or-silent-body",
        "or-dripping-head",
        "third",
    ],
)
def test_the_next_target_answers_where_the_first_could_not(
    impatient_gateway: Gateway, simulator: Simulator, model: str, stream: bool
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model=model, book=book, stream=stream)
    assert answer.status == 200
    assert answer.clean_end
    assert answer.header("x-wrapper-provider") == "openai"
    last = simulator.requests(book=book)[-1]
    assert last["model"] in ("b", "c")
    assert last["outcome"] == "completed"
    request_id = answer.header("x-request-id")
    assert request_id
    line = impatient_gateway.log_line(request_id)
    assert (line["provider"], line["outcome"]) == ("openai", "completed")


@pytest.mark.parametrize(("model", "status"), [("or-400", 400), ("or-404", 404)])
def test_a_callers_mistake_is_not_tried_elsewhere(
    impatient_gateway: Gateway, simulator: Simulator, model: str, status: int
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model=model, book=book)
    assert answer.status == status
    assert len(simulator.requests(book=book)) == 1


def test_a_call_that_was_received_and_dropped_is_not_tried_elsewhere(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    """It may have been done: only what the contract names leads on to the next target."""
    book = chat.mark()
    answer = chat.call(impatient_gateway, model="or-received", book=book)
    failed(answer, 502, "upstream_protocol_error")
    assert len(simulator.requests(book=book)) == 1


def test_after_the_first_byte_no_other_target_is_tried(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model="or-cut", book=book, stream=True)
    broke_off(answer)
    assert len(simulator.requests(book=book)) == 1


def test_where_all_targets_fail_the_last_ones_answer_comes_down(
    impatient_gateway: Gateway, simulator: Simulator
) -> None:
    book = chat.mark()
    answer = chat.call(impatient_gateway, model="or-both", book=book)
    assert answer.status == 429
    assert answer.header("retry-after") == "7"
    assert answer.header("x-wrapper-provider") == "openai"
    assert len(simulator.requests(book=book)) == 2
    failed(chat.call(impatient_gateway, model="or-gone"), 502, "upstream_unreachable")


@both_ways
def test_failures_leave_no_connection_open(impatient_gateway: Gateway, stream: bool) -> None:
    """Neither failures nor clients that leave: a worker has as many files open as before."""
    (worker,) = impatient_gateway.workers()
    failures = (
        "reset=0",
        "close-on-receipt",
        "cut=3",
        "reset=3",
        "framing=garbage",
        "framing=cl-te",
    )

    def open_files() -> int:
        return len(list(Path(f"/proc/{worker}/fd").iterdir()))

    def fail() -> None:
        for orders in failures:
            chat.call(impatient_gateway, model="steady", orders=orders, stream=stream)
        for model in ("refusing", "notls", "or-refused", "or-429"):
            chat.call(impatient_gateway, model=model, stream=stream)
        for orders in ("stall-before", "stall=2"):
            connection = chat.begin(impatient_gateway, orders=orders, stream=stream)
            eventually(lambda: impatient_gateway.in_flight() > 0)
            connection.close()

    fail()
    before = open_files()
    for _ in range(8):
        fail()
    eventually(lambda: open_files() <= before + 4, what="as many open files as before")


def test_failures_of_a_provider_leave_the_others_connections_alone(
    impatient_gateway: Gateway,
) -> None:
    """After all kinds of failures the same gateway still answers at once."""
    for orders in ("reset=0", "cut=3", "framing=garbage", "status=500"):
        chat.call(impatient_gateway, model="steady", orders=orders)
        assert chat.call(impatient_gateway, model="steady").status == 200
