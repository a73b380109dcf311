"""What an operator does at a barrier: hosts fail and are maintained, VMs move and start again.

At each barrier, in this order: hosts whose time has come fail, and what runs on them dies; hosts
under maintenance are drained; hosts short of memory, or with broken memory, give a VM away; VMs
that were killed start again where the policy of the scenario lets them.

Simplified: a host fails at the first barrier after its time.  While it is repaired or maintained
its rows are those of an idle host that has just booted.
Simplified: a VM that was killed waits for the next barrier.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.placement import Placer
from fleet.plan import EpochPlan, Kind, sorted_plan
from fleet.policies import Policy
from fleet.pool import NO_HOST
from fleet.scenario import Scenario
from fleet.shard import Move
from fleet.trace import Trace
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.rng import Stream, stream
from hostsim.core.stats import REASON_NAMES
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_S
from hostsim.core.vm_columns import VM_COLUMNS

I64 = NDArray[np.int64]
Mask = NDArray[np.bool_]

_FAILURE: Final = REASON_NAMES.index("failure")
_MAINTENANCE: Final = REASON_NAMES.index("maintenance")
_REBALANCE: Final = REASON_NAMES.index("rebalance")
_DEFRAGMENT: Final = REASON_NAMES.index("defragment")
_HOST: Final = {column.name: index for index, column in enumerate(HOST_COLUMNS)}
_VM: Final = {column.name: index for index, column in enumerate(VM_COLUMNS)}


class Orders(NamedTuple):
    """What happens at one barrier."""

    moves: list[Move]
    failed: list[int]  # hosts
    rebooted: list[int]  # hosts that are empty
    restarts: list[tuple[int, int]]  # VM (row of the trace), host
    down: list[tuple[int, int]]  # hosts that take no VMs from now on, and why
    up: list[int]  # hosts that take VMs again


NO_ORDERS: Final = Orders([], [], [], [], [], [])


class Gauges(NamedTuple):
    """What an operator sees of memory at a barrier."""

    free_pages: I64  # (hosts,)
    managed_pages: I64  # (hosts,)
    unusable: I64  # (hosts,) unusable index of order 9, 1/1000
    rss_pages: I64  # (VMs of the trace,) as of the last row in vms
    small_pages: I64  # (VMs,) of them, not in huge pages


def with_orders(plan: EpochPlan, orders: Orders, t_ns: int) -> EpochPlan:
    """Return the plan of an epoch with what its barrier orders."""
    commands = [(vm, host, Kind.RESTART) for vm, host in orders.restarts]
    commands += [(0, host, Kind.REBOOT) for host in orders.failed]
    commands += [(0, host, Kind.REBOOT_EMPTY) for host in orders.rebooted]
    if not commands:
        return plan
    vm, host, kind = (np.array(column, np.int64) for column in zip(*commands, strict=True))
    return sorted_plan(
        plan._replace(
            t_ns=np.concatenate([np.full(len(vm), t_ns, np.int64), plan.t_ns]),
            host_id=np.concatenate([host.astype(np.int32), plan.host_id]),
            kind=np.concatenate([kind.astype(np.int8), plan.kind]),
            vm=np.concatenate([vm, plan.vm]),
        )
    )


def failures(scenario: Scenario) -> list[tuple[int, int]]:
    """Return when which host fails, in order of time.

    A host works for an exponential time, is repaired, and works again.
    """
    section = scenario.failures
    if section.mtbf is None:
        return []
    found = []
    for host in range(scenario.nr_hosts):
        draw = stream(scenario.seed, Stream.FAILURE, host)
        t_ns = int(draw.exponential(section.mtbf))
        while t_ns < scenario.duration_ns:
            found.append((t_ns, host))
            t_ns += section.repair + int(draw.exponential(section.mtbf))
    return sorted(found)


class Operations:
    """The operator of a fleet; all that it remembers is in `state`.

    Parameters
    ----------
    scenario
        What is to happen.
    trace
        The VMs, for their numbers and sizes.
    """

    def __init__(self, scenario: Scenario, trace: Trace) -> None:
        self.scenario, self.trace = scenario, trace
        self._failures = failures(scenario)
        self._waiting: Mask = np.zeros(trace.nr_vms, np.bool_)  # killed, to be started again
        self._lost: I64 = np.full(trace.nr_vms, NO_HOST, np.int64)  # host on which it was killed
        self._rebooted: Mask = np.zeros(scenario.nr_hosts, np.bool_)  # under maintenance
        section = scenario.migration
        self.reads_gauges = section.rebalance_below > 0 or section.defragment_above < 1
        hosts, vms = scenario.nr_hosts, trace.nr_vms if self.reads_gauges else 0
        self._gauges = Gauges(*(np.zeros(nr, np.int64) for nr in (hosts, hosts, hosts, vms, vms)))

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that changes, as arrays, for a checkpoint."""
        return {
            "waiting": self._waiting.copy(),
            "lost": self._lost.copy(),
            "rebooted": self._rebooted.copy(),
            **{name: array.copy() for name, array in self._gauges._asdict().items()},
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state that :meth:`state` returned."""
        self._waiting[:] = state["waiting"]
        self._lost[:] = state["lost"]
        self._rebooted[:] = state["rebooted"]
        for name, array in self._gauges._asdict().items():
            array[:] = state[name]

    def observe(self, tables: dict[str, I64]) -> None:
        """Look at the rows of an epoch that has just ended."""
        if not self.reads_gauges:
            return
        rows = tables["hosts"]
        last = rows[np.flatnonzero(np.diff(rows[:, _HOST["host_id"]], append=-1))]
        for name, column in (
            ("free_pages", "nr_free_pages"),
            ("managed_pages", "managed_pages"),
            ("unusable", "unusable_index_order9"),
        ):
            getattr(self._gauges, name)[:] = last[:, _HOST[column]]
        rows = tables["vms"][np.argsort(tables["vms"][:, _VM["t_ns"]], kind="stable")]
        vm = np.searchsorted(self.trace.vm_id, rows[:, _VM["vm_id"]])
        rss = rows[:, _VM["rss_pages"]]
        self._gauges.rss_pages[vm] = rss
        self._gauges.small_pages[vm] = rss - rows[:, _VM["huge_pages"]] * HPAGE_PMD_NR

    def note_killed(self, vms: I64, hosts: I64) -> None:
        """Remember VMs that died on their hosts."""
        if self.scenario.placement.restart != "never":
            self._waiting[vms] = True
            self._lost[vms] = hosts

    def barrier(self, epoch: int, placer: Placer) -> Orders:
        """Decide what happens at the barrier before an epoch, and tell the placer."""
        t_ns = self.scenario.epoch_bounds_ns(epoch)[0]
        before = placer.closed
        failed = self._fail(t_ns, placer)
        repaired = self._under_repair(t_ns)
        maintained = self._under_maintenance(t_ns)
        placer.close(repaired | maintained)
        moves = self._drain(t_ns, placer, np.flatnonzero(maintained))
        if self.reads_gauges and epoch > 0:
            moves += self._relieve(t_ns, placer, [move.vm_id for move in moves])
        rebooted = self._reboot_empty(placer, maintained)
        down = [
            (int(host), _FAILURE if repaired[host] else _MAINTENANCE)
            for host in np.flatnonzero(placer.closed & ~before)
        ]
        up = [int(host) for host in np.flatnonzero(before & ~placer.closed)]
        restarts = self._restart(t_ns, placer)
        return Orders(moves, failed, rebooted, restarts, down, up)

    def _fail(self, t_ns: int, placer: Placer) -> list[int]:
        """Let the hosts fail whose time lay in the epoch before a barrier."""
        failed = [
            host for at_ns, host in self._failures if t_ns - self.scenario.epoch_ns < at_ns <= t_ns
        ]
        for host in failed:
            vms = placer.vms_on(host)
            placer.kill(vms)
            self.note_killed(vms, np.full(len(vms), host, np.int64))
        return failed

    def _under_repair(self, t_ns: int) -> Mask:
        """Mark the hosts that have failed by a time and are not repaired yet."""
        marked: Mask = np.zeros(self.scenario.nr_hosts, np.bool_)
        for at_ns, host in self._failures:
            if at_ns <= t_ns < at_ns + self.scenario.failures.repair:
                marked[host] = True
        return marked

    def _under_maintenance(self, t_ns: int) -> Mask:
        """Mark the hosts that a window of maintenance covers."""
        marked: Mask = np.zeros(self.scenario.nr_hosts, np.bool_)
        for window in self.scenario.maintenance:
            if window.start <= t_ns < window.start + window.duration:
                marked[window.first_host : window.first_host + window.hosts] = True
        return marked

    def _drain(self, t_ns: int, placer: Placer, hosts: I64) -> list[Move]:
        """Move VMs off hosts, as many an epoch as the network lets pass one after the other."""
        moves = []
        pages_per_s = self.scenario.migration_terms.pages_per_s
        for host in hosts:
            spent_ns = 0.0
            for vm in placer.vms_on(int(host)):
                if spent_ns >= self.scenario.epoch_ns:
                    break
                move = self._move(t_ns, placer, int(vm), int(host), _MAINTENANCE, None)
                if move:
                    moves.append(move)
                    spent_ns += self.trace.memory_pages[vm] / pages_per_s * NS_PER_S
        return moves

    def _move(
        self, t_ns: int, placer: Placer, vm: int, source: int, reason: int, policy: Policy | None
    ) -> Move | None:
        """Move a VM to the host that placement chooses for it, if there is one."""
        destination = placer.choose(vm, t_ns, policy)
        if destination == NO_HOST:
            return None
        placer.put(vm, destination)
        return Move(int(self.trace.vm_id[vm]), source, destination, reason)

    def _relieve(self, t_ns: int, placer: Placer, moved: list[int]) -> list[Move]:
        """Let hosts short of memory give away one VM, and hosts with broken memory another.

        Neither kind takes a VM that another gives away, and no VM moves twice.
        """
        section, gauges = self.scenario.migration, self._gauges
        short = gauges.free_pages < section.rebalance_below * gauges.managed_pages
        broken = gauges.unusable > 1000 * section.defragment_above
        closed = placer.closed
        placer.close(closed | short | broken)
        moves = []
        for host in np.flatnonzero((short | broken) & ~closed):
            vms = placer.vms_on(int(host))
            vms = vms[~np.isin(self.trace.vm_id[vms], moved)]
            if len(vms) == 0:
                continue
            if short[host]:
                missing = section.rebalance_below * gauges.managed_pages[host]
                vm = _smallest_enough(vms, gauges.rss_pages[vms], missing - gauges.free_pages[host])
                move = self._move(t_ns, placer, vm, int(host), _REBALANCE, None)
            else:
                vm = int(vms[np.argmax(gauges.small_pages[vms])])
                policy = Policy.HUGEPAGE_AWARE
                move = self._move(t_ns, placer, vm, int(host), _DEFRAGMENT, policy)
            if move:
                moves.append(move)
        placer.close(closed)
        return moves

    def _reboot_empty(self, placer: Placer, maintained: Mask) -> list[int]:
        """Return the hosts under maintenance that are empty by now and have not booted anew."""
        self._rebooted &= maintained
        ready = maintained & ~self._rebooted & (placer.pool.nr_vms == 0)
        self._rebooted |= ready
        return [int(host) for host in np.flatnonzero(ready)]

    def _restart(self, t_ns: int, placer: Placer) -> list[tuple[int, int]]:
        """Start VMs again that were killed; those that find no host wait on."""
        self._waiting &= self.trace.end_ns > t_ns
        started = []
        elsewhere = self.scenario.placement.restart == "elsewhere"
        closed = placer.closed
        for vm in np.flatnonzero(self._waiting):
            if elsewhere:
                own = np.zeros_like(closed)
                own[self._lost[vm]] = True
                placer.close(closed | own)
            host = placer.choose(int(vm), t_ns)
            if elsewhere:
                placer.close(closed)
            if host != NO_HOST:
                placer.put(int(vm), host)
                self._waiting[vm] = False
                started.append((int(vm), host))
        return started


def _smallest_enough(vms: I64, sizes: I64, wanted: float) -> int:
    """Return the smallest VM whose size is enough, or the largest of all."""
    enough = np.flatnonzero(sizes >= wanted)
    if len(enough):
        return int(vms[enough[np.argmin(sizes[enough])]])
    return int(vms[np.argmax(sizes)])
