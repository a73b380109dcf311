"""What rows cost: values written a CPU-second, and bytes a value.

The rows are those of a run; the sink is then timed alone on them: Parquet, compression, files
written, renamed and noted in the manifest.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.claims import Claim, Found, at_least, at_most, number
from fleet.loading import load
from fleet.rundir import read_manifest
from fleet.scenario import Scenario
from fleet.scheduler import Options, run
from fleet.shard import InlineBackend, Tables, in_host_order
from fleet.sink import Sink
from fleet.store import Store

RATE_BAR: Final = 20e6  # values a CPU-second
BYTES_BAR: Final = 2.5  # a value
RUNS: Final = 5


class _Keep(InlineBackend):
    """Keeps the rows of every epoch."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.kept: list[Tables] = []

    def collect(self) -> list[Tables]:
        rows = super().collect()
        self.kept.append(in_host_order(rows))
        return rows


class Measured(NamedTuple):
    """What the rows of a run cost."""

    rows: dict[str, int]  # by table
    values: int
    file_bytes: int  # by the manifest
    cpu_s: float  # median of some

    @property
    def rate(self) -> float:
        """Values a CPU-second."""
        return self.values / self.cpu_s


def tables_of(scenario: Scenario) -> list[dict[str, NDArray[np.int64]]]:
    """Run a scenario in this process and return the rows of nodes, epoch by epoch."""
    kept: list[_Keep] = []

    def made(scenario: Scenario) -> _Keep:
        kept.append(_Keep(scenario))
        return kept[0]

    with tempfile.TemporaryDirectory() as folder:
        run(scenario, Path(folder) / "run", Options(checkpoint_epochs=0), None, made)
    return kept[0].kept


def measure(scenario: Scenario, tables: list[dict[str, NDArray[np.int64]]]) -> Measured:
    """Write the rows of all epochs, some times; the median counts."""
    times, parts = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            store = Store.of(folder)
            begin_s = time.process_time()
            sink = Sink(store, scenario.nr_hosts, scenario.hosts_per_part, 1)
            for epoch, rows in enumerate(tables):
                sink.write(epoch, rows)
            sink.finish()
            times.append(time.process_time() - begin_s)
            parts = read_manifest(store)
    names = {name for rows in tables for name in rows}
    return Measured(
        {name: sum(len(rows[name]) for rows in tables) for name in sorted(names)},
        sum(part.size for rows in tables for part in rows.values()),
        sum(part["bytes"] for part in parts),
        float(np.median(times)),
    )


def judge(found: Measured) -> list[Claim]:
    """Hold what rows cost against the bars."""
    per_value = found.file_bytes / found.values
    return [
        at_least("values written a CPU-second", found.rate, RATE_BAR, "/s"),
        at_most("bytes of files a value", per_value, BYTES_BAR, "bytes"),
    ]


def results(
    hosts: Annotated[int, "Hosts of the churn scenario; files hold up to 1,024 of them."] = 256,
    hours: Annotated[int, "Simulated hours, an epoch each."] = 2,
) -> Found:
    r"""Run the churn scenario for its rows, then time the sink alone on them.

    \b
    Example:
      fleet bench results --hosts 16 --hours 2
    """
    base = load("churn")
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts * hosts
    fixed = [f"hosts.count={hosts}", f"run.duration={hours}h", f"vms.scale={scale:.6f}"]
    scenario = load("churn", fixed)
    found = measure(scenario, tables_of(scenario))
    rows = ", ".join(f"{count:,} of {name}" for name, count in found.rows.items())
    lines = [
        f"rows: {rows}; {found.values:,} values, {number(found.file_bytes, 'B')},"
        f" {found.cpu_s:.2f} CPU-s"
    ]
    return Found(judge(found), found._asdict(), lines)
