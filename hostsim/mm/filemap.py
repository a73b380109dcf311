"""The page cache of the host: file pages, clean or dirty, that compete for the same frames.

It grows as files are read or written (images, QEMU with cache=writeback) and is what reclaim
takes first.  Which file a page belongs to does not matter here: pages are numbered in the order
in which they came.

Source: Linux v6.1 mm/filemap.c filemap_add_folio, mm/swap.c folio_mark_accessed: new file pages
start inactive, a second access makes them active.
Simplified: one file; readahead, writeback by age and refaults are not there.
"""

from hostsim.core.jit import kernel
from hostsim.core.units import NO_PFN, PAGEBLOCK_NR_PAGES
from hostsim.mm.lru import extent_on_lru, fresh_stamp
from hostsim.mm.lru_stamp import (
    LRU_ACTIVE,
    LRU_DIRTY,
    LRU_REFERENCED,
    extent_stamp,
    set_extent_stamp,
)
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    N_LRU_ACTIVE,
    NIL,
    P_EXT_USED,
    Memory,
)
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.physmem import pfn_to_nid
from hostsim.mm.rmap import EXT_DESCENDING, KIND_FILE, add_extent, del_extent
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.vmstat import NR_FILE_PAGES, PGACTIVATE


@kernel
def page_cache_fill(mem: Memory, pages: int, dirty: bool) -> int:
    """Read (or write) pages of files that are not cached yet; return how many found a frame."""
    done = 0
    while done < pages:
        pfn, taken, step = alloc_pages(mem, 0, MIGRATE_MOVABLE, pages - done)
        if pfn == NO_PFN:
            break
        first = int(mem.vmstat[NR_FILE_PAGES])
        mod_node_page_state(mem, pfn, NR_FILE_PAGES, taken)
        at = 0
        while at < taken:
            inside = pfn & (PAGEBLOCK_NR_PAGES - 1)
            here = min(taken - at, PAGEBLOCK_NR_PAGES - inside if step > 0 else inside + 1)
            low = pfn if step > 0 else pfn - here + 1
            flags = KIND_FILE | (EXT_DESCENDING if step < 0 and here > 1 else 0)
            x = add_extent(mem, low, here, NIL, first + at, flags)
            set_extent_stamp(mem, x, fresh_stamp(mem, LRU_DIRTY if dirty else 0))
            pfn += here * step
            at += here
        done += taken
    return done


@kernel
def page_cache_access(mem: Memory, pages: int) -> int:
    """Access cached pages again, the first ones found; return how many.

    The first time marks a page, the second makes it active.
    """
    done = 0
    for x in range(mem.pool[P_EXT_USED]):
        if done >= pages:
            break
        if not extent_on_lru(mem, x, True):
            continue
        done += int(mem.ext[x].nr)
        stamp = extent_stamp(mem, x)
        if stamp & LRU_ACTIVE or stamp & LRU_REFERENCED == 0:
            set_extent_stamp(mem, x, stamp | LRU_REFERENCED)
            continue
        set_extent_stamp(mem, x, fresh_stamp(mem, LRU_ACTIVE | (stamp & LRU_DIRTY)))
        nid = pfn_to_nid(mem, int(mem.ext[x].pfn))
        mem.node[nid, N_LRU_ACTIVE + 1] += int(mem.ext[x].nr)
        mem.vmstat[PGACTIVATE] += int(mem.ext[x].nr)
    return done


@kernel
def drop_pagecache(mem: Memory) -> int:
    """Free all clean pages of the page cache (1 to vm/drop_caches); return how many."""
    freed = 0
    for x in range(mem.pool[P_EXT_USED]):
        if extent_on_lru(mem, x, True) and extent_stamp(mem, x) & LRU_DIRTY == 0:
            pfn, nr = int(mem.ext[x].pfn), int(mem.ext[x].nr)
            del_extent(mem, x)
            mod_node_page_state(mem, pfn, NR_FILE_PAGES, -nr)
            free_pages(mem, pfn, nr, 1)
            freed += nr
    return freed
