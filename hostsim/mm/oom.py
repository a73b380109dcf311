"""The OOM killer's choice.

Source: Linux v6.1 mm/oom_kill.c oom_badness, oom_evaluate_task: resident pages, swap entries and
page tables, the last of equals; v2.6.38 mm/oom_kill.c oom_badness, select_bad_process: thousandths
of all memory without page tables, the first of equals, nobody below one.
Simplified: no oom_score_adj, no bonus for root; the kernel's own memory is never chosen.
Simplified: a victim's exit is done at once, so that the OOM reaper never finds anything left.
"""

from typing import Final

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_LIVE,
    MM_PGTABLES,
    MM_SWAP,
    NIL,
    P_MM_USED,
    P_SWAP_SLOTS,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.tunables import T_SEED_FILES

MOST_POINTS: Final = 1000


@kernel
def oom_badness(mem: Memory, mm: int) -> int:
    """Return what speaks for killing a process: pages, in 2.6.38 thousandths of RAM and swap."""
    pages = mem.mm[mm, MM_ANON] + mem.mm[mm, MM_SWAP]
    if mem.tunables[T_SEED_FILES] == 0:
        return int(pages + mem.mm[mm, MM_PGTABLES])
    total = mem.pool[P_SWAP_SLOTS]
    for zone in range(len(mem.zone)):
        total += mem.zone[zone, Z_MANAGED]
    return int(min(pages * MOST_POINTS // total, MOST_POINTS))


@kernel
def select_bad_process(mem: Memory) -> int:
    """Return the process to kill, or NIL if there is none."""
    worst = NIL
    points = 0
    for mm in range(mem.pool[P_MM_USED]):
        if mem.mm[mm, MM_LIVE] == 0:
            continue
        badness = oom_badness(mem, mm)
        if badness > points or (badness == points > 0 and mem.tunables[T_SEED_FILES] == 0):
            worst = mm
            points = badness
    return worst
