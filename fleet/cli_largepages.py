"""``fleet largepages``: the benchmark of the THP commit message, beside its table."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleet.largepages import Cell, Phase


def largepages(
    unaligned: Annotated[
        bool,
        typer.Option("--unaligned", help="The array at an arbitrary page, as malloc leaves it."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")] = False,
) -> None:
    """Write 3 GiB three times and stride twice: with hugetlbfs, with THP, without.

    Exit code 1 if a figure lies outside of its tolerance.

    \b
    Examples:
      fleet largepages
      fleet largepages --unaligned --json
    """
    from fleet.largepages import judge, run_all

    found = run_all(unaligned)
    cells = judge(found, unaligned)
    if as_json:
        phases = {name: [phase._asdict() for phase in of] for name, of in found.items()}
        rows = [cell._asdict() for cell in cells]
        typer.echo(json.dumps({"phases": phases, "cells": rows}, indent=2))
    else:
        typer.echo(as_text(found, cells))
    if not all(cell.verdict for cell in cells):
        raise typer.Exit(1)


def as_text(found: "dict[str, list[Phase]]", cells: "list[Cell]") -> str:
    """Return the simulated table beside the seed's, and what was judged."""
    from fleet.largepages import PHASES, published

    lines = [
        f"{'':<12}{'phase':<15}{'seed us':>11}{'printed us':>12}{'off by':>9}"
        f"{'faults':>9}{'walks':>9}{'reads':>9}{'cycles/walk':>12}"
    ]
    for configuration, phases in found.items():
        for name, phase, expected in zip(PHASES, phases, published(configuration), strict=True):
            lines.append(
                f"{configuration:<12}{name:<15}{expected:>11,.0f}{phase.time_us:>12,.0f}"
                f"{phase.time_us / expected - 1.0:>9.2%}{phase.faults:>9}{phase.walks:>9}"
                f"{phase.references:>9}{phase.walk_cycles:>12.1f}"
            )
    for cell in cells:
        if cell.name.endswith(", us"):
            continue
        verdict = "ok" if cell.verdict else "OFF"
        width = ".0f" if cell.name.endswith("faults") else ".4f"
        lines.append(
            f"{cell.name:<32}{cell.expected:>11{width}}{cell.printed:>12{width}}"
            f"  +- {cell.tolerance:<7g}{verdict}"
        )
    missed = [cell for cell in cells if not cell.verdict]
    lines.append(f"{len(cells) - len(missed)} of {len(cells)} figures within their tolerance")
    return "\n".join(lines)
