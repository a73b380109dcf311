"""Validators of memory areas, of what huge pages hold, and of merged pages."""

import numpy as np

from hostsim.core.units import PAGEBLOCK_NR_PAGES
from hostsim.mm.check_free import Ints, Scan, agree, chain, forbid
from hostsim.mm.content import mix_key
from hostsim.mm.ksm_tree import OFF_LIST, SLAB_ITEMS
from hostsim.mm.mm_types import (
    MM_KSM_ITEMS,
    MM_KSM_NEXT,
    MM_KSM_PREV,
    MM_LIVE,
    MM_MERGEABLE,
    MM_PINNED,
    MM_RAM_PAGES,
    MM_VMAS,
    NIL,
    P_EXT_USED,
    P_KSM_FIRST,
    P_KSM_ITEM_FREE,
    P_KSM_ITEM_USED,
    P_KSM_ITEMS,
    P_KSM_LAST,
    P_KSM_NODE_FREE,
    P_KSM_NODE_USED,
    P_KSM_NODES,
    P_KSM_SEQ,
    P_KSM_SHARED,
    P_KSM_SHARING,
    P_KSM_SLAB,
    P_KSM_SLAB_PAGES,
    P_KSM_UNSHARED,
    P_PINS,
    P_VMA_FREE,
    P_VMA_USED,
    P_WRITTEN_FREE,
    P_WRITTEN_USED,
    Memory,
)
from hostsim.mm.page_ext import all_of
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE
from hostsim.mm.rmap import EXT_KSM
from hostsim.mm.tunables import T_KSM_MAX_PAGE_SHARING
from hostsim.mm.vmstat import NR_KSM_PAGES


def check_areas(mem: Memory) -> None:
    """Areas of a process cover its guest RAM in order, neighbours differ, none is lost."""
    used = int(mem.pool[P_VMA_USED])
    after = mem.vma["next"][:used].tolist()
    listed = chain("free areas", after, int(mem.pool[P_VMA_FREE]) - 1, used)
    nr_pins = 0
    for mm in np.flatnonzero(mem.mm[:, MM_LIVE]).tolist():
        mine = chain(f"areas of process {mm}", after, int(mem.mm[mm, MM_VMAS]) - 1, used)
        listed = listed + mine
        pins = chain(f"pins of process {mm}", after, int(mem.mm[mm, MM_PINNED]) - 1, used)
        forbid("empty pin", mem.vma["start"][pins] >= mem.vma["end"][pins], pin=pins)
        listed, nr_pins = listed + pins, nr_pins + len(pins)
        if mine:
            areas = mem.vma[mine]
            ends = np.concatenate([[0], areas["end"]])
            agree(f"ends of areas of process {mm}", end=ends[:-1], next_start=areas["start"])
            agree("end of the last area", end=ends[-1], ram=mem.mm[mm, MM_RAM_PAGES])
            empty = areas["start"] >= areas["end"]
            forbid("empty area", empty, mm=np.full(len(mine), mm), start=areas["start"])
            alike = areas["flags"][1:] == areas["flags"][:-1]
            forbid("neighbouring areas alike", alike, start=areas["start"][1:])
    agree("pins", pool=mem.pool[P_PINS], listed=nr_pins)
    agree("areas on lists", listed=np.sort(np.array(listed, np.int64)), used=np.arange(used))


def check_written(mem: Memory, s: Scan) -> None:
    """Check that records of written pages belong to huge pages and count their bits."""
    nr_pageblocks = s.state.size
    written = all_of(mem, "written", nr_pageblocks)
    pageblock = np.flatnonzero(written)
    huge = np.isin(s.state[pageblock], (PB_HUGE, PB_COMPOUND))
    forbid("record of written pages of no huge page", ~huge, pageblock=pageblock)
    records = written[pageblock] - 1
    used = int(mem.pool[P_WRITTEN_USED])
    unused = chain(
        "free records of written pages",
        (mem.wrec["nr"][:used].astype(np.int64) - 1).tolist(),
        int(mem.pool[P_WRITTEN_FREE]) - 1,
        used,
    )
    agree(
        "records of written pages",
        found=np.sort(np.concatenate([records, np.array(unused, np.int64)])),
        used=np.arange(used),
    )
    bits = np.unpackbits(mem.wrec["bits"][records].view(np.uint8), axis=1).sum(axis=1)
    agree("written pages", record=mem.wrec["nr"][records], bits=bits)
    forbid("record of a page wholly written", bits >= PAGEBLOCK_NR_PAGES, pageblock=pageblock)


def _check_stable_lists(mem: Memory, nodes: Ints, after: list[int]) -> None:
    """Check that the frames with room, and no others, are on the list of their content."""
    listed: list[int] = []
    before: list[int] = []
    for bucket in np.flatnonzero(mem.ksm_stable).tolist():
        mine = chain("stable nodes of a hash", after, int(mem.ksm_stable[bucket]) - 1, len(after))
        listed += mine
        before += [NIL, *mine][:-1]
        hashes = [
            mix_key(int(key)) & (mem.ksm_stable.size - 1) for key in mem.ksm_node["key"][mine]
        ]
        agree("hash of a stable node", list=[bucket] * len(mine), content=hashes)
    agree("back links of stable nodes", found=mem.ksm_node["prev"][listed], expected=before)
    room = mem.ksm_node["nr"][nodes] < mem.tunables[T_KSM_MAX_PAGE_SHARING]
    room &= mem.ksm_node["pfn"][nodes] != NIL
    agree("stable nodes with room", listed=np.sort(listed), found=nodes[room])
    off = np.setdiff1d(nodes, listed)
    forbid("listed stable node of no list", mem.ksm_node["prev"][off] != OFF_LIST, node=off)


def _check_nodes(mem: Memory, pfn: Ints, nr: Ints, flags: Ints) -> Ints:
    """Check the stable tree against the mappings of merged frames; return the live nodes."""
    used = int(mem.pool[P_KSM_NODE_USED])
    after = mem.ksm_node["next"][:used].tolist()
    unused = chain("free stable nodes", after, int(mem.pool[P_KSM_NODE_FREE]) - 1, used)
    nodes = np.setdiff1d(np.arange(used), unused)
    agree("stable nodes in use", pool=mem.pool[P_KSM_NODES], found=nodes.size)
    _check_stable_lists(mem, nodes, after)
    merged = flags & EXT_KSM != 0
    forbid("extent of a merged frame with more than a page", merged & (nr != 1), pfn=pfn, nr=nr)
    frames, maps = np.unique(pfn[merged], return_counts=True)
    mapped = nodes[mem.ksm_node["pfn"][nodes] != NIL]
    by_frame = mapped[np.argsort(mem.ksm_node["pfn"][mapped])]
    agree("merged frames", nodes=mem.ksm_node["pfn"][by_frame], extents=frames)
    agree("mappings of merged frames", nodes=mem.ksm_node["maps"][by_frame], extents=maps)
    agree("nodes of merged frames", frames=mem.ksm_frame[frames] - 1, nodes=by_frame)
    agree("frames with a node", frames=np.count_nonzero(mem.ksm_frame), extents=frames.size)
    agree("nr_ksm_pages", vmstat=mem.vmstat[NR_KSM_PAGES], recomputed=frames.size)
    idle = (mem.ksm_node["pfn"][nodes] == NIL) & (mem.ksm_node["nr"][nodes] == 0)
    forbid("stable node that nothing leads to", idle, node=nodes)
    return nodes


def check_ksm(mem: Memory, pfn: Ints, nr: Ints, flags: Ints) -> None:
    """Check ksmd's items, trees, lists, counters and slab against each other.

    Parameters
    ----------
    pfn, nr, flags
        Of all live extents.
    """
    if not mem.pool[P_KSM_FIRST] and not mem.pool[P_KSM_NODE_USED]:
        forbid("merged page without a tree", flags & EXT_KSM != 0, pfn=pfn)
        return
    nodes = _check_nodes(mem, pfn, nr, flags)
    used = int(mem.pool[P_KSM_ITEM_USED])
    after = mem.ksm_item["next"][:used].tolist()
    listed = chain("free rmap items", after, int(mem.pool[P_KSM_ITEM_FREE]) - 1, used)
    mms = np.flatnonzero(mem.mm[:, MM_LIVE]).tolist()
    live: list[int] = []
    for mm in mms:
        mine = chain(f"rmap items of process {mm}", after, int(mem.mm[mm, MM_KSM_ITEMS]) - 1, used)
        live += mine
        agree(
            "process of rmap items", items=mem.ksm_item["mm"][mine], process=np.full(len(mine), mm)
        )
        vpn = mem.ksm_item["vpn"][mine]
        forbid("rmap items out of order", vpn[1:] <= vpn[:-1], vpn=vpn[1:])
    agree("rmap items", found=np.sort(np.array(listed + live, np.int64)), used=np.arange(used))
    agree("rmap items in use", pool=mem.pool[P_KSM_ITEMS], listed=len(live))
    items = mem.ksm_item[np.array(live, np.int64)]
    leads = np.bincount(
        items["node"][items["node"] != NIL], minlength=int(mem.pool[P_KSM_NODE_USED])
    )
    agree("rmap items of stable nodes", nodes=mem.ksm_node["nr"][nodes], items=leads[nodes])
    agree("rmap items of no node", items=int(leads.sum()), nodes=int(leads[nodes].sum()))
    shared = int((leads > 0).sum())
    agree("pages_shared", pool=mem.pool[P_KSM_SHARED], recomputed=shared)
    agree("pages_sharing", pool=mem.pool[P_KSM_SHARING], recomputed=int(leads.sum()) - shared)
    agree("pages_unshared", pool=mem.pool[P_KSM_UNSHARED], items=int((items["seq"] != 0).sum()))
    both = (items["seq"] != 0) & (items["node"] != NIL)
    forbid("rmap item in both trees", both, vpn=items["vpn"])
    forbid("rmap item of a later scan", items["seq"] > mem.pool[P_KSM_SEQ], vpn=items["vpn"])
    next_mm = (mem.mm[:, MM_KSM_NEXT] - 1).tolist()
    order = chain("ksmd's processes", next_mm, int(mem.pool[P_KSM_FIRST]) - 1, len(next_mm))
    agree(
        "mergeable processes",
        listed=np.array(sorted(order), np.int64),
        marked=np.array([mm for mm in mms if mem.mm[mm, MM_MERGEABLE]], np.int64),
    )
    backward = [NIL, *order][:-1] if order else []
    agree("back links of ksmd's list", found=mem.mm[order, MM_KSM_PREV] - 1, expected=backward)
    agree("end of ksmd's list", pool=mem.pool[P_KSM_LAST] - 1, listed=order[-1] if order else NIL)
    pages = int(mem.pool[P_KSM_SLAB_PAGES])
    ext_after = mem.ext["next"][: int(mem.pool[P_EXT_USED])].tolist() if pages else []
    slab = chain("ksmd's kernel pages", ext_after, int(mem.pool[P_KSM_SLAB]) - 1, pages)
    agree("ksmd's kernel pages", pool=pages, listed=len(slab))
    need = -(-len(live) // SLAB_ITEMS) - (-nodes.size // SLAB_ITEMS)
    forbid("too few kernel pages for ksmd", [pages < need], pages=[pages], needed=[need])
