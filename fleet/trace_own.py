"""Importer of an operator's own VMs: one line a VM, as any database can write it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fleet.trace import NEVER, Check, RowProblems, Trace, make_trace
from fleet.trace_csv import (
    F64,
    ImportOptions,
    flavours_of,
    not_a_number,
    numbers,
    text_frames,
    text_lines,
    whole_pages,
)
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NS_PER_S, PAGE_BYTES

if TYPE_CHECKING:
    import polars as pl

HEADER = "vm,start_s,end_s,vcpus,memory_gib"


def _columns(frame: "pl.DataFrame") -> tuple[tuple[F64, ...], list[Check]]:
    """Return start, end (infinite: none), vCPUs and GiB, and their checks."""
    start_s, vcpus, gib = (numbers(frame, at) for at in (1, 3, 4))
    stays = (frame["2"].str.strip_chars() == "").to_numpy()
    end_s = np.where(stays, np.inf, numbers(frame, 2))
    checks = [
        not_a_number(start_s, frame["1"], "start_s"),
        not_a_number(np.where(stays, 0.0, end_s), frame["2"], "end_s"),
        not_a_number(vcpus, frame["3"], "vcpus"),
        not_a_number(gib, frame["4"], "memory_gib"),
        (end_s <= start_s, lambda r: f"end_s {end_s[r]:g} is not behind start_s {start_s[r]:g}"),
        (end_s <= 0, lambda r: f"end_s {end_s[r]:g}: the VM is gone before time 0"),
        (
            (vcpus <= 0) | ((vcpus != np.rint(vcpus)) & np.isfinite(vcpus)),
            lambda r: f"vcpus {vcpus[r]:g} must be a positive whole number",
        ),
        (gib <= 0, lambda r: f"memory_gib {gib[r]:g} must be positive"),
        (
            whole_pages(gib)[1],
            lambda r: f"memory_gib {gib[r]:g} is no whole number of {PAGE_BYTES} B",
        ),
    ]
    return (start_s, end_s, vcpus, gib), checks


def import_own(path: Path, options: ImportOptions) -> Trace:
    """Import a CSV file of VMs; seconds count from the moment at which runs shall begin.

    A VM with a negative start runs at time 0; one without an end stays.  Each VM is a batch of
    its own.  The trace ends with its last start or end.
    """
    problems = RowProblems(str(path))
    header = next(iter(text_lines(path)), (1, [""]))[1][0].strip()
    if header != HEADER:
        message = f"header is {header!r}, must be {HEADER!r}"
        raise ScenarioError([Problem(f"{path}: row 1", message)])
    parts = []
    for number, frame in text_frames(path, 5, problems, skip_lines=1):
        columns, checks = _columns(frame)
        problems.check(checks, number)
        parts.append(columns)
    problems.raise_if_any()
    if not sum(part[0].size for part in parts):
        raise ScenarioError([Problem(str(path), "holds no VMs")])
    start_s, end_s, vcpus, gib = (np.concatenate(column) for column in zip(*parts, strict=True))
    leaves = np.isfinite(end_s)
    start_ns = np.rint(start_s * NS_PER_S).astype(np.int64)
    end_ns = np.rint(np.where(leaves, end_s, 0.0) * NS_PER_S).astype(np.int64)
    flavour, names = flavours_of(vcpus, gib)
    return make_trace(
        start_ns,
        np.where(leaves, end_ns, NEVER),
        vcpus.astype(np.int32),
        whole_pages(gib)[0],
        flavour,
        np.arange(start_s.size, dtype=np.int64),
        names,
        int(max(start_ns.max(), end_ns.max(), 0)) + 1,
        f"csv {path.name}",
    )
