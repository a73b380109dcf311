"""A comparison for people: a table an arm, and what it comes to in words."""

import textwrap

import polars as pl

from fleet.comparison import Comparison, Difference
from fleet.effects import BY_NAME
from fleet.text_table import as_text as table_text
from hostsim.core.units import format_duration

_VERDICTS = {
    "better": "better",
    "worse": "worse",
    "identical": "identical",
    "cannot_tell": "cannot tell",
    "no_data": "nothing to compare",
}
_TOGETHER = "The verdicts on an arm hold together at 95 % (Holm)."
_PROSE_WIDTH = 100
_PAIRING = {
    "seeds": "paired by seed",
    "hosts": "paired by host",
    "none": "one pair of runs",
}


def as_text(found: Comparison, width: int) -> str:
    """Print a comparison."""
    lines = [
        f"{len(found.arms)} arms, {_counted(len(found.seeds), 'seed')},"
        f" {_counted(found.nr_hosts, 'host')} for {format_duration(found.duration_ns)};"
        f" {_PAIRING[found.pairing]}"
    ]
    for arm in found.arms:
        rows = [row for row in found.differences if row.arm == arm]
        if rows:
            lines += ["", f"{arm} against {found.baseline}"]
            lines += [*_table(rows, width), *words(found, rows)]
    notes = [f"note: {note}" for note in found.notes]
    if found.pairing != "none" and any(r.verdict != "identical" for r in found.differences):
        more = f"~N more: so many more {found.pairing} would probably tell."
        notes.insert(0, f"+- is half a 95 % interval. {_TOGETHER} {more}")
    lines += ["", *notes] if notes else []
    return "\n".join(_wrapped(line, width) for line in lines)


def _wrapped(line: str, width: int) -> str:
    """Break a line of prose; tables have the width they were given."""
    if line.startswith("|"):
        return line
    return textwrap.fill(line, min(width, _PROSE_WIDTH), subsequent_indent="  ")


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _table(rows: list[Difference], width: int) -> list[str]:
    """Return a table of the figures that are not the same in all runs."""
    rows = [row for row in rows if row.verdict != "identical"]
    columns = {
        "figure": [f"{BY_NAME[row.effect].title}, {row.unit}" for row in rows],
        "baseline": [number(row.baseline_mean) for row in rows],
        "arm": [number(row.mean) for row in rows],
        "difference": [with_interval(row) for row in rows],
        "verdict": [verdict_text(row) for row in rows],
    }
    return [table_text(pl.DataFrame(columns), width)] if rows else []


def number(value: float | None) -> str:
    """Return three digits: what is compared is seldom known better."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(row: Difference) -> str:
    """Return a difference with half its interval."""
    if row.difference is None:
        return "-"
    sign = "+" if row.difference > 0 else ""
    half = "" if row.high is None else f" +- {number(row.high - row.difference)}"
    return f"{sign}{number(row.difference)}{half}"


def verdict_text(row: Difference) -> str:
    """Return a verdict in a few words."""
    if row.verdict == "no_difference":
        return f"none of {number(row.margin)} or more"
    if row.verdict == "cannot_tell" and row.low is not None:
        more = "over 1000" if row.more_pairs is None else f"~{row.more_pairs}"
        return f"cannot tell ({more} more)"
    return _VERDICTS[row.verdict]


def words(found: Comparison, rows: list[Difference]) -> list[str]:
    """Say what an arm gains and costs."""
    lines = []
    for verdict in ("better", "worse"):
        parts = [_said(found, row) for row in rows if row.verdict == verdict]
        if parts:
            lines.append(f"{verdict}: {'; '.join(parts)}")
    for verdict, words in (("cannot_tell", "cannot tell"), ("identical", "the same in all runs")):
        titles = [BY_NAME[row.effect].title for row in rows if row.verdict == verdict]
        if titles:
            lines.append(f"{words}: {', '.join(titles)}")
    return lines


def _said(found: Comparison, row: Difference) -> str:
    """Say one difference in units that people act on."""
    assert row.difference is not None
    size = number(abs(row.difference))
    sign = "more" if row.difference > 0 else "less"
    if row.effect == "memory_used":
        fleet = number(abs(row.difference) * found.nr_hosts)
        return f"{size} GiB of memory {sign} a host, {fleet} GiB over the fleet"
    if row.effect == "cycles_lost":
        return f"{size} % of run time {'lost' if row.difference > 0 else 'returned'}"
    unit = "points" if row.unit == "%" else row.unit
    return f"{BY_NAME[row.effect].title} {size} {unit} {sign}"
