"""``fleet replay``: op scripts on the simulated memory manager."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hostsim.core.errors import Problem, ScenarioError


def _pairs(
    script: Path, start: Path | None, out: Path | None
) -> list[tuple[Path, Path | None, Path | None]]:
    """Return script, start and output of every script named."""
    if not script.is_dir():
        name = f"{script.stem}.jsonl"
        return [
            (
                script,
                start / name if start and start.is_dir() else start,
                out / name if out and out.is_dir() else out,
            )
        ]
    scripts = sorted(script.glob("*.ops"))
    if not scripts:
        raise ScenarioError([Problem(str(script), "holds no .ops file")])
    if out is None:
        raise ScenarioError([Problem("-o", "a folder of scripts needs a folder to write to")])
    return [
        (path, start / f"{path.stem}.jsonl" if start else None, out / f"{path.stem}.jsonl")
        for path in scripts
    ]


def replay(
    script: Annotated[Path, typer.Argument(help="SCRIPT.ops, or a folder of them.")],
    kernel: Annotated[str, typer.Option(help="Kernel profile: 6.1 or 6.12.")] = "6.12",
    start: Annotated[
        Path | None,
        typer.Option("--from", help="First snapshot of a recording (or a folder of them)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="OUT.jsonl, or a folder; else stdout.")
    ] = None,
) -> None:
    """Run op scripts and print what a recorder prints on a real kernel, a JSON object a snapshot.

    A script that asks for what the model cannot do yet is left out and named; the exit code is
    then 1.

    \b
    Examples:
      fleet replay fault-always.ops --kernel 6.1 --from start.jsonl -o out.jsonl
      fleet replay ops/ --kernel 6.12 --from starts/ -o replays/
    """
    from fleet.replay import Replay
    from fleet.replay_script import read_script, read_start
    from hostsim.mm.tunables import PROFILES

    if kernel not in PROFILES:
        known = ", ".join(PROFILES)
        raise ScenarioError([Problem("--kernel", f"{kernel!r} is not one of {known}")])
    left_out = 0
    for path, start_path, out_path in _pairs(script, start, out):
        machine = Replay(read_script(path), kernel, read_start(start_path) if start_path else None)
        lines = [json.dumps(snapshot) for snapshot in machine.run()]
        if machine.later:
            typer.echo(f"{path}: left out: not in the model yet: {machine.later[0]}", err=True)
            left_out += 1
            continue
        if out_path is None:
            typer.echo("\n".join(lines))
        else:
            out_path.parent.mkdir(parents=True, exist_ok=True)
            out_path.write_text("\n".join(lines) + "\n")
    if left_out:
        raise typer.Exit(1)
