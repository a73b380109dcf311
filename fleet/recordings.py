"""Recordings of real kernels, and replays of the same scripts scored against them.

Scripts, recordings and the scorer lie in `scenarios/groundtruth`, as they were measured.
"""

import importlib.util
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import scenarios
from fleet.replay import Replay
from fleet.replay_script import read_script, read_start

KERNELS: Final = ("6.1", "6.12")
FAMILIES: Final = ("vm", "counters", "buddy")
FOLDER: Final = Path(scenarios.__file__).parent / "groundtruth"


class Scored(NamedTuple):
    """One script's replay beside its recordings; shares in percent by family."""

    script: str
    shares: dict[str, float]  # cells within the range of the recorded runs
    own: dict[str, float]  # the kernel's agreement with itself
    misses: list[str]  # a line a cell


def _scorer() -> Any:
    """Return the program that judges replays, as it stands beside the recordings."""
    spec = importlib.util.spec_from_file_location("score", FOLDER / "score.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(FOLDER / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _own_agreement(path: Path) -> dict[str, dict[str, float]]:
    """Return how far a kernel agrees with itself, by script and family."""
    found = {}
    for line in path.read_text().splitlines()[:-1]:
        name, *rest = line.split()
        found[name] = dict(zip(rest[::2], map(float, rest[1::2]), strict=True))
    return found


def _snapshots(path: Path) -> dict[str, Any]:
    """Return a recording's snapshots by label."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]
    return {row["snapshot"]: row for row in rows if "snapshot" in row}


def replayed(kernel: str) -> Iterator[Scored]:
    """Replay every script from the first snapshot of a recording, and score it."""
    scorer = _scorer()
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(FOLDER / f"{kernel}.tar.gz") as archive,
    ):
        archive.extractall(folder, filter="data")
        recorded = Path(folder) / kernel
        own = _own_agreement(recorded / "self-agreement.txt")
        for path in sorted((FOLDER / "ops").glob("*.ops")):
            start = read_start(recorded / "start" / f"{path.stem}.jsonl")
            printed = {s["snapshot"]: s for s in Replay(read_script(path), kernel, start).run()}
            replay = json.loads(json.dumps(printed))
            runs = [_snapshots(p) for p in sorted(recorded.glob(f"{path.stem}.run*.jsonl"))]
            tally, misses = scorer.score(replay, runs)
            shares = {family: 100.0 * passed / cells for family, (passed, cells) in tally.items()}
            yield Scored(path.stem, shares, own[path.stem], misses)
