"""Orders: what one request wants the simulator to answer, and what shall go wrong.

Orders are written ``name=value; flag; name=value``. They are taken from four places, the later
winning over the earlier: the command line (``--orders``), the model's name
(``sim-model?status=429&retry-after=7``), the body's field ``x_sim``, the header ``x-sim``.

An order that is not known is refused with a 400, so that a misspelt one never passes as a test
of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from wrapper.simulator.orders import Orders


class BadOrder(ValueError):
    """An order that is unknown or has a value that does not fit; the message names it."""


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
            "read-stall",
            "reset",
            "cut",
        ],
        _count,
    ),
    **dict.fromkeys(["delay", "gap", "idle-close", "read-gap", "header-drip", "drip"], _seconds),
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
