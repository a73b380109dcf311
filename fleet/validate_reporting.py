"""A VM that compiles under free page reporting: memory saved, time lost, what is left.

Row 20: clang built in a VM of 16 GiB and 12 vCPUs (HyperAlloc, EuroSys 2025).  The demand is an
input, taken from the published runs without reporting and with HyperAlloc, which gives all free
memory back; what is tried is what reporting makes of it (`fleet.build_vm`).
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.build_vm import (
    J_MM,
    NR_D_FIELDS,
    NR_J_FIELDS,
    NR_S_FIELDS,
    S_CACHE,
    S_FAULT_NS,
    S_MM_OBJECTS,
    S_RSS_NS,
    S_TLB_NS,
    S_WALL_NS,
    S_WORK_NS,
    build_until,
    pass_wall,
    report_and_use,
)
from fleet.claims import Claim
from fleet.hardware import load_cpu
from fleet.mmu import Setup, memory_for, run
from fleet.profiles import load_workload
from guestsim.behaviour import G_MM, G_PAGES, G_VM, NR_G_FIELDS
from guestsim.guest import MM_CACHE, boot_memory, free_room, start_process
from guestsim.reporting import NR_R_FIELDS, R_BATCHES, R_WALKED, REPORTING_CAPACITY
from guestsim.spec import GuestSpec
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN, NS_PER_MS, NS_PER_S, PAGE_SHIFT
from hostsim.ept import guest_access
from hostsim.host import Host
from hostsim.mm.cost import C_CLEAR_PAGE, C_FAULT, DEFAULT_NS
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_RAM_ANON,
    NIL,
    P_TOUCHED,
    PCP_COUNT,
    Z_FREE,
    Memory,
)
from hostsim.mm.mmap import ADVICE_NOHUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.zap import discard_range, exit_mm
from hostsim.spec import HostSpec, SlabSpec

GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
PAPER: Final = "Wrenger et al., HyperAlloc, EuroSys 2025: clang, 16 GiB, 12 vCPUs, Linux 6.1"
TITLE: Final = "free page reporting, VM that compiles"
CPU: Final = "cascade-lake"  # theirs: Xeon Gold 6252
VCPUS: Final = 12
MEMORY_PAGES: Final = 16 * GIB_PAGES

# Demand: from their run without reporting, and from what is left with HyperAlloc
WORK_NS: Final = int(41.18 * NS_PER_MIN)
SYSTEM_NS: Final = int(6.1 * NS_PER_MIN)  # taken for faults of 4 KiB: what compilers touch
CACHE_PAGES: Final = int(5.0 * GIB_PAGES)  # dropping caches gave back
OBJECT_PAGES: Final = int(3.7 * GIB_PAGES)  # make clean gave back
BASE_PAGES: Final = int(1.6 * GIB_PAGES)  # left after that, 1.9 GiB, less struct pages
COMPILER_NS: Final = 10 * NS_PER_S  # mean life (assumed: about 3,000 files)
STEP_NS: Final = NS_PER_S // 10

# Costs beyond those of hostsim.mm.cost
NS_PER_CYCLE: Final = 1 / 2.1  # Xeon Gold 6252, base frequency
KICK_CYCLES: Final = 2339  # exit that KVM handles and entry: Linux b7ffc44d5b2e, inl_from_kernel
MISS_NS: Final = 78.6  # local memory: Intel Memory Latency Checker 3.9, Xeon Platinum 8269CY
BLOCK_MISSES: Final = 4  # struct pages of a block and its neighbours: off the list and back
PCP_BATCH: Final = 63  # pages that a CPU takes or gives under the zone's lock
PARTS: Final = ((0, 2 * NS_PER_S, 0.08), (0, 100 * NS_PER_MS, 0.025))  # shares of the build
AFTER_NS: Final = 60 * NS_PER_S  # reporting goes on so long after make clean and drop caches


class Built(NamedTuple):
    """What a build cost."""

    gib_min: float  # memory of the VM on the host over time
    run_min: float
    left_gib: tuple[float, float, float]  # after the build, make clean, dropping caches
    residue_gib: float  # of it, at the end: what the guest does not use
    fault_min: float  # CPU time of EPT violations and host faults,
    kick_min: float  # of TLB flushes of all vCPUs
    lock_min: float  # of waiting for zone locks,
    tlb_min: float  # of translation through small EPT leaves,
    worker_min: float  # of the worker


def _host() -> Host:
    slab = SlabSpec(0.0, NS_PER_HOUR, 0.0, NS_PER_HOUR, 1024)
    spec = HostSpec(48, 192 * GIB_PAGES, 0, "6.1", "always", "madvise", True, slab)
    return Host(spec, 0, 0)


def _guest_spec() -> GuestSpec:
    hour = NS_PER_HOUR
    return GuestSpec(
        "6.1", "madvise", "madvise", True, 1 << 16, 1.0, 10.0, hour, 0.0, 1.0, 512, 0, 1.0, 0.0,
        0.1, (),
    )  # fmt: skip


def tlb_ratio() -> float:
    """Return how much longer compilers run with 4 KiB EPT leaves than with 2 MiB ones."""
    workload, cpu = load_workload("build-server"), load_cpu(CPU)
    cycles = []
    for host_thp in ("never", "always"):
        setup = Setup(True, "never", host_thp, 4, memory_for(workload))
        cycles.append(run(workload, cpu, setup, accesses=200_000)[1].run_cycles)
    return cycles[0] / cycles[1] - 1.0


class BuildVm:
    """The VM, the host it runs on, and a build in it.

    Parameters
    ----------
    slower_ratio
        As `tlb_ratio` returns.
    """

    def __init__(self, slower_ratio: float) -> None:
        self.host = _host()
        self.mem = boot_memory(_guest_spec(), MEMORY_PAGES, VCPUS)
        self.mem.pool[P_TOUCHED] = 0
        self.guests: NDArray[np.int64] = np.zeros((1, NR_G_FIELDS), np.int64)
        mm, enough = self.host.start(0, MEMORY_PAGES, 512, True, VCPUS)
        if not enough:
            raise ValueError("the host is too small")
        self.guests[0, G_MM], self.guests[0, G_PAGES], self.guests[0, G_VM] = mm, MEMORY_PAGES, 0
        self.mm = mm
        self.state: NDArray[np.int64] = np.zeros(NR_S_FIELDS, np.int64)
        self.jobs: NDArray[np.int64] = np.zeros((VCPUS, NR_J_FIELDS), np.int64)
        self.jobs[:, J_MM] = NIL
        self.demand = _demand(slower_ratio)
        self._fill()
        self.kick_ns = self.lock_ns = self.worker_ns = 0.0

    def _fill(self) -> None:
        """Let the guest have used all of its memory once, and the host have backed it.

        Without reporting the VM had all of its 16 GiB throughout: 658.6 GiB min in 41.18 min.
        """
        mem = self.mem
        base = start_process(mem, BASE_PAGES, 0, ADVICE_NONE)
        _touch(mem, base, 0, BASE_PAGES)
        self.state[S_CACHE] = mem.mm[MM_CACHE, MM_ANON]
        before = start_process(mem, MEMORY_PAGES, 0, ADVICE_NONE)
        _touch(mem, before, 0, int(free_room(mem)))
        exit_mm(mem, before)
        self.state[S_MM_OBJECTS] = mm_alloc(mem, 0, 2 * OBJECT_PAGES, ADVICE_NOHUGE, False, 0)
        mem.pool[P_TOUCHED] = 0
        if guest_access(self.host.mem, self.mm, 0, MEMORY_PAGES, True) != FAULT_OK:
            raise ValueError("the host is too small")

    def rss_gib(self) -> float:
        """Return the VM's memory on the host."""
        return int(self.host.mem.mm[self.mm, MM_RAM_ANON]) / GIB_PAGES

    def _report(self, lowest: int) -> None:
        """Make a pass of reporting and let it take its time."""
        host, mem = self.host.mem, self.mem
        discards, fault_ns = report_and_use(host, self.guests, mem, self.jobs, lowest)
        batches = int(mem.scratch[R_BATCHES])
        kick_ns = discards * KICK_CYCLES * NS_PER_CYCLE  # every vCPU leaves the guest
        wait_ns = lock_wait_ns(mem.scratch[R_WALKED:NR_R_FIELDS], batches, self.locks_per_ns)
        worker_ns = self._worker_ns(batches)
        self.kick_ns += VCPUS * kick_ns
        self.lock_ns += VCPUS * wait_ns
        self.worker_ns += worker_ns
        self.state[S_FAULT_NS] += fault_ns
        wall_ns = kick_ns + wait_ns + (worker_ns + fault_ns) / VCPUS
        pass_wall(host, self.mm, self.state, int(wall_ns))

    @property
    def locks_per_ns(self) -> float:
        """How often a vCPU takes a zone's lock: to allocate what it touches, and to free it."""
        return 2 * TOUCHED_PER_NS / PCP_BATCH

    def _worker_ns(self, batches: int) -> float:
        """Return the guest's own CPU time of a pass: list walks, batches sent and acknowledged."""
        walked = int(self.mem.scratch[R_WALKED:NR_R_FIELDS].sum())
        misses = walked + batches * REPORTING_CAPACITY * BLOCK_MISSES
        return misses * MISS_NS + batches * 2 * KICK_CYCLES * NS_PER_CYCLE

    def build(self, lowest: int | None, delay_ns: int, work_ns: int = WORK_NS) -> None:
        """Build, with passes of reporting of an order and more unless that is None."""
        state = self.state
        while state[S_WORK_NS] < work_ns:
            until = int(state[S_WALL_NS]) + (delay_ns if lowest is not None else 1 << 60)
            if not build_until(
                self.host.mem, self.guests, self.mem, self.jobs, state, self.demand, work_ns, until
            ):
                raise ValueError("the VM ran out of memory")
            if lowest is not None:
                self._report(lowest)

    def clean_up(self, lowest: int | None, delay_ns: int) -> tuple[float, float, float]:
        """End the build, remove objects, drop caches; return memory on the host after each."""
        for job in self.jobs:
            if job[J_MM] != NIL:
                exit_mm(self.mem, int(job[J_MM]))
                job[J_MM] = NIL
        left = [self.rss_gib()]
        for step in range(2):
            if step == 0:
                exit_mm(self.mem, int(self.state[S_MM_OBJECTS]))
            else:
                discard_range(self.mem, MM_CACHE, 0, int(self.state[S_CACHE]))
            for _ in range(AFTER_NS // delay_ns if lowest is not None else 0):
                self._report(int(lowest or 0))
            left.append(self.rss_gib())
        return left[0], left[1], left[2]


TOUCHED_PER_NS: Final = (
    SYSTEM_NS / (DEFAULT_NS[C_FAULT] + DEFAULT_NS[C_CLEAR_PAGE]) / (VCPUS * WORK_NS)
)  # pages that a vCPU's compiler touches


def _demand(slower_ratio: float) -> NDArray[np.int64]:
    steps = WORK_NS / STEP_NS
    demand: NDArray[np.int64] = np.zeros(NR_D_FIELDS, np.int64)
    demand[:] = (
        STEP_NS,
        round(TOUCHED_PER_NS * STEP_NS),
        round(TOUCHED_PER_NS * COMPILER_NS),
        round(1000 * CACHE_PAGES / steps),
        round(1000 * OBJECT_PAGES / steps),
        round(1e6 * slower_ratio),
    )
    return demand


def _touch(mem: Memory, mm: int, first: int, nr: int) -> None:
    if touch_range(mem, mm, first, nr, 1, 1.0, 0, True, first) != FAULT_OK:
        raise ValueError("the VM is too small")


def lock_wait_ns(walked: NDArray[np.int64], batches: int, locks_per_ns: float) -> float:
    """Return how long a CPU waits on average for zone locks held while lists are walked.

    A CPU that takes the lock at random, so many times a second, waits from then on until a hold
    of h ends: h - (1 - exp(-rate h)) / rate.
    """
    holds = walked[walked > 0] * MISS_NS
    batch = REPORTING_CAPACITY * BLOCK_MISSES * MISS_NS
    holds = np.append(holds, np.full(batches, batch))
    return float((holds + np.expm1(-locks_per_ns * holds) / locks_per_ns).sum())


def used_gib(mem: Memory) -> float:
    """Return the memory that a guest has in use; what the host has beyond it is left over."""
    free = mem.zone[:, Z_FREE] + mem.zone[:, PCP_COUNT]
    return (MEMORY_PAGES - int(free.sum())) / GIB_PAGES


def built(lowest: int | None, delay_ns: int, slower_ratio: float, work_ns: int = WORK_NS) -> Built:
    """Build once with reporting of an order, or without."""
    vm = BuildVm(slower_ratio)
    vm.build(lowest, delay_ns, work_ns)
    state = vm.state.copy()
    cpu = [int(state[S_FAULT_NS]), vm.kick_ns, vm.lock_ns, int(state[S_TLB_NS]), vm.worker_ns]
    left = vm.clean_up(lowest, delay_ns) if work_ns == WORK_NS else (vm.rss_gib(),) * 3
    return Built(
        int(state[S_RSS_NS]) / GIB_PAGES / NS_PER_MIN,
        int(state[S_WALL_NS]) / NS_PER_MIN,
        left,
        left[2] - used_gib(vm.mem),
        *(ns / NS_PER_MIN for ns in cpu),
    )


def reporting() -> Iterator[Claim]:
    """Yield memory over time, run time and what is left, by order and delay.

    Order 9 is simulated throughout, order 0 for the first minutes of the build.
    """
    ratio = tlb_ratio()
    whole = built(9, 2 * NS_PER_S, ratio)
    yield from _order_9(whole)
    for (order, delay_ns, share), low, high, published in zip(
        PARTS, (0.1, 0.3), (0.3, 0.7), (18, 48), strict=True
    ):
        work_ns = int(WORK_NS * share) // STEP_NS * STEP_NS
        part = built(order, delay_ns, ratio, work_ns)
        slower = part.run_min * NS_PER_MIN / work_ns - 1.0
        yield Claim(
            f"{TITLE}, order {order}, {delay_ns / NS_PER_S:g} s, the first"
            f" {work_ns / NS_PER_MIN:.1f} min: longer run",
            f"{100 * low:g} to {100 * high:g} %, published {published} %",
            PAPER,
            f"{100 * slower:.1f} %: {_parts(part, work_ns)}",
            low <= slower <= high,
        )


def _order_9(whole: Built) -> Iterator[Claim]:
    """Yield what a whole build under the default order and delay is held to."""
    saved = whole.gib_min / (MEMORY_PAGES / GIB_PAGES * WORK_NS / NS_PER_MIN) - 1.0
    yield Claim(
        f"{TITLE}, order 9, 2 s: memory over time beside a VM that gives nothing back",
        "-42 to -26 %, published -34 %",
        PAPER,
        f"{100 * saved:.1f} %",
        -0.42 <= saved <= -0.26,
    )
    slower = whole.run_min * NS_PER_MIN / WORK_NS - 1.0
    yield Claim(
        f"{TITLE}, order 9, 2 s: longer run",
        "less than 1 %, published 0.1 %",
        PAPER,
        f"{100 * slower:.2f} %",
        slower < 0.01,
    )
    after = ", ".join(f"{gib:.1f}" for gib in whole.left_gib)
    yield Claim(
        f"{TITLE}, order 9, 2 s: left at the end that the guest does not use",
        "more than 0; after build, make clean, drop caches, published 12.2, 11.6, 8.0 GiB in all",
        PAPER,
        f"{whole.residue_gib:.1f} GiB; {after} GiB in all",
        whole.residue_gib > 0,
    )


def _parts(part: Built, work_ns: int) -> str:
    """Return of what a longer run is made, per cent each."""
    cpu_min = VCPUS * work_ns / NS_PER_MIN
    names = ("faults", "flushes", "lock", "translation", "worker")
    times = (part.fault_min, part.kick_min, part.lock_min, part.tlb_min, part.worker_min)
    pairs = zip(names, times, strict=True)
    return ", ".join(f"{name} {100 * minutes / cpu_min:.2f}" for name, minutes in pairs)
