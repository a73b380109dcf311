"""Some hosts of a finished run, computed again: for what its tables do not hold, its memory.

The ordinary driver runs the scenario again, but of the hosts only the wanted one advances, and
those from which VMs moved to it; the rows of all others are read from the run's tables. What is
computed must equal what was recorded, row by row, so that nobody looks at another run's memory.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fleet import rundir
from fleet.costs import Costs
from fleet.demand import open_demand
from fleet.driver import Driver
from fleet.migration import Emigrant
from fleet.node import Node
from fleet.rundir import RunDirectory, epoch_of
from fleet.scan import scan
from fleet.scenario import Scenario
from fleet.schema import rows_of
from fleet.shard import InlineBackend, Load, MakeNode, Move, Shard, ShardPlan, Step, Tables
from fleet.sink import HOST_COLUMN
from fleet.warmup import warm_up
from hostsim.core.errors import ResultsError
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES, NODE_TABLES, TABLES

Look = Callable[[int, Node], None]  # what is called with the time of an epoch's end and a host
_EVENT = [column.name for column in EVENT_COLUMNS].index("event")
_OF_DRIVER = [EVENT_NAMES.index(name) for name in ("reject", "host_down", "host_up")]


class Rerun(NamedTuple):
    """What was computed again."""

    host_ids: tuple[int, ...]
    rows: int  # of all tables, equal to the recorded ones


def hosts_needed(run: RunDirectory, host_id: int) -> tuple[int, ...]:
    """Return a host and those from which VMs came to it, or to these, in turn."""
    pairs = scan(run, "migrations").select("source_host_id", "host_id").unique().collect()
    needed, found = {host_id}, {host_id}
    while found:
        sources = pairs.filter(pl.col("host_id").is_in(list(found)))["source_host_id"]
        found = set(sources.to_list()) - needed
        needed |= found
    return tuple(sorted(needed))


def nr_epochs_written(run: RunDirectory) -> int:
    """Return of how many epochs a run has rows."""
    return max((epoch_of(path) + 1 for path in run.parts["hosts"]), default=0)


def rerun(
    run: RunDirectory,
    scenario: Scenario,
    host_id: int,
    nr_epochs: int,
    look: Look,
    make_node: MakeNode = Node,
) -> Rerun:
    """Compute a host again from the start of a run, and call `look` after every epoch.

    Raises
    ------
    ResultsError
        What is computed is not what was recorded, or a file cannot be read.
    ScenarioError
        The trace of the run is not there.
    """
    warm_up()
    needed = hosts_needed(run, host_id)
    backend = RerunBackend(run, scenario, needed, make_node)
    driver = Driver(scenario, open_demand(scenario), backend, _Nowhere(), Costs())
    node = backend.shard.nodes[needed.index(host_id)]

    def after(progress: Any) -> None:
        look(progress.t_ns, node)

    driver.run([after], nr_epochs)
    return Rerun(needed, backend.equal_rows)


class _Nowhere:
    """Takes rows and keeps none."""

    def rewind(self, nr_epochs: int) -> None:
        """There is nothing to keep."""

    def write(self, epoch: int, tables: Tables) -> None:
        """Forget the rows."""

    def finish(self) -> None:
        """There is nothing to end."""


class RerunBackend(InlineBackend):
    """Computes some hosts of a run in this process, and reads the rows of all others.

    The first shard are the computed hosts, the second the others.
    """

    name = "rerun"

    def __init__(
        self,
        run: RunDirectory,
        scenario: Scenario,
        computed: tuple[int, ...],
        make_node: MakeNode = Node,
    ) -> None:
        others = tuple(host for host in range(scenario.nr_hosts) if host not in computed)
        self.host_ids = [computed, others]
        self.nodes: list[str] = []
        self.shard = Shard(ShardPlan(scenario, computed, check=False), make_node)
        self.equal_rows = 0
        self._run = run
        self._tables: list[Tables] = []

    def emigrate(self, epoch: int, t_ns: int, moves: list[list[Move]]) -> list[list[Emigrant]]:
        """Send VMs away; those of hosts that are not computed hold nothing and go nowhere."""
        nobody: Any = [None] * len(moves[1])
        return [self.shard.emigrate(epoch, t_ns, moves[0]), nobody]

    def submit(self, steps: list[Step]) -> None:
        """Advance the computed hosts, and read the epoch's rows."""
        step = steps[0]
        recorded = recorded_rows(self._run, step.epoch)
        computed = self.shard.advance(step)
        others: Tables = {}
        for table in NODE_TABLES:
            own = np.isin(recorded[table][:, HOST_COLUMN[table]], self.host_ids[0])
            self._compare(step.epoch, table, computed[table], recorded[table][own])
            others[table] = recorded[table][~own]
        self._tables = [computed, others]

    def _compare(
        self, epoch: int, table: str, computed: NDArray[np.int64], recorded: NDArray[np.int64]
    ) -> None:
        """Insist that rows are those that the run wrote."""
        place = HOST_COLUMN[table]
        computed = computed[np.argsort(computed[:, place], kind="stable")]
        if not np.array_equal(computed, recorded):
            where = f"epoch {epoch}, table {table}: {_difference(table, computed, recorded)}"
            raise ResultsError(
                f"{self._run.store}: computed again, it is not the same ({where});"
                f" {_versions(self._run)}"
            )
        self.equal_rows += len(recorded)

    def collect(self) -> list[Tables]:
        """Return the rows of both shards."""
        return self._tables

    def save(self) -> Iterator[tuple[int, bytes]]:
        """Return the state of no host: nothing is kept."""
        return iter(())

    def restore(self, epoch: int, load: Load) -> None:
        """There is no checkpoint."""


def recorded_rows(run: RunDirectory, epoch: int) -> Tables:
    """Return what nodes wrote in an epoch, in host order; what the driver adds is left out.

    Raises
    ------
    ResultsError
        A file cannot be read.
    """
    found: Tables = {}
    for table in NODE_TABLES:
        rows = [np.zeros((0, len(TABLES[table])), np.int64)]
        for path in run.parts[table]:
            if epoch_of(path) == epoch:
                with run.store.opened(path) as file:
                    rows.append(rows_of(table, _read(file)))
        found[table] = np.concatenate(rows)
    own = ~np.isin(found["events"][:, _EVENT], _OF_DRIVER)
    found["events"] = found["events"][own]
    return found


def _read(file: Any) -> pa.Table:
    return pq.ParquetFile(file).read()


def _difference(table: str, computed: NDArray[np.int64], recorded: NDArray[np.int64]) -> str:
    """Name the first difference of rows."""
    if len(computed) != len(recorded):
        return f"{len(computed)} rows instead of {len(recorded)}"
    row, column = np.argwhere(computed != recorded)[0]
    host = recorded[row, HOST_COLUMN[table]]
    name = TABLES[table][column].name
    return f"host {host}, {name} {computed[row, column]} instead of {recorded[row, column]}"


def _versions(run: RunDirectory) -> str:
    """Say what differs between the program that ran and this one."""
    was, is_now = run.record["versions"], rundir.versions()
    changed = [
        f"{name} {was.get(name)} then, {is_now.get(name)} now"
        for name in sorted(was.keys() | is_now.keys())
        if was.get(name) != is_now.get(name)
    ]
    commit = str(run.record.get("git_commit"))[:12]
    origin = f"it was run at commit {commit}"
    return ", ".join([*changed, origin]) if changed else origin
