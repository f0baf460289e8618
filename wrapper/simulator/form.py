"""A multipart body read block by block (RFC 7578, RFC 2046 5.1.1): an upload is never held."""

from __future__ import annotations

import re

from wrapper.simulator.answers.call import Part

_KEPT = 1 << 20
_DISPOSITION = re.compile(r'(filename|name)="((?:[^"\\]|\\.)*)"')


class Form:
    """Collects the parts of a body as it streams by."""

    def __init__(self, boundary: str) -> None:
        self._delimiter = b"\r\n--" + boundary.encode("latin-1")
        self._held = b"\r\n"
        self._part: Part | None = None
        self._in_head = False
        self.parts: list[Part] = []

    def take(self, block: bytes) -> None:
        self._held += block
        while self._step():
            pass

    def _step(self) -> bool:
        if self._in_head:
            head, found, rest = self._held.partition(b"\r\n\r\n")
            if found:
                self._held, self._in_head = rest, False
                self._part = _part(head.decode("utf-8", "replace"))
                self.parts.append(self._part)
            return bool(found)
        content, found, rest = self._held.partition(self._delimiter)
        if found:
            self._add(content)
            self._held, self._in_head, self._part = rest, True, None
            return True
        safe = len(self._held) - len(self._delimiter)
        if safe > 0:
            self._add(self._held[:safe])
            self._held = self._held[safe:]
        return False

    def _add(self, data: bytes) -> None:
        if self._part is not None:
            self._part.size += len(data)
            if len(self._part.data) < _KEPT:
                self._part.data += data[: _KEPT - len(self._part.data)]


def _part(head: str) -> Part:
    names: dict[str, str] = {}
    kind = "application/octet-stream"
    for line in head.split("\r\n"):
        field, _, value = line.partition(":")
        if field.strip().lower() == "content-disposition":
            names = dict(_DISPOSITION.findall(value))
        elif field.strip().lower() == "content-type":
            kind = value.strip()
    return Part(names.get("name", ""), names.get("filename"), kind)


def form_for(content_type: str) -> Form | None:
    """A reader for a request's content type; None where it is not multipart."""
    kind, _, rest = content_type.partition(";")
    if not kind.strip().lower().startswith("multipart/"):
        return None
    found = re.search(r'boundary=(?:"([^"]+)"|([^;\s]+))', rest)
    return Form(found.group(1) or found.group(2)) if found else None
