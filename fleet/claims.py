"""Claims about fidelity and speed: one shape, one table, one JSON document.

``fleet validate`` and ``fleet bench`` both judge by these and print them the same way.
"""

import os
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fleet import rundir
from hostsim.core.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DOCUMENT = "hugefleet claims"
AT_LEAST, AT_MOST = "at least", "at most"
NARROW_COLUMNS, WIDE_COLUMNS = 100, 140
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"))  # of rates: decimal


class Claim(NamedTuple):
    """One claim, tried and judged."""

    name: str
    expected: str
    source: str  # who says so; empty: a bar of this project
    measured: str
    verdict: bool
    # of claims with one number
    value: float | None = None  # what was measured
    bar: float | None = None
    bound: str = ""  # AT_LEAST or AT_MOST the bar
    unit: str = ""
    cpu_s: float | None = None  # what it took to measure this one
    peak_bytes: int | None = None

    @property
    def ratio(self) -> float | None:
        """What was measured over what was asked for."""
        return self.value / self.bar if self.bar and self.value is not None else None


class Found(NamedTuple):
    """What a bench found."""

    claims: Sequence[Claim]
    details: Any = None  # JSON
    lines: Sequence[str] = ()  # the details for people, 100 columns
    cpu_s: float | None = None  # of all processes, where that is more than this one's
    peak_bytes: int | None = None


def number(value: float, unit: str = "") -> str:
    """Return a figure with its unit: "3.3 M events/s", "812 MiB", "0.80"."""
    if unit == "B":
        return format_bytes(int(value))
    for scale, prefix in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:.4g} {prefix} {unit}".rstrip()
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def at_least(name: str, value: float, bar: float, unit: str = "", source: str = "") -> Claim:
    """Judge a figure that is good if it is large."""
    return _bounded(name, value, bar, AT_LEAST, unit, source)


def at_most(name: str, value: float, bar: float, unit: str = "", source: str = "") -> Claim:
    """Judge a figure that is good if it is small."""
    return _bounded(name, value, bar, AT_MOST, unit, source)


def _bounded(name: str, value: float, bar: float, bound: str, unit: str, source: str) -> Claim:
    holds = value >= bar if bound == AT_LEAST else value <= bar
    expected = f"{'>=' if bound == AT_LEAST else '<='} {number(bar, unit)}"
    return Claim(name, expected, source, number(value, unit), holds, value, bar, bound, unit)


def same(name: str, value: object, expected: object, source: str) -> Claim:
    """Judge what must be as it was told."""
    return Claim(name, _plain(expected), source, _plain(value), value == expected)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def over_repeats(found: Sequence[Claim]) -> Claim:
    """Return what stands for several measurements of one claim: the median, or one that fails."""
    numbers = [claim for claim in found if claim.value is not None]
    if numbers:
        numbers.sort(key=lambda claim: claim.value or 0.0)
        middle = numbers[(len(numbers) - 1) // 2]
        return (
            middle if len(found) == 1 else middle._replace(measured=f"{middle.measured} (median)")
        )
    return min(found, key=lambda claim: claim.verdict)


def machine() -> dict[str, Any]:
    """Return what the machine is: CPU model, cores that may be used, memory."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            model = value.strip()
            break
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0))
    return {"cpu": model, "cores": cores, "memory_bytes": memory_bytes}


class Group(NamedTuple):
    """The claims of one bench or one part of the validation, and how often they were tried."""

    name: str
    runs: Sequence[Found]

    @property
    def repeats(self) -> list[list[Claim]]:
        """Every claim as often as it was tried; the order is that of the first run."""
        tried: dict[tuple[str, int], list[Claim]] = {}
        for run in self.runs:
            seen: Counter[str] = Counter()
            for claim in run.claims:
                tried.setdefault((claim.name, seen[claim.name]), []).append(claim)
                seen[claim.name] += 1
        return list(tried.values())

    @property
    def claims(self) -> list[Claim]:
        """What stands for the repeats of every claim."""
        return [over_repeats(found) for found in self.repeats]

    @property
    def failed(self) -> int:
        """How many claims do not hold."""
        return sum(not claim.verdict for claim in self.claims)


def document(groups: Iterable[Group], session: str = "") -> dict[str, Any]:
    """Return what a program reads: claims, samples, and on what they were measured.

    Parameters
    ----------
    session
        Names what was measured by turns; two documents of one session can be compared pair by pair.
    """
    rows, costs = [], {}
    for group in groups:
        for found in group.repeats:
            samples = [claim.value for claim in found]
            rows.append({"group": group.name, **over_repeats(found)._asdict(), "samples": samples})
        costs[group.name] = {
            "cpu_s": [run.cpu_s for run in group.runs],
            "peak_bytes": [run.peak_bytes for run in group.runs],
            "details": group.runs[-1].details if group.runs else None,
        }
    return {
        "format": DOCUMENT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "session": session or uuid.uuid4().hex,
        "machine": machine(),
        "versions": rundir.versions(),
        "git_commit": rundir.git_commit(),
        "failed": sum(not row["verdict"] for row in rows),
        "claims": rows,
        "groups": costs,
    }


def groups_of(content: dict[str, Any]) -> list[Group]:
    """Return the groups of a document, a run each: what stood for the repeats."""
    groups = []
    for name, cost in content["groups"].items():
        rows = [row for row in content["claims"] if row["group"] == name]
        claims = [Claim(**{field: row[field] for field in Claim._fields}) for row in rows]
        cpu_s, peak = cost["cpu_s"][-1:], cost["peak_bytes"][-1:]
        outcome = Found(claims, cost["details"], (), *cpu_s, *peak)
        groups.append(Group(name, [outcome]))
    return groups


def console() -> "Console":
    """Return where tables are printed: as wide as the terminal within limits, else 100 columns."""
    from rich.console import Console

    made = Console(highlight=False)
    width = made.width if made.is_terminal else NARROW_COLUMNS
    made.width = min(max(width, NARROW_COLUMNS), WIDE_COLUMNS)
    return made


def table(groups: Sequence[Group], costs: bool) -> "RenderableType":
    """Return the table of all claims: a section a group; what fails stands out.

    Parameters
    ----------
    costs
        With the columns of benches: measured over asked for, CPU seconds, peak memory.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, expand=True, padding=(0, 1, 0, 0), show_edge=False)
    made.add_column("claim", ratio=30)
    made.add_column("expected", ratio=18)
    made.add_column("measured", ratio=18)
    if costs:
        for title, width in (("ratio", 6), ("CPU s", 7), ("peak", 9)):
            made.add_column(title, justify="right", width=width)
    made.add_column("", width=4)
    for group in groups:
        head = (Text(group.name, "bold underline"), "", "")
        last = group.runs[-1] if group.runs else Found(())
        made.add_row(*head, *(_costs(None, last.cpu_s, last.peak_bytes) if costs else ()), "")
        source = ""
        for claim in group.claims:
            if claim.source not in ("", source):
                made.add_row(Text(f"  [{claim.source}]", "dim"))
            source = claim.source
            style = "" if claim.verdict else "bold red"
            name = Text(claim.name, style)
            own = _costs(claim.ratio, claim.cpu_s, claim.peak_bytes) if costs else ()
            verdict = Text("ok" if claim.verdict else "FAIL", style or "green")
            made.add_row(name, Text(claim.expected), Text(claim.measured, style), *own, verdict)
    return made


def _costs(ratio: float | None, cpu_s: float | None, peak_bytes: int | None) -> tuple[str, ...]:
    return (
        "" if ratio is None else f"{ratio:.3g}",
        "" if cpu_s is None else f"{cpu_s:.1f}",
        "" if peak_bytes is None else format_bytes(peak_bytes),
    )
