"""Usage in an event stream: asking the provider for it, and extracting it.

A chat stream reports its usage only where the request sets `stream_options.include_usage`
(https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options). Where
the client did not, the gateway does, and takes the additional chunk (a usage and empty
`choices`) out of the stream again, with its blank line (`strip_usage`).

Nearly every piece of a stream is one event with a few letters of text. So a piece is searched
for the words that matter (`"usage"` with a value, `"error"`, `"executed_tools"`, and `"model"`
until it is known) and decoded only when one is there: an event without them costs about a
microsecond. The last usage counts; usages are never added up, because Groq reports the same
numbers three times. (Anthropic reports in two events: the second replaces what it repeats.)

Events with content are counted (a lower bound) by the words that begin the content of the first
one: each has at least one token, which bounds a stream that breaks off.

Whether the event that ends the stream has passed is looked for when it is asked, in the last
piece: no other event pays for it.

Invariant: all other bytes, of the request and of the stream, stay as they were, however the
stream is cut into pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from wrapper.formats.jsonbytes import insert_member, members
from wrapper.formats.sse import MAX_EVENT_BYTES, Reader, Span, payload
from wrapper.metering.dialects import (
    DECODING_ERRORS,
    TERMINAL_TYPES,
    JsonUsage,
    begun,
    read,
    with_executed,
)
from wrapper.metering.json_body import HeadTailBuffer
from wrapper.metering.usage import (
    NO_USAGE,
    TOO_LARGE,
    TRUNCATED,
    UNREADABLE,
    ExtractedUsage,
    Usage,
)

_ENDS = (b"\n\n", b"\r\n\r\n")
# What an event is decoded for: a usage with a value, an error, a tool that was executed, and until
# it is known the model.
_WORDS = re.compile(rb'"(?:usage(?!":null)|error"|executed_tools")')
_MODEL_OR_WORDS = re.compile(rb'"(?:usage(?!":null)|error"|executed_tools"|model")')
_DATA = re.compile(rb"(?:\A|[\r\n])data: ?")
# The last event of chat and of Anthropic's streams; that of the Responses API has the usage.
_TERMINAL = re.compile(rb'data: ?(?:\[DONE\]|\{[ ]*"type":[ ]*"message_stop".*)', re.DOTALL)
# Text, reasoning, arguments, sound or an image that is not empty, or the end of a choice …
# (A quote alone before what may differ, and a look at one letter: a fifth of the time.)
_CONTENT = re.compile(
    rb'"(?=[ctdrpabf])(?:((?:content|text|delta|reasoning|reasoning_content|refusal|thinking'
    rb"|partial_json|arguments|b64_json|partial_image_b64|audio|transcript|finish_reason)"
    rb'":[ ]*")[^"]'
    rb'|(tool_calls":[ ]*\[[ ]*\{|function_call":[ ]*\{))'
)
# … but not in the events that repeat the request.
_SETUP = re.compile(
    rb'"type":[ ]*"(?:response\.(?:created|queued|in_progress)|message_start|ping)"'
)

_NO_MARKER = b"\0\0"  # in no event

_OPTIONS = "stream_options"
_FLAG = "include_usage"
_WITH_FLAG = b'{"include_usage":true}'


def set_include_usage(body: bytes) -> bytes:
    """`body`, a JSON object, with `stream_options.include_usage` true.

    The very same object where that is so already. A `stream_options` of a wrong type stays, so
    that the provider reports the error.
    """
    if b"stream_options" not in body and b"\\u" not in body:
        return insert_member(body, _OPTIONS, _WITH_FLAG)
    found = [member for member in members(body) if member.key == _OPTIONS]
    if not found:
        return insert_member(body, _OPTIONS, _WITH_FLAG)
    # Of duplicate members every one is changed: parsers differ in which one they use.
    for member in reversed(found):
        old = body[member.value_start : member.value_end]
        new = _set_flag(old)
        if new is not old:
            body = body[: member.value_start] + new + body[member.value_end :]
    return body


def _set_flag(options: bytes) -> bytes:
    if options == b"null":
        return _WITH_FLAG
    if not options.startswith(b"{"):
        return options
    found = [member for member in members(options) if member.key == _FLAG]
    if not found:
        return insert_member(options, _FLAG, b"true")
    for member in reversed(found):
        if options[member.value_start : member.value_end] != b"true":
            options = options[: member.value_start] + b"true" + options[member.value_end :]
    return options


def content_begins(piece: bytes) -> bytes:
    """How the content begins in the first event of a piece of a stream that has any, such as
    `"content":"`: no comment, no chunk with a role alone. Empty where there is none.
    """
    end, found = 0, _CONTENT.search(piece)
    while found:
        before = piece.rfind(b"\n\n", end, found.start())
        begin, end = max(before, end), piece.find(b"\n\n", found.end())
        if end < 0:
            end = len(piece)
        if not _SETUP.search(piece, begin, end):
            return b'"' + (found[1] or found[2])
        found = _CONTENT.search(piece, end)
    return b""


@lru_cache(maxsize=64)
def _events_with(marker: bytes) -> Callable[[bytes], list[bytes]]:
    """Finds something in each event that has the marker; lines end with LF."""
    begins, rest = re.escape(marker[:1]), re.escape(marker[1:])
    return re.compile(rb"(%b)%b[^\n]*+(?:\n[^\n]++)*+" % (begins, rest)).findall


class StreamExtractor:
    """For `text/event-stream`; `strip_usage` as in the module's docstring."""

    __slots__ = (
        "_content",
        "_ended",
        "_error",
        "_executed",
        "_interesting",
        "_last",
        "_model",
        "_oversized",
        "_reader",
        "_reason",
        "_start",
        "_strip",
        "_stripped_at_cr",
        "_terminal",
        "_usage",
        "marker",
    )

    def __init__(self, *, strip_usage: bool = False) -> None:
        self._reader = Reader()
        self._strip = strip_usage
        self._usage: Usage | None = None
        self._model: str | None = None
        self._reason: str | None = None
        self._error = False
        self._ended = False
        # Whether a piece of the stream has to be decoded.
        self._interesting = _MODEL_OR_WORDS.search
        # What was fed last; None before the first event, where a byte order mark may stand.
        self._last: bytes | None = None
        self._terminal = False
        self._executed: dict[str, str] = {}
        self._start: Any = None
        self._oversized: HeadTailBuffer | None = None
        # The event that was taken out ended with CR: an LF that follows belongs to it.
        self._stripped_at_cr = False
        self.marker = _NO_MARKER  # events that have it are counted; see `content_begins`
        self._content = 0

    def feed(self, data: bytes) -> bytes:
        # Whole events bypass the reader, and those of no interest cost next to nothing.
        if data.endswith(_ENDS) and not self._reader.pending and not self._stripped_at_cr:
            found = self._interesting(data)
            if found is None:
                self._last = data
                # Not `in`, which tries an integer first: an error is made and dropped each time.
                self._content += data.find(self.marker) >= 0
                return data
            if b"\r" not in data and len(data) <= MAX_EVENT_BYTES:
                return self._feed_events(data, found)
        spans = self._reader.feed(data)
        if not self._strip:
            for span in spans:
                if not span.whole or self._interesting(span.raw):
                    self._inspect(span)
                self._content += span.raw.find(self.marker) >= 0
                if len(span.raw) > 2:  # else it is the rest of a line end that came apart
                    self._last = span.raw
            return data
        return b"".join([span.raw for span in spans if self._is_kept(span)])

    def _feed_events(self, data: bytes, found: re.Match[bytes] | None) -> bytes:
        """`feed` for whole events whose lines end with LF: only those of interest are cut out.

        What it saves: of a piece of forty events, cutting it into forty.
        """
        if self.marker is not _NO_MARKER:
            self._content += len(_events_with(self.marker)(data))
        kept, start, end = [], 0, 0
        while found:
            before = data.rfind(b"\n\n", end, found.start())
            begin = before + 2 if before >= 0 else end
            end = data.find(b"\n\n", found.end()) + 2
            told = self._read(data[begin:end], first=self._last is None and not begin)
            if self._strip and told is not None and told.only_usage:
                kept.append(data[start:begin])
                start = end
            found = self._interesting(data, end)
        self._last = data
        return b"".join([*kept, data[start:]]) if start else data

    @property
    def is_between_events(self) -> bool:
        """Whether an event begins with the next byte."""
        return not self._reader.pending and not self._stripped_at_cr

    def passes(self, events: bytes) -> bool:
        """Whether `events`, which are whole, may be in any framing and come next, have nothing of
        interest. Then they are taken as if they had been fed, and stay as they are.

        To be asked only where it `is_between_events`, which it is afterwards, too.
        """
        if self._interesting(events):
            return False
        self._last = events
        self._content += events.find(self.marker) >= 0
        return True

    def flush(self) -> bytes:
        self._ended = True
        if not self._reader.pending and self._oversized is None:
            return b""
        # The standard drops an event without its blank line; its tokens were used all the same.
        rest = Span(self._reader.flush(), whole=self._oversized is None)
        kept = self._is_kept(rest)
        return rest.raw if self._strip and kept else b""

    def extracted(self) -> ExtractedUsage:
        terminal = self._terminal
        if not terminal and self._last is not None:
            lines = self._last.rstrip(b"\r\n")
            last = max(lines.rfind(b"\n"), lines.rfind(b"\r")) + 1
            terminal = _TERMINAL.fullmatch(lines, last) is not None
        if self._usage is not None:
            usage = self._usage
            if self._executed:
                usage = with_executed(usage, self._executed)
            return ExtractedUsage(usage, self._model, None, self._error, terminal)
        reason = self._reason or (NO_USAGE if self._ended else TRUNCATED)
        prompt = None if self._start is None else begun(self._start)
        # The last event of a choice may have the words, too, and no content.
        none = self.marker is _NO_MARKER or self.marker.startswith(b'"finish_reason"')
        content = 0 if none else max(1, self._content - 1)
        return ExtractedUsage(
            *(None, self._model, reason, self._error, terminal), prompt=prompt, content=content
        )

    def _is_kept(self, span: Span) -> bool:
        if self._stripped_at_cr:
            self._stripped_at_cr = False
            if span.raw == b"\n":
                return False
        found = None
        if not span.whole or self._interesting(span.raw):
            found = self._inspect(span)
        self._content += span.raw.find(self.marker) >= 0
        if len(span.raw) > 2:
            self._last = span.raw
        if found is None or not found.only_usage:
            return True
        self._stripped_at_cr = span.raw.endswith(b"\r")
        return False

    def _inspect(self, span: Span) -> JsonUsage | None:
        if not span.whole:
            self._inspect_piece(span)
            return None
        return self._read(span.raw, first=self._last is None)

    def _read(self, event: bytes, *, first: bool) -> JsonUsage | None:
        """Take what an event says; `first`: it opens the stream."""
        data = payload(event, first=first)
        if data is None:
            return None
        try:
            found = read(data, self._start)
        except DECODING_ERRORS:
            if b'"usage"' in data:
                self._reason = UNREADABLE
            return None
        self._note(found)
        return found

    def _inspect_piece(self, span: Span) -> None:
        """One piece of an oversized event, such as one with an image in base64."""
        if self._oversized is None:
            self._oversized = HeadTailBuffer()
        self._oversized.feed(span.raw)
        if not span.last:
            return
        start = _DATA.search(self._oversized.head)
        if start is not None:
            del self._oversized.head[: start.end()]
        found = self._oversized.read()
        self._oversized = None
        if found.usage is None and not found.unreadable:
            self._reason = self._reason or TOO_LARGE
        self._note(found)

    def _note(self, found: JsonUsage) -> None:
        if self._model is None and found.model is not None:
            self._model = found.model
            self._interesting = _WORDS.search
        self._error = self._error or found.error
        self._start = found.start or self._start
        self._terminal = self._terminal or found.type in TERMINAL_TYPES
        if found.executed:
            self._executed.update(found.executed)
        if found.usage is not None:
            self._usage = found.usage
        elif found.unreadable:
            self._reason = UNREADABLE
