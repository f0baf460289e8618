"""Draws a panel as HTML and SVG from its settings and the results of its queries.

A sketch of the data, at Grafana's sizes and by its rules where they matter to a reader: widths of
columns, what is cut, the length of bars in cells, words for what is missing.
"""

from __future__ import annotations

import html
import math
import re
import time
import zlib
from dataclasses import dataclass
from typing import Any

# Pixels: one of 24 columns, one unit of height, between panels; as on a screen of 1500 pixels with
# Grafana's menu docked.
COLUMN, ROW, GAP = 49, 38, 8

_NAMED = {
    "green": "#73bf69",
    "yellow": "#f2cc0c",
    "red": "#f2495c",
    "blue": "#5794f2",
    "orange": "#ff9830",
    "purple": "#b877d9",
}
_PALETTE = [
    *("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#5195ce", "#ba43a9"),
    *("#9d8bd6", "#508642", "#cca300", "#64b0c8", "#e0752d", "#f29191", "#82b5d8"),
]
_TICKS = (60, 300, 600, 1800, 3600, 3 * 3600, 21600, 86400, 5 * 86400, 10 * 86400)  # seconds
_COLUMN_WIDTH = 150  # pixels, where a table's column has none of its own
_ICONS = 65  # pixels of a title's line that its icons take

Json = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass
class Frame:
    """One series of a result: its query, labels and values."""

    target: Json
    labels: dict[str, str]
    values: list[list[Any]]
    step: float = 0.0  # seconds from one value to the next

    @property
    def name(self) -> str:
        """The legend with its {{labels}} filled in."""
        return re.sub(
            r"\{\{(\w+)\}\}", lambda m: self.labels.get(m[1], ""), self.target["legendFormat"]
        )

    def points(self) -> Points:
        """Time and value of the finite values."""
        pairs = ((float(t), float(v)) for t, v in self.values)
        return [(t, v) for t, v in pairs if math.isfinite(v)]

    def last(self) -> float | None:
        """The last finite value, however old: "Last *" in a legend."""
        points = self.points()
        return points[-1][1] if points else None


def draw(
    panel: Json, frames: list[Frame], where: str, size: tuple[int, int], span: tuple[float, float]
) -> str:
    """The panel as an element at `where`; `size` in pixels, `span` the range in Unix seconds."""
    if panel["type"] == "row":
        return f'<div class=row style="{where}">{_text(panel["title"])}</div>'
    if panel["type"] == "stat" and not all(t["instant"] for t in panel["targets"]):
        raise ValueError(f"{panel['title']}: the last number of a range may be hours old")
    frames = [frame for frame in frames if frame.points()]
    room = size[0] - _ICONS
    title = f"<div class=title style='max-width:{room}px'>{_text(panel['title'])}</div>"
    if panel["type"] == "text":
        body = f"<div class=words>{_text(panel['options']['content'])}</div>"
    elif panel["type"] == "stat":
        body = _stat(panel, frames, size)
    elif not frames:
        message = panel["fieldConfig"]["defaults"].get("noValue", "No data")
        body = f"<div class=none>{_text(message)}</div>"
    elif panel["type"] == "table":
        body = _table(panel, frames, size[0])
    elif panel["type"] == "bargauge":
        body = _bars(panel, frames)
    elif panel["type"] == "heatmap":
        body = _heatmap(panel, frames, size, span)
    else:
        body = _lines(panel, frames, size, span)
    return f'<div class=panel style="{where}">{title}{body}</div>'


def _text(value: str) -> str:
    return html.escape(str(value))


# --- numbers ---------------------------------------------------------------------------------


def number(value: float, unit: str, decimals: int | None = None) -> str:
    """A value with its unit, as Grafana's unit of that name shows it."""
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f}%"
    if unit == "currencyUSD":
        return "$" + _short(value, decimals)
    if unit == "reqps":
        return f"{_plain(value, decimals)} req/s"
    if unit == "bytes":
        return _bytes(value)
    if unit == "s":
        return _duration(value)
    if unit == "locale":
        return f"{value:,.{decimals or 0}f}"
    if unit == "none":
        return _plain(value, decimals)
    if unit.startswith("suffix:"):
        return f"{_plain(value, decimals)}{unit.removeprefix('suffix:')}"
    return _short(value, decimals)


def _duration(value: float) -> str:
    for seconds, name in ((604800, "weeks"), (86400, "days"), (3600, "hours")):
        if value >= 2 * seconds:
            return f"{value / seconds:.1f} {name}"
    if value == 0:
        return "0 s"
    return f"{_plain(value * 1e3, None)} ms" if value < 1 else f"{_plain(value, None)} s"


def _bytes(value: float) -> str:
    for power, name in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if value >= 2**power:
            return f"{value / 2**power:.1f} {name}"
    return f"{value:.0f} B"


def _mapped(value: float, mappings: list[Json]) -> Json | None:
    """The text and colour that a value mapping has for the value."""
    for mapping in mappings:
        options = mapping["options"]
        if mapping["type"] == "range" and options["from"] <= value <= options["to"]:
            return dict(options["result"])
        if mapping["type"] == "value" and f"{value:g}" in options:
            return dict(options[f"{value:g}"])
    return None


def _short(value: float, decimals: int | None) -> str:
    for limit, letter in ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K")):
        if abs(value) >= limit:
            return f"{_plain(value / limit, 2 if decimals is None else max(decimals, 1))}{letter}"
    return _plain(value, decimals)


def _plain(value: float, decimals: int | None) -> str:
    if decimals is None:
        size = abs(value)
        decimals = 0 if size >= 100 or value == int(value) else 1 if size >= 10 else 2
        decimals = 4 if 0 < size < 0.01 else 3 if 0 < size < 0.1 else decimals
    return f"{value:.{decimals}f}"


def _threshold(value: float, config: Json) -> str:
    colour = "green"
    for step in config["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = step["color"]
    return _NAMED.get(colour, colour)


def _colours(frames: list[Frame], panel: Json) -> list[str]:
    """A colour for each series: the panel's override, else that of its name in every panel."""
    return [
        _fixed(frame.name, panel) or _PALETTE[zlib.crc32(frame.name.encode()) % len(_PALETTE)]
        for frame in frames
    ]


def _fixed(name: str, panel: Json) -> str | None:
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["id"] == "byRegexp" and re.search(
            override["matcher"]["options"].strip("/"), name
        ):
            for setting in override["properties"]:
                if setting["id"] == "color":
                    fixed = str(setting["value"]["fixedColor"])
                    return _NAMED.get(fixed, fixed)
    return None


# --- kinds of panels --------------------------------------------------------------------------


def _stat(panel: Json, frames: list[Frame], size: tuple[int, int]) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    if not frames:
        words = f"<div class=stat style='font-size:26px'>{_text(defaults['noValue'])}</div>"
        return f"<div class=stats>{words}</div>"
    share = (size[0], (size[1] - 30) // len(frames) if len(frames) > 1 else size[1])
    boxes = "".join(_number(panel, frame, share) for frame in frames)
    return f"<div class='stats{' several' if len(frames) > 1 else ''}'>{boxes}</div>"


def _number(panel: Json, frame: Frame, size: tuple[int, int]) -> str:
    defaults, options = panel["fieldConfig"]["defaults"], panel["options"]
    value = frame.last() or 0.0
    settings = {**defaults, **_settings(panel, frame.name)}
    colour = _threshold(value, settings["thresholds"])
    shown = number(value, settings["unit"], settings.get("decimals"))
    mapped = _mapped(value, settings["mappings"])
    if mapped:
        shown, colour = mapped["text"], _NAMED.get(mapped.get("color", ""), colour)
    name = frame.name if options["textMode"] == "value_and_name" else ""
    pixels = min(34, int(size[0] / max(4, len(shown) + len(name)) * 1.5), int(size[1] * 0.62))
    filled = options["colorMode"] == "background"
    style = f"font-size:{pixels}px;color:{'#fff' if filled else colour}"
    style += f";background:{_darker(colour)}" if filled else ""
    label = f"<small>{_text(name)}</small>" if name else ""
    return f"<div class=stat style='{style}'>{label}<span>{_text(shown)}</span></div>"


def _settings(panel: Json, name: str) -> Json:
    """The panel's overrides for the field of this name."""
    found: Json = {}
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"] == {"id": "byName", "options": name}:
            found.update({setting["id"]: setting["value"] for setting in override["properties"]})
    return found


def _darker(colour: str) -> str:
    parts = (int(colour[n : n + 2], 16) for n in (1, 3, 5))
    return "#" + "".join(f"{int(part * 0.72):02x}" for part in parts)


def _table(panel: Json, frames: list[Frame], width: int) -> str:
    organize = next(x for x in panel["transformations"] if x["id"] == "organize")["options"]
    rows: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    single = len(panel["targets"]) == 1
    for frame in frames:
        row = rows.setdefault(tuple(sorted(frame.labels.items())), dict(frame.labels))
        row["Value" if single else f"Value #{frame.target['refId']}"] = frame.last()
    columns = sorted(organize["indexByName"], key=organize["indexByName"].__getitem__)
    shown = {name: organize["renameByName"].get(name, name) for name in columns}
    listed = list(rows.values())
    for sort in reversed(panel["options"].get("sortBy", ())):
        by = next(name for name in columns if shown[name] == sort["displayName"])
        empty: Any = 0.0 if by.startswith("Value") else ""
        listed.sort(key=lambda row: row.get(by) or empty, reverse=sort["desc"])
    widths = _widths([_settings(panel, shown[name]) for name in columns], width - 18)
    sizes = "".join(f"<col style='width:{w:.0f}px'>" for w in widths)
    head = "".join(
        f"<th class={'num' if name.startswith('Value') else 'text'}>{_text(shown[name])}</th>"
        for name in columns
    )
    lines = "".join(
        "<tr>" + "".join(_cell(panel, shown[n], row.get(n), listed, n) for n in columns) + "</tr>"
        for row in listed
    )
    whole = f"width:{sum(widths):.0f}px"
    return (
        f"<div class=table><table style='{whole}'><colgroup>{sizes}</colgroup>"
        f"<tr>{head}</tr>{lines}</table></div>"
    )


def _widths(columns: list[Json], room: int) -> list[float]:
    """Columns with a width keep it; the others share the rest, none below its least width."""
    least = [float(c.get("custom.minWidth", _COLUMN_WIDTH)) for c in columns]
    free = [n for n, c in enumerate(columns) if "custom.width" not in c]
    rest = room - sum(c.get("custom.width", 0) for c in columns)
    share = rest / len(free) if free else 0.0
    return [
        max(share, least[n]) if n in free else float(c["custom.width"])
        for n, c in enumerate(columns)
    ]


def _cell(panel: Json, title: str, value: Any, rows: list[dict[str, Any]], column: str) -> str:
    settings = _settings(panel, title)
    if not isinstance(value, float):
        return _words(panel, settings, value)
    mapped = _mapped(value, settings.get("mappings", []))
    shown = number(value, settings.get("unit", "short"), settings.get("decimals"))
    shown = mapped["text"] if mapped else shown
    kind = settings.get("custom.cellOptions", {}).get("type")
    colour = _threshold(value, settings["thresholds"]) if "thresholds" in settings else "inherit"
    if kind == "gauge":
        top = settings.get("max") or _largest(rows, column, own=settings.get("fieldMinMax", False))
        fixed = settings.get("color", {}).get("fixedColor")
        length = max(0.0, min(1.0, value / top)) * 100
        bar = f"<i style='width:{length:.0f}%;background:{_NAMED.get(fixed, colour)}'></i>"
        return f"<td><div class=gauge><span>{bar}</span><em>{_text(shown)}</em></div></td>"
    return f"<td style='color:{colour}'>{_text(shown)}</td>"


def _words(panel: Json, settings: Json, value: Any) -> str:
    """A cell without a number: a label's value, its text, or what stands for nothing."""
    first = panel["fieldConfig"]["overrides"][0]["properties"][0]
    shown, colour = (value or first["value"]), ""
    for mapping in settings.get("mappings", ()):
        if value in mapping["options"]:
            found = mapping["options"][value]
            shown, colour = found["text"], _NAMED.get(found.get("color", ""), "")
    wrap = settings.get("custom.cellOptions", {}).get("wrapText", False)
    kind = "'text wrap'" if wrap else "text" if value else "num"
    return f"<td class={kind} style='color:{colour or 'inherit'}'>{_text(shown)}</td>"


def _largest(rows: list[dict[str, Any]], column: str, *, own: bool) -> float:
    """The largest number of the column or, as Grafana has it by default, of the whole table."""
    names = [column] if own else list(rows[0])
    found = [row[name] for row in rows for name in names if isinstance(row.get(name), float)]
    return max(found, default=0.0) or 1.0


def _bars(panel: Json, frames: list[Frame]) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    top = max(frame.last() or 0.0 for frame in frames) or 1.0
    lines = ""
    for frame, colour in zip(frames, _colours(frames, panel), strict=True):
        value = frame.last() or 0.0
        bar = f"<div style='width:{value / top * 100:.1f}%;background:{colour}'></div>"
        mapped = _mapped(value, defaults["mappings"])
        plain = number(value, defaults["unit"], defaults.get("decimals"))
        shown = _text(mapped["text"] if mapped else plain)
        lines += f"<b>{_text(frame.name)}</b><div class=track>{bar}</div><span>{shown}</span>"
    return f"<div class=bars>{lines}</div>"


class _Axes:
    """Scales and grid of a chart: the pixel position of a time and a value."""

    def __init__(
        self,
        size: tuple[int, int],
        below: int,
        span: tuple[float, float],
        top: float,
        unit: str,
        *,
        whole: bool = False,
    ) -> None:
        self.left, self.right = 66, size[0] - 14
        self.top, self.bottom = 36, size[1] - below - 22
        self.span, self.unit = span, unit
        self.step = max(_nice(top / 4), 1.0 if whole else 0.0)
        self.highest = max(self.step * math.ceil(top / self.step * 1.001), self.step)

    def x(self, t: float) -> float:
        first, last = self.span
        return self.left + (t - first) / (last - first) * (self.right - self.left)

    def y(self, v: float) -> float:
        return self.bottom - min(v / self.highest, 1.0) * (self.bottom - self.top)

    def times(self) -> str:
        first, last = self.span
        step = next(s for s in _TICKS if (last - first) / s <= 8)
        marks = range(math.ceil(first / step) * step, int(last) + 1, step)
        return "".join(
            f"<line x1={self.x(t):.1f} x2={self.x(t):.1f} y1={self.top} y2={self.bottom} "
            f"stroke='#24262b'/><text x={self.x(t):.1f} y={self.bottom + 16} text-anchor=middle>"
            f"{time.strftime('%m/%d' if step >= 86400 else '%H:%M', time.gmtime(t))}</text>"
            for t in marks
        )

    def values(self) -> str:
        count = round(self.highest / self.step)
        return "".join(
            f"<line x1={self.left} x2={self.right} y1={y:.1f} y2={y:.1f} stroke='#24262b'/>"
            f"<text x={self.left - 6} y={y + 4:.1f} text-anchor=end>{_text(label)}</text>"
            for y, label in (
                (self.y(n * self.step), self._tick(n * self.step)) for n in range(count + 1)
            )
        )

    def _tick(self, value: float) -> str:
        # Without trailing zeros.
        return re.sub(r"\.0+(?!\d)|(\.\d*?[1-9])0+(?!\d)", r"\1", number(value, self.unit))


def _nice(step: float) -> float:
    if step <= 0:
        return 1.0
    size = 10 ** math.floor(math.log10(step))
    return float(next(n * size for n in (1, 2, 2.5, 5, 10) if n * size >= step * 0.999))


def _lines(
    panel: Json, frames: list[Frame], size: tuple[int, int], span: tuple[float, float]
) -> str:
    defaults, custom = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["defaults"]["custom"]
    stacked = custom["stacking"]["mode"] != "none"
    colours = _colours(frames, panel)
    layers = _stack(frames) if stacked else [([], frame.points()) for frame in frames]
    limit = [s["value"] for s in defaults["thresholds"]["steps"] if s["value"] is not None]
    dashed = limit[0] if limit and custom["thresholdsStyle"]["mode"] == "dashed" else 0.0
    top = max([v for _, points in layers for _, v in points] + [dashed * 1.2])
    axes = _Axes(size, 24, span, top, defaults["unit"], whole=defaults.get("decimals") == 0)
    if custom["drawStyle"] == "bars":
        drawn = "".join(
            _columns(axes, under, points, colour, frame.step)
            for frame, colour, (under, points) in zip(frames, colours, layers, strict=True)
        )
    else:
        drawn = "".join(
            _layer(axes, under[a:b], points[a:b], colour, custom["fillOpacity"] / 100)
            for frame, colour, (under, points) in zip(frames, colours, layers, strict=True)
            for a, b in pieces(points, max(custom["spanNulls"] / 1000, 2 * frame.step))
        )
    if dashed:
        y = axes.y(dashed)
        drawn += (
            f"<line x1={axes.left} x2={axes.right} y1={y:.1f} y2={y:.1f} "
            f"stroke='{_NAMED['red']}' stroke-dasharray='8 6'/>"
        )
    rows = _legend(frames, colours)
    return (
        f"<svg style='position:absolute;left:0;top:0' width={size[0]} height={size[1]}>"
        f"{axes.times()}{axes.values()}{drawn}</svg>{rows}"
    )


def pieces(points: Points, longest: float) -> list[tuple[int, int]]:
    """Slices of `points` without a gap of more than `longest` seconds, each drawn as one line."""
    starts = [n for n in range(1, len(points)) if points[n][0] - points[n - 1][0] > longest]
    return list(zip([0, *starts], [*starts, len(points)], strict=True))


def _stack(frames: list[Frame]) -> list[tuple[Points, Points]]:
    """The lower and upper edge of each series."""
    times = sorted({t for frame in frames for t, _ in frame.points()})
    floor = dict.fromkeys(times, 0.0)
    layers: list[tuple[Points, Points]] = []
    for frame in frames:
        values = dict(frame.points())
        under = [(t, floor[t]) for t in times]
        for t in times:
            floor[t] += values.get(t, 0.0)
        layers.append((under, [(t, floor[t]) for t in times]))
    return layers


def _layer(axes: _Axes, under: Points, points: Points, colour: str, opacity: float) -> str:
    path = [f"{axes.x(t):.1f},{axes.y(v):.1f}" for t, v in points]
    if not path:
        return ""
    if under:
        floor = [f"{axes.x(t):.1f},{axes.y(v):.1f}" for t, v in reversed(under)]
    else:
        floor = [
            f"{axes.x(points[-1][0]):.1f},{axes.bottom}",
            f"{axes.x(points[0][0]):.1f},{axes.bottom}",
        ]
    area = " ".join([*path, *floor])
    return (
        f"<polygon points='{area}' fill='{colour}' fill-opacity={opacity} />"
        f"<polyline points='{' '.join(path)}' fill=none stroke='{colour}' stroke-width=1.6 />"
    )


def _columns(axes: _Axes, under: Points, points: Points, colour: str, step: float) -> str:
    """Bars that begin at their time."""
    floor = dict(under)
    drawn = ""
    for t, v in points:
        below = floor.get(t, 0.0)
        width = max(1.0, (axes.x(t + step) - axes.x(t)) * 0.9)
        if v > below and t + step <= axes.span[1] + step:
            drawn += (
                f"<rect x={axes.x(t):.1f} y={axes.y(v):.1f} width={width:.1f} "
                f"height={axes.y(below) - axes.y(v):.1f} fill='{colour}' fill-opacity=0.8 />"
            )
    return drawn


def _legend(frames: list[Frame], colours: list[str]) -> str:
    """The names side by side below the chart; of many, Grafana shows the first and scrolls."""
    marks = dict(zip((frame.name for frame in frames), colours, strict=True))
    names = "".join(
        f"<span><b style='background:{colour}'></b>{_text(name)}</span>"
        for name, colour in marks.items()
    )
    return f"<div class=legend>{names}</div>"


def _heatmap(
    panel: Json, frames: list[Frame], size: tuple[int, int], span: tuple[float, float]
) -> str:
    by_bound = sorted((float(frame.labels["le"]), dict(frame.points())) for frame in frames)
    times = sorted({t for _, values in by_bound for t in values})
    cells: dict[tuple[int, float], float] = {}
    below: dict[float, float] = {}
    for number_, (_, values) in enumerate(by_bound):
        for t in times:
            cells[number_, t] = max(0.0, values.get(t, 0.0) - below.get(t, 0.0))
            below[t] = max(below.get(t, 0.0), values.get(t, 0.0))
    used = [n for (n, _), v in cells.items() if v > 0]
    low, high = min(used, default=0), max(used, default=0)
    axes = _Axes(size, 4, span, 1.0, "none")
    height = (axes.bottom - axes.top) / (high - low + 1)
    width = (axes.right - axes.left) / max(1, len(times))
    top = max(cells.values(), default=1.0) or 1.0
    drawn = ""
    for (n, t), value in cells.items():
        if value > 0 and low <= n <= high and t > times[0]:  # a column is drawn left of its time
            y = axes.bottom - (n - low + 1) * height
            drawn += (
                f"<rect x={axes.x(t) - width:.1f} y={y + 0.5:.1f} width={width - 1:.1f} "
                f"height={height - 1:.1f} fill='{_heat(value / top)}'/>"
            )
    labels = "".join(
        f"<text x={axes.left - 6} y={axes.bottom - (n - low + 1) * height + 4:.1f} text-anchor=end>"
        f"{_text(number(bound, 's')) if math.isfinite(bound) else '∞'}</text>"
        for n, (bound, _) in enumerate(by_bound)
        if low <= n <= high
    )
    return (
        f"<svg style='position:absolute;left:0;top:0' width={size[0]} height={size[1]}>"
        f"{axes.times()}{labels}{drawn}</svg>"
    )


def _heat(part: float) -> str:
    """Blue, the stronger the more, with exponent 0.5."""
    return f"rgb(87 148 242 / {math.sqrt(part):.2f})"
