"""The part of a report that holds runs against each other."""

import html
from typing import Any, Final

import polars as pl

from fleet import charts, comparison_text
from fleet.comparison import Comparison, Difference
from fleet.effects import BY_NAME
from fleet.report_data import Frames
from hostsim.core.units import format_duration

_VERDICTS: Final = {
    "better": "better",
    "worse": "worse",
    "no_difference": "no difference",
    "cannot_tell": "cannot tell",
}
_CLASSES: Final = {"better": "good", "worse": "poor", "cannot_tell": "fair"}
_BY_SEED: Final = " The pairs are seeds: each brings other arrivals, the same in all arms."
_CURVES: Final = (
    ("coverage", "host", "Huge coverage on the hosts", "Share of guest memory (%)"),
    ("coverage", "effective", "Huge in guest and host alike", "Share of guest memory (%)"),
    ("fragmentation", "p95", "Fragmentation", "Free memory unusable, p95 host (%)"),
    ("waits", "stall mean", "Stalls", "Stalls (ms a host and hour)"),
)


def comparison_body(
    found: Comparison, frames: dict[str, list[Frames]], specs: dict[str, Any]
) -> str:
    """Return the comparison as HTML, and put its charts among the specifications.

    Parameters
    ----------
    frames
        Those of each arm's runs.
    """
    parts = [_introduction(found)]
    for index, arm in enumerate(found.arms):
        rows = [row for row in found.differences if row.arm == arm]
        if rows:
            parts.append(_arm(found, arm, rows, f"ab-differences-{index}", specs))
    parts.append(_over_time(frames, specs))
    return "".join(parts)


def _introduction(found: Comparison) -> str:
    seeds = ", ".join(map(str, found.seeds))
    text = (
        f"{len(found.arms)} arms, of which {found.baseline} is the baseline; seed {seeds},"
        f" {found.nr_hosts:,} hosts for {format_duration(found.duration_ns)}."
        + (_BY_SEED if found.pairing == "seeds" else "")
    )
    notes = "".join(f'<p class="caption">Note: {html.escape(note)}.</p>' for note in found.notes)
    return f"<p>{html.escape(text)}</p>{notes}"


def _arm(
    found: Comparison, arm: str, rows: list[Difference], place: str, specs: dict[str, Any]
) -> str:
    """Return what one arm gains and costs against the baseline: words, chart, table."""
    said = "".join(f"<li>{html.escape(line)}</li>" for line in comparison_text.words(found, rows))
    frame = _chart_rows(rows)
    picture = '<p class="empty">No figure differs.</p>'
    if len(frame):
        specs[place] = charts.spec(charts.differences(frame, charts.PAGE), charts.PAGE)
        picture = f'<div class="chart" id="{place}" role="img" aria-label="Differences"></div>'
    return (
        f"<h3>{html.escape(arm)} against {html.escape(found.baseline)}</h3><ul>{said}</ul>"
        f"{picture}{_table(found, arm, rows)}"
    )


def _chart_rows(rows: list[Difference]) -> pl.DataFrame:
    """Return the figures that differ, in multiples of their margins; more is better."""
    found = []
    for row in rows:
        if row.difference is None or row.verdict not in _VERDICTS or not row.margin:
            continue
        effect = BY_NAME[row.effect]
        scale = effect.better / row.margin
        edges = sorted(x * scale for x in (row.low, row.high) if x is not None)
        low, high = edges if len(edges) == 2 else (None, None)
        found.append(
            {
                "figure": effect.title,
                "verdict": _VERDICTS[row.verdict],
                "difference": row.difference * scale,
                "low": low,
                "high": high,
                "as text": f"{comparison_text.with_interval(row)} {row.unit}",
            }
        )
    schema = {"difference": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    return pl.DataFrame(found, infer_schema_length=None, schema_overrides=schema)


def _table(found: Comparison, arm: str, rows: list[Difference]) -> str:
    heads = ("Figure", found.baseline, arm, "Difference", "Margin", "Verdict")
    body = []
    for row in rows:
        verdict = comparison_text.verdict_text(row)
        cells = (
            f"{BY_NAME[row.effect].title}, {row.unit}",
            comparison_text.number(row.baseline_mean),
            comparison_text.number(row.mean),
            comparison_text.with_interval(row),
            comparison_text.number(row.margin),
        )
        plain = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        kind = _CLASSES.get(row.verdict, "")
        body.append(f'<tr>{plain}<td class="text verdict {kind}">{html.escape(verdict)}</td></tr>')
    titles = "".join(f"<th>{html.escape(head)}</th>" for head in heads[:-1])
    titles += f'<th class="text">{heads[-1]}</th>'
    return (
        f'<div class="scroll"><table class="differences"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="caption">Differences are arm minus baseline, +- half a 95 % interval. The margin'
        " is the smallest difference that matters; in the chart, dashed lines stand there. The"
        " verdicts on an arm hold together at 95 % (Holm).</p>"
    )


def _over_time(frames: dict[str, list[Frames]], specs: dict[str, Any]) -> str:
    """Return curves of all arms, each the mean of its runs."""
    clock = next(iter(frames.values()))[0].clock
    parts = []
    for index, (table, column, title, axis) in enumerate(_CURVES):
        rows = pl.concat(
            _mean_curve(arm, [getattr(one, table) for one in runs], column)
            for arm, runs in frames.items()
        ).drop_nulls()
        if not (rows["value"] != 0).any():
            continue
        place, unit = f"ab-curve-{index}", "ms" if "(ms" in axis else "%"
        drawn = charts.by_arm(rows, clock, axis, unit, charts.PAGE)
        specs[place] = charts.spec(drawn, charts.PAGE)
        picture = f'<div class="chart" id="{place}" role="img" aria-label="{title}"></div>'
        parts.append(f"<h3>{title}</h3>{picture}")
    return "".join(parts)


def _mean_curve(arm: str, frames: list[pl.DataFrame], column: str) -> pl.DataFrame:
    joined = pl.concat(one.select("t", pl.col(column).alias("value")) for one in frames)
    mean = joined.group_by("t").agg(pl.col("value").mean()).sort("t")
    return mean.select("t", pl.lit(arm).alias("arm"), pl.col("value").cast(pl.Float64))
