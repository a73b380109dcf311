"""Importer of Azure's trace for packing, a SQLite file."""

import logging
import sqlite3
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.trace import I64, NEVER, RowProblems, Trace, make_trace
from fleet.trace_csv import F64, GIB_PAGES, ImportOptions, batches_of, flavours_of
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NS_PER_DAY, NS_PER_S

log = logging.getLogger(__name__)

SPAN_DAYS = 14  # AzureTracesForPacking2020.md
QUERY = """
    SELECT vm.rowid, vm.tenantId, vm.starttime, vm.endtime, type.core, type.memory
    FROM vm LEFT JOIN (
        SELECT vmTypeId, MIN(core) AS core, MIN(memory) AS memory
        FROM vmType WHERE CAST(machineId AS TEXT) = ? GROUP BY vmTypeId
    ) AS type ON type.vmTypeId = vm.vmTypeId
    ORDER BY vm.rowid
"""


class PackingRows(NamedTuple):
    """Rows of the packing trace: times in days, sizes as shares of the machine."""

    row_number: I64
    tenant: NDArray[np.str_]
    start_days: F64
    end_days: F64  # infinite where the file has NULL
    core_ratio: F64
    memory_ratio: F64


def _floats(values: tuple[object, ...], null: float) -> F64:
    """Return SQLite values, numbers or text, as numbers: `null` for NULL, NaN for no number."""

    def number(value: object) -> float:
        try:
            return null if value is None else float(str(value))
        except ValueError:
            return float("nan")

    return np.array([number(value) for value in values], np.float64)


def _packing_rows(path: Path, machine_id: int) -> PackingRows:
    """Query the SQLite file, one row per VM."""
    if not path.is_file():
        raise ScenarioError([Problem(str(path), "no such file")])
    try:
        connection = sqlite3.connect(f"file:{path.resolve().as_posix()}?mode=ro", uri=True)
        try:
            found = connection.execute("SELECT DISTINCT CAST(machineId AS TEXT) FROM vmType")
            machines = sorted((row[0] for row in found), key=lambda name: (len(name), name))
            rows = connection.execute(QUERY, (str(machine_id),)).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        hint = "expected the SQLite file of Azure's packing trace: tables vm and vmType"
        raise ScenarioError([Problem(str(path), f"cannot be queried: {error}", hint)]) from error
    if str(machine_id) not in machines:
        message = f"machineId {machine_id} is none of {', '.join(machines)}"
        raise ScenarioError([Problem(f"{path}: vmType", message, "choose one by --machine-id")])
    if not rows:
        raise ScenarioError([Problem(str(path), "holds no VMs")])
    number, tenant, start, end, core, memory = zip(*rows, strict=True)
    return PackingRows(
        np.array(number, np.int64),
        np.array([str(name) for name in tenant]),
        _floats(start, float("nan")),
        _floats(end, float("inf")),
        _floats(core, -1.0),
        _floats(memory, -1.0),
    )


def import_azure_packing(path: Path, options: ImportOptions) -> Trace:
    """Import Azure's trace for packing (Protean, OSDI 2020) as seen by one machine type.

    Sizes are shares of the machine ``options.machine_id``, here a host of ``options.vcpus`` and
    ``options.memory_pages``, rounded up to whole vCPUs and pages.  VMs whose type that machine
    cannot host are left out (their number is logged).  Times are fractional days; a NULL end is
    behind the 90 days that the trace follows a VM.  Lifetimes are at least one second.
    """
    rows = _packing_rows(path, options.machine_id)
    start, end = rows.start_days, rows.end_days
    problems = RowProblems(f"{path}: vm")
    problems.check(
        [
            (np.isnan(start), lambda r: "starttime is not a number"),
            (np.isnan(end), lambda r: "endtime is not a number"),
            (end < start, lambda r: f"endtime {end[r]:g} lies before starttime {start[r]:g}"),
            (
                np.isnan(rows.core_ratio) | (rows.core_ratio == 0) | (rows.core_ratio < -1),
                lambda r: f"core {rows.core_ratio[r]:g} of its type must be a positive share",
            ),
            (
                np.isnan(rows.memory_ratio) | (rows.memory_ratio == 0) | (rows.memory_ratio < -1),
                lambda r: f"memory {rows.memory_ratio[r]:g} of its type must be a positive share",
            ),
        ],
        rows.row_number,
    )
    problems.raise_if_any()
    keep = rows.core_ratio > 0
    if not keep.all():
        log.warning(
            "%s: %d of %d VMs left out, machine %d cannot host their types",
            path,
            int((~keep).sum()),
            keep.size,
            options.machine_id,
        )
    start_ns = np.rint(start[keep] * NS_PER_DAY).astype(np.int64)
    leaves = np.isfinite(end[keep])
    end_ns = np.rint(np.where(leaves, end[keep], 0.0) * NS_PER_DAY).astype(np.int64)
    # up to the next whole number, where shares such as 1/3 are exact to six digits
    vcpus = np.ceil(rows.core_ratio[keep] * options.vcpus - 1e-4)
    pages = np.ceil(rows.memory_ratio[keep] * options.memory_pages - 1e-4)
    flavour, names = flavours_of(vcpus, pages / GIB_PAGES)
    return make_trace(
        start_ns,
        np.where(leaves, np.maximum(end_ns, start_ns + NS_PER_S), NEVER),
        vcpus.astype(np.int32),
        pages.astype(np.int64),
        flavour,
        batches_of(rows.tenant[keep], start[keep]),
        names,
        SPAN_DAYS * NS_PER_DAY,
        f"azure-packing {path.name}, machine {options.machine_id}: Azure Traces for Packing 2020, "
        "CC-BY (Hadary et al., OSDI 2020)",
    )
