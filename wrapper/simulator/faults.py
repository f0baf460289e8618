"""Orders: what one request wants the simulator to answer, and what shall go wrong.

Orders are written ``name=value; flag; name=value``. They are taken from four places, the later
winning over the earlier: the command line (``--orders``), the model's name
(``sim-model?status=429&retry-after=7``), the body's field ``x_sim``, the header ``x-sim``.

An order that is not known is refused with a 400, so that a misspelt one never passes as a test
of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

GRAMMAR = """\
Orders (x-sim)
  Written "name=value; flag; name=value" in the request's header x-sim, in the body's field
  "x_sim", or behind the model's name: "sim-model?status=429&retry-after=7" ("&" or ";"
  between them, percent-decoded). The header wins over the body, the body over the model.

 what is answered
  events=N         pieces of content (default: the words of the made-up sentence)
  size=BYTES       length of each piece of content; length of the body of an echo
  prompt=N completion=N cached[=N] reasoning[=N] seconds=N   use to report (cached alone:
                   a quarter of the prompt, reasoning alone: 4)
  answered-model=NAME   model named in the answer, where it is not the one asked for
  style=openai|groq     dialect (default: groq below /openai/v1, openai below /v1)
  echo[=raw]       answer with the request itself, as JSON or (raw) its body's bytes
  no-usage, usage-null  use is left out, or null
  groq-error       the last Groq chunk has x_groq.error where x_groq.usage would be
  status=N         this status; 400 and above with an error body
  code=, type=, message=   of that error body
  retry-after=V, should-retry=true|false   headers to go with it
  set=NAME:VALUE   one more response header (may be repeated)
  content-type=V   in place of the right one
  redirect=URL     307 to there
  malformed-json   the JSON breaks off in the middle (framing is right)
  error-event[=N]  an error event in the stream after N events (2), then its end
  no-done          the stream ends without "data: [DONE]"
  stamp            each event has "sim_t": time.time() of its sending
  crlf, cr         the stream's lines end so, in place of LF
  comment[=N]      a line ": keep-alive" before every N-th event (1)
  no-space         "data:{" in place of "data: {"
  multi-data       each event's JSON over several "data:" lines
  encoding=gzip|deflate|br   compressed, a stream with a flush after each event

 how it is sent
  delay=S          wait before the head
  gap=S            from one event to the next
  header-drip[=S]  the head byte by byte, S apart (0.002)
  drip[=S]         the body byte by byte, S apart (0.002)
  split            sends end in the middle of events
  merge[=N]        N events in a send (3)
  close            "Connection: close", and closed after the answer
  framing=cl-te | bad-te | cl-negative | cl-double | cl-list | cl-garbage | nul-header |
          no-length | http10 | 100 | 101 | 103 | bad-chunk | chunk-ext | trailers |
          short-body | long-body | long-header | many-headers | bad-status | lf | fold | garbage

 how it breaks (N counts events of a stream, the first one with the role too; else bytes)
  stall=N          nothing more after N, but the connection stays open
  stall-before     the request is read and never answered
  reset=N          TCP reset after N; reset=0 before the head
  cut=N            the connection is closed after N, without the final chunk
  close-on-receipt[=kept]  closed when the request has been read (kept: only where the
                   connection has served another one before)
  early-413        413 and closed, before the body is read
"""


class BadOrder(ValueError):
    """An order that is unknown or has a value that does not fit; the message names it."""


@dataclass(frozen=True, slots=True)
class Orders:
    """One request's orders; times in seconds, sizes in bytes. ``GRAMMAR`` explains each."""

    events: int | None = None
    size: int | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None  # -1: a quarter of the prompt
    reasoning: int | None = None
    seconds: int | None = None
    answered_model: str | None = None
    style: str | None = None
    echo: str | None = None
    book: str | None = None
    no_usage: bool = False
    usage_null: bool = False
    groq_error: bool = False
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    retry_after: str | None = None
    should_retry: str | None = None
    set: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    redirect: str | None = None
    malformed_json: bool = False
    error_event: int | None = None
    no_done: bool = False
    stamp: bool = False
    crlf: bool = False
    cr: bool = False
    comment: int | None = None
    no_space: bool = False
    multi_data: bool = False
    encoding: str | None = None
    delay: float | None = None
    gap: float | None = None
    header_drip: float | None = None
    drip: float | None = None
    split: bool = False
    merge: int | None = None
    close: bool = False
    framing: str | None = None
    stall: int | None = None
    stall_before: bool = False
    reset: int | None = None
    cut: int | None = None
    close_on_receipt: str | None = None
    early_413: bool = field(default=False)


FRAMINGS = frozenset(
    [
        "cl-te",
        "bad-te",
        "cl-negative",
        "cl-double",
        "cl-list",
        "cl-garbage",
        "nul-header",
        "no-length",
        "http10",
        "100",
        "101",
        "103",
        "bad-chunk",
        "chunk-ext",
        "trailers",
        "short-body",
        "long-body",
        "long-header",
        "many-headers",
        "bad-status",
        "lf",
        "fold",
        "garbage",
    ]
)


def _count(value: str) -> int:
    if not value.isascii() or not value.isdigit():
        raise ValueError("a whole number is needed")
    return int(value)


def _seconds(value: str) -> float:
    number = float(value)
    if not 0 <= number < 1e6:
        raise ValueError("seconds are needed")
    return number


def _text(value: str) -> str:
    if not value or "\r" in value or "\n" in value:
        raise ValueError("a value is needed")
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def pick(value: str) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(sorted(choices)))
        return value

    return pick


_FLAGS = frozenset(
    [
        "no-usage",
        "usage-null",
        "groq-error",
        "malformed-json",
        "no-done",
        "stamp",
        "crlf",
        "cr",
        "no-space",
        "multi-data",
        "split",
        "close",
        "stall-before",
        "early-413",
    ]
)
_VALUES: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(
        [
            "events",
            "size",
            "prompt",
            "completion",
            "cached",
            "reasoning",
            "seconds",
            "status",
            "error-event",
            "comment",
            "merge",
            "stall",
            "reset",
            "cut",
        ],
        _count,
    ),
    **dict.fromkeys(["delay", "gap", "header-drip", "drip"], _seconds),
    **dict.fromkeys(
        [
            "answered-model",
            "book",
            "code",
            "type",
            "message",
            "retry-after",
            "should-retry",
            "content-type",
            "redirect",
        ],
        _text,
    ),
    "style": _one_of("openai", "groq"),
    "echo": _one_of("json", "raw"),
    "encoding": _one_of("gzip", "deflate", "br"),
    "framing": _one_of(*FRAMINGS),
    "close-on-receipt": _one_of("always", "kept"),
}
_ALONE: Mapping[str, Any] = {
    "cached": -1,
    "reasoning": 4,
    "echo": "json",
    "error-event": 2,
    "comment": 1,
    "header-drip": 0.002,
    "drip": 0.002,
    "merge": 3,
    "close-on-receipt": "always",
}


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []
    for item in text.split(";"):
        name, equals, value = item.strip().partition("=")
        name, value = name.strip().lower(), value.strip()
        if name:
            found.append((name.replace("-", "_"), _value(name, value if equals else None)))
    return tuple(found)


def _value(name: str, value: str | None) -> Any:
    if name in _FLAGS and value is None:
        return True
    if name in _ALONE and value is None:
        return _ALONE[name]
    if name == "set" and value and ":" in value:
        header, _, content = value.partition(":")
        return header.strip(), content.strip()
    if name not in _VALUES:
        raise BadOrder(f"x-sim has no order like {name!r} (see --help)")
    try:
        return _VALUES[name](value or "")
    except ValueError as problem:
        raise BadOrder(f"x-sim order {name!r}: {problem}") from None


def split_model(model: str) -> tuple[str, str]:
    """Take ``name?orders`` apart into the name and the orders, written for `orders`."""
    name, _, rest = model.partition("?")
    if not rest:
        return name, ""
    return name, ";".join(unquote(item) for item in rest.replace(";", "&").split("&"))


_NONE = Orders()


def orders(*sources: str) -> Orders:
    """The orders of all sources together, the later winning. Raises `BadOrder`."""
    wanted: dict[str, Any] = {}
    extra: list[tuple[str, str]] = []
    for source in sources:
        if not source:
            continue
        for name, value in _parsed(source):
            if name == "set":
                extra.append(value)
            else:
                wanted[name] = value
    if not wanted and not extra:
        return _NONE
    return Orders(**wanted, set=tuple(extra))
