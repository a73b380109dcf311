"""Paging-structure caches and the nested TLB: what lets a walk begin below the root.

A paging-structure entry of level ``l`` leads to a table of level ``l - 1``: a hit in the cache
of page-directory entries (level 2) leaves one read.  Under nested paging the entries found by
guest address are combined: the table's host address is in them, so no EPT walk is needed for
that table.  Entries of the EPT itself are found by guest-physical address.  The nested TLB
holds the host frames of guest tables.

Source: Intel SDM vol. 3C section 29.4.1 (combined and guest-physical mappings); Bhargava et
al., Accelerating Two-Dimensional Page Walks for Virtualized Systems, ASPLOS 2008 (nested TLB).
Simplified: one number serves as VPID and as tag of the EPT; vCPUs of one VM do not share entries.
"""

import numpy as np

from hostsim.core.jit import hot_kernel
from hostsim.mmu.paging import INDEX_BITS, NR_SIZES
from hostsim.mmu.tlb import (
    C_NESTED_HITS,
    C_NESTED_MISSES,
    NESTED_TLB,
    NOTHING,
    S_NESTED_SIZES,
    TAG_TABLE,
    Mmu,
    insert,
    note_size,
    probe,
    tag_of,
)


@hot_kernel
def _tag_and_part(level: int, page: int, vpid: int) -> tuple[int, int]:
    part = page >> ((level - 1) * INDEX_BITS)
    return TAG_TABLE | tag_of(part, level - 1, vpid), part


@hot_kernel
def _probe_level(mmu: Mmu, caches: int, level: int, page: int, vpid: int) -> int:
    """Look up the entry of a level on the way to a page; return where it stands, or NOTHING."""
    tag, part = _tag_and_part(level, page, vpid)
    return probe(mmu, caches + level, part, tag)


@hot_kernel
def deepest_table(mmu: Mmu, caches: int, levels: int, page: int, vpid: int) -> tuple[int, int]:
    """Return the lowest level at which a walk may begin and its table, or (0, 0).

    Parameters
    ----------
    caches
        PWC or EPT_PWC.
    """
    at = _probe_level(mmu, caches, 2, page, vpid)
    if at != NOTHING:
        return 1, int(mmu.value[np.uint64(at)])
    at = _probe_level(mmu, caches, 3, page, vpid)
    if at != NOTHING:
        return 2, int(mmu.value[np.uint64(at)])
    for level in range(4, levels + 1):
        at = _probe_level(mmu, caches, level, page, vpid)
        if at != NOTHING:
            return level - 1, int(mmu.value[np.uint64(at)])
    return 0, 0


@hot_kernel
def remember_table(mmu: Mmu, caches: int, level: int, page: int, vpid: int, table: int) -> None:
    """Enter that the entry of a level on the way to a page leads to a table."""
    if level == 2:  # told apart, so that LLVM knows it: most walks pass there
        tag, part = _tag_and_part(2, page, vpid)
        insert(mmu, caches + 2, part, tag, table)
    else:
        tag, part = _tag_and_part(level, page, vpid)
        insert(mmu, caches + level, part, tag, table)


@hot_kernel
def nested_hit(mmu: Mmu, gfn: int, vpid: int) -> bool:
    """Look the frame of a guest table up in the nested TLB."""
    sizes = mmu.state[S_NESTED_SIZES]
    for size in range(NR_SIZES):
        if (sizes >> size) & 1:
            page = gfn >> (size * INDEX_BITS)
            if probe(mmu, NESTED_TLB, page, tag_of(page, size, vpid)) != NOTHING:
                mmu.counts[C_NESTED_HITS] += 1
                return True
    mmu.counts[C_NESTED_MISSES] += 1
    return False


@hot_kernel
def nested_fill(mmu: Mmu, gfn: int, size: int, vpid: int, frame: int) -> None:
    """Enter the host frame of a guest table into the nested TLB."""
    page = gfn >> (size * INDEX_BITS)
    first = frame & ~((1 << (size * INDEX_BITS)) - 1)
    insert(mmu, NESTED_TLB, page, tag_of(page, size, vpid), first)
    note_size(mmu, S_NESTED_SIZES, size)
