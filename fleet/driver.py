"""The epoch loop: place an epoch's arrivals, let all hosts advance, write the rows, next epoch.

Bulk-synchronous: within an epoch hosts do not interact; at the barrier the driver alone decides.
Rows of one epoch are written while the shards compute the next.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fleet import checkpoint
from fleet.collector import give_back
from fleet.costs import Costs
from fleet.demand import arrivals, make_placer
from fleet.fleet_rows import fleet_row
from fleet.live import Progress, Watch, live_figures
from fleet.lock import Lock
from fleet.migration import Emigrant
from fleet.mmu_figures import SampleUsage
from fleet.operations import NO_ORDERS, Operations, Orders, with_orders
from fleet.placement import Placer
from fleet.plan import EpochPlan, empty_plan
from fleet.pool import gauges_of
from fleet.scenario import Scenario
from fleet.shard import (
    Arrivals,
    Load,
    Move,
    Step,
    Tables,
    commands_for,
    in_host_order,
)
from fleet.trace import Trace
from fleet.usage import age_s
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES, REASON_NAMES

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
    checkpoint_epochs
        Epochs between checkpoints; 0 for none.
    resume
        Whether to begin at the last checkpoint, if there is one.
    """

    def __init__(
        self,
        scenario: Scenario,
        trace: Trace,
        backend: Backend,
        sink: RowSink,
        costs: Costs,
        lock: Lock | None = None,
        checkpoint_epochs: int = 0,
        resume: bool = False,
    ) -> None:
        self.scenario, self.trace, self.backend, self.sink = scenario, trace, backend, sink
        self.costs, self.lock = costs, lock
        self.checkpoint_epochs, self.resume = checkpoint_epochs, resume
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
                unwritten = None
                give_back()
            ahead = self._place(epoch + 1)  # while the hosts run, as if they told nothing new
            parts = self.backend.collect()
            collected_s = time.thread_time()
            self.costs.first_rows_s = self.costs.first_rows_s or age_s()
            tables = in_host_order(parts)
            del parts  # as large as the tables
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
            every = self.checkpoint_epochs
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
            del tables  # kept until they are written, and not beside the next
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
        if self.lock and self.resume:
            found = checkpoint.latest(self.lock.store, self.scenario)
        if found is None:
            self.sink.rewind(0)
            return 0
        self._restore(found.placer)
        self.tally = dict(found.tally)
        self.backend.restore(found.epoch, found.load)
        self.sink.rewind(found.epoch)
        return found.epoch
