"""A VM that compiles: processes that come and go, page cache that grows, free page reporting.

Every vCPU runs one compiler after the other.  Each writes memory at a steady rate until it ends
and frees it all; sources that were read and objects that were written stay in the page cache.
Guest and host are `guestsim.guest` and `hostsim`, and meet as in `fleet.backing`.

Simplified: a compiler's memory is touched once, at the same rate all the time, and used again
after every pass of reporting; page cache is not read again.
Simplified: of what vCPUs and QEMU wait for each other, only the zone locks are counted.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from fleet.backing import back_frames, discard_reported
from guestsim.behaviour import G_MM
from guestsim.guest import MM_CACHE, start_process
from guestsim.reporting import report_pass
from hostsim.core.counter_rng import uniform
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.ept import guest_access
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import (
    MM_EPT_2M,
    MM_EPT_4K,
    MM_RAM_ANON,
    MM_WINDOWS,
    NIL,
    P_COST_NS,
    Memory,
)
from hostsim.mm.mmap import ADVICE_NONE
from hostsim.mm.mmu_notifier import E_NONE, E_TAG, ept_word, has_leaf, is_table
from hostsim.mm.rmap import extents_in, frame_at
from hostsim.mm.zap import exit_mm

TURN_PAGES: Final = 63  # pcp->batch: what a CPU takes from the buddy lists at a time

# Columns of a vCPU's compiler
J_MM: Final = 0  # its process, or NIL
J_DONE: Final = 1  # pages touched
J_PAGES: Final = 2  # pages that it touches in its life
J_NR: Final = 3  # how many ran before it
NR_J_FIELDS: Final = 4

# What a build has come to
S_WORK_NS: Final = 0  # of the build, had nothing held it up
S_WALL_NS: Final = 1
S_RSS_NS: Final = 2  # pages of the host's process times ns
S_CACHE: Final = 3  # pages of the page cache, sources
S_OBJECTS: Final = 4  # and objects
S_MM_OBJECTS: Final = 5  # process that stands for them
S_FAULT_NS: Final = 6  # CPU time of EPT violations and host faults
S_TLB_NS: Final = 7  # CPU time of translation through small leaves
NR_S_FIELDS: Final = 8

# Demand
D_STEP_NS: Final = 0
D_JOB_STEP: Final = 1  # pages that a compiler touches in a step
D_JOB_PAGES: Final = 2  # in its life, on average
D_CACHE_STEP: Final = 3  # thousandths of a page of sources in a step
D_OBJECT_STEP: Final = 4  # and of objects
D_TLB_PPM: Final = 5  # more CPU time with small EPT leaves only, millionths
NR_D_FIELDS: Final = 6


@kernel
def _next_compiler(mem: Memory, jobs: NDArray[np.int64], cpu: int, mean: int) -> bool:
    """Start the next compiler of a vCPU; return whether there was memory."""
    pages = int(-np.log(uniform(cpu, jobs[cpu, J_NR], 1)) * float(mean))
    pages = max(pages, TURN_PAGES)
    jobs[cpu, J_MM] = start_process(mem, pages, 0, ADVICE_NONE)
    jobs[cpu, J_DONE] = 0
    jobs[cpu, J_PAGES] = pages
    jobs[cpu, J_NR] += 1
    return bool(jobs[cpu, J_MM] != NIL)


@kernel
def _compile(mem: Memory, jobs: NDArray[np.int64], cpu: int, nr: int, mean: int) -> bool:
    """Let a vCPU's compiler touch the next pages; return whether there was memory."""
    if jobs[cpu, J_MM] == NIL and not _next_compiler(mem, jobs, cpu, mean):
        return False
    mm = jobs[cpu, J_MM]
    nr = min(nr, jobs[cpu, J_PAGES] - jobs[cpu, J_DONE])
    first = jobs[cpu, J_DONE]
    if touch_range(mem, mm, first, nr, 1, 1.0, 0, True, first) != FAULT_OK:
        return False
    jobs[cpu, J_DONE] += nr
    if jobs[cpu, J_DONE] == jobs[cpu, J_PAGES]:
        exit_mm(mem, mm)
        jobs[cpu, J_MM] = NIL
    return True


@kernel
def _grow_cache(mem: Memory, mm: int, first: int, end: int) -> bool:
    """Read or write files up to a page; return whether there was memory."""
    if first == end:
        return True
    return bool(touch_range(mem, mm, first, end - first, 1, 1.0, 0, True, first) == FAULT_OK)


@kernel
def _step(
    host: Memory,
    guests: NDArray[np.int64],
    mem: Memory,
    jobs: NDArray[np.int64],
    state: NDArray[np.int64],
    demand: NDArray[np.int64],
) -> bool:
    """Let all vCPUs work for a step, in turns; return whether guest and host had memory."""
    left = demand[D_JOB_STEP]
    steps = state[S_WORK_NS] // demand[D_STEP_NS] + 1
    cache = steps * demand[D_CACHE_STEP] // 1000
    objects = steps * demand[D_OBJECT_STEP] // 1000
    while left > 0:
        nr = min(left, TURN_PAGES)
        for cpu in range(jobs.shape[0]):
            if not _compile(mem, jobs, cpu, nr, demand[D_JOB_PAGES]):
                return False
        left -= nr
        for file in range(2):
            end = cache if file == 0 else objects
            mm = MM_CACHE if file == 0 else state[S_MM_OBJECTS]
            at = state[S_CACHE + file]
            share = end - at if left == 0 else (end - at) * nr // (left + nr)
            if not _grow_cache(mem, mm, at, at + share):
                return False
            state[S_CACHE + file] = at + share
        if not back_frames(host, guests, 0, mem, 0):
            return False
    return True


@kernel
def small_leaves_ppm(host: Memory, mm: int) -> int:
    """Return the share of a guest's memory that EPT leaves of 4 KiB map, in millionths."""
    small = host.mm[mm, MM_EPT_4K]
    large = host.mm[mm, MM_EPT_2M] * HPAGE_PMD_NR
    return int(small * 1_000_000 // max(small + large, 1))


@kernel
def build_until(
    host: Memory,
    guests: NDArray[np.int64],
    mem: Memory,
    jobs: NDArray[np.int64],
    state: NDArray[np.int64],
    demand: NDArray[np.int64],
    work_ns: int,
    wall_ns: int,
) -> bool:
    """Let the build go on until it is done or a time is reached; return whether memory sufficed."""
    mm = guests[0, G_MM]
    nr = jobs.shape[0]
    while state[S_WORK_NS] < work_ns and state[S_WALL_NS] < wall_ns:
        before = host.pool[P_COST_NS]
        if not _step(host, guests, mem, jobs, state, demand):
            return False
        fault_ns = host.pool[P_COST_NS] - before
        step_ns = demand[D_STEP_NS]
        tlb_ns = step_ns * small_leaves_ppm(host, mm) // 1_000_000 * demand[D_TLB_PPM] // 1_000_000
        state[S_FAULT_NS] += fault_ns
        state[S_TLB_NS] += tlb_ns * nr
        state[S_WORK_NS] += step_ns
        pass_wall(host, mm, state, step_ns + tlb_ns + fault_ns // nr)
    return True


@kernel
def pass_wall(host: Memory, mm: int, state: NDArray[np.int64], ns: int) -> None:
    """Let time go by."""
    state[S_WALL_NS] += ns
    state[S_RSS_NS] += ns * host.mm[mm, MM_RAM_ANON]


@kernel
def _is_mapped(host: Memory, vm: int, page: int, nr: int) -> bool:
    """Tell whether EPT leaves map all pages of a range."""
    end = page + nr
    while page < end:
        word = ept_word(host, vm, page >> HPAGE_PMD_ORDER)
        stop = min(end, ((page >> HPAGE_PMD_ORDER) + 1) << HPAGE_PMD_ORDER)
        if word & E_TAG == E_NONE:
            return False
        if is_table(word):
            while page < stop:
                if not has_leaf(host, vm, page):
                    return False
                page += 1
        page = stop
    return True


@kernel
def _use_again(host: Memory, guests: NDArray[np.int64], mem: Memory, mm: int) -> bool:
    """Let a process of the guest use all that it has; return whether the host's memory sufficed."""
    vm = guests[0, G_MM]
    for window in range(mem.mm[mm, MM_WINDOWS]):
        x = extents_in(mem, mm, window)  # none is huge: no compiler advises it
        while x != NIL:
            vpn = int(mem.ext[x].vpn)
            nr = int(mem.ext[x].nr)
            low = min(frame_at(mem, x, vpn), frame_at(mem, x, vpn + nr - 1))
            if not _is_mapped(host, vm, low, nr):
                if guest_access(host, vm, low, nr, True) != FAULT_OK:
                    return False
            x = int(mem.ext[x].next)
    return True


@kernel
def report_and_use(
    host: Memory, guests: NDArray[np.int64], mem: Memory, jobs: NDArray[np.int64], lowest: int
) -> tuple[int, int]:
    """Make a pass of reporting, after which compilers use what they have.

    Returns
    -------
    discards, fault_ns
        Blocks of which the host lost any page; CPU time of the violations that followed; NIL if
        the host's memory did not suffice.
    """
    nr = report_pass(mem, lowest)
    discards = discard_reported(host, guests, 0, mem, 0, nr)
    before = host.pool[P_COST_NS]
    if discards > 0:
        for cpu in range(jobs.shape[0]):
            if jobs[cpu, J_MM] != NIL and not _use_again(host, guests, mem, jobs[cpu, J_MM]):
                return discards, NIL
    return discards, host.pool[P_COST_NS] - before
