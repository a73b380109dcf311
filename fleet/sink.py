"""Parquet part files, cut by host group and epoch only, committed by rename, manifest last."""

from collections.abc import Callable
from fnmatch import fnmatch
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fleet.rundir import MANIFEST_FILE, part_path, read_manifest, write_json
from fleet.schema import arrow_table, dictionary_columns, has_labels
from fleet.store import STAGING, Store
from hostsim.core.stats import NODE_TABLES, SCHEMA_VERSION, TABLES

HOST_COLUMN = {
    table: [column.name for column in TABLES[table]].index("host_id") for table in NODE_TABLES
}


class Sink:
    """Writes the rows of a run, one epoch at a time.

    Parameters
    ----------
    may_commit
        Called before an epoch is committed; raises if this driver may not write any more.
    """

    def __init__(
        self,
        store: Store,
        nr_hosts: int,
        hosts_per_part: int,
        attempt: int,
        may_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.hosts_per_part = hosts_per_part
        self.nr_groups = -(-nr_hosts // hosts_per_part)
        self.attempt = f"a{attempt:03d}"
        self.may_commit = may_commit
        self.parts: list[dict[str, Any]] = []
        for table in TABLES:
            store.make_folder(table)

    def rewind(self, nr_epochs: int) -> None:
        """Keep the parts of the first epochs only, as a resumed run does."""
        self.parts = [part for part in read_manifest(self.store) if part["epoch"] < nr_epochs]
        self._write_manifest()
        keep = {part["path"] for part in self.parts}
        for table in TABLES:
            for name in self.store.names(table):
                path = f"{table}/{name}"
                if path not in keep and fnmatch(name, "part-*.parquet"):
                    self.store.delete(path)

    def write(self, epoch: int, tables: dict[str, NDArray[np.int64]]) -> None:
        """Write and commit the rows of one epoch, those of nodes sorted by host.

        A table that is not of nodes has one part, that of group 0.

        Raises
        ------
        ResultsError
            A file cannot be written.
        """
        parts: list[dict[str, Any]] = []
        files: dict[str, bytes] = {}
        for table, all_rows in tables.items():
            for group, rows in enumerate(self._groups(table, all_rows)):
                if len(rows) == 0:
                    continue
                path = part_path(table, epoch, group)
                files[path] = _parquet(table, rows)
                part = {"table": table, "epoch": epoch, "group": group, "path": path}
                parts.append(part | {"rows": len(rows), "bytes": len(files[path])})
        self.may_commit()
        self.store.write_all(files, self.attempt)
        self.parts += parts
        self._write_manifest()

    def _groups(self, table: str, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut rows by host group."""
        if table not in HOST_COLUMN:
            return [rows]
        group_of_row = np.maximum(rows[:, HOST_COLUMN[table]], 0) // self.hosts_per_part
        cuts = np.searchsorted(group_of_row, np.arange(1, self.nr_groups))
        return np.split(rows, cuts)

    def finish(self) -> None:
        """Remove the staging area, that of earlier attempts included."""
        self.store.delete_folder(STAGING)

    def _write_manifest(self) -> None:
        manifest = {"schema_version": SCHEMA_VERSION, "parts": self.parts}
        write_json(self.store, MANIFEST_FILE, manifest)


def _parquet(table: str, rows: NDArray[np.int64]) -> bytes:
    """Return a part's bytes."""
    content = arrow_table(table, rows)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(
        sink,
        content.schema,
        compression="zstd",
        compression_level=1,
        use_dictionary=dictionary_columns(table),
        store_schema=has_labels(table),
    ) as writer:
        writer.add_key_value_metadata(content.schema.metadata)
        writer.write_table(content, row_group_size=1 << 20)
    return bytes(sink.getvalue())
