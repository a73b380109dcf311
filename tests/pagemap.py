"""Draw small memories, and read a memory's lists and mappings as plain Python.

A picture of a pageblock is a string whose letters stand for equal shares of its 512 frames::

    "A.K."   a quarter anonymous memory, a quarter free, a quarter kernel, a quarter free

    .  free    A  anonymous (movable)    K  kernel (unmovable)    *  used since boot
"""

import numpy as np

from hostsim.core.units import MAX_PAGE_ORDER, NO_PFN, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.buddy import free_run, rmqueue_run
from hostsim.mm.check_extents import unfolded
from hostsim.mm.contig import count_unmovable
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RESERVE,
    MM_ANON,
    MM_BASE,
    MM_KERNEL,
    MM_PGTABLES,
    MM_WINDOWS,
    NIL,
    NR_PCP_LISTS,
    NR_TYPES,
    P_PAGEBLOCKS,
    Z_END,
    Z_FREE,
    Z_MANAGED,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_TABLE, W_TAG, mm_alloc, set_window, table_word
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import set_pageblock_migratetype
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    KIND_ANON,
    KIND_BOOT,
    KIND_KERNEL,
    KIND_PGTABLE,
    add_extent,
)
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_KERNEL, NR_PAGETABLE

KINDS = {"A": KIND_ANON, "K": KIND_KERNEL, "*": KIND_BOOT}
GLYPHS = "AtekB"  # by KIND_*


def clone(mem):
    return Memory(*(array.copy() for array in mem))


def drawn_memory(kernel, pageblocks):
    """A DMA zone of eight pageblocks; give ``(picture, label)`` of the first ones.

    The rest is used since boot; the last one holds the page tables of the process that owns all
    anonymous memory.  Pageblocks are freed from the last to the first and frames upward, so a
    list begins with the first pageblock that is on it.
    """
    mem = new_memory(8 * PAGEBLOCK_NR_PAGES, kernel, 1)
    nr = int(mem.pool[P_PAGEBLOCKS])
    assert len(pageblocks) < nr
    for _ in range(nr):
        taken = rmqueue_run(mem, 0, MIGRATE_MOVABLE, PAGEBLOCK_ORDER, 1)[1]
        assert taken or rmqueue_run(mem, 0, MIGRATE_RESERVE, PAGEBLOCK_ORDER, 1)[1]
    mm = mm_alloc(mem, 0, nr * PAGEBLOCK_NR_PAGES, 0, False, 0)
    pictures = [*pageblocks, *[("*", MIGRATE_MOVABLE)] * (nr - 1 - len(pageblocks))]
    for pb, (picture, label) in reversed(list(enumerate(pictures))):
        set_pageblock_migratetype(mem, pb, label)
        share = PAGEBLOCK_NR_PAGES // len(picture)
        last = NIL
        for i, letter in enumerate(picture):
            pfn = pb * PAGEBLOCK_NR_PAGES + i * share
            if letter == ".":
                free_run(mem, pfn, share, False)
                continue
            kind = KINDS[letter]
            owned = kind == KIND_ANON
            x = add_extent(mem, pfn, share, mm if owned else NIL, pfn if owned else 0, kind)
            if kind == KIND_KERNEL:
                mem.vmstat[NR_KERNEL] += share
                count_unmovable(mem, pfn, share)
            if owned:
                if last == NIL:
                    set_window(mem, mm, pb, table_word(x))
                else:
                    mem.ext["next"][last] = x
                last = x
                mem.mm[mm, MM_ANON] += share
                mod_node_page_state(mem, pfn, NR_ANON_PAGES, share)
    first = (nr - 1) * PAGEBLOCK_NR_PAGES
    mem.mm[mm, MM_KERNEL] = add_extent(mem, first, nr, mm, 0, KIND_PGTABLE) + 1
    mem.mm[mm, MM_PGTABLES] = nr
    mem.vmstat[NR_PAGETABLE] = nr
    count_unmovable(mem, first, nr)
    add_extent(mem, first + nr, PAGEBLOCK_NR_PAGES - nr, NIL, 0, KIND_BOOT)
    return mem


def picture(mem, pb, letters=8):
    """Draw a pageblock; a share that is not all alike is ``?``, one without owner ``#``."""
    raw = int(unpacked(mem.pb[pb]).flags) & 15
    cells = np.full(PAGEBLOCK_NR_PAGES, "#")
    if raw in (0, 1, 2, 3):
        cells[:] = "."
    elif raw == 4:
        cells[:] = "H"
    if raw in (5, 6, 7):
        head = int(mem.pb["a"][pb])
        if raw == 7:
            bits = np.ascontiguousarray(mem.rec["bits"][head]).view(np.uint8)
            cells[np.unpackbits(bits, bitorder="little") == 1] = "."
            head = int(mem.rec["ext"][head])
        while head != NIL:
            extent = mem.ext[head]
            first = int(extent["pfn"]) % PAGEBLOCK_NR_PAGES
            cells[first : first + int(extent["nr"])] = GLYPHS[int(extent["flags"]) & 7]
            head = int(extent["next_b"])
    shares = cells.reshape(letters, -1)
    return "".join(s[0] if (s == s[0]).all() else "?" for s in shares)


def free_lists(mem):
    """``(zone, type, order)`` -> pageblocks in list order, a virgin region written out."""
    nr = int(mem.pool[P_PAGEBLOCKS])
    lists = {}
    for z in range(len(mem.zone)):
        if mem.zone[z, Z_END] == mem.zone[z, Z_START]:
            continue
        for t in range(NR_TYPES):
            head = z * NR_TYPES + t
            for order in range(PAGEBLOCK_ORDER):
                at, found = int(mem.rec["next"][head, order]), []
                while at != head:
                    found.append(int(mem.rec["pb"][at]))
                    at = int(mem.rec["next"][at, order])
                lists[z, t, order] = found
            for order in (PAGEBLOCK_ORDER, MAX_PAGE_ORDER):
                head_slot = nr + head * 2 + order - PAGEBLOCK_ORDER
                at, found = int(mem.pb["a"][head_slot]), []
                while at != head_slot:
                    if at < nr:
                        found.append(at)
                    else:
                        found += range(mem.zone[z, Z_VIRGIN], mem.zone[z, Z_VIRGIN_END], 2)
                    at = int(mem.pb["a"][at])
                lists[z, t, order] = found
    return lists


def pcp_lists(mem):
    """``(zone, list)`` -> first frames of the blocks on a per-CPU list, head first."""
    lists = {}
    for z in range(len(mem.zone)):
        for index in range(NR_PCP_LISTS):
            head = z * NR_PCP_LISTS + index
            at, found = int(mem.run["next"][head]), []
            while at != head:
                run = mem.run[at]
                found += [int(run["first"]) + i * int(run["step"]) for i in range(int(run["nr"]))]
                at = int(run["next"])
            lists[z, index] = found
    return lists


def page_frames(mem, mm):
    """The frame of every page of a process, NO_PFN where none is mapped."""
    mem = unfolded(mem)
    nr = int(mem.mm[mm, MM_WINDOWS])
    base = int(mem.mm[mm, MM_BASE])
    frames = np.full(nr * PAGEBLOCK_NR_PAGES, NO_PFN, np.int64)
    for window, word in enumerate(mem.windows[base : base + nr].tolist()):
        first = window * PAGEBLOCK_NR_PAGES
        if word & W_TAG == W_HUGE:
            pfn = (word >> 2) * PAGEBLOCK_NR_PAGES
            frames[first : first + PAGEBLOCK_NR_PAGES] = np.arange(pfn, pfn + PAGEBLOCK_NR_PAGES)
        elif word & W_TAG == W_TABLE:
            at = (word >> 2) - 1
            while at != NIL:
                extent = mem.ext[at]
                vpn, pfn, pages = int(extent["vpn"]), int(extent["pfn"]), int(extent["nr"])
                run = np.arange(pfn, pfn + pages)
                down = int(extent["flags"]) & EXT_DESCENDING
                frames[vpn : vpn + pages] = run[::-1] if down else run
                at = int(extent["next"])
    return frames


def is_all_free(mem):
    """Whether every zone is whole again: nothing but free blocks of order 10."""
    managed, free = mem.zone[:, Z_MANAGED], mem.zone[:, Z_FREE]
    whole = mem.nr_free[:, :, MAX_PAGE_ORDER].sum(axis=1) << MAX_PAGE_ORDER
    return bool((managed == free).all() and (managed == whole).all())
