"""A run that is measured: what all of it took, and what the part behind its beginning took."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fleet.driver import Backend
from fleet.live import Progress
from fleet.scenario import Scenario
from fleet.scheduler import Options, run
from fleet.usage import cpu_of_tree
from hostsim.core.units import NS_PER_HOUR

MIB = 1 << 20


class Measured(NamedTuple):
    """What a run took."""

    record: dict[str, Any]  # run.json
    # from the first epochs to the last
    steady_cpu_s: float  # of all processes
    steady_wall_s: float
    steady_host_hours: float
    steady_events: int  # starts, ends, kills and rejects of VMs

    @property
    def cpu_s(self) -> float:
        """CPU time of all processes, start-up included."""
        return float(self.record["execution"]["cpu_s"])

    @property
    def peak_bytes(self) -> int:
        """Memory of all processes."""
        return int(self.record["execution"]["peak_memory_bytes"])


def measured_run(
    scenario: Scenario,
    options: Options,
    begin_ratio: float = 0.25,
    make_backend: Callable[[Scenario], Backend] | None = None,
    out: Path | None = None,
) -> Measured:
    """Run a scenario and measure it, as a whole and behind its beginning.

    Parameters
    ----------
    begin_ratio
        Share of the epochs that are its beginning: processes start, the standing VMs come.
    out
        Keeps the tables; without it they are deleted.
    """
    seen: list[tuple[float, float, Progress]] = []
    first = max(1, int(scenario.nr_epochs * begin_ratio))

    def on_epoch(progress: Progress) -> None:
        if progress.epoch in (first, progress.nr_epochs):
            seen.append((cpu_of_tree(), time.perf_counter(), progress))

    with tempfile.TemporaryDirectory() as folder:
        record = run(scenario, out or Path(folder) / "run", options, on_epoch, make_backend)
    (cpu0_s, wall0_s, begin), (cpu1_s, wall1_s, end) = seen[0], seen[-1]
    hours = (end.t_ns - begin.t_ns) / NS_PER_HOUR
    return Measured(
        record,
        cpu1_s - cpu0_s,
        wall1_s - wall0_s,
        hours * scenario.nr_hosts,
        end.vm_events - begin.vm_events,
    )
