"""The driver: place an epoch's arrivals, let all hosts advance, write the rows, next epoch.

Bulk-synchronous: within an epoch hosts do not interact; at the barrier the driver alone decides.
Rows of one epoch are written while the shards compute the next.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fleet import checkpoint, rundir
from fleet.costs import Costs, cost_record, sampling_record
from fleet.demand import arrivals, arrivals_digest, make_placer, open_demand
from fleet.fleet_rows import fleet_row
from fleet.live import Progress, Watch, live_figures
from fleet.lock import Lock, held
from fleet.migration import Emigrant
from fleet.mmu_figures import SampleUsage
from fleet.operations import NO_ORDERS, Operations, Orders, with_orders
from fleet.placement import EpochPlan, Placer, empty_plan
from fleet.pool import gauges_of
from fleet.scenario import Scenario
from fleet.shard import (
    Arrivals,
    InlineBackend,
    Load,
    Move,
    Step,
    Tables,
    commands_for,
    in_host_order,
)
from fleet.sink import Sink
from fleet.store import STAGING, Store
from fleet.trace import Trace, make_trace
from hostsim.core import jit_options
from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES, REASON_NAMES, SCHEMA_VERSION
from hostsim.core.units import NS_PER_HOUR

_LOG = logging.getLogger(__name__)
NO_HOST_ID = -1
NO_VM_ID = -1
_KILL = EVENT_NAMES.index("kill")
_REJECT = EVENT_NAMES.index("reject")
_DOWN = EVENT_NAMES.index("host_down")
_UP = EVENT_NAMES.index("host_up")
_OOM = REASON_NAMES.index("oom")
_EVENT = {column.name: index for index, column in enumerate(EVENT_COLUMNS)}


class Backend(Protocol):
    """Who computes: this process, or Ray actors."""

    name: str
    host_ids: list[tuple[int, ...]]  # by shard
    nodes: list[str]  # addresses of the machines that compute

    def emigrate(self, epoch: int, t_ns: int, moves: list[list[Move]]) -> list[list[Emigrant]]:
        """Send VMs away at the barrier before an epoch; by shard, in the order of the moves."""

    def submit(self, steps: list[Step]) -> None:
        """Start an epoch; a step a shard."""

    def collect(self) -> list[Tables]:
        """Wait for it; one entry a shard."""

    def save(self) -> Iterator[tuple[int, bytes]]:
        """Return the state of every host, a few at a time."""

    def restore(self, epoch: int, load: Load) -> None:
        """Take up the state of every host."""

    def begin_journal(self, epoch: int, load: Load) -> None:
        """Note a new checkpoint: what is lost from now on is brought back from there."""

    def recoveries(self) -> list[dict[str, Any]]:
        """Return what was lost on the way and brought back."""

    def remote_usage(self) -> list[tuple[float, int]]:
        """Return CPU seconds and memory of processes on other machines."""

    def sampling(self) -> list[SampleUsage]:
        """Return what samples of address translation have cost each process."""

    def close(self) -> None:
        """End."""


class RowSink(Protocol):
    """Who takes the rows."""

    def rewind(self, nr_epochs: int) -> None:
        """Keep the rows of the first epochs only."""

    def write(self, epoch: int, tables: Tables) -> None:
        """Take the rows of an epoch."""

    def finish(self) -> None:
        """End: there are no more."""


class Options(NamedTuple):
    """How a run is carried out; none of it changes a result.

    Attributes
    ----------
    inline
        Compute in this process, without Ray.
    workers
        Worker processes; one a core if left out.
    hosts_per_actor
        Hosts that share a worker's actor; hosts / workers if left out.
    address
        ``HOST:PORT`` of a Ray cluster, or ``auto``; an embedded Ray if left out.
    overwrite, resume
        What to do with a run that is there: delete it, or continue it.
    checkpoint_epochs
        Epochs between checkpoints; 0 for none.
    metrics_port
        Where an embedded Ray serves metrics to Prometheus.
    """

    inline: bool = False
    workers: int | None = None
    hosts_per_actor: int | None = None
    address: str | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_epochs: int = 24
    metrics_port: int | None = None


def run(
    scenario: Scenario,
    out: str | Path | Store,
    options: Options | None = None,
    on_epoch: Watch | None = None,
    make_backend: Callable[[Scenario], Backend] | None = None,
) -> dict[str, Any]:
    """Run a scenario into a run directory and return the content of its ``run.json``.

    Parameters
    ----------
    scenario
        As `fleet.load` returns it.
    out
        A path or a URI of `fleet.store`.
    options
        How to run it; an embedded Ray with a worker a core if left out.
    on_epoch
        Called after every epoch with a `Progress`.
    make_backend
        Who computes, for tests.

    Raises
    ------
    ScenarioError
        The scenario cannot be run, or ``out`` already holds something, or is in use.
    ResultsError
        A file cannot be written, or a checkpoint cannot be taken up.
    WorkerError
        The Ray cluster cannot be reached or used, or workers die again and again.
    InvariantError
        A host's state is inconsistent.

    Examples
    --------
    >>> from fleet import Options, load, run
    >>> few = ["hosts.count=1", "run.duration=1h", "vms.scale=0.0001", "mmu.enabled=false"]
    >>> record = run(load("smoke", few), "runs/few", Options(inline=True))
    >>> record["status"], record["tally"]["start"] > 0
    ('complete', True)
    """
    options = options or Options()
    costs = Costs()
    if options.address:
        from fleet import cluster

        cluster.reach(options.address)  # within seconds, and before there is a directory
    trace = open_demand(scenario)
    store = Store.of(out)
    rundir.claim(store, options.overwrite, options.resume)
    with held(store, _LOG.warning) as lock:
        record = _record(scenario, trace)
        if options.overwrite:
            rundir.clear(store)
        if store.exists(rundir.RUN_FILE):
            before = rundir.read_json(store, rundir.RUN_FILE)
            _same_run(store, before, record)
            if before["status"] == "complete":
                checkpoint.clear(store)  # if it was killed before it could
                return cast(dict[str, Any], before)
            record["execution"]["attempt"] = before["execution"]["attempt"] + 1
        rundir.write_json(store, rundir.RUN_FILE, record)
        make = make_backend or (lambda s: _backend(s, options))
        _attempt(scenario, trace, make, record, costs, options, lock, on_epoch)
        checkpoint.clear(store)
    return record


def _attempt(
    scenario: Scenario,
    trace: Trace,
    make_backend: Callable[[Scenario], Backend],
    record: dict[str, Any],
    costs: Costs,
    options: Options,
    lock: Lock,
    on_epoch: Watch | None,
) -> None:
    """Run a scenario to its end, and write into ``run.json`` how it ended."""
    status = "failed"
    try:
        backend = make_backend(scenario)
        try:
            record["execution"]["backend"] = backend.name
            record["execution"]["shards"] = len(backend.host_ids)
            record["execution"]["nodes"] = backend.nodes
            attempt = record["execution"]["attempt"]
            per_part = scenario.hosts_per_part
            sink = Sink(lock.store, scenario.nr_hosts, per_part, attempt, lock.check)
            driver = Driver(scenario, trace, backend, sink, costs, options, lock)
            record["tally"] = driver.run(_watches(scenario, backend, on_epoch))
            costs.look(backend.remote_usage, force=True)
            record["execution"]["mmu"] = sampling_record(backend.sampling())
            record["execution"]["recoveries"] = backend.recoveries()
        finally:
            backend.close()
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        record["status"] = status
        record["execution"] |= cost_record(costs, scenario.nr_hosts)
        _note_end(lock, record, status)


def _watches(scenario: Scenario, backend: Backend, on_epoch: Watch | None) -> list[Watch]:
    """Return all that is to be called after every epoch: where Ray computes, metrics too."""
    watches = [on_epoch] if on_epoch else []
    if backend.name == "ray":
        from fleet.metrics import Exporter

        watches.append(Exporter(scenario.name, scenario.seed))
    return watches


def _same_run(store: Store, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a run under another scenario or other package versions."""
    for key in ("scenario", "versions"):
        for name in before[key].keys() | now[key].keys():
            was, is_now = before[key].get(name), now[key].get(name)
            if was != is_now:
                message = f"was run with {key} {name} = {was}, not {is_now}"
                raise ScenarioError([Problem(f"--out {store}", message, "--overwrite starts anew")])


def _note_end(lock: Lock, record: dict[str, Any], status: str) -> None:
    """Write how the run ended; a full disk must not hide the error that ended it."""
    store = lock.store
    try:
        lock.check()
        if status != "complete":
            store.delete_folder(STAGING)  # makes room for run.json
        rundir.write_json(store, rundir.RUN_FILE, record)
    except ResultsError:
        if status == "complete":
            raise


def is_cold() -> bool:
    """Say whether the kernels are still to be compiled on this machine."""
    from hostsim.core.jit import cache_folder

    return not cache_folder("fleet.backing").exists()  # compiled late: it calls most others


def warm_up() -> None:
    """Compile the kernels of hosts, guests and placement, or load them from the cache."""
    from fleet.node import warmup

    warmup()
    vcpus, pages = np.ones(1, np.int32), np.ones(1, np.int64)
    start_ns, end_ns = np.zeros(1, np.int64), np.full(1, NS_PER_HOUR)
    flavour = np.zeros(1, np.int16)
    trace = make_trace(start_ns, end_ns, vcpus, pages, flavour, pages, ("1c",), NS_PER_HOUR)
    Placer(trace, vcpus, pages, "best-fit").epoch(0, NS_PER_HOUR)


def _backend(scenario: Scenario, options: Options) -> Backend:
    warm_up()  # compile here once, not in every worker at the same time
    if options.inline:
        return InlineBackend(scenario)
    from fleet.actors import RayBackend

    jit_options.processes = 0  # a process with Ray's threads must not fork
    workers, per_actor = options.workers, options.hosts_per_actor
    return RayBackend(scenario, workers, per_actor, options.address, options.metrics_port)


def _record(scenario: Scenario, trace: Trace) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that has just begun."""
    return {
        "format": rundir.FORMAT,
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "name": scenario.name,
        "seed": scenario.seed,
        "scenario": scenario.document,
        "arrivals_sha256": arrivals_digest(trace, scenario.duration_ns),
        "versions": rundir.versions(),
        "git_commit": rundir.git_commit(),
        "tally": {},
        "execution": {
            "attempt": 1,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }


def _by_host(events: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return events host after host; those of one host keep their order."""
    return events[np.argsort(events[:, _EVENT["host_id"]], kind="stable")]


class Driver:
    """The epoch loop.

    Parameters
    ----------
    sink
        Takes the rows.
    lock
        Of the place where checkpoints lie; without one there are none.
    """

    def __init__(
        self,
        scenario: Scenario,
        trace: Trace,
        backend: Backend,
        sink: RowSink,
        costs: Costs,
        options: Options,
        lock: Lock | None = None,
    ) -> None:
        self.scenario, self.trace, self.backend, self.sink = scenario, trace, backend, sink
        self.costs, self.options, self.lock = costs, options, lock
        self.placer: Placer = make_placer(scenario, trace)
        self.operations = Operations(scenario, trace)
        self.placed = self._state()  # before the epoch planned last
        self.tally = dict.fromkeys(EVENT_NAMES, 0)

    def run(self, watches: Sequence[Watch], nr_epochs: int | None = None) -> dict[str, int]:
        """Run all epochs that are left, or the first so many; return how many VMs did what."""
        scenario = self.scenario
        first, last = self._resume(), nr_epochs or self.scenario.nr_epochs
        unwritten: tuple[int, Tables] | None = None
        begin_s = time.perf_counter()
        plan, orders = self._place(first)
        collected_s = time.thread_time()
        for epoch in range(first, last):
            t0_ns, t1_ns = scenario.epoch_bounds_ns(epoch)
            self._submit(epoch, plan, orders)
            self.costs.barrier_cpu_s += time.thread_time() - collected_s
            if unwritten:
                self.sink.write(*unwritten)
            ahead = self._place(epoch + 1)  # while the hosts run, as if they told nothing new
            parts = self.backend.collect()
            collected_s = time.thread_time()
            tables = in_host_order(parts)
            own = [self._host_events(t0_ns, orders), self._rejects(plan), tables["events"]]
            tables["events"] = _by_host(np.concatenate(own))
            tables["fleet"] = fleet_row(tables["hosts"], self.placer.pool)
            killed, hosts = self._settle(tables["events"])
            reads_gauges = self.placer.reads_gauges or self.operations.reads_gauges
            if len(killed) or reads_gauges:
                self._restore(self.placed)
                self.placer.kill(killed)
                self.operations.note_killed(killed, hosts)
                if reads_gauges:
                    self.placer.observe(gauges_of(tables["hosts"]))
                    self.operations.observe(tables)
                ahead = self._place(epoch + 1)
            plan, orders = ahead
            unwritten = (epoch, tables)
            every = self.options.checkpoint_epochs
            if self.lock and every and (epoch + 1) % every == 0 and epoch + 1 < scenario.nr_epochs:
                begin_cpu_s = time.thread_time()
                self.sink.write(*unwritten)
                unwritten = None
                self._checkpoint(self.lock, epoch + 1)
                collected_s += time.thread_time() - begin_cpu_s  # is no part of a barrier
            self.costs.simulated_ns += t1_ns - t0_ns
            self.costs.look(self.backend.remote_usage)
            self.costs.advance_s = time.perf_counter() - begin_s
            if watches:
                progress = self._progress(epoch, tables)
                for watch in watches:
                    watch(progress)
        if unwritten:
            self.sink.write(*unwritten)
        self.sink.finish()
        arrived = int(arrivals(self.trace, scenario.duration_ns).sum())
        return {"arrivals": arrived, **self.tally}

    def _progress(self, epoch: int, tables: Tables) -> Progress:
        """Say where the run stands after an epoch, whose rows are given."""
        scenario, costs = self.scenario, self.costs
        return Progress(
            epoch + 1,
            scenario.nr_epochs,
            scenario.epoch_bounds_ns(epoch)[1],
            sum(self.tally.values()),
            live_figures(tables["hosts"], tables["fleet"]),
            costs.host_hours_per_core_s(scenario.nr_hosts),
            costs.peak_memory_bytes,
            len(self.backend.recoveries()),
        )

    def _state(self) -> dict[str, NDArray[Any]]:
        """Return all that placement and the operator remember."""
        operations = self.operations.state().items()
        return self.placer.state() | {f"operations.{name}": array for name, array in operations}

    def _restore(self, state: dict[str, NDArray[Any]]) -> None:
        self.placer.restore(state)
        prefix = "operations."
        own = {name.removeprefix(prefix): array for name, array in state.items()}
        self.operations.restore(own)

    def _place(self, epoch: int) -> tuple[EpochPlan, Orders]:
        """Plan an epoch, its barrier first (none behind the last one); keep the state before."""
        self.placed = self._state()
        if epoch >= self.scenario.nr_epochs:
            return empty_plan(), NO_ORDERS
        orders = self.operations.barrier(epoch, self.placer)
        t0_ns, t1_ns = self.scenario.epoch_bounds_ns(epoch)
        return with_orders(self.placer.epoch(t0_ns, t1_ns), orders, t0_ns), orders

    def _submit(self, epoch: int, plan: EpochPlan, orders: Orders) -> None:
        """Let VMs move, then all hosts advance."""
        t0_ns, t1_ns = self.scenario.epoch_bounds_ns(epoch)
        shards = self.backend.host_ids
        leaving = [[move for move in orders.moves if move.source in ids] for ids in shards]
        arriving = self._exchange(epoch, t0_ns, orders.moves, leaving)
        self.backend.submit(
            [
                Step(epoch, t0_ns, t1_ns, moves, commands_for(plan, self.trace, ids), vms)
                for ids, moves, vms in zip(shards, leaving, arriving, strict=True)
            ]
        )

    def _exchange(
        self, epoch: int, t_ns: int, moves: list[Move], leaving: list[list[Move]]
    ) -> list[Arrivals]:
        """Let VMs leave their hosts; return those that arrive by shard, in the order of moves."""
        shards = self.backend.host_ids
        if not moves:
            return [() for _ in shards]
        emigrants = {
            move: emigrant
            for part, sent in zip(leaving, self.backend.emigrate(epoch, t_ns, leaving), strict=True)
            for move, emigrant in zip(part, sent, strict=True)
        }
        arriving = [(move.destination, emigrants[move]) for move in moves]
        return [tuple(vm for vm in arriving if vm[0] in ids) for ids in shards]

    def _host_events(self, t_ns: int, orders: Orders) -> NDArray[np.int64]:
        """Return the rows of hosts that take no VMs from a barrier on, or take them again."""
        found = [(host, _DOWN, reason) for host, reason in orders.down]
        found += [(host, _UP, 0) for host in orders.up]
        rows = np.zeros((len(found), len(EVENT_COLUMNS)), np.int64)
        for row, (host, event, reason) in zip(rows, found, strict=True):
            row[_EVENT["t_ns"]] = t_ns
            row[_EVENT["host_id"]] = host
            row[_EVENT["vm_id"]] = NO_VM_ID
            row[_EVENT["event"]] = event
            row[_EVENT["reason"]] = reason
        return rows

    def _rejects(self, plan: EpochPlan) -> NDArray[np.int64]:
        """Return the rows of VMs that no host took."""
        vm = plan.rejected
        rows = np.zeros((len(vm), len(EVENT_COLUMNS)), np.int64)
        rows[:, _EVENT["t_ns"]] = plan.rejected_t_ns
        rows[:, _EVENT["host_id"]] = NO_HOST_ID
        rows[:, _EVENT["vm_id"]] = self.trace.vm_id[vm]
        rows[:, _EVENT["event"]] = _REJECT
        rows[:, _EVENT["reason"]] = plan.reject_reason
        rows[:, _EVENT["vcpus"]] = self.trace.vcpus[vm]
        rows[:, _EVENT["memory_pages"]] = self.trace.memory_pages[vm]
        return rows

    def _settle(self, events: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count an epoch's events; return the VMs that memory ran out for, and their hosts.

        VMs are named by their place in the trace; those of hosts that failed are known to be dead.
        """
        kind = events[:, _EVENT["event"]]
        for code, name in enumerate(EVENT_NAMES):
            self.tally[name] += int((kind == code).sum())
        killed = events[(kind == _KILL) & (events[:, _EVENT["reason"]] == _OOM)]
        vms = np.searchsorted(self.trace.vm_id, killed[:, _EVENT["vm_id"]])
        return cast(NDArray[np.int64], vms), killed[:, _EVENT["host_id"]]

    def _checkpoint(self, lock: Lock, epoch: int) -> None:
        lock.check()
        states = self.backend.save()
        load = checkpoint.write(
            lock.store, self.scenario, epoch, self.placed, dict(self.tally), states
        )
        self.backend.begin_journal(epoch, load)

    def _resume(self) -> int:
        """Take up the last checkpoint if asked to; return the epoch to run next."""
        found = None
        if self.lock and self.options.resume:
            found = checkpoint.latest(self.lock.store, self.scenario)
        if found is None:
            self.sink.rewind(0)
            return 0
        self._restore(found.placer)
        self.tally = dict(found.tally)
        self.backend.restore(found.epoch, found.load)
        self.sink.rewind(found.epoch)
        return found.epoch
