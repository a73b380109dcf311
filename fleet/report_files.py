"""Files that a report writes: whole or not at all, and never over what is no report."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import vl_convert

from fleet import charts, figures
from fleet.report_data import Frames
from fleet.store import reported
from hostsim.core.errors import Problem, ScenarioError

GENERATOR: Final = "hugefleet report"
HEAD_BYTES: Final = 1024  # of a page, in which its generator stands
PLOT_WIDTH: Final = 760
PLOT_PPI: Final = 144


def may_write(out: Path, overwrite: bool) -> None:
    """Refuse to write over what is no report.

    Raises
    ------
    ScenarioError
        There is such a file.
    """
    if overwrite or not out.exists():
        return
    head = b""
    if out.is_file():
        with reported(out, "read"), out.open("rb") as file:
            head = file.read(HEAD_BYTES)
    if f'content="{GENERATOR}'.encode() not in head:
        message = "exists and is not a report; it stays untouched"
        raise ScenarioError([Problem(f"-o {out}", message, "--overwrite replaces it")])


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all.

    Raises
    ------
    ResultsError
        It cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        with reported(path, "write"):
            path.parent.mkdir(parents=True, exist_ok=True)
            staged.write_bytes(content)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def write_plots(frames: Frames, folder: Path, formats: Iterable[str]) -> list[Path]:
    """Write each chart of a run to a file of its own; return those that are written."""
    written = []
    for figure in figures.figures(frames, charts.LIGHT):
        if figure.drawing is None:
            continue
        spec = json.dumps(charts.spec(figure.drawing, charts.LIGHT, PLOT_WIDTH))
        for kind in formats:
            path = folder / f"{figure.name}.{kind}"
            if kind == "svg":
                content = vl_convert.vegalite_to_svg(spec).encode()
            else:
                content = vl_convert.vegalite_to_png(spec, ppi=PLOT_PPI)
            write_file(path, content)
            written.append(path)
    return written
