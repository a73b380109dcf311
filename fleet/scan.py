"""The tables of a run as lazy frames: nothing is read before it is needed, and only that."""

import polars as pl

from fleet.rundir import RunDirectory, epoch_of
from fleet.schema import arrow_schema


def scan(run: RunDirectory, table: str, last_epochs: int | None = None) -> pl.LazyFrame:
    """Return a table of a run, read when it is needed.

    Parameters
    ----------
    last_epochs
        Read the parts of so many epochs at the end only.
    """
    parts, store = run.parts[table], run.store
    if parts and last_epochs is not None:
        first = epoch_of(parts[-1]) + 1 - last_epochs
        parts = [part for part in parts if epoch_of(part) >= first]
    if parts and store.folder is not None:
        return pl.scan_parquet([store.folder / part for part in parts])
    if parts:
        import pyarrow.dataset as ds  # slow to load, and a local disk does not need it

        files = [store.full(part) for part in parts]
        return pl.scan_pyarrow_dataset(ds.dataset(files, arrow_schema(table), "parquet", store.fs))
    empty = pl.from_arrow(arrow_schema(table).empty_table())
    assert isinstance(empty, pl.DataFrame)
    return empty.lazy()
