"""Waiting for something to become true: by asking again, never by sleeping long enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds for what should be true at once: a machine may stop for ten, or be five times slower.
# A long deadline costs nothing when things go well.
PATIENCE = 60.0

_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.05


def eventually(
    fn: Callable[[], T],
    deadline: float = PATIENCE,
    *,
    what: str | None = None,
    retry_on: tuple[type[BaseException], ...] = (AssertionError, IndexError),
) -> T:
    """Ask `fn` until its answer is true, and give that answer.

    `fn` may also `assert`, or look at the first of what is not there yet: it is asked again. After
    `deadline` seconds the last answer or the last failed assertion is reported. An exception that
    is not in `retry_on` goes straight through.
    """
    end = time.monotonic() + deadline
    pause = _FIRST_PAUSE
    while True:
        failure: BaseException | None = None
        answer: T | None = None
        try:
            answer = fn()
        except retry_on as problem:
            failure = problem
        if failure is None and answer:
            return answer
        if time.monotonic() >= end:
            name = what or getattr(fn, "__name__", "the condition")
            raise AssertionError(
                f"after {deadline:g} s {name} did not hold; last: {failure or repr(answer)[:2000]}"
            ) from failure
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
