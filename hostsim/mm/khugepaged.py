"""khugepaged: the thread that looks for windows to collapse.

One thread, one cursor over all registered processes.  A pass uses up a budget of
`pages_to_scan`: 512 for every window it looks at, whatever it finds, and 1 for every process
and every area it passes.  `khugepaged_step` is one visit to a process, at most one collapse
long, so that other things can happen between two.

Source: Linux v6.1 and v6.12 mm/khugepaged.c khugepaged_do_scan, khugepaged_scan_mm_slot,
khugepaged_wait_work.
Simplified: beside its guest RAM a process has one more area, unsuitable, where real ones have
a handful; each costs the pass one page of its budget.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NS_PER_MS
from hostsim.mm.collapse import (
    SCAN_ALLOC_HUGE_PAGE_FAIL,
    SCAN_FAIL,
    SCAN_SUCCEED,
    alloc_hugepage_khugepaged_gfpmask,
    collapse_huge_page,
    hpage_collapse_scan_pmd,
)
from hostsim.mm.cost import C_SCAN_WINDOW, charge
from hostsim.mm.mm_slot import (
    K_FAILED,
    K_HAD_HUGE,
    K_HEADS,
    K_IN_PASS,
    K_PAGES,
    K_PROGRESS,
    K_REGISTERED,
    K_RESULT,
    K_ROUND,
    K_SLOT,
    K_STOPPED,
    K_WINDOW,
    NEVER,
    drop_mm,
    hugepage_vma_check,
    next_registered,
)
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_KHUGEPAGED,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    MM_SWAP,
    MM_VMAS,
    NIL,
    P_NOW_NS,
    Z_MANAGED,
    Z_WMARK_LOW,
    Memory,
)
from hostsim.mm.tunables import (
    T_ALLOC_RETRIES,
    T_ENABLED,
    T_KHUGEPAGED_ALLOC_SLEEP_MILLISECS,
    T_KHUGEPAGED_PAGES_TO_SCAN,
    T_KHUGEPAGED_SCAN_SLEEP_MILLISECS,
    T_KHUGEPAGED_WAKEUP,
    WAKEUPS,
)
from hostsim.mm.vma import window_in_vma
from hostsim.mm.vmstat import FULL_SCANS, KHUGEPAGED_WINDOWS, PAGES_COLLAPSED
from hostsim.mm.watermark import zone_watermark_ok

EVENT: Final = WAKEUPS["event"]
BARREN_ROUNDS: Final = 2  # rounds without a collapse after which it sleeps all the same
UNTIL_WOKEN: Final = -1  # instead of a time to sleep


@kernel
def _has_work(mem: Memory) -> bool:
    """Tell whether the list has an entry and huge pages are on (khugepaged_has_work).

    A process that ended under the cursor stays on the list until the cursor moves on.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    return own[K_REGISTERED] + own[K_SLOT] > 0 and mem.tunables[T_ENABLED] != NEVER


@kernel
def _scan_windows(mem: Memory, mm: int, progress: int, budget: int) -> tuple[int, bool]:
    """Look at a process's windows from the cursor on.

    Returns
    -------
    progress, finished
        What is used up of the budget, and whether the area has been seen to its end.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    end = mem.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER
    while own[K_WINDOW] < end:
        if mem.mm[mm, MM_VMAS] != 0 and not window_in_vma(mem, mm, own[K_WINDOW]):
            own[K_WINDOW] += 1
            progress += 1
            continue
        result = hpage_collapse_scan_pmd(mem, mm, own[K_WINDOW], True)
        charge(mem, C_SCAN_WINDOW, 1)
        mem.vmstat[KHUGEPAGED_WINDOWS] += 1
        attempt = result == SCAN_SUCCEED
        if attempt:
            gfp = alloc_hugepage_khugepaged_gfpmask(mem)
            result = collapse_huge_page(mem, mm, own[K_WINDOW], gfp, True)
            if result == SCAN_SUCCEED:
                mem.vmstat[PAGES_COLLAPSED] += 1
                own[K_ROUND] = mem.vmstat[FULL_SCANS]
        own[K_RESULT] = result
        own[K_WINDOW] += 1
        progress += HPAGE_PMD_NR
        if attempt or progress >= budget:
            return progress, False
    return progress, True


@kernel
def khugepaged_scan_mm_slot(mem: Memory, budget: int) -> int:
    """Visit the process under the cursor; return what that uses up of the budget."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    own[K_RESULT] = SCAN_FAIL
    mm = next_registered(mem, own[K_SLOT])
    progress = 1
    if mm != NIL:
        if mem.mm[mm, MM_KHUGEPAGED] != own[K_SLOT]:
            drop_mm(mem)
            own[K_SLOT] = mem.mm[mm, MM_KHUGEPAGED]
            own[K_WINDOW] = 0
        suitable = hugepage_vma_check(mem, mm)
        if suitable and mem.mm[mm, MM_RAM_ANON] + mem.mm[mm, MM_SWAP] > 0:
            progress, finished = _scan_windows(mem, mm, progress, budget)
            if not finished:
                return progress
        else:
            progress += 1
        progress += 1  # the area behind guest RAM
        mm = next_registered(mem, own[K_SLOT] + 1)
    drop_mm(mem)
    own[K_WINDOW] = 0
    own[K_SLOT] = 0
    if mm != NIL:
        own[K_SLOT] = mem.mm[mm, MM_KHUGEPAGED]
    else:
        mem.vmstat[FULL_SCANS] += 1
    return progress


@kernel
def huge_page_free(mem: Memory) -> bool:
    """Tell whether an allocation could take a free huge page above the low watermark."""
    for zone in range(len(mem.zone)):
        if mem.zone[zone, Z_MANAGED] == 0:
            continue
        if zone_watermark_ok(mem, zone, HPAGE_PMD_ORDER, mem.zone[zone, Z_WMARK_LOW]):
            return True
    return False


@kernel
def arm_khugepaged(mem: Memory) -> None:
    """With ``wakeup = "event"``, end khugepaged's sleep when huge pages have become free.

    Awake, it goes on without sleeping while there are any and its rounds bear fruit.  No kernel
    does this; the THP commit message (Linux 71e3aac072) wishes for it.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if mem.tunables[T_KHUGEPAGED_WAKEUP] != EVENT or own[K_STOPPED] != 0:
        return
    free = huge_page_free(mem)
    if free and own[K_HAD_HUGE] == 0 and own[D_WAKE] != 0:
        own[D_WAKE] = min(own[D_WAKE], mem.pool[P_NOW_NS] + 1)
        own[K_ROUND] = mem.vmstat[FULL_SCANS]
    own[K_HAD_HUGE] = 1 if free else 0


@kernel
def _end_pass(mem: Memory) -> int:
    """End a pass; return how long to sleep."""
    mem.daemon[DAEMON_KHUGEPAGED, K_IN_PASS] = 0
    if not _has_work(mem):
        return UNTIL_WOKEN
    if mem.tunables[T_KHUGEPAGED_WAKEUP] == EVENT and huge_page_free(mem):
        if mem.vmstat[FULL_SCANS] - mem.daemon[DAEMON_KHUGEPAGED, K_ROUND] < BARREN_ROUNDS:
            return 0
    return mem.tunables[T_KHUGEPAGED_SCAN_SLEEP_MILLISECS] * NS_PER_MS


@kernel
def khugepaged_step(mem: Memory) -> int:
    """Go on with a pass, or begin one, by one visit to a process.

    Returns
    -------
    int
        Nanoseconds to sleep before the next step, or UNTIL_WOKEN.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    if own[K_STOPPED] != 0:
        return UNTIL_WOKEN
    if own[K_IN_PASS] == 0:
        own[K_IN_PASS] = 1
        own[K_PAGES] = mem.tunables[T_KHUGEPAGED_PAGES_TO_SCAN]
        own[K_PROGRESS] = 0
        own[K_HEADS] = 0
        own[K_FAILED] = 0
    if own[K_SLOT] == 0:
        own[K_HEADS] += 1
    if not _has_work(mem) or own[K_HEADS] >= 2:
        return _end_pass(mem)
    own[K_PROGRESS] += khugepaged_scan_mm_slot(mem, own[K_PAGES] - own[K_PROGRESS])
    if own[K_PROGRESS] >= own[K_PAGES]:
        return _end_pass(mem)
    if own[K_RESULT] == SCAN_ALLOC_HUGE_PAGE_FAIL:
        own[K_FAILED] += 1
        if own[K_FAILED] > mem.tunables[T_ALLOC_RETRIES]:
            return _end_pass(mem)
        return mem.tunables[T_KHUGEPAGED_ALLOC_SLEEP_MILLISECS] * NS_PER_MS
    return 0
