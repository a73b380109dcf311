"""``fleet report``: one HTML page about runs, and its charts as files."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from hostsim.core.units import format_bytes


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="A run, several runs, or a sweep.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page.")] = Path("report.html"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace -o even if it is no report.")
    ] = False,
    with_map: Annotated[
        bool,
        typer.Option("--map", help="Add a picture of the worst host's memory: some seconds more."),
    ] = False,
    plots: Annotated[
        Path | None, typer.Option(help="Write each chart into this folder instead of a page.")
    ] = None,
    format_: Annotated[
        Literal["png", "svg", "both"], typer.Option("--format", help="Of the files of --plots.")
    ] = "both",
) -> None:
    """Write one self-contained page about a run: words, charts, worst hosts, how to run it again.

    Several runs, or the directory of a sweep, are held against each other: differences with
    intervals and verdicts, as fleet compare computes them.

    \b
    Examples:
      fleet report runs/churn-1 -o report.html
      fleet report runs/always runs/never -o ab.html
      fleet report runs/churn-1 --plots plots --format svg
    """
    from fleet import report as pages
    from fleet.report_files import write_plots

    begin_s = time.perf_counter()
    found = pages.read_runs(runs)
    for one in found.runs:
        status = one.run.record["status"]
        if status != "complete":
            message = f'the status of {one.run.store} is "{status}"; its tables end early'
            typer.echo(f"warning: {message}", err=True)
    if plots is not None:
        if len(found.runs) > 1:
            raise typer.BadParameter("--plots takes one run")
        formats = ("png", "svg") if format_ == "both" else (format_,)
        for path in write_plots(found.runs[0].frames, plots, formats):
            typer.echo(path)
        return
    if with_map:
        found = pages.with_memory(found)
    nr_bytes = pages.write_report(found, out, overwrite)
    seconds = time.perf_counter() - begin_s
    typer.echo(f"{out}: {format_bytes(nr_bytes)} in {seconds:.1f} s")
