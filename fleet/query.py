"""Polars SQL over the tables of a run."""

import re
from pathlib import Path

import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from fleet.loading import near
from fleet.rundir import RunDirectory, open_run
from fleet.schema import arrow_schema
from fleet.store import Store, reported
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.stats import TABLES

_TABLE_ERROR = re.compile(r"""relation ["'](\w+)["'] was not found""")
_COLUMN_ERROR = re.compile(r"""column (?:named )?["']([\w.]+)["']""")


def scan(run: RunDirectory, table: str) -> pl.LazyFrame:
    """Return a table of a run, read when it is needed."""
    parts, store = run.parts[table], run.store
    if parts and store.folder is not None:
        return pl.scan_parquet([store.folder / part for part in parts])
    if parts:
        files = [store.full(part) for part in parts]
        return pl.scan_pyarrow_dataset(ds.dataset(files, arrow_schema(table), "parquet", store.fs))
    empty = pl.from_arrow(arrow_schema(table).empty_table())
    assert isinstance(empty, pl.DataFrame)
    return empty.lazy()


def query(place: str | Path | Store, sql: str) -> pl.DataFrame:
    """Run one SQL statement over the tables of a run.

    Raises
    ------
    ResultsError
        The place is no run.
    ScenarioError
        The statement is wrong: syntax, or an unknown table or column.
    """
    run = open_run(place)
    context = pl.SQLContext({table: scan(run, table) for table in TABLES})
    try:
        return context.execute(sql, eager=True)
    except (pl.exceptions.PolarsError, pl.exceptions.SQLInterfaceError) as error:
        raise ScenarioError([_problem(sql, error)]) from None


def _problem(sql: str, error: Exception) -> Problem:
    message = str(error).strip().splitlines()[0]
    unknown_table = _TABLE_ERROR.search(message)
    if unknown_table:
        name = unknown_table[1]
        return Problem("query", f"unknown table {name!r}", near(name, TABLES))
    unknown_column = _COLUMN_ERROR.search(message)
    if unknown_column:
        name = unknown_column[1].rpartition(".")[2]
        used = [table for table in TABLES if re.search(rf"\b{table}\b", sql)]
        hint = near(name, [column.name for table in used for column in TABLES[table]])
        if not hint.startswith("did you mean"):
            hint = "fleet columns lists them"
        return Problem("query", f"unknown column {name!r}", hint)
    return Problem("query", message)


def write_parquet(frame: pl.DataFrame, path: Path) -> None:
    """Write a result to a file that appears whole or not at all.

    Raises
    ------
    ResultsError
        It cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        with reported(path, "write"):
            with staged.open("wb") as file:
                pq.write_table(frame.to_arrow(), file, compression="zstd")
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def as_text(frame: pl.DataFrame, rows: int) -> str:
    """Print a result as a plain table, at most so many rows."""
    with pl.Config(
        tbl_rows=rows,
        tbl_cols=-1,
        tbl_width_chars=10_000,
        tbl_formatting="ASCII_MARKDOWN",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        fmt_str_lengths=200,
    ):
        return str(frame)
