"""The OOM killer's choice.

Source: Linux v6.1 mm/oom_kill.c oom_badness: resident pages, swap
entries and page tables.
Simplified: no oom_score_adj; the kernel's own memory is never chosen.
"""

from hostsim.core.jit import kernel
from hostsim.mm.mm_types import MM_ANON, MM_LIVE, MM_PGTABLES, MM_SWAP, NIL, P_MM_USED, Memory


@kernel
def select_bad_process(mem: Memory) -> int:
    """Return the process with the largest footprint, the lowest number on a tie, or NIL."""
    worst = NIL
    points = 0
    for mm in range(mem.pool[P_MM_USED]):
        if mem.mm[mm, MM_LIVE] == 0:
            continue
        badness = mem.mm[mm, MM_ANON] + mem.mm[mm, MM_SWAP] + mem.mm[mm, MM_PGTABLES]
        if badness > points:
            worst = mm
            points = badness
    return worst
