"""What a fleet past one machine would take: measured small on three Ray nodes, projected large.

Three nodes with network namespaces of their own run a hundredth of the fleet.  What a host costs
there in its worker, in the driver, in files and in memory is multiplied; what does not grow with
the fleet is told from it by a second run of a quarter of the hosts.
CPU time is what is measured, so that it does not matter how many cores the three nodes share.
"""

import contextlib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from fleet.bench_cluster import WAIT_S, epochs_written, finished
from fleet.claims import Found, number
from fleet.loading import load
from fleet.netns import Machines, why_not
from fleet.rundir import CHECKPOINTS, read_manifest
from fleet.store import Store
from fleet.usage import usage_of_process
from hostsim.core.errors import WorkerError
from hostsim.core.stats import TABLES

HOSTS: Final = 10_000
HOURS: Final = 7 * 24
HOST_GIB: Final = 512
NODES: Final = 3
CHECKPOINT_EPOCHS: Final = 24  # the default of fleet run
CLUSTERS: Final = ((1, 32), (16, 32))  # machines, cores of each
DRIVER_CORES: Final = 2  # the driver, and Ray's own processes on its machine
NETWORK_BYTES_PER_S: Final = 1.25e9  # assumed: 10 Gbit/s into the driver
STORE_BYTES_PER_S: Final = 1e9  # assumed: checkpoints are written by the driver
POLL_S: Final = 0.25


class Seen(NamedTuple):
    """What a run took, an epoch an hour."""

    hosts: int
    start_cpu_s: float  # of workers up to the first epoch's end: hosts made, VMs that stand
    worker_cpu_s: float  # of workers, an epoch behind the first quarter
    uneven_ratio: float  # slowest worker over the mean of all
    driver_cpu_s: float  # an epoch: placement, rows, files
    barrier_cpu_s: float  # of it while no worker computes
    memory_bytes: float  # of workers at the end
    result_bytes: float  # of files, an epoch
    row_bytes: float  # of rows to the driver, an epoch
    checkpoint_bytes: float


class Cost(NamedTuple):
    """A figure of a run: the same for any fleet, and a host's part."""

    fixed: float
    host: float

    def of(self, hosts: int) -> float:
        """Return the figure of a fleet."""
        return self.fixed + self.host * hosts


def costs(small: Seen, large: Seen) -> dict[str, Cost]:
    """Return the line through two runs, by figure; no fixed part where it would be negative."""
    found = {}
    for name in Seen._fields[1:]:
        a, b = getattr(small, name), getattr(large, name)
        host = (b - a) / (large.hosts - small.hosts)
        fixed = a - host * small.hosts
        found[name] = Cost(fixed, host) if fixed > 0 else Cost(0.0, b / large.hosts)
    return found


class Projected(NamedTuple):
    """What the whole fleet takes on a cluster."""

    machines: int
    cores: int
    wall_s: float
    start_s: float  # of it
    compute_s: float  # workers
    driver_s: float  # beside them, while they compute
    barrier_s: float  # CPU time of the driver and rows on the network
    checkpoint_s: float
    cpu_hours: float
    gib_a_machine: float
    results_gib: float
    bound_by: str


class _Look(NamedTuple):
    epochs: int  # written
    workers: list[float]  # CPU seconds
    memory_bytes: int  # of workers
    driver_cpu_s: float


def _workers(machines: Machines) -> list[int]:
    """Return the processes that hold shards."""
    found = []
    for machine in range(len(machines.addresses())):
        for pid in machines.processes(machine):
            with contextlib.suppress(OSError):
                if b"ShardActor" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
    return sorted(found)


def _look(machines: Machines, driver: int, out: Path) -> _Look:
    usage = [usage_of_process(pid) for pid in _workers(machines)]
    return _Look(
        epochs_written(out),
        [part.cpu_s for part in usage],
        sum(part.memory_bytes for part in usage),
        usage_of_process(driver).cpu_s,
    )


def _watch(
    run: "subprocess.Popen[str]", machines: Machines, out: Path, epochs: int
) -> tuple[list[_Look], int]:
    """Look at a run once an epoch until it ends; return that and the size of a checkpoint."""
    looks: list[_Look] = []
    largest = 0
    give_up_s = time.monotonic() + WAIT_S * 12
    while run.poll() is None:
        written = epochs_written(out)
        if written > (looks[-1].epochs if looks else 0) and written < epochs - 1:
            looks.append(_look(machines, run.pid, out))
        for path in (out / CHECKPOINTS).glob("*"):
            with contextlib.suppress(OSError):
                largest = max(largest, path.stat().st_size)
        if time.monotonic() > give_up_s:
            run.kill()
            raise WorkerError(f"{out.name}: no end after {WAIT_S * 12:.0f} s")
        time.sleep(POLL_S)
    return looks, largest


def measure(hosts: int, hours: int, memory: str) -> Seen:
    """Run the churn scenario on three nodes and return what it took.

    Raises
    ------
    WorkerError
        There can be no namespaces here, or the run failed.
    """
    reason = why_not()
    if reason:
        raise WorkerError(reason)
    base = load("churn")
    spec = base.host_specs()[0]
    pages = load("churn", [f"hosts.memory={memory}"]).host_specs()[0].memory_pages
    times = pages / spec.memory_pages  # as many VMs a GiB
    scale = float(base.document["vms"]["scale"]) / base.nr_hosts * hosts * times
    arguments = (
        "churn",
        f"--set=hosts.count={hosts}",
        f"--set=hosts.memory={memory}",
        f"--set=hosts.vcpus={int(spec.vcpus * times)}",
        f"--set=vms.scale={scale:.6f}",
        f"--set=run.duration={hours}h",
        f"--checkpoint-epochs={hours - 1}",  # one, behind the last look
    )
    with tempfile.TemporaryDirectory() as name, Machines() as machines:
        for _ in range(NODES - 1):
            machines.add()
        out = Path(name) / "run"
        run = machines.fleet(*arguments, "--out", str(out))
        looks, checkpoint_bytes = _watch(run, machines, out, hours)
        done = finished(run, out)
        parts = read_manifest(Store.of(out))
    if len(looks) < 2:
        raise WorkerError(f"{hosts} hosts for {hours} h are too few: nothing was seen of the run")
    return seen(looks, done.record, parts, checkpoint_bytes, hosts, hours)


def seen(
    looks: list[_Look],
    record: dict[str, Any],
    parts: list[dict[str, Any]],
    checkpoint_bytes: int,
    hosts: int,
    hours: int,
) -> Seen:
    """Return what a run took from looks at it, its record and its manifest."""
    begin = next((look for look in looks[:-1] if look.epochs >= hours // 4), looks[0])
    end = looks[-1]
    epochs = end.epochs - begin.epochs
    workers = [b - a for a, b in zip(begin.workers, end.workers, strict=True)]
    values = sum(part["rows"] * len(TABLES[part["table"]]) for part in parts)
    return Seen(
        hosts,
        sum(looks[0].workers),
        sum(workers) / epochs,
        max(workers) * len(workers) / sum(workers),
        (end.driver_cpu_s - begin.driver_cpu_s) / epochs,
        record["execution"]["barrier_cpu_s"] / hours,
        end.memory_bytes,
        sum(part["bytes"] for part in parts) / hours,
        8.0 * values / hours,
        checkpoint_bytes,
    )


def on_cluster(
    cost: dict[str, Cost], uneven_ratio: float, hosts: int, hours: int, machines: int, cores: int
) -> Projected:
    """Project a fleet onto a cluster.

    Workers share the hosts evenly but for what was uneven; the driver places VMs and writes rows
    while they compute, and everybody waits at a barrier an hour and while a checkpoint is written.
    What is the same for any fleet is taken once for the driver and once for each worker.
    """
    workers = machines * cores - DRIVER_CORES
    own = {name: figure.fixed / NODES for name, figure in cost.items()}  # of a worker

    def worker_s(name: str) -> float:
        return (own[name] + cost[name].host * hosts / workers) * uneven_ratio

    start_s, compute_s = worker_s("start_cpu_s"), worker_s("worker_cpu_s") * hours
    network_s = cost["row_bytes"].of(hosts) / NETWORK_BYTES_PER_S
    barrier_s = (cost["barrier_cpu_s"].of(hosts) + network_s) * hours
    driver_s = (cost["driver_cpu_s"].of(hosts) - cost["barrier_cpu_s"].of(hosts)) * hours
    checkpoints = (hours - 1) // CHECKPOINT_EPOCHS
    checkpoint_s = cost["checkpoint_bytes"].of(hosts) * checkpoints / STORE_BYTES_PER_S
    parts = {"workers": compute_s, "driver": driver_s}
    bound_by = max(parts, key=lambda name: parts[name])
    if barrier_s + checkpoint_s > parts[bound_by]:
        bound_by = "barriers"
    cpu_s = (start_s + compute_s) / uneven_ratio * workers
    cpu_s += cost["driver_cpu_s"].of(hosts) * hours
    memory_bytes = own["memory_bytes"] * workers + cost["memory_bytes"].host * hosts
    return Projected(
        machines,
        machines * cores,
        start_s + max(compute_s, driver_s) + barrier_s + checkpoint_s,
        start_s,
        compute_s,
        driver_s,
        barrier_s,
        checkpoint_s,
        cpu_s / 3600,
        memory_bytes / machines / (1 << 30),
        cost["result_bytes"].of(hosts) * hours / (1 << 30),
        bound_by,
    )


FIGURES: Final = (
    ("workers, start", "start_cpu_s", "CPU s"),
    ("workers, an hour", "worker_cpu_s", "CPU s"),
    ("driver, an hour", "driver_cpu_s", "CPU s"),
    ("driver while workers wait, an hour", "barrier_cpu_s", "CPU s"),
    ("memory of workers", "memory_bytes", "B"),
    ("result files, an hour", "result_bytes", "B"),
    ("rows to the driver, an hour", "row_bytes", "B"),
    ("checkpoint", "checkpoint_bytes", "B"),
)


def lines(
    runs: list[Seen], cost: dict[str, Cost], hosts: int, hours: int, rows: list[Projected]
) -> list[str]:
    """Return what was measured, what was assumed and what follows, for people."""
    heads = [f"{run.hosts} hosts" for run in runs]
    text = [
        f"measured on {NODES} nodes{'':<18}{heads[0]:>14}{heads[1]:>14}{'fixed':>14}{'a host':>14}"
    ]
    for title, name, unit in FIGURES:
        values = [getattr(run, name) for run in runs] + list(cost[name])
        text.append(f"  {title:<36}" + "".join(f"{number(v, unit):>14}" for v in values))
    uneven = ", ".join(f"{run.uneven_ratio:.2f}" for run in runs)
    text += [
        f"  slowest worker over the mean: {uneven}; the last counts",
        f"assumed: an epoch an hour; {DRIVER_CORES} cores for the driver and Ray, a worker on each"
        " other;",
        f"  rows reach the driver at {number(NETWORK_BYTES_PER_S, 'B')}/s and checkpoints (every"
        f" {CHECKPOINT_EPOCHS} epochs) are written at {number(STORE_BYTES_PER_S, 'B')}/s;",
        "  cores as fast as these, as many VMs a GiB; no machine is lost; packing checkpoints free",
        f"{hosts:,} hosts for {hours:,} h:",
        f"  {'machines x cores':<17}{'wall':>8}{'start':>8}{'workers':>9}{'driver':>8}"
        f"{'barriers':>10}{'checkp.':>8}{'CPU-h':>8}{'GiB each':>10}  bound by",
    ]
    text += [
        f"  {f'{row.machines} x {row.cores // row.machines}':<17}"
        f"{row.wall_s:>7,.0f}s{row.start_s:>7,.0f}s{row.compute_s:>8,.0f}s{row.driver_s:>7,.0f}s"
        f"{row.barrier_s:>9,.0f}s{row.checkpoint_s:>7,.0f}s{row.cpu_hours:>8,.1f}"
        f"{row.gib_a_machine:>10,.1f}  {row.bound_by}"
        for row in rows
    ]
    text.append(f"  results: {rows[0].results_gib:,.1f} GiB")
    return text


def project(
    hosts: Annotated[int, "Hosts that are measured: a hundredth."] = HOSTS // 100,
    hours: Annotated[int, "Hours that are measured, of 168."] = 24,
    memory: Annotated[str, "Memory of a host."] = f"{HOST_GIB}GiB",
) -> Found:
    r"""Measure on three Ray nodes what hosts cost; project 10,000 hosts for a week.

    Two runs, one of a quarter of the hosts, tell what grows with the fleet from what does not.
    Each node has an address of its own, in a network namespace: as root, with iproute2.

    \b
    Example:
      fleet bench project --hosts 12 --hours 8
    """
    runs = [measure(nr, hours, memory) for nr in (max(hosts // 4, NODES), hosts)]
    cost = costs(*runs)
    uneven = runs[1].uneven_ratio
    rows = [on_cluster(cost, uneven, HOSTS, HOURS, *cluster) for cluster in CLUSTERS]
    details = {
        "measured": [run._asdict() for run in runs],
        "hours": hours,
        "memory": memory,
        "nodes": NODES,
        "costs": {name: figure._asdict() for name, figure in cost.items()},
        "assumed": {
            "network_bytes_per_s": NETWORK_BYTES_PER_S,
            "store_bytes_per_s": STORE_BYTES_PER_S,
            "driver_cores": DRIVER_CORES,
        },
        "projected": [row._asdict() for row in rows],
    }
    return Found((), details, lines(runs, cost, HOSTS, HOURS, rows))
