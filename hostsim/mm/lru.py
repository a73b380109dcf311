"""LRU lists without links: every extent and huge page carries a stamp.

A stamp is a generation, counted up by one for each batch of pages that is put on a list, and
flags that say on which list it is.  The order of a list is the order of its stamps; reclaim
sorts them when it begins to scan (`hostsim.mm.reclaim`).

Source: the role of struct lruvec and page->lru, Linux v6.1 include/linux/mmzone.h; mm/swap.c
lru_add_fn: new anonymous pages start inactive (since 5.9).
"""

from typing import Final

from hostsim.core.jit import inline_kernel
from hostsim.mm.mm_types import P_LRU_SEQ, Memory

LRU_ACTIVE: Final = 1  # on the active list
LRU_YOUNG: Final = 2  # the accessed bit of a mapping: page tables or EPT
LRU_REFERENCED: Final = 4  # PG_referenced
LRU_DIRTY: Final = 8  # changed since it was written to swap or file
LRU_FLAGS: Final = 15
LRU_SHIFT: Final = 4  # generation above


@inline_kernel
def fresh_stamp(mem: Memory, flags: int) -> int:
    """Return the stamp of pages put at the head of a list now."""
    mem.pool[P_LRU_SEQ] += 1
    return (mem.pool[P_LRU_SEQ] << LRU_SHIFT) | flags
