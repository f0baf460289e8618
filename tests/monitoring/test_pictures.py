"""The drawing of the documentation's pictures, and the traffic they show."""

from __future__ import annotations

import re
from typing import Any

import pytest
from monitoring.stack import dashboards, panels

from tools import traffic
from tools.panels import Frame, draw, pieces

Json = dict[str, Any]
STEP = 5.0
SIZE = (600, 300)


def panel(dashboard: str, title: str) -> Json:
    return next(
        p for d in dashboards() if d["uid"] == dashboard for p in panels(d) if p["title"] == title
    )


def picture(of: Json, *series: list[tuple[float, float]]) -> str:
    target = of["targets"][0]
    frames = [
        Frame(target, {"api_key": f"key-{n}"}, [[t, str(v)] for t, v in values], STEP)
        for n, values in enumerate(series)
    ]
    return draw(of, frames, "", SIZE, (0.0, 300.0))


def test_a_line_ends_at_a_gap_and_begins_anew_after_it() -> None:
    spans = panel("api-key-metrics", "API calls by key (cumulative)")
    whole = [(t * STEP, 1.0) for t in range(60)]
    assert picture(spans, whole).count("<polyline") == 1
    broken = [(t, v) for t, v in whole if not 100 < t < 200]
    assert picture(spans, broken).count("<polyline") == 2


def test_a_gap_is_longer_than_half_a_minute_and_than_two_steps() -> None:
    points = [(0.0, 1.0), (30.0, 1.0), (61.0, 1.0), (121.0, 1.0)]
    assert pieces(points, 30) == [(0, 2), (2, 3), (3, 4)]
    assert pieces(points, 2 * 31) == [(0, 4)]
    assert pieces([], 30) == [(0, 0)]


def test_one_number_is_never_the_last_of_a_range() -> None:
    stat = panel("gateway-health", "First token p95")
    assert ">500 ms<" in picture(stat, [(300.0, 0.5)])
    assert "–" in picture(stat)
    stat["targets"][0]["instant"] = False
    with pytest.raises(ValueError, match="hours old"):
        picture(stat, [(10.0, 0.5)])


def test_series_have_colours_of_their_own() -> None:
    lines = panel("api-key-metrics", "API calls by key (cumulative)")
    drawn = picture(lines, *[[(0.0, 1.0), (5.0, 2.0)] for _ in range(8)])
    assert len({*re.findall(r"<polyline[^>]* stroke='(#\w+)'", drawn)}) == 8


def test_the_demos_keys_are_known_by_their_names() -> None:
    """No number of theirs is taken for one of the reader's own `web-app`."""
    assert {p.name.partition("-")[0] for p in traffic.PERSONAS} == {"demo"}
