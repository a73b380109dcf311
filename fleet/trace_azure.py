"""Importers of Azure's public vmtables of 2017 and 2019."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fleet.trace import NEVER, Check, RowProblems, Trace, make_trace
from fleet.trace_csv import (
    F64,
    ImportOptions,
    batches_of,
    flavours_of,
    not_a_number,
    numbers,
    text_frames,
    whole_pages,
)
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NS_PER_S, PAGE_BYTES

if TYPE_CHECKING:
    import polars as pl

STEP_S = 300  # stamps are multiples; the dataset's notebooks floor lifetimes at it
LAST_S = 2_591_400  # deleted then or later: still there (AzurePublicDatasetV1.md, V2.md)
SPAN_S = {"azure-v1": 2_591_700, "azure-v2": 2_591_400}  # last stamps
CREDIT = "AzurePublicDataset, CC-BY 4.0 (Cortez et al., SOSP 2017)"
V2_VCPUS = {"2": 2.0, "4": 4.0, "8": 8.0, "12": 12.0, "24": 24.0, ">24": 32.0}
V2_GIB = {"2": 2.0, "4": 4.0, "8": 8.0, "32": 32.0, "64": 64.0, ">64": 128.0}


def _buckets(texts: "pl.Series", table: dict[str, float]) -> tuple[F64, Check]:
    """Map bucket names to their sizes, and check that all are known."""
    import polars as pl

    names = texts.str.strip_chars().str.strip_chars('"')
    mapped = names.replace_strict(table, default=None, return_dtype=pl.Float64)
    values = mapped.fill_null(float("nan")).to_numpy().astype(np.float64)
    known = ", ".join(table)
    return values, (np.isnan(values), lambda r: f"bucket {texts[r]!r} is none of {known}")


def _sizes(frame: "pl.DataFrame", version: str) -> tuple[F64, F64, list[Check]]:
    """Return vCPUs, GiB and checks of the two size columns of a vmtable."""
    if version == "azure-v2":
        vcpus, check = _buckets(frame["9"], V2_VCPUS)
        gib, check_too = _buckets(frame["10"], V2_GIB)
        return vcpus, gib, [check, check_too]
    vcpus, gib = numbers(frame, 9), numbers(frame, 10)
    checks = [
        not_a_number(vcpus, frame["9"], "vmcorecount"),
        not_a_number(gib, frame["10"], "vmmemory"),
        (
            (vcpus <= 0) | ((vcpus != np.rint(vcpus)) & np.isfinite(vcpus)),
            lambda r: f"vmcorecount {vcpus[r]:g} must be a positive whole number",
        ),
        (gib <= 0, lambda r: f"vmmemory {gib[r]:g} must be positive"),
        (
            whole_pages(gib)[1],
            lambda r: f"vmmemory {gib[r]:g} GB is no whole number of {PAGE_BYTES} B",
        ),
    ]
    return vcpus, gib, checks


def _times(frame: "pl.DataFrame") -> tuple[F64, F64, list[Check]]:
    """Return creation, deletion and checks of the two time columns of a vmtable."""
    created, deleted = numbers(frame, 3), numbers(frame, 4)
    checks = [
        not_a_number(created, frame["3"], "vmcreated"),
        not_a_number(deleted, frame["4"], "vmdeleted"),
        (created < 0, lambda r: f"vmcreated {created[r]:g} must not be negative"),
        (
            deleted < created,
            lambda r: f"vmdeleted {deleted[r]:g} lies before vmcreated {created[r]:g}",
        ),
    ]
    return created, deleted, checks


def _import_vmtable(path: Path, version: str) -> Trace:
    """Read ``vmtable.csv[.gz]``: 11 columns without header.

    Created at 0 means "already running": such VMs start 1 ns before time 0.  Deleted at the
    last stamps (2,591,400 s and later) means still there.  Lifetimes are at least 300 s, as in
    the dataset's notebooks.  A batch is what one subscription created at one stamp.
    """
    problems = RowProblems(str(path))
    parts: list[tuple[F64, ...]] = []
    tenants: list[NDArray[np.uint64]] = []
    for number, frame in text_frames(path, 11, problems):
        created, deleted, time_checks = _times(frame)
        vcpus, gib, size_checks = _sizes(frame, version)
        problems.check([*time_checks, *size_checks], number)
        parts.append((created, deleted, vcpus, gib))
        tenants.append(frame["1"].hash(seed=0).to_numpy())
    problems.raise_if_any()
    if not sum(part[0].size for part in parts):
        raise ScenarioError([Problem(str(path), "holds no VMs")])
    created, deleted, vcpus, gib = (np.concatenate(column) for column in zip(*parts, strict=True))
    ended = np.maximum(deleted, created + STEP_S)
    flavour, names = flavours_of(vcpus, gib)
    return make_trace(
        np.where(created == 0, -1, created.astype(np.int64) * NS_PER_S),
        np.where(deleted >= LAST_S, NEVER, ended.astype(np.int64) * NS_PER_S),
        vcpus.astype(np.int32),
        whole_pages(gib)[0],
        flavour,
        batches_of(np.concatenate(tenants), created),
        names,
        SPAN_S[version] * NS_PER_S,
        f"{version} {path.name}: {CREDIT}",
    )


def import_azure_v1(path: Path, options: ImportOptions) -> Trace:
    """Import Azure's vmtable of 2017: sizes are exact."""
    return _import_vmtable(path, "azure-v1")


def import_azure_v2(path: Path, options: ImportOptions) -> Trace:
    """Import Azure's vmtable of 2019: sizes are the upper bounds of buckets.

    Simplified: ">24" cores count as 32 and ">64" GB as 128, as in Microsoft MARO's loader (the
    dataset's own notebook takes 30 and 70).
    """
    return _import_vmtable(path, "azure-v2")
