"""Polars SQL over the tables and views of a run; results are computed as they are written."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import polars as pl

from fleet.rundir import RUN_FILE, RunDirectory, open_run
from fleet.scan import scan
from fleet.schema import RELATIONS
from fleet.store import Store, reported
from fleet.sweepdir import is_sweep, read_sweep, run_store
from fleet.view_columns import VIEW_COLUMNS
from hostsim.core.errors import Problem, ScenarioError, near
from hostsim.core.stats import TABLES

_TABLE_ERROR = re.compile(r"""relation ["'](\w+)["'] was not found""")
_COLUMN_ERROR = re.compile(r"""column (?:named )?["']([\w.]+)["']""")
_PARSER_PLACE = re.compile(r"^sql parser error: (.*?)(?: at Line: (\d+), Column: (\d+))?$")
_FIRST_WORD = re.compile(r"^(?:\s+|--[^\n]*\n|/\*.*?\*/|\()*(\w+)", re.DOTALL)
_CHANGES = re.compile(
    "ALTER|CREATE|DELETE|DROP|INSERT|MERGE|REPLACE|TRUNCATE|UPDATE|SET|USE|COPY", re.IGNORECASE
)


class Labelled(NamedTuple):
    """A run, and the columns that tell its rows from those of others."""

    labels: dict[str, str | int]
    run: RunDirectory


def open_runs(place: str | Path | Store) -> list[Labelled]:
    """Open a run, or those runs of a sweep that have begun, told apart by ``arm`` and ``seed``.

    Raises
    ------
    ScenarioError
        The place is no run, and no sweep with one.
    """
    store = Store.of(place)
    if not is_sweep(store):
        return [Labelled({}, open_run(store))]
    record = read_sweep(store)
    keys = [(arm, seed) for arm in record["arms"] for seed in record["seeds"]]
    found = [(arm, seed, run_store(store, arm, seed)) for arm, seed in keys]
    begun = [
        Labelled({"arm": arm, "seed": seed}, open_run(run))
        for arm, seed, run in found
        if run.exists(RUN_FILE)
    ]
    if not begun:
        raise ScenarioError([Problem(str(store), "is a sweep without a run yet")])
    return begun


def _relation(runs: Sequence[Labelled], name: str, step_ns: int | None) -> pl.LazyFrame:
    """Return a table or view of all runs, labels first."""
    if name in VIEW_COLUMNS:
        from fleet.views import view  # reads scenarios: a third of a second that tables do not need

    frames = [
        (view(run, name, step_ns) if name in VIEW_COLUMNS else scan(run, name)).select(
            *(pl.lit(value).alias(label) for label, value in labels.items()), pl.all()
        )
        for labels, run in runs
    ]
    return pl.concat(frames) if len(frames) > 1 else frames[0]


def ask(runs: Sequence[Labelled], sql: str, step_ns: int | None = None) -> pl.LazyFrame:
    """Return the result of one SQL statement, or a table or view by its name, uncomputed.

    Parameters
    ----------
    step_ns
        Time between two rows of the views over time; an epoch if left out.

    Raises
    ------
    ScenarioError
        The statement is wrong: syntax, an unknown table or column, or no query.
    """
    statement = f"SELECT * FROM {sql.strip()}" if re.fullmatch(r"\s*\w+\s*", sql) else sql
    word = _FIRST_WORD.match(statement)
    if word and _CHANGES.fullmatch(word[1]):
        message = f"{word[1].upper()} is no query; the tables of a run do not change"
        raise ScenarioError([Problem("query", message, "SELECT ... FROM ...")])
    used = {name for name in RELATIONS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)}
    named = [name for name in RELATIONS if name in used or name in TABLES]
    relations = {name: _relation(runs, name, step_ns) for name in named}
    with _explained(sql, used, list(runs[0].labels)):
        found = pl.SQLContext(relations).execute(statement)
        found.collect_schema()  # names are looked up here, not halfway through a file
    return found


def query(place: str | Path | Store, sql: str, step_ns: int | None = None) -> pl.DataFrame:
    """Run one SQL statement over the tables and views of a run, or of the runs of a sweep.

    ``query("runs/a", "coverage")`` is the view of that name; of a sweep, every table and view
    begins with the columns ``arm`` and ``seed``.

    Raises
    ------
    ScenarioError
        The place is no run, or the statement is wrong.
    ResultsError
        A file of the run cannot be read.
    """
    return computed(ask(open_runs(place), sql, step_ns))


def computed(frame: pl.LazyFrame) -> pl.DataFrame:
    """Compute a result: rows pass through in batches, what is grouped or sorted is kept.

    Raises
    ------
    ScenarioError
        The statement cannot be computed.
    """
    with _explained("", set()):
        return frame.collect(engine="streaming")


@contextmanager
def _explained(sql: str, used: set[str], labels: Sequence[str] = ()) -> Iterator[None]:
    """Turn what polars says of a statement into a problem of its author."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.SQLInterfaceError) as error:
        raise ScenarioError([_problem(sql, used, labels, error)]) from None


def _problem(sql: str, used: set[str], labels: Sequence[str], error: Exception) -> Problem:
    message = str(error).strip().splitlines()[0]
    unparsed = _PARSER_PLACE.match(message)
    if unparsed:
        return Problem("query", f"does not parse: {_unparsed(sql, *unparsed.groups())}")
    unknown_table = _TABLE_ERROR.search(message)
    if unknown_table:
        name = unknown_table[1]
        return Problem("query", f"unknown table {name!r}", near(name, RELATIONS))
    unknown_column = _COLUMN_ERROR.search(message)
    if unknown_column:
        name = unknown_column[1].rpartition(".")[2]
        names = {relation: [c.name for c in columns] for relation, columns in RELATIONS.items()}
        elsewhere = [relation for relation, columns in names.items() if name in columns]
        if elsewhere:
            return Problem(
                "query", f"unknown column {name!r}", f"a column of {', '.join(elsewhere)}"
            )
        hint = near(name, [*labels, *(n for relation in sorted(used) for n in names[relation])])
        if not hint.startswith("did you mean"):
            hint = f"fleet columns {' or '.join(sorted(used)) or '...'} lists them"
        return Problem("query", f"unknown column {name!r}", hint)
    if message.startswith("statement type is not supported"):
        return Problem("query", "is no query", "SELECT ... FROM ...")
    return Problem("query", message)


def _unparsed(sql: str, what: str, line: str | None, column: str | None) -> str:
    """Say where a statement stops to make sense, and show the place."""
    what = what[:1].lower() + what[1:]
    if line is None or column is None:
        return f"{what.replace('found: EOF', 'but it ends')}\n    {sql.strip()}"
    text = sql.splitlines()[int(line) - 1]
    pointer = " " * (int(column) - 1) + "^"
    return f"line {line}, column {column}: {what}\n    {text}\n    {pointer}"


def write_csv(frame: pl.LazyFrame, file: IO[bytes]) -> None:
    """Write a result as CSV, batch by batch."""
    with _explained("", set()):
        frame.sink_csv(file, engine="streaming")


def write_parquet(frame: pl.LazyFrame, path: Path) -> None:
    """Write a result, batch by batch, to a file that appears whole or not at all.

    Raises
    ------
    ResultsError
        It cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        with reported(path, "write"), _explained("", set()):
            frame.sink_parquet(staged, engine="streaming")
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
