"""A node: one host and its guests, advanced tick by tick.

Here the two meet: a guest decides what it touches and releases, the host faults and frees.
A node knows no Ray and no other node.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guestsim.memory_use import (
    G_BOOT,
    G_FREED_NR,
    G_GROWN,
    G_KEY,
    G_MM,
    G_PAGES,
    G_PEAK,
    G_RUNS,
    G_START_NS,
    G_VCPUS,
    G_VM,
    NR_G_FIELDS,
    NR_OP_FIELDS,
    OPS_PER_GUEST,
    draw_guest,
    guests_key,
    guests_tick,
    pages_wanted,
)
from guestsim.spec import GuestSpec
from hostsim.core.errors import InvariantError
from hostsim.core.jit import kernel
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES, HOST_COLUMNS, REASON_NAMES, VM_COLUMNS
from hostsim.core.units import NS_PER_HOUR
from hostsim.host import (
    NR_ROW_HEAD,
    OP_MM,
    OP_TOUCH,
    Host,
    apply_ops,
    births_per_tick,
    fill_host_row,
    kernel_tick,
)
from hostsim.mm.mm_types import (
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_4K,
    MM_EPT_VIOLATIONS,
    MM_HUGE,
    MM_RAM_ANON,
    MM_THP_ALLOC,
    MM_THP_FALLBACK,
    NIL,
    Memory,
)
from hostsim.mm.slab import Slab
from hostsim.spec import HostSpec

STOP = 0
START = 1
_EVENT = {name: code for code, name in enumerate(EVENT_NAMES)}
_REASON = {name: code for code, name in enumerate(REASON_NAMES)}


class Commands(NamedTuple):
    """What the scheduler wants of one host in one epoch, sorted by time."""

    t_ns: NDArray[np.int64]
    kind: NDArray[np.int8]  # STOP or START
    vm_id: NDArray[np.int64]
    vcpus: NDArray[np.int32]
    memory_pages: NDArray[np.int64]
    age_ns: NDArray[np.int64]  # how long a standing VM has already run, else 0


class NodeRows(NamedTuple):
    """Rows of the result tables, in the column order of `hostsim.core.stats`."""

    hosts: NDArray[np.int64]  # (ticks, columns)
    vms: NDArray[np.int64]  # (rows, columns)
    events: NDArray[np.int64]  # (rows, columns)


# Columns of the progress of `run_ticks`
_TICKS_DONE = 0
_PHASE = 1  # of the tick under way
_NR_OPS = 2
_OPS_DONE = 3
NR_PROGRESS = 4


@kernel
def run_ticks(
    mem: Memory,
    slab: Slab,
    guests: NDArray[np.int64],
    ops: NDArray[np.int64],
    rows: NDArray[np.int64],
    progress: NDArray[np.int64],
    births: NDArray[np.float64],
    begin_ns: int,
    tick_ns: int,
    growth_ns: int,
    reuse_per_tick: float,
    small_ratio: float,
    key: int,
    host_id: int,
) -> int:
    """Advance a host by ``len(rows)`` ticks: guests, then the kernel, then the row.

    Parameters
    ----------
    progress
        Zeros to begin; keeps where it stopped when memory ran out.
    begin_ns
        Time at which the first tick begins.

    Returns
    -------
    int
        0 when done, or the time at which memory ran out; call again after a kill.
    """
    while progress[_TICKS_DONE] < rows.shape[0]:
        end_ns = begin_ns + (progress[_TICKS_DONE] + 1) * tick_ns
        tick = end_ns // tick_ns
        if progress[_PHASE] == 0:
            progress[_NR_OPS] = guests_tick(
                guests, ops, tick, end_ns, growth_ns, reuse_per_tick, small_ratio
            )
            progress[_OPS_DONE] = 0
            progress[_PHASE] = 1
        if progress[_PHASE] == 1:
            progress[_OPS_DONE] = apply_ops(mem, ops, progress[_OPS_DONE], progress[_NR_OPS])
            if progress[_OPS_DONE] < progress[_NR_OPS]:
                return end_ns
            progress[_PHASE] = 2
            if not kernel_tick(mem, slab, tick, tick_ns, births, key):
                return end_ns
        row = rows[progress[_TICKS_DONE]]
        for column in range(NR_ROW_HEAD):
            row[column] = 0
        row[0] = end_ns
        row[1] = host_id
        for guest in range(guests.shape[0]):
            if guests[guest, G_VM] >= 0:
                row[2] += 1
                row[3] += guests[guest, G_VCPUS]
                row[4] += guests[guest, G_PAGES]
        fill_host_row(mem, row, mem.scratch, NR_ROW_HEAD)
        progress[_PHASE] = 0
        progress[_TICKS_DONE] += 1
    return 0


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
    """

    def __init__(
        self,
        spec: HostSpec,
        guests: GuestSpec,
        host_id: int,
        seed: int,
        tick_ns: int,
        vm_rows_ns: int,
    ) -> None:
        self.host = Host(spec, host_id, seed)
        self.guest_spec = guests
        self._guests_key = guests_key(seed)
        self.host_id = host_id
        self.tick_ns, self.vm_rows_ns = tick_ns, vm_rows_ns
        self.guests: NDArray[np.int64] = np.full((8, NR_G_FIELDS), -1, np.int64)
        self.row_of: dict[int, int] = {}  # VM -> row of guests
        self._ops: NDArray[np.int64] = np.zeros((8 * OPS_PER_GUEST, NR_OP_FIELDS), np.int64)
        self._progress = np.zeros(NR_PROGRESS, np.int64)
        self._births = births_per_tick(spec, tick_ns)
        self._starting: list[tuple[int, int, int, int]] = []  # touches of VMs that start together
        self._vm_rows: list[list[int]] = []
        self._event_rows: list[list[int]] = []

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
        self._vm_rows, self._event_rows = [], []
        hosts = np.zeros(((t1_ns - t0_ns) // self.tick_ns, len(HOST_COLUMNS)), np.int64)
        position = done = 0
        while done < len(hosts):
            position = self._obey(commands, position, t0_ns + (done + 1) * self.tick_ns)
            last = self._ticks_before(commands, position, t0_ns, done, len(hosts))
            self._run_ticks(hosts[done:last], t0_ns + done * self.tick_ns)
            done = last
            now_ns = t0_ns + done * self.tick_ns
            if now_ns % self.vm_rows_ns == 0:
                for row in self.row_of.values():
                    self._note_vm(now_ns, row, ended=False)
        return NodeRows(
            hosts,
            _table(self._vm_rows, len(VM_COLUMNS)),
            _table(self._event_rows, len(EVENT_COLUMNS)),
        )

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
        """Recompute the host's state from scratch.

        Raises
        ------
        InvariantError
            It is inconsistent.
        """
        from hostsim.mm.check import check_memory

        check_memory(self.host.mem)

    def _obey(self, commands: Commands, position: int, end_ns: int) -> int:
        """Carry out the commands before a time; return the position of the next."""
        while position < len(commands.t_ns) and commands.t_ns[position] < end_ns:
            t_ns, vm_id = int(commands.t_ns[position]), int(commands.vm_id[position])
            if commands.kind[position] == START:
                self._start(
                    t_ns,
                    vm_id,
                    int(commands.vcpus[position]),
                    int(commands.memory_pages[position]),
                    int(commands.age_ns[position]),
                )
            elif vm_id in self.row_of:  # else it was killed since the last barrier
                self._end(t_ns, vm_id, "end", "")
            position += 1
        self._finish_starts(end_ns - self.tick_ns)
        return position

    def _start(self, t_ns: int, vm_id: int, vcpus: int, pages: int, age_ns: int) -> None:
        """Start a VM and let it touch its boot footprint, or all it has if it ran before."""
        spec = self.guest_spec
        boot, peak, madvised, key = draw_guest(spec, self._guests_key, vm_id, pages)
        mm, enough = self.host.start(vm_id, pages, spec.overhead_pages, madvised)
        row = self._new_row()
        guest = self.guests[row]
        guest[G_VM], guest[G_MM], guest[G_PAGES], guest[G_VCPUS] = vm_id, mm, pages, vcpus
        guest[G_START_NS], guest[G_BOOT], guest[G_PEAK] = t_ns - age_ns, boot, peak
        guest[G_KEY], guest[G_FREED_NR], guest[G_RUNS] = key, 0, 0
        guest[G_GROWN] = pages_wanted(self.guests, row, t_ns, spec.growth_ns)
        self.row_of[vm_id] = row
        self._note_event(t_ns, row, "start", "")
        touches = [
            (mm, OP_TOUCH, self.host.own_first_page(pages), spec.overhead_pages),
            (mm, OP_TOUCH, 0, int(guest[G_GROWN])),
        ]
        if not enough and self._kill(t_ns) == mm:
            return
        self._starting += touches
        if age_ns == 0:
            self._finish_starts(t_ns)

    def _finish_starts(self, t_ns: int) -> None:
        """Let the VMs that start together touch what they have from the beginning."""
        if self._starting:
            ops = np.array(self._starting, np.int64)
            self._starting = []
            self._apply(t_ns, ops, len(ops))

    def _run_ticks(self, rows: NDArray[np.int64], begin_ns: int) -> None:
        """Let guests and the kernel use memory for some ticks, a row of ``hosts`` each."""
        self._progress[:] = 0
        while True:
            now_ns = int(
                run_ticks(
                    self.host.mem,
                    self.host.slab,
                    self.guests,
                    self._ops,
                    rows,
                    self._progress,
                    self._births,
                    begin_ns,
                    self.tick_ns,
                    self.guest_spec.growth_ns,
                    self.guest_spec.reuse_per_hour * self.tick_ns / NS_PER_HOUR,
                    self.guest_spec.small_release_ratio,
                    self.host.key,
                    self.host_id,
                )
            )
            if now_ns == 0:
                return
            victim = self._kill(now_ns)
            self._ops[self._ops[:, OP_MM] == victim, OP_MM] = NIL

    def _apply(self, t_ns: int, ops: NDArray[np.int64], nr: int) -> None:
        """Carry out operations, killing the largest VM whenever memory runs out."""
        done = self.host.apply(ops, nr)
        while done < nr:
            victim = self._kill(t_ns)
            ops[ops[:, OP_MM] == victim, OP_MM] = NIL
            done = self.host.apply(ops, nr, done)

    def _kill(self, t_ns: int) -> int:
        """Let the OOM killer take a VM; return its process."""
        mm = self.host.oom_victim()
        if mm == NIL:
            raise InvariantError("memory ran out on a host without a VM")
        self._end(t_ns, self.host.vm_of(mm), "kill", "oom")
        return mm

    def _end(self, t_ns: int, vm_id: int, event: str, reason: str) -> None:
        """End a VM for a reason."""
        row = self.row_of.pop(vm_id)
        self._note_vm(t_ns, row, ended=True)
        self._note_event(t_ns, row, event, reason)
        self.host.stop(int(self.guests[row, G_MM]))
        self.guests[row] = -1

    def _new_row(self) -> int:
        """Return a free row of the table of guests, which grows as needed."""
        free = np.flatnonzero(self.guests[:, G_VM] < 0)
        if len(free):
            return int(free[0])
        rows = len(self.guests)
        self.guests = np.concatenate([self.guests, np.full_like(self.guests, -1)])
        self._ops = np.zeros((2 * rows * OPS_PER_GUEST, NR_OP_FIELDS), np.int64)
        return rows

    def _note_vm(self, t_ns: int, row: int, ended: bool) -> None:
        guest = self.guests[row]
        mm = self.host.mem.mm[guest[G_MM]]
        self._vm_rows.append(
            [
                t_ns,
                self.host_id,
                guest[G_VM],
                guest[G_VCPUS],
                guest[G_PAGES],
                mm[MM_RAM_ANON],
                mm[MM_HUGE],
                mm[MM_EPT],
                mm[MM_THP_ALLOC],
                mm[MM_THP_FALLBACK],
                mm[MM_EPT_2M],
                mm[MM_EPT_4K],
                mm[MM_EPT_VIOLATIONS],
                int(ended),
            ]
        )

    def _note_event(self, t_ns: int, row: int, event: str, reason: str) -> None:
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


def _table(rows: list[list[int]], columns: int) -> NDArray[np.int64]:
    """Return rows as an array, also when there are none."""
    return np.array(rows, np.int64).reshape(len(rows), columns)


def warmup() -> None:
    """Compile every kernel a node uses, or load it from the cache."""
    from hostsim.spec import SlabSpec

    slab = SlabSpec(100.0, NS_PER_HOUR, 0.5, NS_PER_HOUR, 64)
    spec = HostSpec(2, 1 << 19, 0, "6.12", "madvise", "madvise", True, slab)
    guests = GuestSpec(1 << 12, 0.8, 10.0, NS_PER_HOUR, 0.5, 0.1, 0.5, 512)
    hour = NS_PER_HOUR
    node = Node(spec, guests, 0, 0, hour // 12, hour)
    start: dict[str, Any] = {
        "t_ns": np.array([0, 1, hour // 2], np.int64),
        "kind": np.array([START, START, STOP], np.int8),
        "vm_id": np.array([0, 1, 0], np.int64),
        "vcpus": np.ones(3, np.int32),
        "memory_pages": np.array([1 << 16, 1 << 14, 1 << 16], np.int64),
        "age_ns": np.array([hour, 0, 0], np.int64),
    }
    node.advance(Commands(**start), 0, hour)
