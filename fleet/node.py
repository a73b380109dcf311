"""A node: one host and its guests, advanced tick by tick.

Here the two meet: a guest decides what it touches and releases, the host faults and frees.
A node knows no Ray and no other node.
"""

import functools
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet import migration, node_state
from fleet.backing import NR_T_FIELDS, begin_turns, run_turns
from fleet.migration import Emigrant
from fleet.mmu_figures import Sampling, measure_guests
from fleet.node_state import NodeState
from fleet.scenario import MigrationTerms
from fleet.start import fill_guest, make_mergeable, start_vm
from fleet.state import State
from fleet.ticks import NR_PROGRESS, run_ticks
from fleet.vm_rows import fill_vm_rows
from guestsim.behaviour import (
    G_MM,
    G_PAGES,
    G_STATE,
    G_VCPUS,
    G_VM,
    NR_G_FIELDS,
    NR_O_FIELDS,
    O_KIND,
    O_NR,
    O_ROW,
    O_START,
    OP_HOST,
    OPS_PER_GUEST,
    behaviour_table,
)
from guestsim.draw import device_shares, guests_key, touched_share
from guestsim.guest import Guest, Layout, boot_footprint, guest_layout, rounded_pages
from guestsim.spec import NO_GUEST_KERNEL, GuestSpec
from hostsim.core.errors import InvariantError
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES, MIGRATION_COLUMNS, REASON_NAMES
from hostsim.core.vm_columns import VM_COLUMNS
from hostsim.host import PROCESS_TABLE_FULL, Host, adopt_vm, births_per_tick
from hostsim.mm.mm_types import N_LRU_FIRST, NIL, NR_LRU_LISTS
from hostsim.mm.state_spec import VmSpec
from hostsim.spec import HostSpec

STOP = 0  # kinds of commands; those of one time come in this order
START = 1
RESTART = 2  # start of a VM that was killed
REBOOT = 3  # the host has failed; nothing else happens on it in that epoch
REBOOT_EMPTY = 4  # the host is empty and boots anew
_NO_OPS: NDArray[np.int64] = np.zeros((0, NR_O_FIELDS), np.int64)
NO_VMS: Mapping[int, VmSpec] = {}
_EVENT = {name: code for code, name in enumerate(EVENT_NAMES)}
_REASON = {name: code for code, name in enumerate(REASON_NAMES)}


class Commands(NamedTuple):
    """What the scheduler wants of one host in one epoch, sorted by time."""

    t_ns: NDArray[np.int64]
    kind: NDArray[np.int8]  # STOP, START and so on
    vm_id: NDArray[np.int64]
    vcpus: NDArray[np.int32]
    memory_pages: NDArray[np.int64]
    age_ns: NDArray[np.int64]  # how long a standing VM has already run, else 0


class NodeRows(NamedTuple):
    """Rows of the result tables, in the column order of `hostsim.core.stats`."""

    hosts: NDArray[np.int64]  # (ticks, columns)
    vms: NDArray[np.int64]  # (rows, columns)
    events: NDArray[np.int64]  # (rows, columns)
    migrations: NDArray[np.int64]  # (rows, columns) of VMs that arrived


class Node:
    """One host with the guests on it.

    Parameters
    ----------
    spec, guests
        Resolved descriptions of the host and of how guests use memory.
    host_id, seed
        Key of the random streams.
    tick_ns
        Step of guest and kernel memory, and of the rows of ``hosts``.
    vm_rows_ns
        Step of the rows of ``vms``.
    captured
        VMs by number that run on the host at the start, with memory that is in use in its state.
    """

    def __init__(
        self,
        spec: HostSpec,
        guests: GuestSpec,
        host_id: int,
        seed: int,
        tick_ns: int,
        vm_rows_ns: int,
        captured: Mapping[int, VmSpec] = NO_VMS,
    ) -> None:
        self._captured = captured
        self.host = Host(spec, host_id, seed)
        self.guest_spec = guests
        self._guests_key = guests_key(seed)
        self._profiles, self._shares = behaviour_table(guests), device_shares(guests)
        workloads = tuple(behaviour.workload for behaviour in guests.behaviours)
        self._sampling = Sampling(spec.cpu, workloads, seed, spec.mmu_accesses)
        self.host_id = host_id
        self.tick_ns, self.vm_rows_ns = tick_ns, vm_rows_ns
        self.guests: NDArray[np.int64] = np.full((8, NR_G_FIELDS), -1, np.int64)
        self.row_of: dict[int, int] = {}  # VM -> row of guests
        self.states: dict[int, Guest] = {}  # row of guests -> its kernel, if it has one
        self._make_work_space()
        self._births = births_per_tick(spec, tick_ns)
        self._vm_rows: list[NDArray[np.int64]] = []
        self._event_rows: list[list[int]] = []
        self.migration_rows: list[list[int]] = []

    def _make_work_space(self) -> None:
        """Make what is empty between two epochs: operations, turns, progress, free rows."""
        self._turn_progress = np.zeros(NR_T_FIELDS, np.int64)
        self._progress = np.zeros(NR_PROGRESS, np.int64)
        self._first_ops = _NO_OPS
        self._nr_first_ops = 0  # of VMs that start together
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._fit_rows()

    def _fit_rows(self) -> None:
        """Make the work space that grows with the table of guests."""
        rows = len(self.guests)
        self._ops, self._turns = _work_space(rows)
        self._free_rows = np.flatnonzero(self.guests[:, G_VM] < 0).tolist()  # a heap

    def save(self) -> State:
        """Return all that changes between two epochs: arrays by name, views of the live state."""
        kernels = {row: guest.save() for row, guest in self.states.items()}
        return node_state.join(NodeState(self.guests, self.row_of, self.host.save(), kernels))

    def restore(self, state: State) -> None:
        """Take up a state that `save` returned on a node of the same description.

        Raises
        ------
        ValueError
            The state is another version's, or another host's.
        """
        parts = node_state.split(state)
        self.host.restore(parts.host)
        self.guests, self.row_of = parts.guests, parts.row_of
        self.states = {}
        self._make_work_space()
        for row, kernel in parts.kernels.items():
            self.restore_guest(row, kernel)

    def save_guest(self, row: int) -> State:
        """Return all that changes of the kernel of a VM; nothing if it has none."""
        return self.states[row].save() if row in self.states else {}

    def restore_guest(self, row: int, state: State) -> None:
        """Take up a guest's kernel that `save_guest` returned."""
        if self.guest_spec.kernel == NO_GUEST_KERNEL:
            if state:
                raise ValueError(f"{', '.join(state)}: a guest's kernel, where none is simulated")
            return
        self.states[row] = Guest.restore(self._layout(row), state)
        self.guests[row, G_STATE] = self.states[row].address

    def _layout(self, row: int) -> Layout:
        """Return the kind of a guest's kernel."""
        kind = rounded_pages(int(self.guests[row, G_PAGES])), int(self.guests[row, G_VCPUS])
        if kind not in self._layouts:
            self._layouts[kind] = guest_layout(self.guest_spec, *kind)
        return self._layouts[kind]

    def advance(self, commands: Commands, t0_ns: int, t1_ns: int) -> NodeRows:
        """Run the node from one barrier to the next and return its rows.

        Parameters
        ----------
        commands
            All within ``t0_ns <= t_ns < t1_ns``.
        t0_ns, t1_ns
            Multiples of the tick.

        Raises
        ------
        InvariantError
            The host's state is inconsistent.
        """
        hosts = np.zeros(((t1_ns - t0_ns) // self.tick_ns, len(HOST_COLUMNS)), np.int64)
        position = done = 0
        while done < len(hosts):
            position = self._obey(commands, position, t0_ns + (done + 1) * self.tick_ns)
            last = self._ticks_before(commands, position, t0_ns, done, len(hosts))
            self._run_ticks(hosts[done:last], t0_ns + done * self.tick_ns)
            done = last
            now_ns = t0_ns + done * self.tick_ns
            if now_ns % self.vm_rows_ns == 0:
                self._note_vms(now_ns, list(self.row_of.values()), ended=False)
        rows = NodeRows(
            hosts,
            np.concatenate([_table([], len(VM_COLUMNS)), *self._vm_rows]),
            _table(self._event_rows, len(EVENT_COLUMNS)),
            _table(self.migration_rows, len(MIGRATION_COLUMNS)),
        )
        # Where reclaim stood in its lists is not kept: every epoch looks anew, resumed or not.
        self.host.mem.node[:, N_LRU_FIRST : N_LRU_FIRST + 2 * NR_LRU_LISTS] = 0
        self._vm_rows, self._event_rows, self.migration_rows = [], [], []
        return rows

    def _ticks_before(
        self, commands: Commands, position: int, t0_ns: int, done: int, nr: int
    ) -> int:
        """Return up to which tick nothing but ticks happens: no command, no row of ``vms``."""
        if position < len(commands.t_ns):
            nr = min(nr, int(commands.t_ns[position] - t0_ns) // self.tick_ns)
        now_ns = t0_ns + done * self.tick_ns
        to_row_ns = self.vm_rows_ns - now_ns % self.vm_rows_ns
        return max(min(nr, done + to_row_ns // self.tick_ns), done + 1)

    def check(self) -> None:
        """Recompute the state of the host and of every guest from scratch.

        Raises
        ------
        InvariantError
            One of them is inconsistent, or a frame that a guest uses is not backed.
        """
        from fleet.check_backing import check_backing
        from hostsim.mm.check import check_memory

        check_memory(self.host.mem)
        for row, state in self.states.items():
            try:
                check_memory(state.mem)
                check_backing(self.host.mem, self.guests[row], state.mem, self.offset)
            except InvariantError as error:
                raise InvariantError(f"VM {self.guests[row, G_VM]}: {error}") from error

    def _obey(self, commands: Commands, position: int, end_ns: int) -> int:
        """Carry out the commands before a time; return the position of the next."""
        while position < len(commands.t_ns) and commands.t_ns[position] < end_ns:
            t_ns, vm_id = int(commands.t_ns[position]), int(commands.vm_id[position])
            kind = int(commands.kind[position])
            if kind in (START, RESTART):
                self._start(
                    t_ns,
                    vm_id,
                    int(commands.vcpus[position]),
                    int(commands.memory_pages[position]),
                    int(commands.age_ns[position]),
                    "start" if kind == START else "restart",
                )
            elif kind in (REBOOT, REBOOT_EMPTY):
                self._reboot(t_ns)
            elif vm_id in self.row_of:  # else it was killed since the last barrier
                self._end(t_ns, vm_id, "end", "")
            position += 1
        self.finish_starts(end_ns - self.tick_ns)
        return position

    @property
    def offset(self) -> int:
        """Page of QEMU's address space at which guest RAM begins."""
        return self.guest_spec.ram_offset_pages

    def _start(
        self, t_ns: int, vm_id: int, vcpus: int, pages: int, age_ns: int, event: str
    ) -> None:
        """Start a VM and let it boot, and touch all that it has by now if it ran before."""
        spec, row = self.guest_spec, self.new_row()
        had = self._captured.get(vm_id) if event == "start" else None
        self.row_of[vm_id] = row
        fill_guest(self.guests[row], vm_id, pages, vcpus, t_ns, age_ns)
        written = self._boot(row, had.rss_pages if had else pages)
        self.note_event(t_ns, row, event, "")
        self._first_ops = _with_room(
            self._first_ops, self._nr_first_ops, 1 + len(written) + OPS_PER_GUEST
        )
        self._nr_first_ops, enough = start_vm(
            self.host.mem,
            self.guests,
            row,
            self._profiles,
            self._shares,
            had.rss_pages / pages if had else touched_share(spec, self._guests_key, vm_id),
            boot_footprint(spec, pages),
            written,
            self._guests_key,
            self._first_ops,
            self._nr_first_ops,
            spec.overhead_pages,
            self.offset,
            self.tick_ns,
        )
        if not enough:
            if self.guests[row, G_MM] == NIL:
                raise InvariantError(PROCESS_TABLE_FULL)
            self.kill(t_ns)
        elif had:
            adopt_vm(self.host.mem, int(self.guests[row, G_MM]), had, spec.overhead_pages)
        if age_ns == 0:
            self.finish_starts(t_ns)

    def _boot(self, row: int, resident: int) -> NDArray[np.int64]:
        """Boot the kernel of a VM; return the runs of frames that are written.

        Simplified: without one QEMU writes all of the memory before the VM runs (prealloc=on), and
        nothing in the VM does anything.
        """
        if self.guest_spec.kernel == NO_GUEST_KERNEL:
            return np.array([[0, resident]], np.int64)
        layout = self._layout(row)
        self.states[row] = Guest.boot(layout)
        self.guests[row, G_STATE] = self.states[row].address
        return layout.touched

    def apply(self, t_ns: int, ops: list[tuple[int, int, int, int, int]]) -> None:
        """Let guests carry out operations (rows of `guestsim.behaviour`) now."""
        self._apply(t_ns, np.array(ops, np.int64), len(ops))

    def finish_starts(self, t_ns: int) -> None:
        """Let the VMs that start together touch what they have from the beginning."""
        nr, self._nr_first_ops = self._nr_first_ops, 0
        if nr:
            first, self._first_ops = self._first_ops, _NO_OPS
            self._apply(t_ns, first, nr)

    def _run_ticks(self, rows: NDArray[np.int64], begin_ns: int) -> None:
        """Let guests and the kernel use memory for some ticks, a row of ``hosts`` each."""
        self._progress[:] = 0
        while True:
            now_ns = int(
                run_ticks(
                    self.host.mem,
                    self.host.slab,
                    self.guests,
                    self._profiles,
                    self._ops,
                    self._turns,
                    self._turn_progress,
                    rows,
                    self._progress,
                    self._births,
                    begin_ns,
                    self.tick_ns,
                    self.offset,
                    self.guest_spec.balloon_below,
                    self.host.key,
                    self.host_id,
                )
            )
            if now_ns == 0:
                return
            self.kill(now_ns)

    def _apply(self, t_ns: int, ops: NDArray[np.int64], nr: int) -> None:
        """Carry out operations, killing the largest VM whenever memory runs out."""
        begin_turns(ops, nr, self._turns, self._turn_progress)
        while not run_turns(
            self.host.mem,
            self.guests,
            self._profiles,
            ops,
            self._turns,
            self._turn_progress,
            self.offset,
        ):
            self.kill(t_ns)

    def make_mergeable(self, row: int) -> None:
        """Let ksmd merge the RAM of a guest that has arrived, if it runs here."""
        make_mergeable(
            self.host.mem, self.guests[row], self._profiles, self._shares, self._guests_key
        )

    def kill(self, t_ns: int) -> int:
        """Let the OOM killer take a VM; return its process."""
        mm = self.host.oom_victim()
        if mm == NIL:
            raise InvariantError("memory ran out on a host without a VM")
        self._end(t_ns, self.host.vm_of(mm), "kill", "oom")
        return mm

    def _end(self, t_ns: int, vm_id: int, event: str, reason: str) -> None:
        """End a VM for a reason."""
        row = self.row_of[vm_id]
        self._note_vms(t_ns, [row], ended=True)
        self.note_event(t_ns, row, event, reason)
        self.leave(row)

    def leave(self, row: int) -> None:
        """Free all that a VM has on this host."""
        del self.row_of[int(self.guests[row, G_VM])]
        self.host.stop(int(self.guests[row, G_MM]))
        self.guests[row] = -1
        if row in self.states:
            self.states.pop(row).end()
        heappush(self._free_rows, row)
        first = self._first_ops[: self._nr_first_ops]
        first[first[:, O_ROW] == row, O_NR] = 0

    def _reboot(self, t_ns: int) -> None:
        """Boot the host anew; what still runs on it dies."""
        for vm_id in sorted(self.row_of):
            self._end(t_ns, vm_id, "kill", "failure")
        self.host.reboot(t_ns)

    def emigrate(
        self, t_ns: int, moves: Sequence[tuple[int, int]], terms: MigrationTerms
    ) -> list[Emigrant]:
        """Send VMs (number and reason of each) away at a barrier."""
        return migration.emigrate(self, t_ns, moves, terms)

    def immigrate(self, t_ns: int, arriving: Sequence[Emigrant], terms: MigrationTerms) -> None:
        """Take VMs in at a barrier."""
        migration.immigrate(self, t_ns, arriving, terms)

    def queue(self, row: int, runs: NDArray[np.int64]) -> None:
        """Let a VM's process write runs of pages when the next starts are finished."""
        if self.guests[row, G_VM] < 0:  # killed meanwhile
            return
        first, self._nr_first_ops = self._nr_first_ops, self._nr_first_ops + len(runs)
        self._first_ops = _with_room(self._first_ops, first, len(runs))
        ops = self._first_ops[first : self._nr_first_ops]
        ops[:, O_ROW], ops[:, O_KIND] = row, OP_HOST
        ops[:, O_START], ops[:, O_NR] = runs.T

    def new_row(self) -> int:
        """Return the lowest free row of the table of guests, which grows as needed."""
        if not self._free_rows:
            self.guests = np.concatenate([self.guests, np.full_like(self.guests, -1)])
            self._fit_rows()
        return int(heappop(self._free_rows))

    def _note_vms(self, t_ns: int, rows: list[int], ended: bool) -> None:
        """Write a row of ``vms`` for each of some guests."""
        out: NDArray[np.int64] = np.empty((len(rows), len(VM_COLUMNS)), np.int64)
        which = np.array(rows, np.int64)
        mem, offset = self.host.mem, self.offset
        fill_vm_rows(mem, self.guests, which, out, t_ns, self.host_id, offset, ended)
        if self._sampling.accesses:
            measure_guests(self.guests, which, out, self._sampling)
        self._vm_rows.append(out)

    def note_event(self, t_ns: int, row: int, event: str, reason: str) -> None:
        """Write a row of ``events``."""
        guest = self.guests[row]
        self._event_rows.append(
            [
                t_ns,
                self.host_id,
                guest[G_VM],
                _EVENT[event],
                _REASON[reason],
                guest[G_VCPUS],
                guest[G_PAGES],
            ]
        )


@functools.cache
def _work_space(rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return room for the operations and turns of a tick, shared by the nodes of this process."""
    ops: NDArray[np.int64] = np.zeros((rows * OPS_PER_GUEST, NR_O_FIELDS), np.int64)
    return ops, np.zeros((rows, 2), np.int64)


def _with_room(ops: NDArray[np.int64], used: int, more: int) -> NDArray[np.int64]:
    """Return operations with room for more; the used ones are kept."""
    if used + more <= len(ops):
        return ops
    larger = np.zeros((2 * (used + more), NR_O_FIELDS), np.int64)
    larger[:used] = ops[:used]
    return larger


def _table(rows: list[list[int]], columns: int) -> NDArray[np.int64]:
    """Return rows as an array, also when there are none."""
    return np.array(rows, np.int64).reshape(len(rows), columns)
