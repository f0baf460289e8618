"""`x-sim` instructions: what one request asks the simulator to respond with, and which faults.

Written ``name=value; flag; name=value``. They come from the command line (``--x-sim``), the model
name (``sim-model?status=429&retry-after=7``), the body's field ``x_sim`` and the header ``x-sim``;
a later source overrides an earlier one.

Invariant: an unknown instruction is refused with a 400, so that a misspelt one never passes as a
test of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

HELP = """\
Instructions (x-sim)
  Written "name=value; flag; name=value" in the request header x-sim, in the body's field "x_sim",
  or after the model name: "sim-model?status=429&retry-after=7" ("&" or ";" between them,
  percent-decoded). The header overrides the body, the body overrides the model name.

 content of the response
  events=N         pieces of content (default: the words of the made-up sentence)
  size=BYTES       length of each piece of content; length of the body of an echo
  prompt=N completion=N cached[=N] reasoning[=N] seconds=N   usage to report, exactly
                   (cached alone: a quarter of the prompt, reasoning alone: 4)
  cache-write=N image=N   tokens of the prompt written to the cache, and those of images
  tool=web_search:N|file_search:N   the provider has run this tool N times (responses, messages)
  tier=NAME        service tier that has served the request (messages: fast is its speed)
  compound=MODEL,…   models of a Groq compound system: equal parts of the tokens, the first one
                   has what is left over
  any-model        accept a model name that is not known
  book=TAG         tag in the ledger, before x-sim-book and "user"
  answered-model=NAME   model named in the response, if not the requested one
  style=openai|groq     dialect (default: groq below /openai/v1, openai below /v1)
  echo[=raw]       respond with the request itself, as JSON or (raw) with the bytes of its body
  no-usage, usage-null  usage is left out, or null
  polls=N          how often a background response, a batch or a video is shown unfinished (2; a
                   batch without this order is never worked off)
  ends=failed|cancelled|expired|incomplete   how it ends
  groq-error       the last Groq chunk has x_groq.error instead of x_groq.usage
  status=N         this status; from 400 on with an error body
  code=, type=, message=   of that error body
  retry-after=V, should-retry=true|false   headers of the response
  set=NAME:VALUE   one more response header (may be repeated)
  content-type=V   instead of the right one
  redirect=URL     307 to this URL
  malformed-json   the JSON is truncated (the framing is right)
  error-event[=N]  an error event in the stream after N events (2), then its end
  no-done          the stream ends without "data: [DONE]"
  stamp            each event has "sim_t": time.time() when it is sent
  crlf, cr         line ends of the stream, instead of LF
  comment[=N]      a line ": keep-alive" before every N-th event (1)
  no-space         "data:{" instead of "data: {"
  multi-data       each event's JSON over several "data:" lines
  encoding=gzip|deflate|br   compressed, a stream with a flush after each event

 timing and framing
  delay=S          wait before the response head
  gap=S            between two events
  header-drip[=S]  the head byte by byte, S apart (0.002)
  drip[=S]         the body byte by byte, S apart (0.002)
  split            each send ends in the middle of an event
  merge[=N]        N events in a send (3)
  close            "Connection: close", and closed after the response
  idle-close=S     closed after the response if no further request comes within S
  framing=cl-te | bad-te | cl-negative | cl-double | cl-list | cl-garbage | nul-header |
          no-length | http10 | 100 | 101 | 103 | bad-chunk | chunk-ext | trailers |
          short-body | long-body | long-header | many-headers | bad-status | lf | fold | garbage

 faults (N counts events of a stream, the first one with the role too; otherwise bytes)
  stall=N          nothing more after N, but the connection stays open
  read-stall=N     stop reading the request body after N bytes (header only); reset after
                   delay=S (4)
  read-gap=S       read the request body slowly, S after each 64 KiB (header only)
  stall-before     the request is read and never answered
  reset=N          TCP reset after N; reset=0 before the head
  cut=N            the connection is closed after N, without the final chunk
  close-on-receipt[=kept]  closed once the request has been read (kept: only if the
                   connection has served another one before)
  early-413        413 and closed, before the body is read
  close-code=N     a WebSocket is closed with this code after a response; on one, stall=N and
                   cut=N (without a Close frame) count the events of a response
  wrong-accept     the 101 of a WebSocket accepts another handshake
"""

_FRAMINGS = (
    "cl-te bad-te cl-negative cl-double cl-list cl-garbage nul-header no-length http10 100 101 103"
    " bad-chunk chunk-ext trailers short-body long-body long-header many-headers bad-status lf fold"
    " garbage"
)
FRAMINGS = frozenset(_FRAMINGS.split())


class BadInstruction(ValueError):
    """An unknown instruction or a value that does not fit; the message names it."""


@dataclass(frozen=True, slots=True)
class Instructions:
    """The instructions of one request; times in seconds, sizes in bytes. `HELP` explains each."""

    events: int | None = None
    size: int | None = None
    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None  # -1: a quarter of the prompt
    reasoning: int | None = None
    seconds: int | None = None
    cache_write: int | None = None
    image: int | None = None
    tool: tuple[str, int] | None = None
    tier: str | None = None
    compound: str | None = None
    any_model: bool = False
    answered_model: str | None = None
    style: str | None = None
    echo: str | None = None
    book: str | None = None
    polls: int | None = None
    ends: str | None = None
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
    idle_close: float | None = None
    framing: str | None = None
    read_stall: int | None = None
    read_gap: float | None = None
    stall: int | None = None
    stall_before: bool = False
    reset: int | None = None
    cut: int | None = None
    close_on_receipt: str | None = None
    early_413: bool = False
    close_code: int | None = None
    wrong_accept: bool = False


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


def _tool(value: str) -> tuple[str, int]:
    name, _, count = value.partition(":")
    if name not in ("web_search", "file_search"):
        raise ValueError("web_search:N or file_search:N")
    return name, _count(count)


def _one_of(*choices: str) -> Callable[[str], str]:
    def pick(value: str) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(sorted(choices)))
        return value

    return pick


_READERS: Mapping[str, Callable[[str], Any]] = {
    "int | None": _count,
    "float | None": _seconds,
    "str | None": _text,
}
_TYPES = {field.name: str(field.type) for field in fields(Instructions)}
_FLAGS = frozenset(name for name, kind in _TYPES.items() if kind == "bool")
_VALUES: Mapping[str, Callable[[str], Any]] = {
    **{name: _READERS[kind] for name, kind in _TYPES.items() if kind in _READERS},
    "style": _one_of("openai", "groq"),
    "echo": _one_of("json", "raw"),
    "tool": _tool,
    "encoding": _one_of("gzip", "deflate", "br"),
    "ends": _one_of("failed", "cancelled", "expired", "incomplete"),
    "framing": _one_of(*FRAMINGS),
    "close_on_receipt": _one_of("always", "kept"),
}
_WITHOUT_VALUE: Mapping[str, Any] = {
    "cached": -1,
    "reasoning": 4,
    "echo": "json",
    "error_event": 2,
    "comment": 1,
    "header_drip": 0.002,
    "drip": 0.002,
    "merge": 3,
    "close_on_receipt": "always",
}


@lru_cache(maxsize=4096)
def _parsed(text: str) -> tuple[tuple[str, Any], ...]:
    found: list[tuple[str, Any]] = []
    for item in text.split(";"):
        name, equals, value = item.strip().partition("=")
        name = name.strip().lower().replace("-", "_")
        if name:
            found.append((name, _value(name, value.strip() if equals else None)))
    return tuple(found)


def _value(name: str, value: str | None) -> Any:
    if name in _FLAGS and value is None:
        return True
    if name in _WITHOUT_VALUE and value is None:
        return _WITHOUT_VALUE[name]
    if name == "set" and value and ":" in value:
        header, _, content = value.partition(":")
        return header.strip(), content.strip()
    shown = name.replace("_", "-")
    if name not in _VALUES:
        raise BadInstruction(f"x-sim has no instruction like {shown!r} (see --help)")
    try:
        return _VALUES[name](value or "")
    except ValueError as problem:
        raise BadInstruction(f"x-sim instruction {shown!r}: {problem}") from None


def split_model(model: str) -> tuple[str, str]:
    """Split ``name?instructions`` into the name and the instructions, as `parse` takes them."""
    name, _, rest = model.partition("?")
    if not rest:
        return name, ""
    return name, ";".join(unquote(item) for item in rest.replace(";", "&").split("&"))


_NONE = Instructions()


def parse(*sources: str) -> Instructions:
    """The instructions of all sources, a later one overriding an earlier. Raises
    `BadInstruction`.
    """
    wanted: dict[str, Any] = {}
    headers: list[tuple[str, str]] = []
    for source in filter(None, sources):
        for name, value in _parsed(source):
            if name == "set":
                headers.append(value)
            else:
                wanted[name] = value
    if not wanted and not headers:
        return _NONE
    return Instructions(**wanted, set=tuple(headers))
