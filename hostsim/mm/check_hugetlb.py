"""The validator of hugetlb pools: pages in use, free, reserved and surplus, recounted."""

import numpy as np

from hostsim.core.units import HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.check_free import Scan, agree, chain, forbid
from hostsim.mm.hugetlb import windows_per_page
from hostsim.mm.mm_types import (
    H_FREE,
    H_LIST,
    H_NR,
    H_RESV,
    H_SURPLUS,
    HUGETLB_1G,
    HUGETLB_2M,
    MM_BASE,
    MM_HUGETLB,
    MM_HUGETLB_PAGES,
    MM_HUGETLB_RESV,
    MM_LIVE,
    MM_RAM_PAGES,
    MM_WINDOWS,
    NIL,
    P_NODE_PAGES,
    Memory,
)
from hostsim.mm.mmap import W_HUGETLB, W_TAG
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import PB_HUGETLB
from hostsim.mm.vmstat import NR_HUGETLB


def check_hugetlb(mem: Memory, s: Scan) -> None:
    """Recount both pools from the mappings of processes and the lists of free pages."""
    pool = np.flatnonzero(s.state == PB_HUGETLB)
    agree("nr_hugetlb", vmstat=mem.vmstat[NR_HUGETLB], pageblocks=pool.size)
    known: list[int] = []
    mms = np.flatnonzero(mem.mm[:, MM_LIVE]).tolist()
    for size in (HUGETLB_2M, HUGETLB_1G):
        h = mem.hugetlb[size]
        step = int(windows_per_page(size))
        links = (unpacked(mem.pb[: s.state.size]).b - 1).tolist() if h[H_NR] else []
        free = []
        for nid, first in enumerate(h[H_LIST : H_LIST + len(mem.node)].tolist()):
            mine = chain("free hugetlb pages", links, first - 1, int(h[H_NR]))
            nodes = np.array(mine, np.int64) // (int(mem.pool[P_NODE_PAGES]) >> PAGEBLOCK_ORDER)
            agree("node of free hugetlb pages", list=nodes * 0 + nid, pageblock=nodes)
            free += mine
        agree("free_hugepages", pool=h[H_FREE], listed=len(free))
        heads = list(free)
        reserved = 0
        for mm in mms:
            if mem.mm[mm, MM_HUGETLB] != size + 1:
                continue
            base, nr = int(mem.mm[mm, MM_BASE]), int(mem.mm[mm, MM_WINDOWS])
            words = mem.windows[base : base + nr].astype(np.int64)
            at = np.flatnonzero(words & W_TAG == W_HUGETLB)
            pages = words[at] >> 2
            agree("process of hugetlb pages", pageblocks=mem.pb["a"][pages], mm=pages * 0 + mm)
            agree("window of hugetlb pages", pageblocks=unpacked(mem.pb[pages]).b, window=at)
            in_page = (pages - pages // step * step) != at - at // step * step
            forbid("hugetlb page in parts", in_page, window=at, pageblock=pages)
            outside = at >= mem.mm[mm, MM_RAM_PAGES] >> HPAGE_PMD_ORDER
            forbid("hugetlb page outside of guest RAM", outside, window=at)
            own = pages[at % step == 0]
            agree("hugetlb pages of process", counter=mem.mm[mm, MM_HUGETLB_PAGES], found=own.size)
            reserved += int(mem.mm[mm, MM_HUGETLB_RESV])
            heads += own.tolist()
        agree("resv_hugepages", pool=h[H_RESV], processes=reserved)
        agree("nr_hugepages", pool=h[H_NR], found=len(heads))
        for bad, what in (
            (h[H_FREE] < h[H_RESV], "fewer free hugetlb pages than reserved ones"),
            (not 0 <= h[H_SURPLUS] <= h[H_NR], "surplus hugetlb pages"),
        ):
            forbid(what, [bad], pool=[h.tolist()])
        known += [head + i for head in heads for i in range(step)]
        aligned = np.array(heads, np.int64) % step != 0
        forbid("hugetlb page not aligned", aligned, pageblock=heads)
        unowned = mem.pb["a"][free] != NIL
        forbid("free hugetlb page with an owner", unowned, pageblock=free)
    agree("hugetlb pageblocks", known=np.sort(np.array(known, np.int64)), found=pool)
