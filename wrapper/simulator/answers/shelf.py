"""Objects that calls create and later calls ask for: files, batches, responses and the like.

They live in memory, the newest of each kind only; lists come in pages as OpenAI's do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from wrapper.simulator.replies import Refusal

_MOST = 1000


class Shelf:
    """What was created, by kind and id; the oldest of a kind fall off."""

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[str, dict[str, Any]]] = {}
        self._contents: dict[str, tuple[bytes, int]] = {}

    def put(self, kind: str, made: dict[str, Any], content: bytes = b"", size: int = 0) -> None:
        """Keep an object, and the beginning of its content of `size` bytes."""
        shelf = self._kinds.setdefault(kind, OrderedDict())
        shelf[made["id"]] = made
        if size:
            self._contents[made["id"]] = (content, size)
        if len(shelf) > _MOST:
            self._contents.pop(shelf.popitem(last=False)[0], None)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object; a 404 where there is none."""
        shelf = self._kinds.get(kind)
        if shelf is None or name not in shelf:
            raise Refusal(404, f"No such object: {name}")
        return shelf[name]

    def content(self, name: str) -> tuple[bytes, int]:
        """The content's beginning and its whole length in bytes."""
        return self._contents.get(name, (b"", 0))

    def delete(self, kind: str, name: str) -> None:
        """Forget an object; a 404 where there is none."""
        self.get(kind, name)
        del self._kinds[kind][name]
        self._contents.pop(name, None)

    def page(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        """A page of a kind: newest first, with `limit`, `order`, `after` and `before`."""
        found = list(self._kinds.get(kind, {}).values())
        if query.get("order", "desc") == "desc":
            found.reverse()
        if query.get("purpose"):
            found = [made for made in found if made.get("purpose") == query["purpose"]]
        names = [made["id"] for made in found]
        if query.get("after") in names:
            found = found[names.index(query["after"]) + 1 :]
        if query.get("before") in names:
            found = found[: names.index(query["before"])]
        limit = query.get("limit", "20")
        count = int(limit) if limit.isdigit() else 20
        shown = found[:count]
        return {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(found) > count,
        }
