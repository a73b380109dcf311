"""Validators: recompute a memory's state from its parts and compare, with both sides named.

`check_memory` is the whole; the free side is in `hostsim.mm.check_free`, here is the side of
the owners: extents, address spaces, huge mappings, frame conservation and the gauges.

Source: the invariants are Linux's own (VM_BUG_ON in mm/page_alloc.c, mm/rmap.c, check_mm in
kernel/fork.c) and those that the representation in `rmap` and `mmap` adds.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.units import (
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.check_contig import check_units, check_unmovable
from hostsim.mm.check_daemons import check_daemons
from hostsim.mm.check_ept import check_ept
from hostsim.mm.check_extents import Extents, check_extents, unfolded
from hostsim.mm.check_free import (
    FREE_STATES,
    LISTED_STATES,
    SMALL_STATES,
    Ints,
    Mask,
    Scan,
    agree,
    check_free_lists,
    check_pageblocks,
    check_pcp,
    check_records,
    check_reported,
    forbid,
    free_frames,
    pcp_blocks,
    scan,
    span_all,
    zone_name,
)
from hostsim.mm.check_hugetlb import check_hugetlb
from hostsim.mm.check_merge import check_areas, check_ksm, check_written
from hostsim.mm.check_mm import check_address_spaces
from hostsim.mm.check_nodes import check_nodes
from hostsim.mm.check_page_ext import check_page_ext
from hostsim.mm.check_swap import check_swap
from hostsim.mm.mm_types import (
    MM_BASE,
    NIL,
    P_ZERO_PB,
    Z_FREE,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.mmap import folds_downward
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_HUGE,
    PB_HUGETLB,
    PB_PARTIAL,
    PB_PCP,
    PB_RESERVED,
    pageblock_state,
)
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_KSM,
    EXT_PMD,
    EXT_SHARED,
    FOLDED,
    KIND_ANON,
    KIND_BOOT,
    KIND_EPT,
    KIND_FILE,
    KIND_KERNEL,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_RESERVED,
    KIND_SWAPCACHE,
)
from hostsim.mm.vmstat import (
    NR_ANON_PAGES,
    NR_ANON_THPS,
    NR_EPT,
    NR_FILE_PAGES,
    NR_KERNEL,
    NR_PAGETABLE,
)


class FrameKind(IntEnum):
    """What a frame is used for."""

    FREE = 0
    PCP = 1
    RESERVED = 2
    HUGE = 3  # a huge page, mapped by one PMD
    ZERO = 4  # the shared huge zero page
    UNMAPPED = 5  # a page of a partly mapped huge page that nobody maps
    ANON = 6
    PGTABLE = 7
    EPT = 8
    KERNEL = 9
    BOOT = 10
    UNOWNED = 11  # in use, with nothing on record
    HUGETLB = 12  # of a hugetlb pool, in use or free
    SWAPCACHE = 13  # a page of the swap cache that nobody maps
    FILE = 14  # page cache


class FrameOwner(NamedTuple):
    """Who uses a frame."""

    kind: FrameKind
    mm: int = NIL  # process, NIL if none
    vpn: int = NIL  # page in its address space, NIL if none


def _check_frames(
    s: Scan, x: Extents, pcp: Ints, unowned: Ints, cached: Mask, nr_zones: int
) -> Ints:
    """Compare used frames with extents and per-CPU lists.

    Returns
    -------
    mapped
        Distinct frames that KIND_ANON extents cover, per zone.
    """
    pageblock = np.flatnonzero(np.isin(s.state, LISTED_STATES))
    row_of = np.full(s.state.size, NIL)
    row_of[pageblock] = np.arange(pageblock.size)
    nr_cells = pageblock.size << PAGEBLOCK_ORDER

    def cells(pfn: Ints) -> Ints:
        return (row_of[pfn >> PAGEBLOCK_ORDER] << PAGEBLOCK_ORDER) + (
            pfn & (PAGEBLOCK_NR_PAGES - 1)
        )

    def cover(chosen: Mask) -> Ints:
        first = cells(x.pfn[chosen])
        edges = np.bincount(first, minlength=nr_cells + 1)
        edges -= np.bincount(first + x.nr[chosen], minlength=nr_cells + 1)
        return np.cumsum(edges[:-1])

    pfn = ((pageblock << PAGEBLOCK_ORDER)[:, None] + np.arange(PAGEBLOCK_NR_PAGES)).ravel()
    is_shared = x.flags & EXT_SHARED != 0
    single, shared = cover(~is_shared), cover(is_shared)
    clash = (single > 1) | ((single == 1) & (shared > 0))
    forbid("frame of one owner mapped again", clash, pfn=pfn, unshared=single, shared=shared)
    once = x.flags & EXT_KSM == 0  # a process may map a merged frame more than once
    order = np.lexsort((x.pfn[once], x.owner[once]))
    mine, first, nr = x.owner[once][order], x.pfn[once][order], x.nr[once][order]
    twice = (mine[1:] == mine[:-1]) & (first[:-1] + nr[:-1] > first[1:])
    forbid("frame twice in one address space", twice, mm=mine[1:], pfn=first[1:])
    small = np.isin(s.state[pageblock], SMALL_STATES)
    owned = single + shared > 0
    held = np.zeros(nr_cells, np.int64)
    for frames in (pcp, unowned):
        frames = frames[np.isin(s.state[frames >> PAGEBLOCK_ORDER], SMALL_STATES)]
        held[cells(frames)] += 1
    forbid("frame in use and on a per-CPU list", owned & (held > 0), pfn=pfn, per_cpu=held)
    used = np.ones((pageblock.size, PAGEBLOCK_NR_PAGES), np.bool_)
    used[s.state[pageblock] == PB_PARTIAL] = ~s.free
    accounted = (owned | (held > 0)).reshape(used.shape)
    wrong = ((used != accounted) & small[:, None]).ravel()
    forbid("used frames", wrong, pfn=pfn, buddy_used=used.ravel(), has_owner=accounted.ravel())
    mapped_in = owned.reshape(used.shape).any(axis=1)
    nobody = ~small & ~mapped_in & ~cached[pageblock]
    forbid("compound page that nobody maps", nobody, pageblock=pageblock)
    anon = cover(x.kind == KIND_ANON) > 0
    zone = np.repeat(s.zone[pageblock], PAGEBLOCK_NR_PAGES)
    return np.bincount(zone[anon], minlength=nr_zones)


def _check_totals(mem: Memory, s: Scan, x: Extents, pcp: Ints, mapped: Ints, nr: int) -> None:
    """Frame conservation of every zone, and the gauges of vmstat."""
    alone = (s.state == PB_HUGE) & (np.arange(s.state.size) != mem.pool[P_ZERO_PB] - 1)
    pages = {
        kind: int(x.nr[x.kind == kind].sum())
        for kind in (KIND_PGTABLE, KIND_EPT, KIND_KERNEL, KIND_BOOT, KIND_FILE)
    }
    mapped_by_pmd = np.unique(x.pfn[x.flags & EXT_PMD != 0]).size
    anon = int(alone.sum() * HPAGE_PMD_NR + mapped.sum())
    thps = int(alone.sum()) + mapped_by_pmd
    for name, index, recomputed in (
        ("nr_anon_pages", NR_ANON_PAGES, anon),
        ("nr_anon_transparent_hugepages", NR_ANON_THPS, thps),
        ("nr_page_table_pages", NR_PAGETABLE, pages[KIND_PGTABLE]),
        ("nr_secondary_page_table_pages", NR_EPT, pages[KIND_EPT]),
        ("nr_file_pages", NR_FILE_PAGES, pages[KIND_FILE]),
    ):
        agree(name, vmstat=mem.vmstat[index], recomputed=recomputed)
    # Boot memory is counted only where the model, not a replay, allocated it.
    boot = int(mem.vmstat[NR_KERNEL]) - pages[KIND_KERNEL]
    forbid(
        "nr_kernel_pages beside those of extents",
        [boot < 0 or boot > pages[KIND_BOOT]],
        vmstat=[mem.vmstat[NR_KERNEL]],
        kernel=[pages[KIND_KERNEL]],
        boot=[pages[KIND_BOOT]],
    )
    kernel = np.bincount(
        s.zone[x.pfn >> PAGEBLOCK_ORDER],
        weights=np.where(np.isin(x.kind, (KIND_ANON, KIND_RESERVED)), 0, x.nr),
        minlength=len(mem.zone),
    ).astype(np.int64)
    pcp_pages = np.bincount(s.zone[pcp >> PAGEBLOCK_ORDER], minlength=len(mem.zone))
    compound = s.state == PB_COMPOUND
    in_compound = compound[x.pfn >> PAGEBLOCK_ORDER]
    for z in range(len(mem.zone)):
        is_whole = np.isin(s.state, (PB_HUGE, PB_HUGETLB))
        whole = int((is_whole & (s.zone == z)).sum()) << PAGEBLOCK_ORDER
        nr_compound = int((compound & (s.zone == z)).sum()) << PAGEBLOCK_ORDER
        partly = _covered(x, in_compound & (s.zone[x.pfn >> PAGEBLOCK_ORDER] == z))
        total = int(mem.zone[z, Z_FREE]) + int(pcp_pages[z]) + whole + int(kernel[z])
        total += int(mapped[z]) + nr_compound - partly
        if nr == 0:
            agree(f"zone {zone_name(z)} frames", managed=mem.zone[z, Z_MANAGED], accounted=total)


def _covered(x: Extents, chosen: Mask) -> int:
    """Return how many distinct frames extents cover."""
    return int(np.unique(span_all(x.pfn[chosen], x.nr[chosen])).size)


def check_memory(mem: Memory, unowned: NDArray[Any] | None = None) -> None:
    """Recompute a memory's state and compare.

    Parameters
    ----------
    unowned
        Small-page frames in use without an owner on record, such as those that a caller of
        `hostsim.mm.buddy.rmqueue_run` holds; none in a running model.

    Raises
    ------
    InvariantError
        The first contradiction, with both sides.
    """
    extra = np.zeros(0, np.int64) if unowned is None else np.asarray(unowned, np.int64)
    mem = unfolded(mem)
    s = scan(mem)
    check_pageblocks(mem, s)
    check_records(mem, s)
    check_reported(mem, s)
    check_free_lists(mem, s)
    check_units(mem, s)
    pcp = check_pcp(mem, s)
    x = check_extents(mem, s)
    cached = check_swap(mem, s.state)
    mapped = _check_frames(s, x, pcp, extra, cached, len(mem.zone))
    check_address_spaces(mem, s, x)
    _check_totals(mem, s, x, pcp, mapped, extra.size)
    check_page_ext(mem)
    check_unmovable(mem, x.pfn, x.nr, x.kind)
    files = x.kind == KIND_FILE
    check_nodes(mem, s, mapped, x.pfn[files], x.nr[files])
    check_daemons(mem)
    check_areas(mem)
    check_written(mem, s)
    check_ksm(mem, x.pfn, x.nr, x.flags)
    check_ept(mem)
    check_hugetlb(mem, s)


def frame_owner(mem: Memory, pfn: int) -> FrameOwner:
    """Return who uses a frame; of several processes, the one with the lowest number."""
    pb, inside = pfn >> PAGEBLOCK_ORDER, pfn & (PAGEBLOCK_NR_PAGES - 1)
    state = pageblock_state(mem, pb)
    if state == PB_RESERVED:
        return FrameOwner(FrameKind.RESERVED)
    if state == PB_HUGE:
        if pb == mem.pool[P_ZERO_PB] - 1:
            return FrameOwner(FrameKind.ZERO)
        window = pb_b(mem, pb)
        return FrameOwner(
            FrameKind.HUGE, int(mem.pb["a"][pb]), (window << HPAGE_PMD_ORDER) + inside
        )
    if state == PB_HUGETLB:
        return FrameOwner(FrameKind.HUGETLB, int(mem.pb["a"][pb]))
    if state in FREE_STATES:
        return FrameOwner(FrameKind.FREE)
    head = int(mem.pb["a"][pb]) if state != PB_PCP else NIL
    if state == PB_PARTIAL:
        if free_frames(mem, np.array([head]))[0, inside]:
            return FrameOwner(FrameKind.FREE)
        head = int(mem.rec["ext"][head])
    owners = []
    if head < NIL:
        window = pb_b(mem, pb)
        mm = FOLDED - head
        if folds_downward(int(mem.windows[mem.mm[mm, MM_BASE] + window])):
            inside = PAGEBLOCK_NR_PAGES - 1 - inside
        return FrameOwner(FrameKind.ANON, mm, (window << HPAGE_PMD_ORDER) + inside)
    while head != NIL:
        extent = mem.ext[head]
        first, nr, flags = int(extent["pfn"]), int(extent["nr"]), int(extent["flags"])
        if first <= pfn < first + nr:
            i = first + nr - 1 - pfn if flags & EXT_DESCENDING else pfn - first
            if flags & KIND_MASK == KIND_RESERVED:
                return FrameOwner(FrameKind.RESERVED)
            kind = {
                KIND_SWAPCACHE: FrameKind.SWAPCACHE,
                KIND_FILE: FrameKind.FILE,
            }.get(flags & KIND_MASK, FrameKind(min(FrameKind.ANON + (flags & KIND_MASK), 11)))
            vpn = int(extent["vpn"]) + i if kind == FrameKind.ANON else NIL
            owners.append((int(extent["owner"]), vpn, kind))
        head = int(extent["next_b"])
    if owners:
        mm, vpn, kind = min(owners)
        return FrameOwner(kind, mm, vpn)
    if state == PB_COMPOUND:
        return FrameOwner(FrameKind.UNMAPPED)
    start, order, _ = pcp_blocks(mem)
    listed = bool(((start <= pfn) & (pfn < start + (1 << order))).any())
    return FrameOwner(FrameKind.PCP if listed else FrameKind.UNOWNED)
