"""Benches in processes of their own: one, or two checkouts by turns."""

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from fleet.claims import DOCUMENT, Found, Group, document, groups_of
from hostsim.core.errors import Problem, ScenarioError, WorkerError

REASON_LENGTH = 200


def run_bench(checkout: Path | None, name: str, repeat: int = 1) -> dict[str, Any]:
    """Run a bench with the code of a checkout, or with this; return its document.

    Raises
    ------
    WorkerError
        It ended without one.
    """
    environment = dict(os.environ)
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)  # before what is installed; workers inherit it
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "bench", name, "--json", "--repeat", str(repeat)],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        content: dict[str, Any] = json.loads(done.stdout)
        if content["format"] == DOCUMENT:
            return content
    except (ValueError, KeyError, TypeError):
        pass
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    where = f"{checkout}: " if checkout else ""
    raise WorkerError(f"{where}fleet bench {name}: {lines[-1][:REASON_LENGTH]}")


def run_pairs(other: Path, name: str, pairs: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a bench in another checkout and in this one by turns; return a document of each.

    Raises
    ------
    ScenarioError
        The other is no checkout.
    WorkerError
        A bench failed.
    """
    other = other.resolve()
    if not (other / "fleet" / "cli_bench.py").exists():
        message = "holds no fleet/cli_bench.py"
        raise ScenarioError([Problem(f"CHECKOUT {other}", message, "name a folder that git made")])
    places = (other, Path(__file__).resolve().parents[1])
    for place in places:
        run_bench(place, name)  # compiles, and fills the page cache
    found: tuple[list[dict[str, Any]], ...] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            found[which].append(run_bench(places[which], name))
    session = uuid.uuid4().hex
    return joined(found[0], session), joined(found[1], session)


def joined(runs: list[dict[str, Any]], session: str) -> dict[str, Any]:
    """Return one document of several runs of one program, with the samples of all."""
    groups: dict[str, list[Found]] = {}
    for run in runs:
        for group in groups_of(run):
            groups.setdefault(group.name, []).extend(group.runs)
    made = document([Group(name, found) for name, found in groups.items()], session)
    return made | {key: runs[0][key] for key in ("date", "versions", "git_commit")}
