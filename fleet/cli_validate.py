"""``fleet validate``: every claim about fidelity, run and judged."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hostsim.core.errors import Problem, ScenarioError

# Modules with CHECKS, claims by title; and with what is printed beside them, if anything
GROUPS: Final = {
    "mm": ("fleet.validate_mm", "fleet.validate_mm_compaction"),
    "replay": ("fleet.validate_replay",),
    "mmu": ("fleet.validate_mmu",),
    "fleet": ("fleet.validate_fleet",),
    "snapshot": ("fleet.validate_snapshot",),
}


def validate(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"One of {', '.join(GROUPS)}; else all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the JSON here.")] = None,
) -> None:
    """Run checks and print claim and source, expected, measured, verdict.

    mm: the memory manager against its specification, and fragmentation under random churn.
    replay: op scripts beside recordings of Linux 6.1 and 6.12.
    mmu: cold walks, the LRU oracle, the seed's table, native measurements; and what follows for
    KVM.
    fleet: the demand of a month, what KSM saves, what free page reporting saves and costs.
    snapshot: simulated hosts that start from a real one's state have its counts.
    Exit code 1 if a claim fails.

    \b
    Examples:
      fleet validate replay
      fleet validate --json
    """
    if name is not None and name not in GROUPS:
        raise ScenarioError([Problem("NAME", f"{name!r} is none of {', '.join(GROUPS)}")])
    from fleet import claims

    console = claims.console()
    groups = []
    for group in GROUPS if name is None else (name,):
        found: list[claims.Claim] = []
        details: dict[str, Any] = {}
        lines: list[str] = []
        for module in map(import_module, GROUPS[group]):
            for title, checks in module.CHECKS.items():
                _progress(f"{group}: {title}")
                found += checks()
            if hasattr(module, "beside"):
                _progress(f"{group}: what is printed beside it")
                beside = module.beside()
                details |= beside.details
                lines += beside.lines
        groups.append(claims.Group(group, [claims.Found(found, details)]))
        if not as_json:
            console.print(claims.table(groups[-1:], costs=False))
            for line in lines:
                typer.echo(line)
    failed = sum(group.failed for group in groups)
    made = json.dumps(claims.document(groups), indent=2)
    if out:
        out.write_text(made + "\n", encoding="utf-8")
    if as_json:
        typer.echo(made)
    else:
        total = sum(len(group.claims) for group in groups)
        typer.echo(f"{total - failed} of {total} claims hold")
    if failed:
        raise typer.Exit(1)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"running {text}", err=True)
