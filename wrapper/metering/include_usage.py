"""Asks a provider for the usage of a stream, in the caller's place.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-stream_options

The rule protected here: of the caller's bytes nothing but `stream_options.include_usage` is
changed.
"""

from __future__ import annotations

from wrapper.formats.jsonbytes import insert_member, members

_NAME = "stream_options"
_FLAG = "include_usage"
_ASKED = b'{"include_usage":true}'


def set_include_usage(body: bytes) -> bytes:
    """`body`, a JSON object, with `stream_options.include_usage` true.

    The very same object where that is so already. A `stream_options` of a wrong type stays, so
    that the provider can say what is wrong with it.
    """
    if b"stream_options" not in body and b"\\u" not in body:
        return insert_member(body, _NAME, _ASKED)
    found = [member for member in members(body) if member.key == _NAME]
    if not found:
        return insert_member(body, _NAME, _ASKED)
    # Where a body says it twice each says it: readers differ in which one they take.
    for member in reversed(found):
        old = body[member.value_start : member.value_end]
        new = _with_flag(old)
        if new is not old:
            body = body[: member.value_start] + new + body[member.value_end :]
    return body


def _with_flag(options: bytes) -> bytes:
    if options == b"null":
        return _ASKED
    if not options.startswith(b"{"):
        return options
    found = [member for member in members(options) if member.key == _FLAG]
    if not found:
        return insert_member(options, _FLAG, b"true")
    for member in reversed(found):
        if options[member.value_start : member.value_end] != b"true":
            options = options[: member.value_start] + b"true" + options[member.value_end :]
    return options
