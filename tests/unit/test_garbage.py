"""Full garbage collections happen when they hold nobody up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from wrapper.server import garbage
from wrapper.server.garbage import DUE, FEW, MORE, Garbage


class Collector:
    """Stands for the module `gc`: counts the full collections."""

    def __init__(self) -> None:
        self.full = 0
        self.middle = 0
        self.thresholds = (700, 10, 10)

    def collect(self) -> None:
        self.full += 1
        self.middle = 0

    def get_count(self) -> tuple[int, int, int]:
        return 0, 0, self.middle

    def get_threshold(self) -> tuple[int, int, int]:
        return self.thresholds

    def set_threshold(self, *thresholds: int) -> None:
        assert len(thresholds) == 3
        self.thresholds = thresholds


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Collector:
    made = Collector()
    monkeypatch.setattr(garbage, "gc", made)
    return made


def test_nothing_is_collected_while_there_are_many_requests(collector: Collector) -> None:
    """A full collection of the objects of 4,000 streams takes a tenth of a second."""
    scopes = range(FEW + 1)
    looks = Garbage(scopes, lambda: 1 << 20)
    collector.middle = 1000 * DUE
    looks.look()
    assert collector.full == 0


def test_it_is_made_up_for_when_few_are_left(collector: Collector) -> None:
    scopes = set(range(FEW + 1))
    looks = Garbage(scopes, lambda: 1 << 20)
    scopes.pop()
    looks.look()
    assert collector.full == 0  # nothing has been made since
    collector.middle = DUE
    looks.look()
    looks.look()
    assert collector.full == 1


def test_memory_that_doubles_is_looked_through_whatever_goes_on(collector: Collector) -> None:
    used = [100 << 20]
    looks = Garbage(range(FEW + 1), lambda: used[0])
    used[0] = (200 << 20) + MORE - 1
    looks.look()
    assert collector.full == 0
    used[0] += 1
    looks.look()
    looks.look()
    assert collector.full == 1


def test_python_makes_none_by_itself(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(BaseException):
        """Ends the thread, which never returns."""

    def sleep(seconds: float) -> None:
        raise Over

    monkeypatch.setattr(garbage, "time", SimpleNamespace(sleep=sleep))
    with pytest.raises(Over):
        Garbage((), lambda: 0).run()
    assert collector.thresholds == (700, 10, garbage.NEVER)
