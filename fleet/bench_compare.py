"""Whether one checkout is faster than another, or the difference is noise.

Times on one machine drift by tens of per cent within minutes.  Only what was measured by turns
can be told apart: pairs from one session, whose drift hits both alike.  The effect is the
geometric mean of the ratios of pairs with a confidence interval (t, on logarithms; Bonferroni over
the rows, so that a table without any change shows one in twenty times); the verdict says that it
cannot tell whenever the interval holds 1.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from scipy import stats

from fleet.claims import AT_LEAST, DOCUMENT, number
from hostsim.core.errors import ResultsError

if TYPE_CHECKING:
    from rich.console import RenderableType

FALSE_ALARMS: Final = 0.05  # over all rows of a table
MIN_PAIRS: Final = 3
WORSE: Final = ("slower", "worse")
CANNOT_TELL: Final = "cannot tell"
TIMES: Final = ("s", "ms", "us", "ns", "CPU s")


class Compared(NamedTuple):
    """One figure of two documents."""

    group: str
    name: str
    unit: str
    a: float  # geometric means
    b: float
    ratio: float  # B over A
    low: float  # its interval
    high: float
    samples: tuple[int, int]
    verdict: str


class Figure(NamedTuple):
    """The samples of one figure in a document."""

    group: str
    name: str
    unit: str
    more_is_better: bool
    samples: list[float]


def read_document(path: Path) -> dict[str, Any]:
    """Read what ``--json`` wrote.

    Raises
    ------
    ResultsError
        It cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != DOCUMENT:
        raise ResultsError(f"{path}: was not written by fleet bench --json")
    return content


def figures(content: dict[str, Any]) -> dict[tuple[str, str], Figure]:
    """Return the figures of a document: claims with numbers, and the CPU time of each bench."""
    found = {}
    for row in content["claims"]:
        samples = [value for value in row["samples"] if value is not None]
        if samples and min(samples) > 0:
            better = row["bound"] == AT_LEAST
            key = row["group"], row["name"]
            found[key] = Figure(*key, row["unit"], better, samples)
    for group, cost in content["groups"].items():
        samples = [value for value in cost["cpu_s"] if value]
        if samples:
            name = "CPU time of the bench"
            found[group, name] = Figure(group, name, "CPU s", False, samples)
    return found


def compare(a: dict[str, Any], b: dict[str, Any]) -> list[Compared]:
    """Compare the figures that two documents share, in pairs if they are of one session."""
    paired = a["session"] == b["session"]
    first, second = figures(a), figures(b)
    keys = [key for key in first if key in second]
    return [_compare(first[key], second[key], paired, len(keys)) for key in keys]


def _compare(a: Figure, b: Figure, paired: bool, rows: int) -> Compared:
    logs_a, logs_b = ([math.log(v) for v in figure.samples] for figure in (a, b))
    mean_a, mean_b = (sum(logs) / len(logs) for logs in (logs_a, logs_b))
    middle, half = mean_b - mean_a, math.inf
    confidence = 1.0 - FALSE_ALARMS / rows
    exact = len(set(a.samples)) == len(set(b.samples)) == 1  # bytes and counts repeat exactly
    if exact:
        half = 0.0
    elif paired and len(logs_a) == len(logs_b) >= MIN_PAIRS:
        half = _half_width([y - x for x, y in zip(logs_a, logs_b, strict=True)], confidence)
    elif not paired and min(len(logs_a), len(logs_b)) >= MIN_PAIRS:
        test = stats.ttest_ind(logs_b, logs_a, equal_var=False)
        interval = test.confidence_interval(confidence)
        half = float(interval.high - interval.low) / 2
    low, high = middle - half, middle + half
    told = (paired or exact) and not low <= 0.0 <= high
    return Compared(
        a.group,
        a.name,
        a.unit,
        math.exp(mean_a),
        math.exp(mean_b),
        math.exp(middle),
        _exp(low),
        _exp(high),
        (len(logs_a), len(logs_b)),
        _verdict(a, middle) if told else "same" if exact and middle == 0.0 else CANNOT_TELL,
    )


def _half_width(differences: Sequence[float], confidence: float) -> float:
    """Return half the width of a t interval of a mean."""
    error = float(stats.sem(differences))
    return error * float(stats.t.ppf(0.5 + confidence / 2, len(differences) - 1))


def _exp(value: float) -> float:
    return math.exp(value) if value < math.inf else math.inf


def _verdict(figure: Figure, log_ratio: float) -> str:
    is_better = (log_ratio > 0) == figure.more_is_better
    if figure.unit in TIMES or figure.unit.endswith("/s"):
        return "faster" if is_better else "slower"
    return "better" if is_better else "worse"


def table(rows: Sequence[Compared]) -> "RenderableType":
    """Return rows for people: A, B, B over A with its interval, verdict."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, expand=True, padding=(0, 1, 0, 0), show_edge=False)
    made.add_column("figure", ratio=34)
    for title in ("A", "B"):
        made.add_column(title, ratio=14, justify="right")
    made.add_column("B / A, interval", ratio=22, justify="right")
    made.add_column("n", justify="right", width=5)
    made.add_column("", width=11)
    for row in rows:
        style = "bold red" if row.verdict in WORSE else ""
        made.add_row(
            Text(f"{row.group}: {row.name}", style),
            number(row.a, row.unit),
            number(row.b, row.unit),
            f"{row.ratio:.3f}  {row.low:.3f}..{row.high:.3f}",
            f"{row.samples[0]}+{row.samples[1]}",
            Text(row.verdict, style),
        )
    return made
