"""Importer of the processed Azure V1 arrivals: all 30 days, lifetimes for the last nine.

Source of the format: huaweicloud/trace_generation_rnn (CC-BY 4.0; Bergsma et al., SOSP 2021),
derived from AzurePublicDataset V1 (Cortez et al., SOSP 2017).
"""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fleet.trace import I64, NEVER, RowProblems, Trace, make_trace
from fleet.trace_csv import GIB_PAGES, ImportOptions
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NS_PER_S

MIN_LIFETIME_S = 300


class Part(NamedTuple):
    """One part of the month; its end is in the name of the file of lifetimes."""

    start_s: int
    end_s: int


PARTS = {"dev": Part(1_800_000, 2_100_000), "test": Part(2_100_000, 2_591_400)}


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a gzipped text file."""
    if not path.is_file():
        raise ScenarioError([Problem(str(path), "no such file")])
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            return file.read().split("\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScenarioError(
            [Problem(str(path), f"gzip data is broken: {error}", "fetch the file again")]
        ) from error


def _flavour_map(path: Path) -> dict[str, tuple[int, int, str]]:
    """Read lines ``cores,GB letter``: vCPUs, base pages and name by letter."""
    if not path.is_file():
        raise ScenarioError([Problem(str(path), "no such file")])
    flavours = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            size, letter = line.split()
            cores, gib = size.split(",")
            pages = float(gib) * GIB_PAGES
            if int(cores) <= 0 or pages <= 0 or pages != round(pages):
                raise ValueError
            flavours[letter] = (int(cores), round(pages), f"{cores}c-{float(gib):g}GiB")
        except ValueError as error:
            raise ScenarioError(
                [Problem(f"{path}: row {number}", f"{line!r} is not 'cores,GB letter'")]
            ) from error
    return flavours


def _bin_middle_s(path: Path) -> list[int]:
    """Read lines ``SECONDS BIN``: the middle of a bin's first and last second, 300 at least."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, line in enumerate(_read_lines(path), 1):
        if not line:
            continue
        try:
            second, index = map(int, line.split())
        except ValueError as error:
            raise ScenarioError(
                [Problem(f"{path}: row {number}", f"{line!r} is not 'SECONDS BIN'")]
            ) from error
        first.setdefault(index, second)
        last[index] = second
    if sorted(first) != list(range(len(first))):
        raise ScenarioError([Problem(str(path), "bins must be numbered 0, 1, 2, ...")])
    return [max(MIN_LIFETIME_S, (first[at] + last[at]) // 2) for at in range(len(first))]


def _batches(line: str) -> tuple[str, list[list[str]]]:
    """Split ``SECONDS x,x,|,x,|,`` into the second and the batches' items."""
    second, _, rest = line.partition(" ")
    split = [[item for item in batch.split(",") if item] for batch in rest.split("|")]
    return second, [batch for batch in split if batch]


class _Rows:
    """Columns of the trace while lines are read."""

    def __init__(self) -> None:
        self.start_s: list[int] = []
        self.end_s: list[int] = []
        self.flavour: list[int] = []
        self.batch: list[int] = []
        self.nr_batches = 0

    def add_line(
        self,
        arrivals: str,
        lifetimes: str,
        letters: dict[str, int],
        middle_s: list[int],
        end_s: int,
    ) -> str | None:
        """Append the VMs of one pair of lines; return what is wrong with it, if anything."""
        second, batches = _batches(arrivals)
        second_too, ends = _batches(lifetimes)
        if not second.isdigit() or second != second_too:
            return f"seconds {second!r} and {second_too!r} must be one number"
        if [len(batch) for batch in batches] != [len(batch) for batch in ends]:
            return "arrivals and lifetimes differ in their batches"
        start_s = int(second)
        if start_s >= end_s:
            return f"arrivals at {start_s} s, the part ends at {end_s} s"
        for batch, marks in zip(batches, ends, strict=True):
            for letter, mark in zip(batch, marks, strict=True):
                if letter not in letters:
                    return f"flavour {letter!r} is not in flav_map.txt"
                if mark[0] not in "UC" or not mark[1:].isdigit() or int(mark[1:]) >= len(middle_s):
                    return f"lifetime {mark!r} is not U or C and a bin below {len(middle_s)}"
                self.start_s.append(start_s)
                ended_s = min(start_s + middle_s[int(mark[1:])], end_s)
                self.end_s.append(ended_s if mark[0] == "U" else -1)
                self.flavour.append(letters[letter])
                self.batch.append(self.nr_batches)
            self.nr_batches += 1
        return None


def import_azure_v1_arrivals(path: Path, options: ImportOptions) -> Trace:
    """Import one part of the processed arrivals from its folder.

    A VM leaves after the middle of its lifetime bin's first and last second, after 300 s at
    least and at the part's end at most; one marked as censored is still there at the end.  VMs
    keep the order of the file.  Time 0 is the part's first second, or with ``keep_clock`` the
    month's.

    Raises
    ------
    ScenarioError
        The part has no lifetimes (train), a file is missing, or lines are malformed.
    """
    if options.part not in PARTS:
        raise ScenarioError(
            [
                Problem(
                    f"--part {options.part}",
                    "has no lifetimes, only dev and test have"
                    if options.part == "train"
                    else f"is none of {', '.join(PARTS)}",
                    "use --part test, or fleet trace generate azure-v1 for all 30 days",
                )
            ]
        )
    part = PARTS[options.part]
    flavours = _flavour_map(path / "flav_map.txt")
    middle_s = _bin_middle_s(path / "v1.interval_map.txt.gz")
    arrivals_path = path / f"v1.{options.part}.txt.gz"
    arrivals = _read_lines(arrivals_path)
    lifetimes = _read_lines(path / f"v1.{options.part}.c{part.end_s}.txt.gz")
    if len(arrivals) != len(lifetimes):
        raise ScenarioError(
            [Problem(str(arrivals_path), f"{len(arrivals)} lines, its lifetimes {len(lifetimes)}")]
        )
    rows = _Rows()
    letters = {letter: index for index, letter in enumerate(flavours)}
    problems = RowProblems(str(arrivals_path))
    for number, (line, line_too) in enumerate(zip(arrivals, lifetimes, strict=True), 1):
        if line or line_too:
            message = rows.add_line(line, line_too, letters, middle_s, part.end_s)
            if message:
                problems.add(number, message)
    problems.raise_if_any()
    return _trace(rows, list(flavours.values()), part, options)


def _trace(
    rows: _Rows, flavours: list[tuple[int, int, str]], part: Part, options: ImportOptions
) -> Trace:
    """Turn the rows into a trace on the chosen clock."""
    zero_s = 0 if options.keep_clock else part.start_s
    flavour = np.array(rows.flavour, np.int16)
    end_s: I64 = np.array(rows.end_s, np.int64)
    return make_trace(
        (np.array(rows.start_s, np.int64) - zero_s) * NS_PER_S,
        np.where(end_s < 0, NEVER, (end_s - zero_s) * NS_PER_S),
        np.array([cores for cores, _, _ in flavours], np.int32)[flavour],
        np.array([pages for _, pages, _ in flavours], np.int64)[flavour],
        flavour,
        np.array(rows.batch, np.int64),
        tuple(name for _, _, name in flavours),
        (part.end_s - zero_s) * NS_PER_S,
        f"azure-v1-arrivals {options.part}: AzurePublicDataset V1, CC-BY 4.0 (Cortez et al., "
        "SOSP 2017; Bergsma et al., SOSP 2021)",
    )
