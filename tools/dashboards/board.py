"""A dashboard of sections and rows of panels, as the JSON that Grafana imports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from tools.dashboards.parts import SOURCE, Panel

TAG = "llm-gateway"
GRAFANA = "12.4.10"  # the version in docker-compose.yml
# The oldest Grafana the files are for reads this version, newer ones migrate from it.
SCHEMA_VERSION = 39

Json = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Panels side by side; their widths add up to 24."""

    height: int
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Section:
    """Rows below a heading; without a title, at the top."""

    title: str
    rows: Sequence[Row]
    collapsed: bool = False


@dataclass(frozen=True)
class Event:
    """A mark on all charts of a dashboard."""

    name: str
    expr: str
    title: str
    colour: str
    text: str = ""
    step: str = "60s"


@dataclass(frozen=True)
class Variable:
    """A choice at the top. `query` is a `label_values(…)`."""

    name: str
    label: str
    query: str
    description: str
    several: bool = True


@dataclass(frozen=True)
class Board:
    """A dashboard."""

    uid: str
    title: str
    description: str
    span: str
    refresh: str
    variables: Sequence[Variable]
    sections: Sequence[Section]
    timezone: str = "browser"
    events: Sequence[Event] = field(default_factory=tuple)

    def panels(self) -> list[Panel]:
        """All panels in their order."""
        return [p for section in self.sections for row in section.rows for p in row.panels]

    def json(self) -> Json:
        """The file's content, without the SDK's defaults that newer schemas do not have."""
        board = builders.Dashboard(self.title).uid(self.uid).description(self.description)
        board.tags([TAG]).timezone(self.timezone).editable().version(1).refresh(self.refresh)
        board.tooltip(models.DashboardCursorSync.CROSSHAIR).time(f"now-{self.span}", "now")
        intervals = ["5s", "10s", "30s", "1m", "5m", "15m"]
        board.timepicker(builders.TimePicker().refresh_intervals(intervals))
        board.variables([_variable(v) for v in self.variables])
        board.link(
            builders.DashboardLink("Gateway dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .icon("external link")
            .tooltip("The other views, with the same choices and time")
            .include_vars(True)
            .keep_time(True)
        )
        self._place(board)
        made: Json = json.loads(json.dumps(board.build(), cls=JSONEncoder))
        made |= {"schemaVersion": SCHEMA_VERSION, "weekStart": ""}
        made["annotations"] = {"list": [_event(event) for event in self.events]}
        for variable in made["templating"]["list"]:
            for name in ("auto", "auto_min", "auto_count"):  # of variables of another kind
                variable.pop(name, None)
        for panel in made["panels"]:
            _tidy(panel)
        return made

    def _place(self, board: builders.Dashboard) -> None:
        """Give panels their numbers and places."""
        ids = iter(range(1, 1000))
        y = 0
        for section in self.sections:
            if section.title:
                at = models.GridPos(h=1, w=24, x=0, y=y)
                heading = builders.Row(section.title).id(next(ids)).grid_pos(at)
                board.with_row(heading.collapsed(False))
                y += 1
            for row in section.rows:
                x = 0
                for panel in row.panels:
                    at = models.GridPos(h=row.height, w=panel.width, x=x, y=y)
                    board.with_panel(panel.builder.id(next(ids)).grid_pos(at))
                    x += panel.width
                if x != 24:
                    raise ValueError(f"{[p.title for p in row.panels]}: {x} of 24 columns")
                y += row.height


def _variable(variable: Variable) -> builders.QueryVariable:
    query: dict[str, object] = {
        "qryType": 1,
        "query": variable.query,
        "refId": "PrometheusVariableQueryEditor-VariableQuery",
    }
    made = builders.QueryVariable(variable.name).label(variable.label).query(query)
    made.description(variable.description).datasource(SOURCE)
    made.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
    made.sort(models.VariableSort.ALPHABETICAL_CASE_INSENSITIVE_ASC)
    made.multi(variable.several).include_all(variable.several)
    if variable.several:
        made.all_value(".*")
        made.current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made


def _event(event: Event) -> Json:
    return {
        "name": event.name,
        "datasource": {"type": "prometheus", "uid": "prometheus"},
        "enable": True,
        "hide": False,
        "iconColor": event.colour,
        "expr": event.expr,
        "step": event.step,
        "titleFormat": event.title,
        "textFormat": event.text,
    }


def _tidy(panel: Json) -> None:
    """Add the version; leave out the table's footer, which newer Grafanas have elsewhere."""
    if panel["type"] != "row":
        panel["pluginVersion"] = GRAFANA
        panel.setdefault("targets", [])
    panel.get("options", {}).pop("footer", None)
    if panel["type"] == "text":
        del panel["targets"], panel["datasource"]
