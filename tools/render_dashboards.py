"""Draws the dashboards from the data of a running Prometheus, for the documentation.

It does not use Grafana. The data comes from the panels' own queries to Prometheus over the given
range; position, title, units, thresholds, mappings and legend come from the dashboard's file. The
drawing (tools/panels.py: HTML and SVG) resembles Grafana's. Chromium turns it into a PNG.

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

    def __init__(self, url: str, seconds: int) -> None:
        self.url = url.rstrip("/")
        self.seconds = seconds
        self.end = time.time()

    def frames(self, panel: Json) -> list[Frame]:
        """The results of all queries of a panel, in order."""
        return [frame for target in panel["targets"] for frame in self._ask(panel, target)]

    def _ask(self, panel: Json, target: Json) -> list[Frame]:
        pixels = panel["gridPos"]["w"] * COLUMN
        step = max(SCRAPE, round(self.seconds / pixels * 2 / SCRAPE) * SCRAPE)
        if panel["type"] == "heatmap":
            step = max(step, round(self.seconds / 60 / SCRAPE) * SCRAPE)
        expr = self._filled(target["expr"], step)
        if target["instant"]:
            result = self._get("query", query=expr, time=self.end)
            return [Frame(target, s["metric"], [s["value"]]) for s in result]
        end = self.end // step * step
        result = self._get("query_range", query=expr, start=end - self.seconds, end=end, step=step)
        return [Frame(target, s["metric"], s["values"], step) for s in result]

    def _filled(self, expr: str, step: int) -> str:
        macros = {
            "__rate_interval": f"{max(step + SCRAPE, 4 * SCRAPE)}s",
            "__interval": f"{step}s",
            "__range": f"{self.seconds}s",
        }
        expr = re.sub(r"\$(__\w+)", lambda m: macros[m[1]], expr)
        return re.sub(r"\$\w+", ".*", expr)  # every variable: All

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
        span = (source.end - source.seconds, source.end)
        drawn.append(draw(panel, frames, where, (width, height), span))
    chosen = "".join(
        f"<span class=var><b>{v['label']}</b><i>All</i></span>"
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
    options = parser.parse_args(given)
    source = Source(options.prometheus, int(options.range[:-1]) * UNITS[options.range[-1]])
    options.out.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text())
        if options.only not in (None, dashboard["uid"]):
            continue
        html, height = page(dashboard, source, options.upto)
        file = options.out / f"{dashboard['uid']}.png"
        screenshot(html, height, file)
        shrink(file)
        print(f"{file}: {file.stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
