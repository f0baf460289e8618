"""Start: the limit of open files."""

from __future__ import annotations

import resource

import pytest

from wrapper.server import lifecycle

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "refused", "then", "warns"),
    [
        (1024, 1_000_000, 0, 65536, False),
        (1024, 4096, 0, 4096, False),
        (1024, 1024, 0, 1024, True),
        (256, INFINITE, 0, 65536, False),
        (256, INFINITE, 65536, 10240, False),  # macOS
        (100_000, 200_000, 0, 100_000, False),
        (INFINITE, INFINITE, 0, INFINITE, False),
    ],
)
def test_as_many_open_files_as_the_system_allows(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, refused: int, then: int, warns: bool
) -> None:
    now = [soft]
    warnings: list[object] = []

    def set_limit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] == refused:
            raise ValueError("not allowed to raise maximum limit")
        now[0] = limits[0]

    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    monkeypatch.setattr(lifecycle.log, "warning", lambda *args: warnings.append(args))
    lifecycle.raise_open_file_limit()
    assert (now[0], bool(warnings)) == (then, warns)
