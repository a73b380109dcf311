"""``fleet calibrate``: what the kernel's operations cost on this machine."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def calibrate(
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="File of costs to write.")
    ] = Path("costs.json"),
    seconds: Annotated[
        float, typer.Option(min=0, max=600, help="Time to measure; a few rounds are made anyway.")
    ] = 10.0,
    memory: Annotated[
        str, typer.Option(help="Memory to use at most, a power of two from 16MiB to 1GiB.")
    ] = "256MiB",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the file's content; write nothing.")
    ] = False,
) -> None:
    """Measure page faults, clearing and copying on this machine and write a file of costs.

    Memory of its own is mapped, touched and unmapped; no setting is changed and no rights are
    needed. A scenario takes the file with costs = "costs.json" in its [[hosts]]: guests then
    stall, and daemons get on, as on this machine. It says what a virtual machine spoils.

    \b
    Examples:
      fleet calibrate
      fleet calibrate -o costs.json --seconds 30
      fleet run churn --set hosts.costs=costs.json
    """
    from fleet import calibrate as measuring
    from fleet.cost_file import FORMAT, VERSION, write_costs
    from hostsim.core.errors import Problem, ScenarioError
    from hostsim.core.units import parse_bytes

    try:
        nr_bytes = parse_bytes(memory)
    except ValueError as error:
        raise ScenarioError([Problem("--memory", str(error))]) from None
    if not as_json:
        typer.echo(f"measuring for {seconds:g} s with {memory} of its own", err=True)
    found = measuring.calibrate(seconds, nr_bytes)
    if as_json:
        typer.echo(json.dumps({"format": FORMAT, "version": VERSION, **found}, indent=2))
        return
    write_costs(found, out)
    _print(found)
    typer.echo(f"{out} is written; next: fleet run churn --set hosts.costs={out}", err=True)


def _print(found: dict[str, Any]) -> None:
    from hostsim.mm.cost import DEFAULT_NS, NAMES

    typer.echo(f"{'cost':<18}{'ns':>12}{'default':>12}")
    for name, default_ns in zip(NAMES, DEFAULT_NS, strict=True):
        ns = found["costs"].get(name)
        typer.echo(f"{name:<18}{'as default' if ns is None else f'{ns:,}':>12}{default_ns:>12,}")
    typer.echo("")
    typer.echo(f"{'measured':<18}{'median ns':>12}{'p25':>12}{'p75':>12}{'rounds':>8}")
    for name, figure in found["measured"].items():
        cells = "".join(f"{figure[key]:>12,.1f}" for key in ("median_ns", "p25_ns", "p75_ns"))
        typer.echo(f"{name:<18}{cells}{figure['rounds']:>8}")
    for note in found["notes"]:
        typer.echo(f"note: {note}")
