"""A guest's kernel threads between two of its turns: khugepaged and kcompactd, fast-forwarded.

Nothing but its threads changes a guest's memory between two turns, so that they can all run at
the second one. Most passes of khugepaged find nothing: those over windows that are huge or empty
are counted, not made, and so are whole rounds once the cursor stands where it stood before. What
is left behind is what single steps leave, bit by bit.

Source: Linux v6.1 mm/khugepaged.c khugepaged_do_scan, khugepaged_scan_mm_slot; mm/compaction.c
kcompactd.
Simplified: frames that a guest's threads fill are backed by its host at the guest's next turn.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NS_PER_MS
from hostsim.mm.cost import C_SCAN_WINDOW
from hostsim.mm.daemons import SHORTEST_STEP_NS, next_daemon, run_daemon
from hostsim.mm.kcompactd import arm_kcompactd
from hostsim.mm.khugepaged import EVENT, arm_khugepaged
from hostsim.mm.mm_slot import (
    K_IN_PASS,
    K_REGISTERED,
    K_SLOT,
    K_STOPPED,
    K_WINDOW,
    hugepage_vma_check,
    next_registered,
)
from hostsim.mm.mm_types import (
    D_CREDIT,
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_BASE,
    MM_KHUGEPAGED,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    MM_SWAP,
    MM_VMAS,
    NIL,
    P_COST_NS,
    P_DAEMON_NS,
    P_DAEMON_SCALE,
    P_NOW_NS,
    P_SETTLED_NS,
    P_TOUCHED,
    TIME_SCALE_ONE,
    Memory,
)
from hostsim.mm.mmap import W_TABLE, W_TAG
from hostsim.mm.tunables import (
    T_KHUGEPAGED_PAGES_TO_SCAN,
    T_KHUGEPAGED_SCAN_SLEEP_MILLISECS,
    T_KHUGEPAGED_WAKEUP,
)
from hostsim.mm.vmstat import (
    COMPACT_DAEMON_WAKE,
    FULL_SCANS,
    KHUGEPAGED_WINDOWS,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
    THP_SCAN_EXCEED_NONE_PTE,
    THP_SCAN_EXCEED_SHARE_PTE,
    THP_SCAN_EXCEED_SWAP_PTE,
)

TURN_RUNS: Final = 256  # runs of frames that wait for the host before a guest's threads go on
STRIDE: Final = 16  # windows that are looked at together
FIRST_LOOK: Final = 4  # passes after which the cursor's place is remembered anew, then twice that


@kernel
def start_clock(mem: Memory, now_ns: int) -> None:
    """Let a guest's time begin: it booted at zero."""
    late_ns = now_ns - mem.pool[P_NOW_NS]
    if late_ns <= 0:
        return
    mem.pool[P_NOW_NS] = now_ns
    for daemon in range(len(mem.daemon)):
        if mem.daemon[daemon, D_WAKE] != 0:
            mem.daemon[daemon, D_WAKE] += late_ns


@kernel
def _alone_until(mem: Memory, until_ns: int) -> int:
    """Return the last time at which khugepaged runs before any other thread."""
    for daemon in range(len(mem.daemon)):
        wake = mem.daemon[daemon, D_WAKE]
        if daemon != DAEMON_KHUGEPAGED and wake != 0:
            until_ns = min(until_ns, wake - 1)
    return until_ns


@kernel
def _barren_windows(mem: Memory, most: int) -> int:
    """Return how many windows from khugepaged's cursor on have no small pages: at most ``most``."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    mm = next_registered(mem, own[K_SLOT])
    if mm == NIL or mem.mm[mm, MM_KHUGEPAGED] != own[K_SLOT] or mem.mm[mm, MM_VMAS] != 0:
        return 0
    if not hugepage_vma_check(mem, mm) or mem.mm[mm, MM_RAM_ANON] + mem.mm[mm, MM_SWAP] == 0:
        return 0
    most = min(most, (mem.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER) - own[K_WINDOW])
    first = mem.mm[mm, MM_BASE] + own[K_WINDOW]
    nr = 0
    while nr + STRIDE <= most:  # without a branch a window, so that they are looked at together
        small = False
        for i in range(first + nr, first + nr + STRIDE):
            small |= mem.windows[i] & W_TAG == W_TABLE
        if small:
            break
        nr += STRIDE
    while nr < most and mem.windows[first + nr] & W_TAG != W_TABLE:
        nr += 1
    return max(nr, 0)


@kernel
def _spend(mem: Memory, work_ns: int) -> None:
    """Charge khugepaged for passes that were not made; without sleep they use its slice up."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    mem.pool[P_COST_NS] += work_ns
    mem.pool[P_SETTLED_NS] += work_ns
    mem.pool[P_DAEMON_NS] += work_ns
    if mem.tunables[T_KHUGEPAGED_SCAN_SLEEP_MILLISECS] == 0:
        spent_ns = work_ns * mem.pool[P_DAEMON_SCALE] // TIME_SCALE_ONE
        own[D_CREDIT] = max(own[D_CREDIT] - spent_ns, 0)


@kernel
def skip_passes(mem: Memory, until_ns: int) -> None:
    """Count the passes of khugepaged that see only huge or empty windows of one process.

    The last of them is left to be made.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    first_ns = own[D_WAKE] - 1
    if own[K_SLOT] == 0 or own[K_REGISTERED] == 0 or own[K_STOPPED] != 0:
        return
    if first_ns < mem.pool[P_NOW_NS] or mem.tunables[T_KHUGEPAGED_WAKEUP] == EVENT:
        return
    # A visit to a process counts one page, a window 512: this many windows use a pass up.
    budget = mem.tunables[T_KHUGEPAGED_PAGES_TO_SCAN] - 1
    windows = max((budget + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER, 1)
    work_ns = windows * mem.cost[C_SCAN_WINDOW]
    sleep_ns = mem.tunables[T_KHUGEPAGED_SCAN_SLEEP_MILLISECS] * NS_PER_MS
    pause_ns = work_ns * mem.pool[P_DAEMON_SCALE] // TIME_SCALE_ONE + sleep_ns
    pause_ns = max(pause_ns, SHORTEST_STEP_NS)
    due = (until_ns - first_ns) // pause_ns + 1
    nr = _barren_windows(mem, due * windows) // windows - 1
    if nr <= 0:
        return
    own[K_WINDOW] += nr * windows
    mem.vmstat[KHUGEPAGED_WINDOWS] += nr * windows
    _spend(mem, nr * work_ns)
    own[D_WAKE] += nr * pause_ns


# Where khugepaged's cursor stood at the beginning of a pass, and what was counted until then, in
# the half of ``Memory.scratch`` that no step of a thread uses (a window has 512 pages)
R_SLOT: Final = 512
R_WINDOW: Final = 513
R_CHANGES: Final = 514
R_PASSES: Final = 515  # passes made since then
R_LOOK: Final = 516  # passes after which another place is remembered
R_WAKE: Final = 517
R_COST: Final = 518
R_STAT: Final = 519
COUNTED: Final = (
    FULL_SCANS,
    KHUGEPAGED_WINDOWS,
    THP_SCAN_EXCEED_NONE_PTE,
    THP_SCAN_EXCEED_SWAP_PTE,
    THP_SCAN_EXCEED_SHARE_PTE,
)


@kernel
def _changes(mem: Memory) -> int:
    """Return a number that rises with whatever a guest's threads do to memory."""
    stat = mem.vmstat
    return int(
        stat[THP_COLLAPSE_ALLOC] + stat[THP_COLLAPSE_ALLOC_FAILED] + stat[COMPACT_DAEMON_WAKE]
    )


@kernel
def _remember(mem: Memory, look: int) -> None:
    """Note where khugepaged's cursor stands, and the counters."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    place = mem.scratch
    place[R_SLOT] = own[K_SLOT]
    place[R_WINDOW] = own[K_WINDOW]
    place[R_CHANGES] = _changes(mem)
    place[R_PASSES] = 0
    place[R_LOOK] = look
    place[R_WAKE] = own[D_WAKE]
    place[R_COST] = mem.pool[P_COST_NS]
    for i in range(len(COUNTED)):
        place[R_STAT + i] = mem.vmstat[COUNTED[i]]


@kernel
def skip_rounds(mem: Memory, until_ns: int) -> None:
    """Count whole rounds if the cursor is back where it stood and nothing has changed meanwhile.

    What khugepaged does next depends on its cursor and on memory alone.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    place = mem.scratch
    place[R_PASSES] += 1
    if place[R_CHANGES] != _changes(mem) or place[R_PASSES] > place[R_LOOK]:
        _remember(mem, 2 * place[R_LOOK])
        return
    if own[K_SLOT] != place[R_SLOT] or own[K_WINDOW] != place[R_WINDOW]:
        return
    round_ns = own[D_WAKE] - place[R_WAKE]
    rounds = (until_ns - own[D_WAKE] + 1) // round_ns
    if rounds > 0:
        for i in range(len(COUNTED)):
            nr = mem.vmstat[COUNTED[i]] - place[R_STAT + i]
            mem.vmstat[COUNTED[i]] += rounds * nr
        _spend(mem, rounds * (mem.pool[P_COST_NS] - place[R_COST]))
        own[D_WAKE] += rounds * round_ns
    _remember(mem, FIRST_LOOK)


@kernel
def pass_time(mem: Memory, until_ns: int, most_runs: int) -> bool:
    """Let a guest's threads work up to a time, or until they have filled many frames.

    Parameters
    ----------
    most_runs
        Runs of frames in ``mem.touched`` at which they stop for the host to back them.

    Returns
    -------
    bool
        Whether that time has come; else call again.
    """
    own = mem.daemon[DAEMON_KHUGEPAGED]
    mem.pool[P_SETTLED_NS] = mem.pool[P_COST_NS]
    mem.scratch[R_LOOK] = FIRST_LOOK
    mem.scratch[R_PASSES] = FIRST_LOOK  # so that the first pass to begin is remembered
    changed = True  # since kcompactd's timer was last looked at: nothing else sets it
    while True:
        if changed:
            arm_kcompactd(mem)
        arm_khugepaged(mem)
        daemon = next_daemon(mem)
        if daemon == NIL or mem.daemon[daemon, D_WAKE] - 1 > until_ns:
            break
        if mem.pool[P_TOUCHED] >= most_runs:
            return False
        if daemon == DAEMON_KHUGEPAGED and own[K_IN_PASS] == 0:
            alone_ns = _alone_until(mem, until_ns)
            skip_rounds(mem, alone_ns)
            skip_passes(mem, alone_ns)
        before = _changes(mem)
        run_daemon(mem, daemon)
        changed = daemon != DAEMON_KHUGEPAGED or _changes(mem) != before
    mem.pool[P_NOW_NS] = max(mem.pool[P_NOW_NS], until_ns)
    return True
