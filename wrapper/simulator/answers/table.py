"""Which answer belongs to which method and path, below `/v1` and `/openai/v1` alike."""

from __future__ import annotations

from collections.abc import Callable

from wrapper.simulator.answers import chat, echo, models
from wrapper.simulator.answers.call import Call
from wrapper.simulator.http import segments
from wrapper.simulator.replies import Reply

Answer = Callable[[Call], Reply]

_ROUTES: tuple[tuple[str, str, Answer], ...] = (
    ("POST", "chat/completions", chat.chat),
    ("GET", "models", models.model_list),
    ("GET", "models/{}", models.model),
    ("GET", "_bytes/{}", echo.bytes_of_pattern),
)

_TABLE: dict[tuple[str, str, int], list[tuple[list[str], str, Answer]]] = {}
for _method, _pattern, _answer in _ROUTES:
    _parts = _pattern.split("/")
    _TABLE.setdefault((_method, _parts[0], len(_parts)), []).append((_parts, _pattern, _answer))


def find(method: str, path: str) -> tuple[Answer, str, list[str], bool]:
    """The answer for a path, its pattern, what stands in the pattern's holes, and whether Groq's.

    A path that is not known is echoed.
    """
    parts = segments(path)
    groq = parts[0] == "openai"
    if parts[: 1 + groq] == ["openai", "v1"][not groq :]:
        parts = parts[1 + groq :]
        for pattern, name, answer in _TABLE.get(
            ("GET" if method == "HEAD" else method, parts[0] if parts else "", len(parts)), ()
        ):
            holes = _holes(pattern, parts)
            if holes is not None:
                return answer, name, holes, groq
    return echo.echo, "echo", [], groq


def _holes(pattern: list[str], parts: list[str]) -> list[str] | None:
    holes = []
    for wanted, found in zip(pattern, parts, strict=True):
        if wanted == "{}":
            holes.append(found)
        elif wanted != found:
            return None
    return holes
