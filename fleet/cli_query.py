"""``fleet query`` and ``fleet columns``: questions to the tables and views of a run."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]


def query(
    run_directory: Annotated[
        str, typer.Argument(metavar="RUN", help="A run directory, or a sweep: path or URI.")
    ],
    sql: Annotated[
        str, typer.Argument(metavar="SQL", help="One statement, or the name of a table or view.")
    ],
    every: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="Step of the views over time: 5min, 6h. Default: an epoch of the run.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows a table shows at most.")] = 50,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, all rows.")] = False,
    as_json: JsonOption = False,
    parquet: Annotated[Path | None, typer.Option(help="Write to this file, all rows.")] = None,
) -> None:
    """Ask the tables and views of a run with polars SQL.

    Tables: hosts, vms, events, migrations, fleet. Views: top (worst hosts first), coverage,
    fragmentation, buddy, stalls and tlb, ratios computed. `fleet columns` explains each column.
    Of a sweep, all of them begin with the columns arm and seed.

    \b
    Examples:
      fleet query runs/a top
      fleet query runs/a coverage --every 6h
      fleet query runs/a 'SELECT t_h, huge_coverage_ratio FROM coverage WHERE t_h > 12'
      fleet query runs/a 'SELECT event, COUNT(*) AS n FROM events GROUP BY event'
      fleet query runs/a 'SELECT * FROM hosts WHERE host_id = 7' --parquet host7.parquet
      fleet query sweeps/thp 'SELECT arm, AVG(huge_coverage_ratio) FROM coverage GROUP BY arm'
    """
    if as_csv + as_json + (parquet is not None) > 1:
        raise typer.BadParameter("--csv, --json and --parquet exclude each other")
    from fleet import sql as asking
    from fleet import text_table

    runs = asking.open_runs(run_directory)
    found = asking.ask(runs, sql, None if every is None else duration_option("every", every))
    for _, run in runs:
        if not run.complete:
            status = f'the status of {run.store} is "{run.record["status"]}"'
            typer.echo(f"warning: {status}; its tables end early", err=True)
    if parquet:
        asking.write_parquet(found, parquet)
    elif as_csv:
        with pipe_may_close():
            asking.write_csv(found, sys.stdout.buffer)
    elif as_json:
        typer.echo(asking.computed(found).write_json())
    else:
        shown = asking.computed(found.head(rows + 1))
        typer.echo(text_table.as_text(shown.head(rows), screen_width()))
        if len(shown) > rows:
            typer.echo(f"the first {rows} rows; --rows N or --csv shows more", err=True)


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """End quietly when the reader of our output, such as ``head``, has seen enough."""
    try:
        yield
    except OSError as error:
        if "Broken pipe" not in str(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def duration_option(name: str, text: str) -> int:
    """Read an option that is a duration above 0; in nanoseconds."""
    from hostsim.core.units import parse_duration_ns

    try:
        duration_ns = parse_duration_ns(text)
    except ValueError as error:
        raise typer.BadParameter(f"--{name} {text}: {error}") from None
    if duration_ns <= 0:
        raise typer.BadParameter(f"--{name} {text}: is not more than 0")
    return duration_ns


def screen_width() -> int:
    """Return how wide a table may be: as the terminal, or COLUMNS; without limit in a pipe."""
    from fleet.text_table import NO_LIMIT

    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit():
        return shutil.get_terminal_size().columns
    return NO_LIMIT


def columns(
    relation: Annotated[
        str | None, typer.Argument(metavar="TABLE", help="A table or view; all if left out.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="As docs/columns.md.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print every column of the tables and views with its unit and meaning.

    \b
    Examples:
      fleet columns coverage
      fleet columns hosts --json
    """
    from fleet import schema
    from hostsim.core.errors import Problem, ScenarioError, near

    known = schema.RELATIONS
    if relation is not None and relation not in known:
        raise ScenarioError([Problem(relation, "is no table or view", near(relation, known))])
    chosen = [relation] if relation else list(known)
    if markdown:
        typer.echo(schema.markdown(chosen), nl=False)
    elif as_json:
        typer.echo(json.dumps({t: [c._asdict() for c in known[t]] for t in chosen}, indent=2))
    else:
        for name in chosen:
            typer.echo(f"{name}: {schema.RELATION_DOCS[name]}")
            for column in known[name]:
                unit = column.unit or "-"
                typer.echo(f"  {column.name:<30}{unit:<12}{column.doc}")
