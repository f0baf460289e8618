"""`/_sim/…`: the simulator's books, for tests. These requests are not entered in them."""

from __future__ import annotations

from wrapper.simulator.books import Books
from wrapper.simulator.http import Request
from wrapper.simulator.replies import encode


def control(books: Books, request: Request) -> tuple[int, bytes]:
    """The status and the JSON body for a control request."""
    match request.method, request.path:
        case "GET", "/_sim/requests":
            book = request.query.get("book")
            picked = (record for record in books.records if book in (None, record.book))
            return 200, encode([record.as_json() for record in picked])
        case "GET", "/_sim/books":
            return 200, encode(books.as_json())
        case "GET", "/_sim/stats":
            return 200, encode(books.stats())
        case "POST", "/_sim/reset":
            books.reset()
            return 200, b"{}"
    return 404, encode({"error": {"message": "no such control path"}})
