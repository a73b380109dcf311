"""Ten million rows of the table ``hosts``, and what questions to them cost.

The rows are made up, but written as a run writes them: schema, parts by host group and epoch,
manifest.  Gauges wander and counters grow by a little from row to row, so that a row takes about
as many bytes as one of the churn scenario.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet import rundir
from fleet.claims import Claim, Found, at_most, number
from fleet.loading import load
from fleet.scenario import Scenario
from fleet.sink import Sink
from fleet.sql import query as asked
from fleet.store import Store
from hostsim.core.errors import WorkerError
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.rng import Stream, stream
from hostsim.core.stats import SCHEMA_VERSION

BAR_S: Final = 1.0
BAR_BYTES: Final = 1 << 30
RUNS: Final = 3
STEP: Final = 4  # a value moves by less than this from one row to the next
BY_HOST: Final = (
    "SELECT host_id, AVG(unusable_index_order9) AS unusable FROM hosts GROUP BY host_id"
)
ONE_HOST: Final = "SELECT t_ns, nr_vms FROM hosts WHERE host_id = 7"
EVERYTHING: Final = (
    "SELECT host_id, "
    + ", ".join(f"AVG({column.name}) AS {column.name}" for column in HOST_COLUMNS[2:])
    + " FROM hosts GROUP BY host_id"
)
QUESTIONS: Final = {
    "one column, group by host": BY_HOST,
    "one host of all": ONE_HOST,
    "all columns, group by host": EVERYTHING,
}


class Measured(NamedTuple):
    """What one question cost: medians of some runs of the whole command, and of the query alone."""

    name: str
    command_s: float
    query_s: float
    cpu_s: float
    peak_bytes: int


def make(folder: Path, nr_hosts: int, nr_ticks: int) -> dict[str, Any]:
    """Write a run whose table ``hosts`` has so many rows; return what it came to."""
    begin_s = time.perf_counter()
    duration = f"{nr_ticks * 5}min"
    scenario = load("churn", [f"hosts.count={nr_hosts}", f"run.duration={duration}"])
    store = Store(folder)
    store.make_folder()
    sink = Sink(store, nr_hosts, scenario.hosts_per_part, attempt=1)
    rng = stream(1, Stream.TRACE_ARRIVALS, 0, 0)
    state = rng.integers(0, 1_000_000, (nr_hosts, 1, len(HOST_COLUMNS)))
    for epoch in range(scenario.nr_epochs):
        rows = _epoch(scenario, epoch, state, rng)
        state = rows[:, -1:]
        sink.write(epoch, {"hosts": rows.reshape(-1, len(HOST_COLUMNS))})
    sink.finish()
    record = {"format": rundir.FORMAT, "schema_version": SCHEMA_VERSION, "status": "complete"}
    record |= {"name": "made up", "scenario": scenario.document, "tally": {}}
    rundir.write_json(store, rundir.RUN_FILE, record)
    parts = sink.parts
    rows, size = (sum(part[key] for part in parts) for key in ("rows", "bytes"))
    took_s = time.perf_counter() - begin_s
    return {"rows": rows, "parts": len(parts), "bytes": size, "made_in_s": round(took_s, 1)}


def _epoch(
    scenario: Scenario, epoch: int, state: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the rows of an epoch, by host, tick and column."""
    t0_ns, t1_ns = scenario.epoch_bounds_ns(epoch)
    nr_ticks = (t1_ns - t0_ns) // scenario.tick_ns
    nr_hosts = scenario.nr_hosts
    steps = rng.integers(0, STEP, (nr_hosts, nr_ticks, len(HOST_COLUMNS)))
    gauges = [index for index, column in enumerate(HOST_COLUMNS) if column.kind == "gauge"]
    steps[:, ::2, gauges] *= -1
    rows: NDArray[np.int64] = state + np.cumsum(steps, axis=1)
    rows[:, :, 0] = t0_ns + (np.arange(nr_ticks) + 1) * scenario.tick_ns
    rows[:, :, 1] = np.arange(nr_hosts)[:, None]
    return rows


def measure(folder: Path, name: str, sql: str) -> Measured:
    """Ask a question some times, as a command and in this process.

    Raises
    ------
    WorkerError
        The command fails.
    """
    commands, queries, cpu, peaks = [], [], [], []
    for _ in range(RUNS):
        begin_s = time.perf_counter()
        command = [sys.executable, "-m", "fleet", "query", str(folder), sql]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
            assert child.stderr is not None
            said = child.stderr.read()
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        commands.append(time.perf_counter() - begin_s)
        if child.returncode:
            raise WorkerError(f"fleet query failed: {said.decode().strip()}")
        cpu.append(usage.ru_utime + usage.ru_stime)
        peaks.append(usage.ru_maxrss << 10)
        begin_s = time.perf_counter()
        asked(folder, sql)
        queries.append(time.perf_counter() - begin_s)
    command_s, query_s, cpu_s = (float(np.median(values)) for values in (commands, queries, cpu))
    return Measured(name, command_s, query_s, cpu_s, max(peaks))


def judge(rows: int, found: list[Measured]) -> list[Claim]:
    """Hold the costs against the bars."""
    size = number(rows, "rows")
    by_host, _, everything = found
    return [
        at_most(f"group by host, {size}: whole command", by_host.command_s, BAR_S, "s"),
        at_most(f"group by host, {size}: query alone", by_host.query_s, BAR_S, "s"),
        at_most(f"all columns by host, {size}: memory", everything.peak_bytes, BAR_BYTES, "B"),
    ]


def query(
    hosts: Annotated[int, "Hosts of the made-up run."] = 1000,
    ticks: Annotated[int, "Rows a host."] = 10_000,
) -> Found:
    """Make ten million rows, in some minutes and a gigabyte, and ask them questions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        made = make(folder, hosts, ticks)
        found = [measure(folder, what, sql) for what, sql in QUESTIONS.items()]
    a_row = made["bytes"] / made["rows"]
    lines = [
        f"{made['rows']:,} rows in {made['parts']:,} parts, {number(made['bytes'], 'B')},"
        f" {a_row:.0f} bytes a row, made in {made['made_in_s']:.0f} s",
        f"  {'':<30}{'command':>9}{'query':>9}{'CPU':>9}{'memory':>10}",
        *(
            f"  {row.name:<30}{row.command_s:>7.2f} s{row.query_s:>7.2f} s{row.cpu_s:>7.2f} s"
            f"{number(row.peak_bytes, 'B'):>10}"
            for row in found
        ),
    ]
    details = {"made": made, "questions": [row._asdict() for row in found]}
    return Found(judge(made["rows"], found), details, lines)
