"""The echo: the request, sent back. It responds to every path without an endpoint.

`GET .../_bytes/N` is a download of N bytes of a known pattern, with ranges (RFC 9110, 14) and
validators; `size=N` turns any echo into one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator

from wrapper.simulator.api.call import Call
from wrapper.simulator.response import ApiError, Response, encode

PATTERN = b"".join(hashlib.sha256(b"simulated %d" % n).digest() for n in range(2048))
_TYPE = "application/octet-stream"


def echo(call: Call) -> Response:
    """The request as JSON, or its body as it came."""
    request, instructions = call.request, call.instructions
    if instructions.size is not None:
        return download(call, instructions.size)
    if instructions.echo == "raw":
        return Response(content_type=request.header("content-type") or _TYPE, body=request.body)
    body = encode(
        {
            "object": "simulated.echo",
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body_sha256": request.sha256,
            "body_length": request.length,
            "body_base64": base64.b64encode(request.sample).decode(),
        }
    )
    return Response(body=body)


def bytes_of_pattern(call: Call) -> Response:
    """`GET _bytes/N`."""
    if not call.arguments[0].isdigit():
        raise ApiError(400, "The number of bytes is not a number.")
    return download(call, int(call.arguments[0]))


def download(call: Call, size: int, content: bytes | None = None, kind: str = _TYPE) -> Response:
    """`size` bytes of `content` (default: the pattern), or the requested range of them."""
    request = call.request
    tag = f'"sim-{size}"'
    headers = [("ETag", tag), ("Accept-Ranges", "bytes")]
    if request.header("if-none-match") == tag:
        return Response(status=304, headers=headers)
    start, end, status = 0, size, 200
    asked = request.header("range")
    if asked.startswith("bytes=") and "," not in asked:
        start, end = _range(asked[6:], size)
        status = 206
        if start >= end:
            return Response(status=416, headers=[("Content-Range", f"bytes */{size}")])
        headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
    return Response(
        status=status,
        content_type=kind,
        headers=headers,
        blocks=_blocks(start, end, PATTERN if content is None else content),
        length=end - start,
    )


def _range(asked: str, size: int) -> tuple[int, int]:
    first, _, last = asked.partition("-")
    if not (first + last).isdigit():
        raise ApiError(400, "The Range header is malformed.")
    if not first:
        return max(0, size - int(last or 0)), size
    return int(first), min(size, int(last) + 1) if last else size


def _blocks(start: int, end: int, content: bytes) -> Iterator[bytes]:
    while start < end:
        place = start % len(content)
        block = content[place : place + min(end - start, len(content) - place)]
        start += len(block)
        yield block
