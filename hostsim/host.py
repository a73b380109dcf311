"""One KVM host: its memory manager, its kernel's own memory, and the VMs' processes.

A host knows a guest as QEMU's process: guest RAM that it maps on demand, an EPT, and some
small-page memory of QEMU's own.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.errors import InvariantError
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    HPAGE_PUD_ORDER,
    NS_PER_S,
)
from hostsim.ept import guest_access
from hostsim.home_node import choose_home
from hostsim.mm.adopt import adopt, begin_adoption
from hostsim.mm.cost import NR_COSTS
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.memory import new_memory, set_thp
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mm_types import (
    MM_EPT_FLAGS,
    MM_RAM_PAGES,
    MM_VCPUS,
    MM_VM,
    MM_WINDOWS,
    NIL,
    P_COST_NS,
    P_DAEMON_NS,
    P_NOW_NS,
    P_RESUME,
    P_SETTLED_NS,
    P_STALL_NS,
    Memory,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.mmu_notifier import EPT_PC_SLOTS
from hostsim.mm.numa import run_on_node_of, set_home_node
from hostsim.mm.oom import select_bad_process
from hostsim.mm.pcp import decay_pcp
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.rmap import KIND_KERNEL, KIND_PGTABLE
from hostsim.mm.settings import write_setting
from hostsim.mm.slab import (
    S_USED,
    Slab,
    alloc_boot_pages,
    new_slab,
    restore_slab,
    slab_tick,
)
from hostsim.mm.snapshot import memory_of_host, set_marks
from hostsim.mm.state import max_swap_slots, restore_parts, used_parts
from hostsim.mm.state_spec import StateSpec, VmSpec
from hostsim.mm.swapfile import swapon
from hostsim.mm.tunables import T_PCP_6_12
from hostsim.mm.turn import TURN_WINDOWS
from hostsim.mm.vmstat import (
    EVENTS,
    OOM_KILL,
    VM_ENDS,
    VM_STARTS,
)
from hostsim.mm.zap import discard_range, exit_mm
from hostsim.spec import HostSpec

# Page tables and kernel pages of a QEMU process beside those of guest RAM.
PROCESS_PGTABLES: Final = 12  # upper levels and the tables of text, heap and stacks
PROCESS_KERNEL_PAGES: Final = 16  # kernel stacks (4 pages a thread) and task slabs

KSM_OVERCOMMIT: Final = 4  # where ksmd runs: guest RAM may be up to five times the memory

OP_MM: Final = 0
OP_KIND: Final = 1
OP_START: Final = 2
OP_NR: Final = 3
OP_TOUCH: Final = 0
OP_DISCARD: Final = 1
PROCESS_TABLE_FULL: Final = "more processes on one host than the process table holds"


@kernel
def new_process(
    mem: Memory, ram_pages: int, own_pages: int, advice: int, vm_id: int, vcpus: int
) -> tuple[int, bool]:
    """Start a VM's process with its kernel pages and page tables; its guest has a PC's memory map.

    Returns
    -------
    mm, enough
        The process (NIL if the process table is full), and whether memory sufficed.
    """
    nid, nr_nodes = choose_home(mem, ram_pages, vcpus)
    mm = mm_alloc(mem, ram_pages, own_pages, advice, True, vm_id)
    if mm == NIL:
        return NIL, False
    mem.mm[mm, MM_VCPUS] = vcpus
    set_home_node(mem, mm, nid, nr_nodes)
    run_on_node_of(mem, mm, 0)
    mem.mm[mm, MM_EPT_FLAGS] = EPT_PC_SLOTS
    gib = (ram_pages + (1 << HPAGE_PUD_ORDER) - 1) >> HPAGE_PUD_ORDER
    for _ in range(PROCESS_KERNEL_PAGES):
        if not alloc_table(mem, mm, KIND_KERNEL):
            return mm, False
    for _ in range(PROCESS_PGTABLES + gib):
        if not alloc_table(mem, mm, KIND_PGTABLE):
            return mm, False
    return mm, True


@kernel
def start_qemu(
    mem: Memory, ram_pages: int, own_pages: int, madvised: bool, vm_id: int, vcpus: int
) -> tuple[int, bool]:
    """Start a VM's process as `Host.start` does; the process is NIL if the table is full."""
    advice = ADVICE_HUGE if madvised else ADVICE_NONE
    mm, enough = new_process(mem, ram_pages, own_pages, advice, vm_id, vcpus)
    if mm != NIL:
        if madvised:
            khugepaged_enter(mem, mm)
        mem.vmstat[VM_STARTS] += 1
    return mm, enough


@inline_kernel
def own_first_page(ram_pages: int) -> int:
    """Return the first page of a process's own memory behind its guest RAM."""
    return (ram_pages + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER << HPAGE_PMD_ORDER


@kernel
def access_turn(mem: Memory, mm: int, start: int, nr: int) -> tuple[int, bool]:
    """Let a process's guest write the next pages of a range, those in a turn's windows.

    Returns
    -------
    pages, enough
        How many of the range are done, and whether memory sufficed.
    """
    end = min(start + nr, ((start >> HPAGE_PMD_ORDER) + TURN_WINDOWS) << HPAGE_PMD_ORDER)
    if guest_access(mem, mm, start, end - start, True) != FAULT_OK:
        return mem.pool[P_RESUME] - start, False
    return end - start, True


@kernel
def _take_turn(mem: Memory, ops: NDArray[np.int64], i: int) -> bool:
    """Let a process touch the next pages of its range; return whether memory sufficed."""
    nr, enough = access_turn(mem, ops[i, OP_MM], ops[i, OP_START], ops[i, OP_NR])
    ops[i, OP_START] += nr
    ops[i, OP_NR] -= nr
    return enough


@kernel
def _touch_in_turns(mem: Memory, ops: NDArray[np.int64], first: int, last: int) -> bool:
    """Let processes touch their ranges at the same time, a turn each.

    Rows ``first .. last - 1`` are used up as the touches are done, and those that are not move
    to the front; returns whether memory sufficed.
    """
    end = last
    while end > first:
        left = first
        for i in range(first, end):
            if ops[i, OP_MM] == NIL:
                ops[i, OP_NR] = 0
            elif ops[i, OP_NR] > 0 and not _take_turn(mem, ops, i):
                return False
            if ops[i, OP_NR] > 0:
                if left < i:
                    for column in range(ops.shape[1]):
                        ops[left, column] = ops[i, column]
                    ops[i, OP_NR] = 0
                left += 1
        end = left
    return True


@kernel
def apply_ops(mem: Memory, ops: NDArray[np.int64], first: int, nr: int) -> int:
    """Carry out operations ``first .. nr - 1`` on the memory of processes, in order.

    Neighbouring touches happen at the same time, in turns.

    Parameters
    ----------
    ops
        Rows of mm (NIL: nothing to do), kind, start page, pages; modified: what is done is
        taken off, so that a call after an OOM kill goes on where this one stopped.

    Returns
    -------
    int
        ``nr``, or the operation to go on with after memory ran out.
    """
    i = first
    while i < nr:
        if ops[i, OP_KIND] == OP_DISCARD:
            if ops[i, OP_MM] != NIL:
                discard_range(mem, ops[i, OP_MM], ops[i, OP_START], ops[i, OP_NR])
            i += 1
            continue
        last = i
        while last < nr and ops[last, OP_KIND] == OP_TOUCH:
            last += 1
        if not _touch_in_turns(mem, ops, i, last):
            return i
        i = last
    return nr


@kernel
def kernel_tick(
    mem: Memory, slab: Slab, tick: int, tick_ns: int, births: NDArray[np.float64], key: int
) -> bool:
    """Advance the kernel's own memory and its workers by a tick; False if memory ran out.

    Parameters
    ----------
    births
        As `births_per_tick` returns them.
    key
        Random key of the host.
    """
    if mem.tunables[T_PCP_6_12] != 0:
        decay_pcp(mem, tick_ns // NS_PER_S)
    return slab_tick(mem, slab, tick, births[0], births[1], births[2], births[3], key)


class Host:
    """A KVM host that runs VMs in simulated physical memory.

    Parameters
    ----------
    spec
        Hardware and kernel settings.
    host_id
        Number of the host; keys its random streams.
    seed
        Seed of the run.

    Raises
    ------
    ValueError
        The memory is no multiple of 4 MiB, or the kernel or a setting is unknown.
    """

    def __init__(self, spec: HostSpec, host_id: int, seed: int) -> None:
        self.spec = spec
        self.key = int(stream(seed, Stream.KERNEL_MEMORY, host_id).integers(1 << 62))
        self._boot(spec.state)

    def _boot(self, state: StateSpec | None) -> None:
        """Begin with a state, or with the memory of a machine that has just booted."""
        spec = self.spec
        overcommit = KSM_OVERCOMMIT if ("ksm/run", "1") in spec.settings else 1
        swaps = spec.swap_pages > 0
        if state is not None:
            self.mem = memory_of_host(state, spec.kernel, spec.vcpus, overcommit, swaps)
        else:
            self.mem = new_memory(
                spec.memory_pages,
                spec.kernel,
                spec.vcpus,
                memmap=True,
                nr_nodes=spec.nr_nodes,
                overcommit=overcommit,
                keep_lru=swaps,
            )
        if spec.costs:
            self.mem.cost[:NR_COSTS] = spec.costs
        set_thp(self.mem, spec.thp_enabled, spec.thp_defrag, spec.use_zero_page)
        for name, value in (("enabled", spec.thp_enabled), *spec.settings):
            write_setting(self.mem, name, value)
        if spec.swap_pages and not swapon(self.mem, spec.swap_pages):
            most = max_swap_slots(spec.memory_pages)
            raise ValueError(f"swap of {spec.swap_pages} pages: the host takes at most {most}")
        self.slab: Slab = new_slab()
        if state is not None:  # which holds the kernel's memory already
            set_marks(self.mem, state)
        elif not alloc_boot_pages(self.mem, spec.slab.base_pages):
            raise ValueError(
                f"slab.base_pages {spec.slab.base_pages}: the host's memory cannot hold them"
            )

    def reboot(self, now_ns: int) -> None:
        """Boot anew, with all memory free; VMs must have ended.

        Simplified: counters go on through a reboot.
        """
        before, counters = self.mem, sorted(EVENTS)
        self._boot(None)
        self.mem.vmstat[counters] += before.vmstat[counters]
        spent = [P_COST_NS, P_STALL_NS, P_SETTLED_NS, P_DAEMON_NS]
        self.mem.pool[spent] += before.pool[spent]
        self.mem.pool[P_NOW_NS] = now_ns

    def save(self) -> dict[str, NDArray[Any]]:
        """Return all that changes: views of the used parts, by name."""
        slab = self.slab._asdict()
        slab["blocks"] = slab["blocks"][: int(self.slab.state[S_USED])]
        parts = {f"mem.{name}": part for name, part in used_parts(self.mem).items()}
        return parts | {f"slab.{name}": part for name, part in slab.items()}

    def restore(self, parts: dict[str, NDArray[Any]]) -> None:
        """Take up a state that `save` returned on a host of the same description.

        Raises
        ------
        ValueError
            The state is another version's, or another host's.
        """
        split: dict[str, dict[str, NDArray[Any]]] = {"mem": {}, "slab": {}}
        for name, part in parts.items():
            kind, _, field = name.partition(".")
            split.get(kind, {})[field] = part
        self.mem = restore_parts(split["mem"], self.mem)
        self.slab = restore_slab(split["slab"])

    def start(
        self, vm_id: int, ram_pages: int, own_pages: int, madvised: bool, vcpus: int = 1
    ) -> tuple[int, bool]:
        """Start a VM's process; return its number and whether memory sufficed.

        Parameters
        ----------
        ram_pages
            Guest RAM, page 0 on.
        own_pages
            Small-page memory of QEMU itself, from `own_first_page` on.
        madvised
            Whether the guest RAM has MADV_HUGEPAGE.
        vcpus
            Of the VM, which says with its memory on how many NUMA nodes it runs.

        Raises
        ------
        InvariantError
            The process table is full.
        """
        mm, enough = start_qemu(self.mem, ram_pages, own_pages, madvised, vm_id, vcpus)
        if mm == NIL:
            raise InvariantError(PROCESS_TABLE_FULL)
        return int(mm), bool(enough)

    def stop(self, mm: int) -> None:
        """End a VM's process and free all it owns."""
        exit_mm(self.mem, mm)
        self.mem.vmstat[VM_ENDS] += 1

    def apply(self, ops: NDArray[np.int64], nr: int, first: int = 0) -> int:
        """Carry out operations; return how far they came. See `apply_ops`."""
        return int(apply_ops(self.mem, ops, first, nr))

    def oom_victim(self) -> int:
        """Return the process that the OOM killer takes now (NIL if none) and count the kill."""
        mm = int(select_bad_process(self.mem))
        if mm != NIL:
            self.mem.vmstat[OOM_KILL] += 1
        return mm

    def vm_of(self, mm: int) -> int:
        """Return the VM whose process this is."""
        return int(self.mem.mm[mm, MM_VM])

    def windows_of(self, mm: int) -> int:
        """Return the 2 MiB windows of a process's address space."""
        return int(self.mem.mm[mm, MM_WINDOWS])


def adopt_vm(mem: Memory, mm: int, vm: VmSpec, own_pages: int) -> None:
    """Give a VM's process what it had of the memory in use, small pages of QEMU's own first."""
    begin_adoption(mem)
    own = min(own_pages, vm.rss_pages - vm.huge_pages)
    adopt(mem, mm, int(own_first_page(int(mem.mm[mm, MM_RAM_PAGES]))), own, 0)
    adopt(mem, mm, 0, vm.rss_pages - own, vm.huge_pages)


def births_per_tick(spec: HostSpec, tick_ns: int) -> NDArray[np.float64]:
    """Return slab-like churn in units of a tick, as `slab_tick` takes it.

    A birth at a random moment of a tick lives to its end with probability
    ``life * (1 - exp(-tick / life)) / tick``.

    Returns
    -------
    array of 4
        Short-lived births and their mean life in ticks, long-lived births and theirs.
    """
    slab = spec.slab
    mean_pages = (1 + 2 + 4 + 8) / 4.0  # orders 0..3 equally likely
    births = slab.rate_pages_per_s * tick_ns / NS_PER_S / mean_pages
    shares = np.array([1.0 - slab.long_lived_ratio, slab.long_lived_ratio])
    life_ticks = np.array([slab.lifetime_ns, slab.long_lifetime_ns]) / tick_ns
    alive = births * shares * life_ticks * -np.expm1(-1.0 / life_ticks)
    return np.stack([alive, life_ticks], axis=1).reshape(4)
