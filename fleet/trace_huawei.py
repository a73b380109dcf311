"""Importer of Huawei-East-1, the trace of VMAgent."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fleet.trace import I64, NEVER, Check, RowProblems, Trace, make_trace
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

HEADER = "vmid,cpu,memory,time,type"


def _columns(frame: "pl.DataFrame") -> tuple[list[F64], list[Check]]:
    """Return the five columns as numbers, and their checks."""
    columns = [numbers(frame, at) for at in range(5)]
    _, cpu, memory, time_s, kind = columns
    names = HEADER.split(",")
    checks = [not_a_number(columns[at], frame[str(at)], names[at]) for at in range(5)]
    checks += [
        (
            (cpu <= 0) | ((cpu != np.rint(cpu)) & np.isfinite(cpu)),
            lambda r: f"cpu {cpu[r]:g} must be a positive whole number",
        ),
        (memory <= 0, lambda r: f"memory {memory[r]:g} must be positive"),
        (
            whole_pages(memory)[1],
            lambda r: f"memory {memory[r]:g} GB is no whole number of {PAGE_BYTES} B",
        ),
        (time_s < 0, lambda r: f"time {time_s[r]:g} must not be negative"),
        (
            (kind != 0) & (kind != 1) & np.isfinite(kind),
            lambda r: f"type {kind[r]:g} is neither 0 (create) nor 1 (delete)",
        ),
    ]
    return columns, checks


def import_huawei(path: Path, options: ImportOptions) -> Trace:
    """Import Huawei-East-1 of VMAgent: one row per creation (type 0) and deletion (type 1).

    A VM without deletion is still there at the end, which is the last row's time.  Each VM is a
    batch of its own: the trace names no tenants.  Lifetimes are at least one second.
    """
    problems = RowProblems(str(path))
    header = next(iter(text_lines(path)), (1, [""]))[1][0].strip()
    if header != HEADER:
        raise ScenarioError(
            [Problem(f"{path}: row 1", f"header is {header!r}, must be {HEADER!r}")]
        )
    parts = []
    for number, frame in text_frames(path, 5, problems, skip_lines=1):
        columns, checks = _columns(frame)
        problems.check(checks, number)
        parts.append((*columns, number.astype(np.float64)))
    problems.raise_if_any()
    if not sum(part[0].size for part in parts):
        raise ScenarioError([Problem(str(path), "holds no VMs")])
    vmid, cpu, memory, time_s, kind, number_f = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    created, end_s = _pair_rows(vmid, time_s, kind, number_f.astype(np.int64), problems)
    start_ns = np.rint(time_s[created] * NS_PER_S).astype(np.int64)
    leaves = np.isfinite(end_s)
    end_ns = np.rint(np.where(leaves, end_s, 0.0) * NS_PER_S).astype(np.int64)
    flavour, flavour_names = flavours_of(cpu[created], memory[created])
    return make_trace(
        start_ns,
        np.where(leaves, np.maximum(end_ns, start_ns + NS_PER_S), NEVER),
        cpu[created].astype(np.int32),
        whole_pages(memory[created])[0],
        flavour,
        np.arange(created.size, dtype=np.int64),
        flavour_names,
        round(float(time_s.max()) * NS_PER_S) + 1,
        f"huawei {path.name}: Huawei-East-1 of VMAgent (MIT; Sheng et al., 2022)",
    )


def _pair_rows(
    vmid: F64, time_s: F64, kind: F64, number: I64, problems: RowProblems
) -> tuple[I64, F64]:
    """Match creations and deletions of the same VM, in the order of the file.

    Returns
    -------
    tuple
        Rows of the creations in file order, and their ends in seconds (infinite: none).
    """
    order = np.argsort(vmid, kind="stable")
    same = np.zeros(order.size, bool)  # the row before in this order is of the same VM
    same[1:] = vmid[order][1:] == vmid[order][:-1]
    is_delete = kind[order] == 1
    after_create = np.zeros(order.size, bool)
    after_create[1:] = same[1:] & ~is_delete[:-1]
    earlier = np.zeros(order.size, bool)
    earlier[1:] = after_create[1:] & (time_s[order][1:] < time_s[order][:-1])
    name = vmid[order]
    problems.check(
        [
            (is_delete & ~after_create, lambda r: f"deletes VM {name[r]:g}, which does not run"),
            (~is_delete & after_create, lambda r: f"creates VM {name[r]:g}, which runs"),
            (is_delete & earlier, lambda r: f"deletes VM {name[r]:g} before it is created"),
        ],
        number[order],
    )
    problems.raise_if_any()
    end_s = np.full(vmid.size, np.inf)
    deletes = np.flatnonzero(is_delete)
    end_s[order[deletes - 1]] = time_s[order[deletes]]
    created = np.flatnonzero(kind == 0)
    return created, end_s[created]
