"""Draws the dashboards from the data of a running Prometheus, for the documentation.

It does not use Grafana: the pictures are a sketch of the data. That comes from the panels' own
queries to Prometheus over the given range; position, title, units, thresholds, mappings and legend
come from the dashboard's file. The drawing (tools/panels.py: HTML and SVG) has Grafana's sizes on a
screen of 1500 pixels. Chromium turns it into a PNG.

    python tools/render_dashboards.py --prometheus http://localhost:9090 --out docs/images

Needs `requests` and Chromium. Writes <uid>.png for each dashboard; with --upto only the part above
the row with that title. Where Pillow is installed the files get a palette and are a third as large.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from panels import COLUMN, GAP, ROW, Frame, draw

ROOT = Path(__file__).resolve().parent.parent
SCRAPE = 5  # seconds
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
HEAD = 84  # pixels above the panels
COLOURS = 224

Json = dict[str, Any]


class Source:
    """Sends the queries to Prometheus that Grafana would send."""

    def __init__(self, url: str, seconds: int, chosen: dict[str, str] | None = None) -> None:
        self.chosen = chosen or {}  # of each variable; All without
        self.url = url.rstrip("/")
        self.seconds = seconds
        self.end = time.time()

    def span(self, panel: Json) -> tuple[float, float]:
        """The panel's own range, or the page's."""
        own = panel.get("timeFrom", "")
        if own == "now/M":
            begin = _month(self.end)
            return (_month(begin - 1), begin) if panel.get("timeShift") else (begin, self.end)
        seconds = int(own[:-1]) * UNITS[own[-1]] if own else self.seconds
        return (self.end - seconds, self.end)

    def frames(self, panel: Json) -> list[Frame]:
        """The results of all queries of a panel, in order."""
        return [frame for target in panel.get("targets", ()) for frame in self._ask(panel, target)]

    def _ask(self, panel: Json, target: Json) -> list[Frame]:
        begin, end = self.span(panel)
        seconds = round(end - begin)
        least = panel.get("interval", "5s")
        step = max(
            int(least[:-1]) * UNITS[least[-1]],
            round(seconds / (panel["gridPos"]["w"] * COLUMN) / SCRAPE) * SCRAPE,
        )
        expr = self._filled(target["expr"], step, seconds)
        if target.get("instant"):
            result = self._get("query", query=expr, time=end)
            return [Frame(target, s["metric"], [s["value"]]) for s in result]
        first, last = begin // step * step, end // step * step
        result = self._get("query_range", query=expr, start=first, end=last, step=step)
        return [Frame(target, s["metric"], s["values"], step) for s in result]

    def _filled(self, expr: str, step: int, seconds: int) -> str:
        macros = {
            "__rate_interval": f"{max(step + SCRAPE, 4 * SCRAPE)}s",
            "__interval": f"{step}s",
            "__interval_ms": f"{step * 1000}",
            "__range": f"{seconds}s",
        }
        expr = re.sub(r"\$(__\w+)", lambda m: macros[m[1]], expr)
        return re.sub(r"\$[a-z_]\w*", lambda m: self.chosen.get(m[0][1:], ".*"), expr)

    def _get(self, path: str, **parameters: Any) -> list[Json]:
        response = requests.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=60)
        response.raise_for_status()
        found: list[Json] = response.json()["data"]["result"]
        return found


def page(dashboard: Json, source: Source, upto: str | None) -> tuple[str, int]:
    """The dashboard as HTML, and its height in pixels."""
    drawn: list[str] = []
    bottom = 0
    for panel in dashboard["panels"]:
        if upto and panel["title"] == upto:
            break
        at = panel["gridPos"]
        left, top = at["x"] * COLUMN, HEAD + at["y"] * ROW
        width, height = at["w"] * COLUMN - GAP, at["h"] * ROW - GAP
        bottom = max(bottom, top + height)
        frames = [] if panel["type"] == "row" else source.frames(panel)
        where = f"left:{left + GAP}px;top:{top}px;width:{width}px;height:{height}px"
        drawn.append(draw(panel, frames, where, (width, height), source.span(panel)))
    chosen = "".join(
        f"<span class=var><b>{v['label']}</b><i>{source.chosen.get(v['name'], 'All')}</i></span>"
        for v in dashboard["templating"]["list"]
    )
    title = f"<h1>{dashboard['title']}</h1><div class=vars>{chosen}</div>"
    clock = f"<div class=time>Last {_duration(source.seconds)}</div>"
    style = (Path(__file__).with_name("panels.css")).read_text()
    body = "".join(drawn)
    return (
        f"<!doctype html><meta charset=utf-8><style>{style}</style>{title}{clock}{body}",
        bottom + GAP,
    )


def _month(moment: float) -> float:
    """When the month of this moment began (UTC)."""
    now = datetime.fromtimestamp(moment, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC).timestamp()


def _duration(seconds: int) -> str:
    return f"{seconds // 3600} hours" if seconds >= 7200 else f"{seconds // 60} minutes"


def screenshot(html: str, height: int, file: Path) -> None:
    """Write Chromium's screenshot of the page to `file`."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "page.html"
        source.write_text(html)
        subprocess.run(
            [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={directory}/profile", f"--window-size={24 * COLUMN + GAP},{height}",
             f"--screenshot={file}", source.as_uri()],
            check=True,
            capture_output=True,
            timeout=60,
        )  # fmt: skip


def shrink(file: Path) -> None:
    """Convert to a palette, if Pillow is installed."""
    if importlib.util.find_spec("PIL") is None:
        return
    image = importlib.import_module("PIL.Image")
    with image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=image.Dither.NONE)
    small.save(file, optimize=True)


def main(given: list[str]) -> int:
    """Read the arguments, draw each dashboard; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--range", default="30m", help="such as 30m or 6h (default 30m)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY")
    parser.add_argument("--only", metavar="UID", help="one dashboard")
    parser.add_argument("--upto", metavar="ROW", help="stop above the row of this title")
    parser.add_argument("--key", metavar="NAME", help="the key that One Key shows")
    options = parser.parse_args(given)
    key = {"api_key": options.key} if options.key else {}
    page_of = {"one-key": key}
    data = Source(options.prometheus, int(options.range[:-1]) * UNITS[options.range[-1]])
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        if options.only not in (None, dashboard["uid"]):
            continue
        data.chosen = page_of.get(dashboard["uid"], {})
        html, height = page(dashboard, data, options.upto)
        file = options.out / f"{dashboard['uid']}.png"
        screenshot(html, height, file)
        shrink(file)
        print(f"{file}: {file.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
