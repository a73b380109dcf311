"""The charts of a report, a function each: frames in, a Vega-Lite chart out.

Colours are those of Okabe and Ito, safe for colour-blind eyes. On a page they are variables of
its style sheet, so that light, dark and print need no second drawing; in a file they are fixed.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import altair as alt
import polars as pl

from fleet.report_data import HUGE_ON_BOTH, HUGE_ON_HOST, Clock, rounded
from fleet.report_events import KINDS
from hostsim.core.units import NR_PAGE_ORDERS

BAND: Final = "hosts, p5 to p95"
ROWS: Final = "rows"
_DATA: Final = alt.NamedData(name=ROWS)
HEIGHT: Final = 240
_EVENT_COLOURS: Final = (1, 3, 4, 0, 2, 6, 5)  # of KINDS, places in a palette
LEAST_EVENTS: Final = 5  # of an axis, so that its ticks are whole numbers
ROW_HEIGHT: Final = 46  # of a class of guests
TIMES: Final = {
    "min": "Simulated time (minutes)",
    "h": "Simulated time (hours)",
    "d": "Simulated time (days)",
}
ORDER_SIZES: Final = ("4K", "8K", "16K", "32K", "64K", "128K", "256K", "512K", "1M", "2M", "4M")


class Palette(NamedTuple):
    """The colours of a drawing."""

    series: tuple[str, ...]
    text: str
    muted: str
    grid: str
    background: str | None


PAGE: Final = Palette(
    tuple(f"var(--c{i})" for i in range(1, 8)), "var(--text)", "var(--muted)", "var(--grid)", None
)
# Okabe and Ito, "Color Universal Design", 2008
LIGHT: Final = Palette(
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F"),
    "#1b1f24",
    "#57606a",
    "#d8dee4",
    "#ffffff",
)


class Drawing(NamedTuple):
    """A chart, and the rows that it draws (under the name `ROWS`)."""

    chart: Any  # of altair
    data: pl.DataFrame


def config(palette: Palette) -> dict[str, Any]:
    """Return the look of all charts."""
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
    axis = {
        "labelColor": palette.muted,
        "titleColor": palette.text,
        "gridColor": palette.grid,
        "domainColor": palette.grid,
        "tickColor": palette.grid,
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelFlush": True,
    }
    return {
        "background": palette.background or "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": axis,
        "axisX": {"grid": False, "tickMinStep": 1},
        "legend": {
            "labelColor": palette.text,
            "titleColor": palette.text,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "orient": "top",
            "direction": "horizontal",
            "labelLimit": 400,
            "titleLimit": 400,
            "columns": 2,
            "symbolOpacity": 1,
        },
        "line": {"strokeWidth": 2},
        "range": {"category": list(palette.series)},
    }


def spec(drawing: Drawing, palette: Palette, width: int | str = "container") -> dict[str, Any]:
    """Return a chart as Vega-Lite, as wide as its place or as many pixels."""
    fitted = drawing.chart.properties(width=width)
    if width == "container":
        fitted = fitted.properties(autosize=alt.AutoSizeParams(type="fit-x", contains="padding"))
    found: dict[str, Any] = fitted.to_dict()
    rows = rounded(drawing.data).to_dicts()
    return found | {"config": config(palette), "datasets": {ROWS: rows}}


def _time_axis(clock: Clock, column: str = "t") -> alt.X:
    end = clock.duration_ns / clock.unit_ns
    return alt.X(f"{column}:Q").title(TIMES[clock.unit]).scale(domain=[0, end], nice=False)


def _crosshair(clock: Clock, columns: Sequence[str], unit: str) -> Any:
    """Return a line at each time, seen and explained under the pointer."""
    hover = alt.selection_point(on="pointerover", clear="pointerout", empty=False)
    return (
        alt.Chart(_DATA)
        .mark_rule(strokeWidth=3, color="#888")
        .encode(
            x=_time_axis(clock),
            opacity=alt.condition(hover, alt.value(0.5), alt.value(0.001)),
            tooltip=[
                alt.Tooltip("t:Q").title(TIMES[clock.unit]),
                *(alt.Tooltip(f"{name}:Q").title(f"{name} ({unit})") for name in columns),
            ],
        )
        .add_params(hover)
    )


def lines(
    frame: pl.DataFrame,
    clock: Clock,
    curves: dict[str, str],
    title: str,
    palette: Palette,
    *,
    unit: str,
    band: str = "",
    domain: tuple[float, float] | None = None,
    height: int = HEIGHT,
) -> Drawing:
    """Draw curves over time.

    Parameters
    ----------
    curves
        Column and name of each.
    band
        Name of the area between the columns p5 and p95, if there is to be one.
    domain
        Of the axis upward; from zero to the largest value if left out.
    """
    names = list(curves.values())
    edges = ["p5", "p95"] if band else []
    data = frame.select("t", pl.col(list(curves)).name.map(lambda name: curves[name]), *edges)
    colours = list(palette.series[: len(names)])
    shown = [*names, band] if band else names
    scale = alt.Scale(domain=shown, range=[*colours, palette.series[5]] if band else colours)
    up = alt.Scale(domain=list(domain)) if domain else alt.Scale(zero=True)
    layers: list[Any] = []
    if band:
        area = alt.Chart(_DATA).mark_area(opacity=0.3)
        layers.append(
            area.encode(
                x=_time_axis(clock), y=alt.Y("p5:Q").title(title), y2="p95:Q", color=alt.datum(band)
            )
        )
    layers.append(
        alt.Chart(_DATA)
        .transform_fold([*names], as_=["curve", "value"])
        .mark_line()
        .encode(
            x=_time_axis(clock),
            y=alt.Y("value:Q").title(title).scale(up),
            color=alt.Color("curve:N")
            .title(None)
            .scale(scale)
            .legend(symbolType="stroke", symbolStrokeWidth=4),
        )
    )
    layers.append(_crosshair(clock, [*names, *edges], unit))
    return Drawing(alt.layer(*layers).properties(height=height), data)


def coverage(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw huge coverage over time, host and effective, with the spread over hosts."""
    return lines(
        frame,
        clock,
        {"host": HUGE_ON_HOST, "effective": HUGE_ON_BOTH},
        "Share of guest memory (%)",
        palette,
        unit="%",
        band=BAND,
        domain=(0, 100),
    )


def load(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw what VMs rent and have resident."""
    return lines(
        frame,
        clock,
        {"rented": "rented by VMs", "resident": "resident guest RAM"},
        "Share of the hosts' memory (%)",
        palette,
        unit="%",
    )


def orders(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw free memory by buddy order over time."""
    del palette
    blocks = [f"{order}: {size}" for order, size in enumerate(ORDER_SIZES)]
    numbers = list(range(NR_PAGE_ORDERS))
    named = frame.with_columns(pl.col("order").replace_strict(numbers, blocks).alias("block"))
    domain = blocks[::-1]
    ticks = [0, 1, 10, 100, 1000, 10_000, 100_000]
    chart = (
        alt.Chart(_DATA)
        .mark_rect(strokeWidth=0.6)
        .encode(
            x=_time_axis(clock, "start"),
            x2="end:Q",
            y=alt.Y("block:N").sort(domain).title("Order and size of free blocks"),
            color=alt.Color("mib:Q")
            .title("Free memory (MiB a host)")
            .scale(type="symlog", scheme="viridis", domainMin=0)
            .legend(type="gradient", values=ticks, gradientLength=260),
            tooltip=[
                alt.Tooltip("start:Q").title(TIMES[clock.unit]),
                alt.Tooltip("block:N").title("Order and size"),
                alt.Tooltip("mib:Q").title("Free memory (MiB a host)"),
            ],
        )
        .properties(height=HEIGHT)
    )
    return Drawing(chart, named)


def fragmentation(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw the unusable index of order 9 over hosts."""
    return lines(
        frame,
        clock,
        {"median": "median host"},
        "Free memory unusable for 2 MiB (%)",
        palette,
        unit="%",
        band=BAND,
    )


def _per_class(frame: pl.DataFrame) -> int:
    return max(ROW_HEIGHT * len(frame), 2 * ROW_HEIGHT)


def translation(frame: pl.DataFrame, palette: Palette) -> Drawing:
    """Draw what page walks cost each class of guests: means, and p5 to p95 over VM-hours."""
    what = {"walks": "cycles in page walks", "returned": "what huge pages everywhere would return"}
    long = pl.concat(
        frame.select(
            "class",
            pl.lit(label).alias("what"),
            pl.col(column).alias("mean"),
            pl.col(f"{column} p5").alias("p5"),
            pl.col(f"{column} p95").alias("p95"),
        )
        for column, label in what.items()
    )
    colour = (
        alt.Color("what:N")
        .title(None)
        .scale(domain=list(what.values()), range=list(palette.series[:2]))
        .legend(columns=1)
    )
    base = alt.Chart(_DATA).encode(
        y=alt.Y("class:N").sort(frame["class"].to_list()).title("Class of guests"),
        yOffset=alt.YOffset("what:N").sort(list(what.values())),
        color=colour,
        tooltip=[
            alt.Tooltip("class:N").title("Class"),
            alt.Tooltip("what:N").title("What"),
            alt.Tooltip("mean:Q").title("Mean over vCPUs (%)"),
            alt.Tooltip("p5:Q").title("p5 (%)"),
            alt.Tooltip("p95:Q").title("p95 (%)"),
        ],
    )
    span = base.mark_rule(strokeWidth=6, opacity=0.35).encode(
        x=alt.X("p5:Q").title("Share of run time (%)"), x2="p95:Q"
    )
    mean = base.mark_point(filled=True, size=80, opacity=1).encode(x=alt.X("mean:Q"))
    return Drawing(alt.layer(span, mean).properties(height=_per_class(frame)), long)


def walks(frame: pl.DataFrame, palette: Palette) -> Drawing:
    """Draw the memory references of a page walk, those to guest tables and to the EPT."""
    parts = {"guest reads": "guest page tables", "ept reads": "EPT"}
    long = pl.concat(
        frame.select("class", pl.lit(label).alias("part"), pl.col(column).alias("reads"))
        for column, label in parts.items()
    )
    chart = (
        alt.Chart(_DATA)
        .mark_bar(height={"band": 0.6})
        .encode(
            x=alt.X("reads:Q").title("Memory references a page walk"),
            y=alt.Y("class:N").sort(frame["class"].to_list()).title("Class of guests"),
            color=alt.Color("part:N")
            .title(None)
            .scale(domain=list(parts.values()), range=[palette.series[0], palette.series[4]]),
            order=alt.Order("part:N").sort("descending"),
            tooltip=[
                alt.Tooltip("class:N").title("Class"),
                alt.Tooltip("part:N").title("Part"),
                alt.Tooltip("reads:Q").title("References a walk"),
            ],
        )
        .properties(height=_per_class(frame))
    )
    return Drawing(chart, long)


def stalls(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw how long accesses waited for direct compaction and direct reclaim."""
    return lines(
        frame,
        clock,
        {"stall mean": "mean of hosts", "stall worst": "worst host"},
        "Stalls (ms a host and hour)",
        palette,
        unit="ms",
    )


def daemons(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw the CPU time of khugepaged, kcompactd and ksmd."""
    return lines(
        frame,
        clock,
        {"daemon mean": "mean of hosts", "daemon p95": "p95 of hosts"},
        "CPU time of daemons (% of one CPU)",
        palette,
        unit="%",
    )


def events(frame: pl.DataFrame, clock: Clock, palette: Palette) -> Drawing:
    """Draw kills, migrations, failures and rejections over time."""
    seen = set(frame["kind"])
    kinds = [kind for kind in KINDS if kind in seen]
    colours = [palette.series[_EVENT_COLOURS[KINDS.index(kind)]] for kind in kinds]
    most = frame.group_by("start").agg(pl.col("count").sum()).select(pl.col("count").max()).item()
    chart = (
        alt.Chart(_DATA)
        .mark_bar()
        .encode(
            x=_time_axis(clock, "start").bin("binned"),
            x2="end:Q",
            y=alt.Y("count:Q").title("Events").scale(domain=[0, max(most, LEAST_EVENTS)]),
            color=alt.Color("kind:N").title(None).scale(domain=kinds, range=colours),
            tooltip=[
                alt.Tooltip("start:Q").title(TIMES[clock.unit]),
                alt.Tooltip("kind:N").title("What"),
                alt.Tooltip("count:Q").title("How many"),
            ],
        )
        .properties(height=200)
    )
    return Drawing(chart, frame)


def by_arm(frame: pl.DataFrame, clock: Clock, title: str, unit: str, palette: Palette) -> Drawing:
    """Draw a figure of several arms over time: rows of t, arm and value."""
    arms = frame["arm"].unique(maintain_order=True).to_list()
    colours = [palette.series[i % len(palette.series)] for i in range(len(arms))]
    value = alt.Y("value:Q").title(title).scale(zero=True)
    shown = [
        alt.Tooltip("t:Q").title(TIMES[clock.unit]),
        alt.Tooltip("arm:N").title("Arm"),
        alt.Tooltip("value:Q").title(f"{title.partition(' (')[0]} ({unit})"),
    ]
    colour = alt.Color("arm:N").title(None).scale(domain=arms, range=colours)
    colour = colour.legend(symbolType="stroke", symbolStrokeWidth=4, columns=1)
    line = alt.Chart(_DATA).mark_line().encode(x=_time_axis(clock), y=value, color=colour)
    points = (
        alt.Chart(_DATA)
        .mark_point(size=60, opacity=0.001)
        .encode(x=_time_axis(clock), y=value, tooltip=shown)
    )
    return Drawing(alt.layer(line, points).properties(height=HEIGHT), frame)


def differences(frame: pl.DataFrame, palette: Palette) -> Drawing:
    """Draw differences with their intervals, in multiples of their margins; right is better.

    Parameters
    ----------
    frame
        Rows of figure, verdict, difference, low and high (null without an interval), as text.
    """
    verdicts = ["better", "worse", "no difference", "cannot tell"]
    colours = [palette.series[i] for i in (2, 1, 6, 4)]
    scale = alt.Scale(type="symlog", constant=1, nice=False)
    title = "Worse < difference in margins > better"
    colour = alt.Color("verdict:N").title(None).scale(domain=verdicts, range=colours)
    base = alt.Chart(_DATA).encode(
        y=alt.Y("figure:N").sort(frame["figure"].to_list()).title(None).axis(labelLimit=260),
        color=colour,
        tooltip=[
            alt.Tooltip("figure:N").title("Figure"),
            alt.Tooltip("as text:N").title("Difference"),
            alt.Tooltip("verdict:N").title("Verdict"),
        ],
    )
    x = alt.X("difference:Q").scale(scale).title(title).axis(values=[-100, -10, -1, 0, 1, 10, 100])
    span = base.mark_rule(strokeWidth=5, opacity=0.45).encode(x=alt.X("low:Q"), x2="high:Q")
    point = base.mark_point(filled=True, size=90, opacity=1).encode(x=x)
    marks = [
        alt.Chart(_DATA)
        .mark_rule(strokeDash=[4, 3] if at else [1, 0], color=palette.muted)
        .encode(x=alt.datum(at))
        for at in (-1, 0, 1)
    ]
    height = max(ROW_HEIGHT // 2 * len(frame), 2 * ROW_HEIGHT)
    return Drawing(alt.layer(*marks, span, point).properties(height=height), frame)
