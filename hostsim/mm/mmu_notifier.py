"""The EPT's entries, and the notifier by which every change of a host mapping zaps them.

One byte a window says whether the EPT maps it by a 2 MiB leaf, by a table of 4 KiB leaves, or
not at all.  A leaf holds no reference on its frame: whoever changes a mapping calls `notify`
before it does, while the old mapping can still be read.

Most windows have a leaf of 2 MiB, which maps the pageblock that the host maps there, and a few bits
of it are kept to tell a stale one; most tables have all their 512 leaves, and of those the sum of
their frames is kept.  A table has a record while leaves are missing, or if an instruction fetch
made it.

Source: Linux v6.1 mm/mmu_notifier.c; virt/kvm/kvm_main.c kvm_mmu_notifier_invalidate_range_start;
arch/x86/kvm/mmu/tdp_mmu.c kvm_tdp_mmu_unmap_gfn_range (zaps leaves, keeps tables).
"""

from typing import Final

import numpy as np

from hostsim.core.bits import run_mask
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.mm_types import (
    MM_BASE,
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_4K,
    MM_NX_FIRST,
    MM_NX_LAST,
    MM_NX_SPLITS,
    MM_WINDOWS,
    NIL,
    NR_WORDS,
    P_EPT_BITS_FREE,
    P_EPT_BITS_USED,
    P_EPT_FREE,
    P_EPT_USED,
    WORD_FRAMES,
    Memory,
)
from hostsim.mm.mmap import W_NONE, huge_pageblock, maps_huge, window_word
from hostsim.mm.rmap import KIND_MASK, KIND_SWAP, extents_in, frame_at
from hostsim.mm.tunables import T_KVM_EPT_AD
from hostsim.mm.vmstat import (
    EPT_LEAVES_ZAPPED,
    NR_EPT_LEAVES_2M,
    NR_EPT_LEAVES_4K,
    NR_NX_LPAGE_SPLITS,
)

# A byte of Memory.ept: tag, whether the window's GiB has a page directory (in the byte of its
# first window), and above them the low bits of a leaf's pageblock.
E_NONE: Final = 0
E_LEAF: Final = 1
E_TABLE: Final = 2  # a table with a record
E_FULL: Final = 3  # a table with all leaves and no record
E_TAG: Final = 3
E_DIRECTORY: Final = 4
E_SHIFT: Final = 3
LEAF_BITS: Final = 15  # of a pageblock

SUM_MASK: Final = (1 << 31) - 1  # of a table's sum of frames, as much is kept as 32 bits hold

# MM_EPT_FLAGS
EPT_MISALIGNED: Final = 1  # gpa and hva differ modulo 2 MiB
EPT_PC_SLOTS: Final = 2  # memory slots end inside the first 2 MiB (640 KiB, 1 MiB)
EPT_DIRTY_LOG: Final = 4  # dirty logging is on


@inline_kernel
def leaf_sum(page: int, pfn: int) -> int:
    """Return what a 4 KiB leaf adds to its table's sum of frames."""
    return ((page & (HPAGE_PMD_NR - 1)) + 1) * (pfn + 1)


@inline_kernel
def is_table(word: int) -> bool:
    """Tell whether a byte of the EPT stands for a table."""
    return word & E_TAG >= E_TABLE


@inline_kernel
def ept_word(mem: Memory, mm: int, window: int) -> int:
    """Return the EPT's byte of a window."""
    return int(mem.ept[mem.mm[mm, MM_BASE] + window])


@inline_kernel
def ept_child(mem: Memory, mm: int, window: int) -> int:
    """Return the record of a window's table or, of one without, its sum of frames."""
    return int(mem.ept_child[mem.mm[mm, MM_BASE] + window])


@inline_kernel
def set_ept(mem: Memory, mm: int, window: int, tag: int, value: int) -> None:
    """Set the EPT's byte of a window and what belongs to it; the mark of its directory stays.

    Parameters
    ----------
    value
        Pageblock of a leaf, record of a table (`E_TABLE`) or its sum of frames (`E_FULL`).
    """
    at = mem.mm[mm, MM_BASE] + window
    before = int(mem.ept[at])
    bits = 0
    if tag >= E_TABLE:
        mem.ept_child[at] = value
    else:
        bits = (value & LEAF_BITS) << E_SHIFT
        if is_table(before):
            mem.ept_child[at] = 0
    mem.ept[at] = (before & E_DIRECTORY) | bits | tag


@inline_kernel
def has_leaf(mem: Memory, mm: int, page: int) -> bool:
    """Tell whether the table of a page's window has a leaf for it."""
    window = page >> HPAGE_PMD_ORDER
    if ept_word(mem, mm, window) & E_TAG == E_FULL:
        return True
    table = ept_child(mem, mm, window)
    row = int(mem.ept_table[table].bits) - 1
    if row == NIL:
        return mem.ept_table[table].nr != 0
    i = page & (HPAGE_PMD_NR - 1)
    word = int(np.int64(mem.ept_bits[row].bits[i // WORD_FRAMES]))
    return (word >> (i % WORD_FRAMES)) & 1 != 0


@kernel
def _take_bits(mem: Memory, table: int) -> int:
    """Give a table that has all leaves or none a row of bits; return it."""
    row = mem.pool[P_EPT_BITS_FREE] - 1
    if row != NIL:
        mem.pool[P_EPT_BITS_FREE] = int(np.int64(mem.ept_bits[row].bits[0]))
    else:
        row = mem.pool[P_EPT_BITS_USED]
        mem.pool[P_EPT_BITS_USED] += 1
    every = (1 << WORD_FRAMES) - 1 if mem.ept_table[table].nr != 0 else 0
    for i in range(NR_WORDS):
        mem.ept_bits[row].bits[i] = every
    mem.ept_table[table].bits = row + 1
    return row


@inline_kernel
def _drop_bits(mem: Memory, table: int) -> None:
    """Return a table's row of bits, if it has one."""
    row = int(mem.ept_table[table].bits) - 1
    if row != NIL:
        mem.ept_bits[row].bits[0] = mem.pool[P_EPT_BITS_FREE]
        mem.pool[P_EPT_BITS_FREE] = row + 1
        mem.ept_table[table].bits = 0


@inline_kernel
def run_sum(first: int, pfn: int, step: int, nr: int) -> int:
    """Return the sum of `leaf_sum` over a run of leaves ``first`` on, their frames a step apart."""
    i, j = first + 1, pfn + 1
    pairs = nr * (nr - 1) // 2
    squares = (nr - 1) * nr * (2 * nr - 1) // 6
    return nr * i * j + (i * step + j) * pairs + step * squares


@inline_kernel
def _count_leaves(mem: Memory, table: int, nr: int, total: int, present: int) -> None:
    """Count leaves that a table has gained (1) or lost (0), and their sum of frames."""
    sign = 1 if present else -1
    frames = (int(mem.ept_table[table].frames) + sign * total) & SUM_MASK
    mem.ept_table[table].frames = frames
    mem.ept_table[table].nr += sign * nr
    mem.mm[mem.ept_table[table].mm, MM_EPT_4K] += sign * nr
    mem.vmstat[NR_EPT_LEAVES_4K] += sign * nr


@kernel
def _set_leaves(
    mem: Memory, table: int, page: int, nr: int, pfn: int, step: int, present: int
) -> int:
    """Set (1) or clear (0) the leaves of a run that are not so yet; return how many.

    A word of the table at a time, those that change whole summed together; bit by bit only where
    some are and some are not.
    """
    row = int(mem.ept_table[table].bits) - 1
    if row == NIL:
        if (mem.ept_table[table].nr != 0) == (present != 0):
            return 0
        if nr == HPAGE_PMD_NR:
            _count_leaves(mem, table, nr, run_sum(0, pfn, step, nr), present)
            return nr
        row = _take_bits(mem, table)
    i = page & (HPAGE_PMD_NR - 1)
    changed = 0
    total = 0
    whole = 0  # leaves right before the next one that all change
    while nr > 0:
        shift = i % WORD_FRAMES
        here = min(nr, WORD_FRAMES - shift)
        mask = run_mask(shift, here)
        word = int(np.int64(mem.ept_bits[row].bits[i // WORD_FRAMES]))
        other = mask & (~word if present else word)
        mem.ept_bits[row].bits[i // WORD_FRAMES] = word ^ other
        if other == mask:
            whole += here
        else:
            if whole > 0:
                changed += whole
                total += run_sum(i - whole, pfn - whole * step, step, whole)
                whole = 0
            for k in range(here):
                if (other >> (shift + k)) & 1:
                    changed += 1
                    total += leaf_sum(i + k, pfn + k * step)
        i += here
        pfn += here * step
        nr -= here
    if whole > 0:
        changed += whole
        total += run_sum(i - whole, pfn - whole * step, step, whole)
    _count_leaves(mem, table, changed, total, present)
    if mem.ept_table[table].nr == 0 or mem.ept_table[table].nr == HPAGE_PMD_NR:
        _drop_bits(mem, table)
    return changed


@kernel
def add_leaves(mem: Memory, table: int, page: int, nr: int, pfn: int, step: int) -> int:
    """Add the missing leaves of a run of pages whose frames lie a step apart; return how many."""
    return _set_leaves(mem, table, page, nr, pfn, step, 1)


@kernel
def _drop_leaves(mem: Memory, table: int, page: int, nr: int, pfn: int, step: int) -> None:
    """Zap the leaves of a run of pages whose frames lie a step apart."""
    mem.vmstat[EPT_LEAVES_ZAPPED] += _set_leaves(mem, table, page, nr, pfn, step, 0)


@kernel
def new_ept_table(mem: Memory, mm: int, window: int) -> int:
    """Return the record of a new table without leaves; the window's byte is the caller's."""
    table = mem.pool[P_EPT_FREE] - 1
    if table != NIL:
        mem.pool[P_EPT_FREE] = mem.ept_table[table].nr
    else:
        table = mem.pool[P_EPT_USED]
        mem.pool[P_EPT_USED] += 1
    mem.ept_table[table].bits = 0
    mem.ept_table[table].frames = 0
    mem.ept_table[table].nr = 0
    mem.ept_table[table].mm = mm
    mem.ept_table[table].window = window
    mem.ept_table[table].nx_next = NIL
    mem.ept_table[table].nx_prev = NIL
    return table


@kernel
def _free_record(mem: Memory, table: int) -> None:
    mem.ept_table[table].nr = mem.pool[P_EPT_FREE]
    mem.ept_table[table].mm = NIL
    mem.pool[P_EPT_FREE] = table + 1


@kernel
def open_table(mem: Memory, mm: int, window: int) -> int:
    """Return the record of a window's table, made if the table has all leaves."""
    child = ept_child(mem, mm, window)
    if ept_word(mem, mm, window) & E_TAG != E_FULL:
        return child
    table = new_ept_table(mem, mm, window)
    mem.ept_table[table].frames = child
    mem.ept_table[table].nr = HPAGE_PMD_NR
    set_ept(mem, mm, window, E_TABLE, table)
    return table


@kernel
def close_table(mem: Memory, table: int) -> None:
    """Give up the record of a table to which leaves were added, if it has all of them now."""
    if mem.ept_table[table].nr != HPAGE_PMD_NR or mem.ept_table[table].nx_next != NIL:
        return
    mm, window = int(mem.ept_table[table].mm), int(mem.ept_table[table].window)
    set_ept(mem, mm, window, E_FULL, int(mem.ept_table[table].frames))
    _free_record(mem, table)


@inline_kernel
def count_full_tables(mem: Memory, mm: int, nr: int) -> None:
    """Count the leaves of tables made with all of them: words alone."""
    mem.mm[mm, MM_EPT_4K] += nr << HPAGE_PMD_ORDER
    mem.vmstat[NR_EPT_LEAVES_4K] += nr << HPAGE_PMD_ORDER


@kernel
def invalidate_range(mem: Memory, mm: int, window: int, first: int, end: int) -> bool:
    """Zap the leaves that overlap pages ``first .. end - 1`` of a window; tell if there were any.

    A leaf of 2 MiB goes whole, whatever part of it changes.
    """
    word = ept_word(mem, mm, window)
    if word & E_TAG == E_NONE:
        return False
    if word & E_TAG == E_LEAF:
        set_ept(mem, mm, window, E_NONE, 0)
        mem.mm[mm, MM_EPT_2M] -= 1
        mem.vmstat[NR_EPT_LEAVES_2M] -= 1
        mem.vmstat[EPT_LEAVES_ZAPPED] += 1
        return True
    host = window_word(mem, mm, window)
    if host == W_NONE:
        return False
    table = open_table(mem, mm, window)
    before = int(mem.ept_table[table].nr)
    if before == 0:
        return False
    if maps_huge(host):
        pb = huge_pageblock(mem, host)
        pfn = (pb << HPAGE_PMD_ORDER) + (first & (HPAGE_PMD_NR - 1))
        _drop_leaves(mem, table, first, end - first, pfn, 1)
        return before != int(mem.ept_table[table].nr)
    x = extents_in(mem, mm, window)
    while x != NIL and int(mem.ext[x].vpn) < end:
        start = max(first, int(mem.ext[x].vpn))
        nr = min(end, int(mem.ext[x].vpn) + int(mem.ext[x].nr)) - start
        if nr > 0 and mem.ext[x].flags & KIND_MASK != KIND_SWAP:
            pfn = frame_at(mem, x, start)
            step = frame_at(mem, x, start + 1) - pfn
            _drop_leaves(mem, table, start, nr, pfn, step)
        x = int(mem.ext[x].next)
    return before != int(mem.ept_table[table].nr)


@inline_kernel
def notify(mem: Memory, mm: int, window: int, first: int, end: int) -> None:
    """Tell a process's hypervisor that pages of a window are about to be mapped otherwise."""
    if mem.mm[mm, MM_EPT] != 0:
        invalidate_range(mem, mm, window, first, end)


@kernel
def clear_flush_young(mem: Memory, mm: int, window: int, first: int, end: int) -> bool:
    """Age the EPT's leaves of pages of a window; tell whether they count as accessed.

    Entries without accessed bits (Intel before Haswell) are zapped, and count as accessed if they
    were there.  With such bits nothing is zapped; they are kept as LRU_YOUNG beside those of the
    host's own page tables.
    """
    if mem.mm[mm, MM_EPT] == 0 or mem.tunables[T_KVM_EPT_AD] != 0:
        return False
    return invalidate_range(mem, mm, window, first, end)


@kernel
def link_nx(mem: Memory, mm: int, table: int) -> None:
    """Put a table that an instruction fetch made behind the others of its process."""
    last = mem.mm[mm, MM_NX_LAST]
    mem.ept_table[table].nx_next = 0
    mem.ept_table[table].nx_prev = last
    if last != 0:
        mem.ept_table[last - 1].nx_next = table + 1
    else:
        mem.mm[mm, MM_NX_FIRST] = table + 1
    mem.mm[mm, MM_NX_LAST] = table + 1
    mem.mm[mm, MM_NX_SPLITS] += 1
    mem.vmstat[NR_NX_LPAGE_SPLITS] += 1


@kernel
def unlink_nx(mem: Memory, mm: int, table: int) -> None:
    """Take a table off its process's list of those that an instruction fetch made."""
    after = int(mem.ept_table[table].nx_next)
    before = int(mem.ept_table[table].nx_prev)
    if before != 0:
        mem.ept_table[before - 1].nx_next = after
    else:
        mem.mm[mm, MM_NX_FIRST] = after
    if after != 0:
        mem.ept_table[after - 1].nx_prev = before
    else:
        mem.mm[mm, MM_NX_LAST] = before
    mem.ept_table[table].nx_next = NIL
    mem.mm[mm, MM_NX_SPLITS] -= 1
    mem.vmstat[NR_NX_LPAGE_SPLITS] -= 1


@inline_kernel
def _zap_leaves(mem: Memory, mm: int, nr: int) -> None:
    """Count 4 KiB leaves that are gone with their tables."""
    mem.mm[mm, MM_EPT_4K] -= nr
    mem.vmstat[NR_EPT_LEAVES_4K] -= nr
    mem.vmstat[EPT_LEAVES_ZAPPED] += nr


@kernel
def free_ept_table(mem: Memory, mm: int, window: int) -> None:
    """Forget a window's table and its leaves; its page is the caller's."""
    nr = HPAGE_PMD_NR
    if ept_word(mem, mm, window) & E_TAG == E_TABLE:
        table = ept_child(mem, mm, window)
        if mem.ept_table[table].nx_next != NIL:
            unlink_nx(mem, mm, table)
        _drop_bits(mem, table)
        nr = int(mem.ept_table[table].nr)
        _free_record(mem, table)
    _zap_leaves(mem, mm, nr)
    set_ept(mem, mm, window, E_NONE, 0)


@kernel
def notifier_release(mem: Memory, mm: int) -> None:
    """Forget the EPT of a process that ends; its pages go with the process's other tables."""
    if mem.mm[mm, MM_EPT] == 0:
        return
    base = mem.mm[mm, MM_BASE]
    full = 0
    for at in range(base, base + mem.mm[mm, MM_WINDOWS]):
        word = int(mem.ept[at])
        if word & E_TAG == E_TABLE:
            free_ept_table(mem, mm, at - base)
        elif word & E_TAG == E_FULL:
            full += 1
            mem.ept_child[at] = 0
        mem.ept[at] = E_NONE
    _zap_leaves(mem, mm, full << HPAGE_PMD_ORDER)
    nr = mem.mm[mm, MM_EPT_2M]
    mem.vmstat[NR_EPT_LEAVES_2M] -= nr
    mem.vmstat[EPT_LEAVES_ZAPPED] += nr
    mem.mm[mm, MM_EPT_2M] = 0
