"""``fleet map``: a host's physical memory as a picture."""

import json
from pathlib import Path
from typing import Annotated

import typer


def map_host(
    run_directory: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    host: Annotated[int, typer.Argument(metavar="HOST", help="Number of the host.")],
    at: Annotated[
        str | None,
        typer.Option(help="Times, such as 6h,12h,24h: ends of epochs. Default: the end."),
    ] = None,
    every: Annotated[str | None, typer.Option(help="Time between pictures, such as 6h.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="A .png, .svg or .html file.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print counts as JSON with stable keys.")
    ] = False,
) -> None:
    """Draw what each 2 MiB of a host's memory holds, at one time or several.

    The host is computed again from the scenario (with those from which VMs moved to it), and must
    give the rows that the run recorded.

    \b
    Examples:
      fleet map runs/churn-1 59 -o host59.png
      fleet map runs/churn-1 59 --every 6h -o host59.html
    """
    if at and every:
        raise typer.BadParameter("--at excludes --every")
    from fleet import map_picture, maps
    from fleet.report_files import write_file

    target = out or Path(f"map-{host}.png")
    kind = target.suffix.removeprefix(".")
    if kind not in ("png", "svg", "html"):
        raise typer.BadParameter(f"-o {target}: the name must end in .png, .svg or .html")
    found = maps.maps_of(run_directory, host, at, every)
    text = map_picture.as_text(found.maps, found.title)
    proof = (
        f"computed again from the scenario: {found.rerun.rows:,} rows"
        f" of {len(found.rerun.host_ids)} host(s), equal to the recorded ones"
    )
    write_file(target, map_picture.rendered(kind, found.maps, found.title, f"{text}\n\n{proof}"))
    if as_json:
        typer.echo(json.dumps(maps.as_json(found), indent=2))
    else:
        typer.echo(text)
        typer.echo(f"  {proof}")
        typer.echo(f"  {target}")
