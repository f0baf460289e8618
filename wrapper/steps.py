"""A loop over very many things, in steps between which something else may run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

T = TypeVar("T")

Pause = Callable[[], None]
"""Lets others run; in a worker `wrapper.cancellation.yield_if_due`."""

STEP: Final = 100  # keys: a millisecond of work, or two


def no_pause() -> None:
    """For a process in which nothing else waits."""


def in_steps(things: Iterable[T], pause: Pause) -> Iterator[T]:
    """The same things, with a pause after every `STEP` of them."""
    for number, thing in enumerate(things, 1):
        yield thing
        if number % STEP == 0:
            pause()
