"""The kinds of panels: what every stat, table, chart and heat map of ours has in common.

The rules of Grafana that these defaults follow, each held by tests/monitoring/test_dashboards.py:
`noValue` fills every empty cell of a table, so cells have one of their own; a bar in a cell is
relative to the largest number of the whole table unless its column has its own limits; a column
without a width takes 150 pixels; a link carries time and variables only where it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grafana_foundation_sdk.builders import bargauge, heatmap, stat, table, text, timeseries
from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode
from grafana_foundation_sdk.models.text import TextMode

SOURCE = common.DataSourceRef(type_val="prometheus", uid="prometheus")
NOTHING = "–"
USD, NUMBER, SHORT, PERCENT, SECONDS = "currencyUSD", "locale", "short", "percentunit", "s"
KEY_LINK = ("Everything about this key", "/d/one-key?${__url_time_range}&var-api_key=")
HEALTH_LINK = (
    "What is wrong, and what to do",
    "/d/gateway-health?${__url_time_range}&${__all_variables}",
)

Builder = Any
"""One of the SDK's panel builders: they have the same methods, but no common type that says so."""


@dataclass(frozen=True)
class Panel:
    """A panel and its place; `shows` and `queries` are its row in grafana/README.md."""

    title: str
    kind: str
    shows: str
    queries: tuple[str, ...]
    builder: Builder
    width: int


@dataclass(frozen=True)
class Line:
    """A query of a chart or a number, and what its series are called."""

    expr: str
    name: str = "__auto"
    unit: str = ""  # its own, where it differs from its panel's


@dataclass(frozen=True)
class Column:
    """A column of a table: a query's value, or a label where `expr` is empty.

    `width` is in pixels; a label column may grow beyond it unless it is `fixed`.
    """

    title: str
    expr: str = ""
    label: str = ""
    unit: str = ""
    decimals: int | None = None
    width: int = 90
    bar: str = ""  # the colour of a bar in the cell
    full: float | None = None  # the value of a full bar; without it, the column's largest
    steps: tuple[tuple[float | None, str], ...] = ()
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)  # value → text, colour
    link: tuple[str, str] | None = None
    wrap: bool = False
    fixed: bool = False


def _value(id_val: str, value: object) -> models.DynamicConfigValue:
    return models.DynamicConfigValue(id_val=id_val, value=value)


def thresholds(*steps: tuple[float | None, str]) -> builders.ThresholdsConfig:
    """Colours from a value on; the first without one."""
    made = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(made)


def link(title: str, url: str) -> builders.DashboardLink:
    """A link of a value. `url` says itself what it takes along."""
    return builders.DashboardLink(title).url(url)


def texts(given: dict[str, tuple[str, str]]) -> list[models.ValueMapping]:
    """Texts and colours for values."""
    options = {
        value: models.ValueMappingResult(text=shown, color=colour or None, index=n)
        for n, (value, (shown, colour)) in enumerate(given.items())
    }
    return [models.ValueMap(options=options)] if options else []


def money(decimals: int = 2) -> list[models.ValueMapping]:
    """Less than these decimals would show as nothing."""
    least = 10**-decimals
    small = models.DashboardRangeMapOptions(
        from_val=1e-12,
        to=least / 2,
        result=models.ValueMappingResult(text=f"< ${least:.{decimals}f}", index=0),
    )
    return [models.RangeMap(options=small)]


def _decimals(unit: str) -> int | None:
    return {USD: 2, PERCENT: 1, NUMBER: 0}.get(unit)


def _target(expr: str, ref: str, *, instant: bool, name: str, shape: PromQueryFormat) -> Dataquery:
    query = Dataquery().expr(expr).ref_id(ref).legend_format(name).format(shape)
    query.editor_mode(QueryEditorMode.CODE).exemplar(False).datasource(SOURCE)
    return query.instant() if instant else query.range()


def _targets(
    lines: Sequence[Line], *, instant: bool, shape: PromQueryFormat = PromQueryFormat.TIME_SERIES
) -> list[Any]:
    return [
        _target(line.expr, chr(65 + n), instant=instant, name=line.name, shape=shape)
        for n, line in enumerate(lines)
    ]


def _lines(queries: str | Line | Sequence[Line]) -> list[Line]:
    if isinstance(queries, str):
        return [Line(queries)]
    return [queries] if isinstance(queries, Line) else list(queries)


def _panel(kind: str, builder: Builder, title: str, shows: str, more: str, width: int,
           lines: Sequence[Line]) -> Panel:  # fmt: skip
    words = f"{shows}. {more}".strip()
    builder.title(title).description(words).datasource(SOURCE)
    return Panel(title, kind, shows, tuple(line.expr for line in lines), builder, width)


def _month(builder: Builder, month: int | None) -> None:
    """Over this month (0) or the one before (1), whatever the time picker says."""
    if month is not None:
        builder.time_from("now/M").hide_time_override(True)
        if month:
            builder.time_shift("1M/M")


def _last() -> common_builders.ReduceDataOptions:
    return common_builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False).fields("")


def number(
    title: str,
    queries: str | Line | Sequence[Line],
    shows: str,
    *,
    more: str = "",
    unit: str = NUMBER,
    width: int = 4,
    decimals: int | None = None,
    steps: Sequence[tuple[float | None, str]] = ((None, "blue"),),
    shown: dict[str, tuple[str, str]] | None = None,
    nothing: str = NOTHING,
    filled: bool = False,
    month: int | None = None,
    to: tuple[str, str] | None = None,
) -> Panel:
    """One number or a few, as of now. `filled`: its colour behind it. `to`: where a click leads."""
    lines = _lines(queries)
    several = any(line.name != "__auto" for line in lines)
    panel = stat.Panel().targets(_targets(lines, instant=True)).unit(unit).no_value(nothing)
    digits = _decimals(unit) if decimals is None else decimals
    if digits is not None:
        panel.decimals(digits)
    if steps[0][1] == "red" and not filled:  # no value has the colour of the first step
        steps = ((None, "text"), (-1e12, "red"), *steps[1:])
    panel.thresholds(thresholds(*steps)).mappings(
        texts(shown or {}) or (money() if unit == USD else [])
    )
    panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    for line in lines:
        if line.unit:
            panel.override_by_name(line.name, _format(line.unit, None))
    mode = common.BigValueColorMode
    panel.color_mode(mode.BACKGROUND if filled else mode.VALUE)
    panel.graph_mode(common.BigValueGraphMode.NONE).justify_mode(common.BigValueJustifyMode.CENTER)
    panel.text_mode(
        common.BigValueTextMode.VALUE_AND_NAME if several else common.BigValueTextMode.AUTO
    )
    panel.orientation(common.VizOrientation.HORIZONTAL if several else common.VizOrientation.AUTO)
    panel.reduce_options(_last()).wide_layout(True).show_percent_change(False)
    panel.percent_change_color_mode(common.PercentChangeColorMode.STANDARD)
    if to:
        panel.data_links([link(*to)])
    _month(panel, month)
    return _panel("stat", panel, title, shows, more, width, lines)


def rows(
    title: str,
    columns: Sequence[Column],
    shows: str,
    *,
    more: str = "",
    width: int = 24,
    sort: str = "",
    ascending: bool = False,
    nothing: str = "nothing yet",
    month: int | None = None,
) -> Panel:
    """A table, one row for each set of labels; without a row it says `nothing`.

    `sort`: titles of columns, separated by commas, the first one first.
    """
    lines = [Line(c.expr) for c in columns if c.expr]
    one = len(lines) == 1
    panel = table.Panel().targets(_targets(lines, instant=True, shape=PromQueryFormat.TABLE))
    panel.no_value(nothing).thresholds(thresholds((None, "green"))).mappings([])
    panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.align(common.FieldTextAlignment.AUTO).inspect(False).filterable(False)
    panel.cell_options(common.TableAutoCellOptions()).cell_height(common.TableCellHeight.SM)
    panel.override_by_regexp("/.*/", [_value("noValue", NOTHING)])
    for column in columns:
        panel.override_by_name(column.title, _cell(column))
    by: list[Any] = [
        common_builders.TableSortByFieldState().display_name(column).desc(not ascending)
        for column in sort.split(", ")
        if column
    ]
    if by:
        panel.sort_by(by)
    for step in _arranged(columns, one=one):
        panel.with_transformation(step)
    _month(panel, month)
    return _panel("table", panel, title, shows, more, width, lines)


def _cell(column: Column) -> list[models.DynamicConfigValue]:
    """The settings of a column."""
    growing = not (column.expr or column.fixed)
    width = _value("custom.minWidth" if growing else "custom.width", column.width)
    settings = [width, *_format(column.unit, column.decimals), *_bar(column)]
    if column.steps:
        if not column.bar:
            settings.append(_value("custom.cellOptions", {"type": "color-text"}))
        settings.append(_value("thresholds", thresholds(*column.steps).build()))
    if column.texts:
        settings.append(_value("mappings", texts(column.texts)))
        if any(colour for _, colour in column.texts.values()):
            settings.append(_value("custom.cellOptions", {"type": "color-text"}))
    if column.wrap:  # in cellOptions until Grafana 12.1, beside them since
        settings.append(_value("custom.cellOptions", {"type": "auto", "wrapText": True}))
        settings.append(_value("custom.wrapText", True))
    if column.link:
        settings.append(_value("links", [link(*column.link).build()]))
    return settings


def _format(unit: str, decimals: int | None) -> list[models.DynamicConfigValue]:
    if not unit:
        return []
    digits = _decimals(unit) if decimals is None else decimals
    settings = [_value("unit", unit)]
    if digits is not None:
        settings.append(_value("decimals", digits))
    if unit == USD and digits is not None:
        settings.append(_value("mappings", money(digits)))
    return settings


def _bar(column: Column) -> list[models.DynamicConfigValue]:
    if not column.bar:
        return []
    cell = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
    own = column.full is None
    settings = [_value("custom.cellOptions", cell), _value("min", 0)]
    settings.append(_value("fieldMinMax", True) if own else _value("max", column.full))
    if not column.steps:
        settings.append(_value("color", {"mode": "fixed", "fixedColor": column.bar}))
    return settings


def _arranged(columns: Sequence[Column], *, one: bool) -> list[models.DataTransformerConfig]:
    """Rows of all queries joined; columns in order and under their titles, the rest hidden."""
    names, ref = [], 65
    for column in columns:
        if column.expr:
            names.append("Value" if one else f"Value #{chr(ref)}")
            ref += 1
        else:
            names.append(column.label)
    steps = [] if one else [models.DataTransformerConfig(id_val="merge", options={})]
    options = {
        "excludeByName": {"Time": True, "__name__": True},
        "indexByName": {name: n for n, name in enumerate(names)},
        "renameByName": {
            name: c.title for name, c in zip(names, columns, strict=True) if name != c.title
        },
    }
    return [*steps, models.DataTransformerConfig(id_val="organize", options=options)]


def chart(
    title: str,
    queries: str | Line | Sequence[Line],
    shows: str,
    *,
    more: str = "",
    unit: str = NUMBER,
    width: int = 12,
    decimals: int | None = None,
    bars: bool = False,
    stacked: bool = False,
    interval: str = "",
    days: int | None = None,
    limit: float | None = None,
    soft_max: float | None = None,
    colours: dict[str, str] | None = None,
    nothing: str = "nothing yet",
    to: tuple[str, str] | None = None,
) -> Panel:
    """Lines or bars over time. A series has the colour of its name in every panel.

    Of stacked series the first stands at the bottom: errors come first. `interval` is the least
    time between two points, and a bar's width. `days`: over these, whatever the time picker says.
    """
    lines = _lines(queries)
    panel = timeseries.Panel().targets(_targets(lines, instant=False)).unit(unit).min(0)
    digits = _decimals(unit) if decimals is None else decimals
    if digits is not None:
        panel.decimals(digits)
    panel.no_value(nothing).mappings(money(digits or 0) if unit == USD else [])
    panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    _drawn(panel, bars=bars, stacked=stacked)
    marks: list[tuple[float | None, str]] = [(None, "green")]
    dashed = common.GraphThresholdsStyleMode.OFF
    if limit is not None:
        marks.append((limit, "red"))
        dashed = common.GraphThresholdsStyleMode.DASHED
    panel.thresholds(thresholds(*marks))
    panel.thresholds_style(common_builders.GraphThresholdsStyleConfig().mode(dashed))
    if soft_max is not None:
        panel.axis_soft_max(soft_max)
    for name, colour in (colours or {}).items():
        fixed = {"mode": "fixed", "fixedColor": colour}
        panel.override_by_regexp(name, [_value("color", fixed)])
    legend = common_builders.VizLegendOptions().show_legend(True).calcs([])
    legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    panel.legend(legend)
    tooltip = common_builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI)
    panel.tooltip(tooltip.sort(common.SortOrder.DESCENDING))
    if to:
        panel.data_links([link(*to)])
    if interval:
        panel.interval(interval).max_data_points(1000)
    if days:
        panel.time_from(f"{days}d")
    return _panel("timeseries", panel, title, shows, more, width, lines)


def _drawn(panel: timeseries.Panel, *, bars: bool, stacked: bool) -> None:
    style = common.GraphDrawStyle
    panel.draw_style(style.BARS if bars else style.LINE)
    panel.line_width(0 if bars else 1).fill_opacity(80 if bars else 30 if stacked else 5)
    panel.line_interpolation(common.LineInterpolation.LINEAR)
    panel.show_points(common.VisibilityMode.NEVER).span_nulls(60_000)
    if bars:
        panel.bar_alignment(common.BarAlignment.AFTER).bar_width_factor(0.9)
    mode = common.StackingMode.NORMAL if stacked else common.StackingMode.NONE
    panel.stacking(common_builders.StackingConfig().mode(mode).group("A"))


def bars(
    title: str,
    queries: Line,
    shows: str,
    *,
    more: str = "",
    unit: str = USD,
    width: int = 8,
    month: int | None = None,
    to: tuple[str, str] | None = None,
) -> Panel:
    """A bar for each series, the longest first, its name above it, so that it is not cut."""
    lines = [queries]
    panel = bargauge.Panel().targets(_targets(lines, instant=True)).unit(unit).min(0)
    panel.decimals(_decimals(unit) or 0).no_value("nothing yet").mappings(money())
    panel.thresholds(thresholds((None, "green")))
    panel.color_scheme(builders.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
    panel.display_mode(common.BarGaugeDisplayMode.BASIC).reduce_options(_last())
    panel.orientation(common.VizOrientation.HORIZONTAL).show_unfilled(True)
    panel.value_mode(common.BarGaugeValueMode.TEXT).sizing(common.BarGaugeSizing.AUTO)
    panel.name_placement(common.BarGaugeNamePlacement.TOP)
    if to:
        panel.data_links([link(*to)])
    _month(panel, month)
    return _panel("bargauge", panel, title, shows, more, width, lines)


def heat(title: str, queries: Line, shows: str, *, more: str = "", width: int = 12) -> Panel:
    """A heat map of a histogram's buckets, in one colour, right in the light theme too."""
    lines = [queries]
    targets = _targets(lines, instant=False, shape=PromQueryFormat.HEATMAP)
    panel = heatmap.Panel().targets(targets).calculate(False).no_value("nothing yet")
    colour = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.OPACITY).fill("blue")
    panel.color(colour.exponent(0.5).steps(32).scheme("Oranges").reverse(False))
    panel.y_axis(heatmap.YAxisConfig().unit(SECONDS).axis_placement(common.AxisPlacement.LEFT))
    panel.cell_values(heatmap.CellValues().unit(NUMBER)).cell_gap(1).show_legend()
    panel.rows_frame(heatmap.RowsHeatmapOptions().layout(common.HeatmapCellLayout.AUTO))
    panel.interval("15s")
    return _panel("heatmap", panel, title, shows, more, width, lines)


def words(title: str, content: str, shows: str, *, width: int = 24) -> Panel:
    """Text in Markdown; variables of the dashboard are filled in."""
    panel = text.Panel().mode(TextMode.MARKDOWN).content(content)
    return _panel("text", panel, title, shows, "", width, [])


def narrow(panel: Panel, width: int) -> Panel:
    """The same panel with another width."""
    return replace(panel, width=width)
