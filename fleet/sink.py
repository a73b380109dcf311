"""Parquet part files, cut by host group and epoch only, committed by rename, manifest last."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fleet.rundir import MANIFEST_FILE, STAGING, read_json, reported, write_json
from fleet.schema import arrow_table, dictionary_columns
from hostsim.core.stats import NODE_TABLES, SCHEMA_VERSION, TABLES

HOST_COLUMN = {
    table: [column.name for column in TABLES[table]].index("host_id") for table in NODE_TABLES
}


def part_path(table: str, epoch: int, group: int) -> str:
    """Return where a part lies: a function of table, epoch and host group alone."""
    return f"{table}/part-e{epoch:05d}-g{group:04d}.parquet"


class Sink:
    """Writes the rows of a run, one epoch at a time."""

    def __init__(self, out: Path, nr_hosts: int, hosts_per_part: int, attempt: int) -> None:
        self.out = out
        self.hosts_per_part = hosts_per_part
        self.nr_groups = -(-nr_hosts // hosts_per_part)
        self.staging = out / STAGING / f"a{attempt:03d}"
        self.parts: list[dict[str, Any]] = []
        with reported(out, "write"):
            for table in TABLES:
                (self.staging / table).mkdir(parents=True, exist_ok=True)
                (out / table).mkdir(exist_ok=True)

    def rewind(self, nr_epochs: int) -> None:
        """Keep the parts of the first epochs only, as a resumed run does."""
        manifest = self.out / MANIFEST_FILE
        kept = read_json(manifest)["parts"] if manifest.exists() else []
        self.parts = [part for part in kept if part["epoch"] < nr_epochs]
        self._write_manifest()
        keep = {part["path"] for part in self.parts}
        with reported(self.out, "rewind"):
            for table in TABLES:
                for path in (self.out / table).glob("part-*.parquet"):
                    if path.relative_to(self.out).as_posix() not in keep:
                        path.unlink()

    def write(self, epoch: int, tables: dict[str, NDArray[np.int64]]) -> None:
        """Write and commit the rows of one epoch, those of nodes sorted by host.

        A table that is not of nodes has one part, that of group 0.

        Raises
        ------
        ResultsError
            A file cannot be written.
        """
        new = []
        for table, rows in tables.items():
            if table not in HOST_COLUMN:
                new.append(self._stage(table, epoch, 0, rows))
                continue
            group_of_row = np.maximum(rows[:, HOST_COLUMN[table]], 0) // self.hosts_per_part
            cuts = np.searchsorted(group_of_row, np.arange(self.nr_groups + 1))
            for group in range(self.nr_groups):
                rows_of_group = rows[cuts[group] : cuts[group + 1]]
                if len(rows_of_group) == 0:
                    continue
                new.append(self._stage(table, epoch, group, rows_of_group))
        with reported(self.out, "commit"):
            for part in new:
                (self.staging / part["path"]).replace(self.out / part["path"])
        self.parts += new
        self._write_manifest()

    def finish(self) -> None:
        """Remove the staging area, that of earlier attempts included."""
        with reported(self.out, "remove the staging area"):
            shutil.rmtree(self.staging.parent)

    def _stage(self, table: str, epoch: int, group: int, rows: NDArray[np.int64]) -> dict[str, Any]:
        path = part_path(table, epoch, group)
        staged = self.staging / path
        with reported(staged, "write"), staged.open("wb") as file:
            pq.write_table(
                arrow_table(table, rows),
                file,
                compression="zstd",
                compression_level=1,
                use_dictionary=dictionary_columns(table),
                row_group_size=1 << 20,
            )
            file.flush()
            os.fsync(file.fileno())
        return {
            "table": table,
            "epoch": epoch,
            "group": group,
            "path": path,
            "rows": len(rows),
            "bytes": staged.stat().st_size,
        }

    def _write_manifest(self) -> None:
        manifest = {"schema_version": SCHEMA_VERSION, "parts": self.parts}
        write_json(self.out / MANIFEST_FILE, manifest)
