"""Writes grafana/dashboards/*.json and the tables of panels in grafana/README.md."""

from __future__ import annotations

import json
from pathlib import Path

from tools.dashboards import api_key_metrics, gateway_health, one_key
from tools.dashboards.board import Board
from tools.dashboards.queries import short

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "grafana" / "dashboards"
README = ROOT / "grafana" / "README.md"
BOARDS = (api_key_metrics.BOARD, gateway_health.BOARD, one_key.BOARD)


def files() -> dict[Path, str]:
    """The content of every file that is written from here."""
    made = {FILES / f"{board.uid}.json": _json(board) for board in BOARDS}
    readme = README.read_text()
    for board in BOARDS:
        begin, end = f"<!-- panels of {board.uid} -->\n", "<!-- end -->"
        before, _, rest = readme.partition(begin)
        readme = before + begin + table(board) + end + rest.partition(end)[2]
    return made | {README: readme}


def _json(board: Board) -> str:
    return json.dumps(board.json(), indent=2, ensure_ascii=False) + "\n"


def table(board: Board) -> str:
    """The panels of a dashboard as a table in Markdown."""
    lines = ["| panel | shows | query |", "| --- | --- | --- |"]
    for panel in board.panels():
        query = short(panel.queries[0]).replace("|", "\\|") if panel.queries else ""
        more = f" and {len(panel.queries) - 1} more" if len(panel.queries) > 1 else ""
        asked = f"`{query}`{more}" if query else "–"
        lines.append(f"| {panel.title} | {panel.kind}: {panel.shows} | {asked} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content)
        print(path.relative_to(ROOT))
