"""VM traces: who arrives when, how large, and until when; one parquet schema for all of them.

A trace is a NamedTuple of arrays sorted by start; a VM's number is its row.  Importers live in
``fleet.trace_import``, the built-in generator in ``fleet.churn``.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.errors import Problem, ScenarioError

if TYPE_CHECKING:
    import pyarrow as pa

NEVER = int(np.iinfo(np.int64).max)  # end_ns of a VM that is still there at the end
TRACE_VERSION = 1
MAX_PROBLEMS = 20  # shown; the total is always stated
ORDER_HINT = "rows stand in order of start_ns, vm_id counts them from 0"

I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Check = tuple[NDArray[np.bool_], Callable[[int], str]]  # bad rows, and what is wrong with one


class Trace(NamedTuple):
    """VMs in order of start, ties in the order of the source.

    Invariants: ``vm_id`` is ``0..n-1``; ``start_ns`` never falls; ``end_ns > start_ns``;
    ``vcpus > 0``; ``memory_pages > 0``; ``0 <= flavour < len(flavours)``.  A negative start is
    a VM already running at time 0 (the standing population).  An end may lie behind
    ``span_ns``.
    """

    vm_id: I64  # (n,) row number
    start_ns: I64  # (n,) ns since the trace's time 0
    end_ns: I64  # (n,) ns, NEVER if still there at the end
    vcpus: I32  # (n,)
    memory_pages: I64  # (n,) base pages; 1 GB of any source counts as 1 GiB
    flavour: I16  # (n,) index into flavours
    batch_id: I64  # (n,) VMs that one tenant asked for together
    flavours: tuple[str, ...]
    span_ns: int  # length of the trace
    source: str = ""  # where it came from, attribution included

    @property
    def nr_vms(self) -> int:
        """Number of VMs."""
        return int(self.start_ns.size)


def make_trace(
    start_ns: I64,
    end_ns: I64,
    vcpus: I32,
    memory_pages: I64,
    flavour: I16,
    batch_id: I64,
    flavours: tuple[str, ...],
    span_ns: int,
    source: str = "",
) -> Trace:
    """Sort rows by start, ties in the given order, and number them."""
    order = np.argsort(start_ns, kind="stable")
    return Trace(
        np.arange(order.size, dtype=np.int64),
        np.ascontiguousarray(start_ns[order], dtype=np.int64),
        np.ascontiguousarray(end_ns[order], dtype=np.int64),
        np.ascontiguousarray(vcpus[order], dtype=np.int32),
        np.ascontiguousarray(memory_pages[order], dtype=np.int64),
        np.ascontiguousarray(flavour[order], dtype=np.int16),
        np.ascontiguousarray(batch_id[order], dtype=np.int64),
        flavours,
        int(span_ns),
        source,
    )


def window(trace: Trace, t0_ns: int, t1_ns: int) -> Trace:
    """Cut out the VMs alive in ``[t0_ns, t1_ns)``; time 0 of the result is ``t0_ns``.

    A VM that started before ``t0_ns`` becomes standing population.  Ends keep their distance,
    also behind the new span.

    Raises
    ------
    ValueError
        The window is empty.
    """
    if t1_ns <= t0_ns:
        raise ValueError(f"window [{t0_ns}, {t1_ns}) ns is empty")
    keep = np.flatnonzero((trace.start_ns < t1_ns) & (trace.end_ns > t0_ns))
    end_ns = trace.end_ns[keep]
    return make_trace(
        trace.start_ns[keep] - t0_ns,
        np.where(end_ns == NEVER, NEVER, end_ns - t0_ns),
        trace.vcpus[keep],
        trace.memory_pages[keep],
        trace.flavour[keep],
        trace.batch_id[keep],
        trace.flavours,
        t1_ns - t0_ns,
        trace.source,
    )


class RowProblems:
    """Bad rows of one file: the first MAX_PROBLEMS as problems, all of them counted.

    Parameters
    ----------
    place : str
        File the rows stand in.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.total = 0
        self._shown: list[Problem] = []

    def check(
        self,
        checks: list[Check],
        row_numbers: I64 | None = None,
    ) -> None:
        """Note the rows that a mask marks as bad.

        Parameters
        ----------
        checks : list
            Pairs of a mask over rows and a function from row index to message.
        row_numbers : array, optional
            Numbers of the rows as the user counts them; 0, 1, ... by default.
        """
        found = [
            (int(row), at) for at, (mask, _) in enumerate(checks) for row in np.flatnonzero(mask)
        ]
        self.total += len(found)
        for row, at in sorted(found)[: MAX_PROBLEMS - len(self._shown)]:
            number = row if row_numbers is None else int(row_numbers[row])
            self._shown.append(Problem(f"{self.place}: row {number}", checks[at][1](row)))

    def add(self, row_number: int, message: str) -> None:
        """Note one bad row."""
        self.total += 1
        if len(self._shown) < MAX_PROBLEMS:
            self._shown.append(Problem(f"{self.place}: row {row_number}", message))

    def raise_if_any(self) -> None:
        """Raise all problems noted so far, if there are any.

        Raises
        ------
        ScenarioError
            Some row was bad.
        """
        if self.total > len(self._shown):
            message = f"{self.total} bad values in all, the first {MAX_PROBLEMS} shown"
            raise ScenarioError([*self._shown, Problem(self.place, message)])
        if self._shown:
            raise ScenarioError(self._shown)


def _schema() -> "pa.Schema":
    """Return the parquet schema of a trace."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("vm_id", pa.int64(), nullable=False),
            pa.field("start_ns", pa.int64(), nullable=False),
            pa.field("end_ns", pa.int64()),  # null: still there at the end
            pa.field("vcpus", pa.int32(), nullable=False),
            pa.field("memory_pages", pa.int64(), nullable=False),
            pa.field("flavour", pa.dictionary(pa.int16(), pa.string()), nullable=False),
            pa.field("batch_id", pa.int64(), nullable=False),
        ]
    )


def write_trace(trace: Trace, path: Path | str) -> None:
    """Write a trace as parquet; the file appears whole or not at all.

    Schema: ``vm_id`` int64, ``start_ns`` int64, ``end_ns`` int64 (null: still there at the
    end), ``vcpus`` int32, ``memory_pages`` int64 (base pages), ``flavour`` dictionary of
    strings, ``batch_id`` int64.  File metadata: ``hugefleet.trace_version``,
    ``hugefleet.span_ns``, ``hugefleet.source``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    flavour = pa.DictionaryArray.from_arrays(
        pa.array(trace.flavour, pa.int16()), pa.array(list(trace.flavours), pa.string())
    )
    table = pa.Table.from_arrays(
        [
            pa.array(trace.vm_id),
            pa.array(trace.start_ns),
            pa.array(trace.end_ns, mask=trace.end_ns == NEVER),
            pa.array(trace.vcpus),
            pa.array(trace.memory_pages),
            flavour,
            pa.array(trace.batch_id),
        ],
        schema=_schema().with_metadata(
            {
                "hugefleet.trace_version": str(TRACE_VERSION),
                "hugefleet.span_ns": str(trace.span_ns),
                "hugefleet.source": trace.source,
            }
        ),
    )
    target = Path(path)
    staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, staged, compression="zstd")
        staged.replace(target)
    except OSError as error:
        raise ScenarioError([Problem(str(target), f"cannot be written: {error}")]) from error
    finally:
        staged.unlink(missing_ok=True)


def _read_table(path: Path) -> "pa.Table":
    """Read the parquet table and check version, columns and types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ScenarioError(
            [Problem(str(path), "no such file", "make one: fleet trace import, generate")]
        )
    try:
        # ParquetFile, not read_table: that one decodes the path as a dataset
        with pq.ParquetFile(path, read_dictionary=["flavour"]) as file:
            table = file.read()
    except (pa.ArrowInvalid, OSError) as error:
        raise ScenarioError(
            [Problem(str(path), f"is not a parquet file: {error}", "fleet trace import reads CSV")]
        ) from error
    metadata = table.schema.metadata or {}
    version = metadata.get(b"hugefleet.trace_version", b"none").decode()
    problems = []
    if version != str(TRACE_VERSION):
        problems.append(
            Problem(str(path), f"trace version {version}, this program reads {TRACE_VERSION}")
        )
    span = metadata.get(b"hugefleet.span_ns", b"").decode()
    if not span.isdigit() or int(span) <= 0:
        problems.append(
            Problem(f"{path}: metadata hugefleet.span_ns", f"{span!r} is not a positive integer")
        )
    for field in _schema():
        index = table.schema.get_field_index(field.name)
        if index < 0:
            problems.append(Problem(str(path), f"has no column {field.name} ({field.type})"))
            continue
        found = table.schema.field(index).type
        is_text = pa.types.is_dictionary(found) and pa.types.is_string(found.value_type)
        if found != field.type and not (field.name == "flavour" and is_text):
            problems.append(Problem(f"{path}: {field.name}", f"is {found}, must be {field.type}"))
        elif field.name != "end_ns" and table.column(index).null_count:
            problems.append(Problem(f"{path}: {field.name}", "holds nulls"))
    if problems:
        raise ScenarioError(problems)
    return table


def read_trace(path: Path | str) -> Trace:
    """Read a trace that :func:`write_trace` wrote, checking every row.

    Raises
    ------
    ScenarioError
        No such file, another schema, or rows that break the invariants of `Trace`.
    """
    import pyarrow as pa

    table = _read_table(Path(path))
    metadata = table.schema.metadata

    column = {
        name: table.column(name).to_numpy()
        for name in ("vm_id", "start_ns", "vcpus", "memory_pages", "batch_id")
    }
    end_ns = table.column("end_ns").fill_null(NEVER).to_numpy()
    flavour = table.column("flavour").unify_dictionaries().combine_chunks()
    if isinstance(flavour, pa.ChunkedArray):
        flavour = flavour.chunk(0) if flavour.num_chunks else pa.array([], _schema().field(5).type)
    trace = Trace(
        column["vm_id"],
        column["start_ns"],
        end_ns,
        column["vcpus"],
        column["memory_pages"],
        flavour.indices.to_numpy().astype(np.int16),
        column["batch_id"],
        tuple(flavour.dictionary.to_pylist()),
        int(metadata[b"hugefleet.span_ns"]),
        metadata.get(b"hugefleet.source", b"").decode(),
    )
    check_trace(trace, str(path))
    return trace


def check_trace(trace: Trace, place: str) -> None:
    """Check the invariants of `Trace`, all rows at once.

    Raises
    ------
    ScenarioError
        With every bad row found, up to MAX_PROBLEMS, and their total.
    """
    start, end = trace.start_ns, trace.end_ns
    falls = np.zeros(start.size, bool)
    falls[1:] = start[1:] < start[:-1]
    problems = RowProblems(place)
    problems.check(
        [
            (
                trace.vm_id != np.arange(start.size),
                lambda r: f"vm_id {trace.vm_id[r]} must be {r}: {ORDER_HINT}",
            ),
            (
                falls,
                lambda r: (
                    f"start_ns {start[r]} lies before the row above ({start[r - 1]}): {ORDER_HINT}"
                ),
            ),
            (end <= start, lambda r: f"end_ns {end[r]} must lie after start_ns {start[r]}"),
            (trace.vcpus <= 0, lambda r: f"vcpus {trace.vcpus[r]} must be positive"),
            (
                trace.memory_pages <= 0,
                lambda r: f"memory_pages {trace.memory_pages[r]} must be positive",
            ),
        ],
    )
    problems.raise_if_any()
