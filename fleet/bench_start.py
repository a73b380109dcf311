"""How long until the first simulated event: with nothing compiled, and with kernels in the cache.

A process of its own runs one epoch of one tick, in which VMs start.  The clock runs from the
beginning of the process until the rows of that epoch have reached the driver; the CPU time is
that of all of the command, its end included.  Python may keep the bytecode of modules, as pip
compiles that of an installed package.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from fleet.claims import Claim, Found, at_most
from fleet.rundir import RUN_FILE
from fleet.usage import measured
from hostsim.core.errors import WorkerError
from hostsim.core.jit import cache_root

COLD_BAR_S: Final = 60.0
WARM_BAR_S: Final = 8.0
ARGUMENTS: Final = ("smoke", "--set=run.epoch_ticks=1", "--set=run.duration=5min", "--json")


class Measured(NamedTuple):
    """What a start took."""

    name: str
    wall_s: float
    cpu_s: float


def measure(name: str, cache: Path, options: tuple[str, ...] = ()) -> Measured:
    """Run one epoch of one tick with a kernel cache.

    Raises
    ------
    WorkerError
        It failed.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fleet", "run", *ARGUMENTS, *options]
        with measured() as cost:
            done = subprocess.run(
                [*command, "--out", str(Path(folder) / "run")],
                env=environment | {"FLEET_CACHE_DIR": str(cache)},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise WorkerError(f"fleet run: exit code {done.returncode}: {done.stderr[-500:]}")
        record = json.loads((Path(folder) / "run" / RUN_FILE).read_text())
    return Measured(name, record["execution"]["first_rows_wall_s"], cost.cpu_s)


def judge(rows: list[Measured]) -> list[Claim]:
    """Hold starts against their bars: the first is cold."""
    claims = []
    for index, row in enumerate(rows):
        bar_s = COLD_BAR_S if index == 0 else WARM_BAR_S
        claim = at_most(f"to the first simulated event, {row.name}", row.wall_s, bar_s, "s")
        claims.append(claim._replace(cpu_s=row.cpu_s))
    return claims


def start(
    warm: Annotated[bool, "Leave the cold start out: kernels as they are in the cache."] = False,
) -> Found:
    """Start with an empty kernel cache, then with a full one, in one process and with Ray."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_root() if warm else Path(folder)
        rows.append(measure("nothing compiled, --inline", cache, ("--inline",)))
        rows.append(measure("kernels in the cache, --inline", cache, ("--inline",)))
        rows.append(measure("kernels in the cache, Ray with 2 workers", cache, ("--workers", "2")))
    rows = rows[1:] if warm else rows
    claims = judge([rows[0], *rows])[1:] if warm else judge(rows)
    return Found(claims, [row._asdict() for row in rows])
