"""Result columns as Arrow schemas, Arrow tables and documentation."""

import functools
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fleet.view_columns import VIEW_COLUMNS, VIEW_DOCS
from hostsim.core.column import Column
from hostsim.core.errors import InvariantError
from hostsim.core.stats import SCHEMA_VERSION, TABLES

_TYPES = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "int16": pa.int16(),
    "int8": pa.int8(),
    "label": pa.dictionary(pa.int8(), pa.string()),
}
TABLE_DOCS = {
    "hosts": "One row per host and tick, in host order within an epoch.",
    "vms": "One row per running VM and simulated hour, and one when a VM ends.",
    "events": "One row per VM started, rejected, ended, killed, moved or started again, and per"
    " host that takes no VMs from then on, or takes them again.",
    "migrations": "One row per VM that moved to another host, written where it arrived.",
    "fleet": "One row per epoch: sums over hosts, as of its end.",
}


@functools.cache
def arrow_schema(table: str) -> pa.Schema:
    """Return the schema of a table.

    Units and sentences are not in it: in every part they took a quarter of its bytes, and a
    reader of thousands of parts reads all of them.  ``fleet columns`` prints them.
    """
    fields = [
        pa.field(column.name, _TYPES[column.dtype], nullable=False) for column in TABLES[table]
    ]
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION), "table": table})


def dictionary_columns(table: str) -> list[str]:
    """Return the columns that repeat few values: keys, labels and small gauges."""
    return [
        column.name
        for column in TABLES[table]
        if column.kind in ("key", "label") or column.dtype != "int64"
    ]


def has_labels(table: str) -> bool:
    """Say whether a table has words as codes, which Arrow's own schema tells a reader."""
    return any(column.kind == "label" for column in TABLES[table])


def arrow_table(table: str, rows: NDArray[np.int64]) -> pa.Table:
    """Turn rows in declared column order into an Arrow table.

    Raises
    ------
    InvariantError
        A value does not fit its column, or the number of columns is wrong.
    """
    columns = TABLES[table]
    if rows.ndim != 2 or rows.shape[1] != len(columns):
        raise InvariantError(f"{table}: {rows.shape} rows for {len(columns)} declared columns")
    arrays = [_array(table, column, rows[:, index]) for index, column in enumerate(columns)]
    return pa.Table.from_arrays(arrays, schema=arrow_schema(table))


def _array(table: str, column: Column, values: NDArray[np.int64]) -> pa.Array:
    dtype = np.dtype("int8" if column.dtype == "label" else column.dtype)
    limit = len(column.labels) - 1 if column.dtype == "label" else np.iinfo(dtype).max
    lowest = 0 if column.dtype == "label" else np.iinfo(dtype).min
    if len(values) and (values.max() > limit or values.min() < lowest):
        worst = int(values.max() if values.max() > limit else values.min())
        raise InvariantError(f"{table}.{column.name}: {worst} does not fit {column.dtype}")
    narrow = np.ascontiguousarray(values, dtype=dtype)
    if column.dtype == "label":
        return pa.DictionaryArray.from_arrays(pa.array(narrow), pa.array(column.labels))
    return pa.array(narrow)


def rows_of(table: str, found: pa.Table) -> NDArray[np.int64]:
    """Return rows in declared column order: what `arrow_table` was made from."""
    import pyarrow.compute as pc  # slow to load, and readers of tables do not need it

    columns = TABLES[table]
    rows = np.empty((found.num_rows, len(columns)), np.int64)
    for index, column in enumerate(columns):
        values = found.column(column.name)
        if column.dtype == "label":
            values = pc.index_in(values.cast(pa.string()), pa.array(column.labels))
        rows[:, index] = values.to_numpy()
    return rows


RELATIONS = TABLES | VIEW_COLUMNS  # what a query can name
RELATION_DOCS = TABLE_DOCS | VIEW_DOCS


def markdown(relations: Iterable[str] = RELATIONS) -> str:
    """Print the documentation of the columns: ``docs/columns.md``."""
    lines = [
        "# Columns",
        "",
        "Written by `fleet columns --markdown` from `hostsim/core/stats.py` and"
        f" `fleet/view_columns.py`; schema version {SCHEMA_VERSION}.",
        "",
        "A *key* places the row, a *gauge* holds at the row's time, a *counter* is cumulative and"
        " monotone within its host or VM, a *label* is a word. Pages are 4 KiB; ratios are"
        " computed when reading.",
        "",
        f"*Views* ({', '.join(VIEW_COLUMNS)}) are computed from the tables when they are asked"
        " for; a *rate* is what was counted since the row before. A step is an epoch unless"
        " `fleet query --every` says otherwise.",
    ]
    for table in relations:
        lines += ["", f"## {table}", "", RELATION_DOCS[table], ""]
        lines += ["| column | type | kind | unit | meaning | source |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
        for column in RELATIONS[table]:
            words = f" One of: {', '.join(filter(None, column.labels))}." if column.labels else ""
            lines.append(
                f"| {column.name} | {column.dtype} | {column.kind} | {column.unit} |"
                f" {column.doc}{words} | {column.source} |"
            )
    return "\n".join(lines) + "\n"
