"""Validators of the swap area, the swap cache and the deferred split queue.

Source: the invariants are Linux's own (swap_count and SWAP_HAS_CACHE in mm/swapfile.c, the lists
of clusters) and those that the representation in `swapfile` and `split` adds.
"""

import numpy as np
from numpy.typing import NDArray

from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.check_free import Ints, Mask, agree, forbid, span_all
from hostsim.mm.mm_types import (
    NR_CLUSTER_HEADS,
    P_EXT_USED,
    P_LRU_SEQ,
    P_SPLIT_FIRST,
    P_SPLIT_LAST,
    P_SPLIT_LEN,
    P_SWAP_CLUSTER,
    P_SWAP_FREE,
    P_SWAP_SLOTS,
    Memory,
)
from hostsim.mm.page_ext import all_of
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE
from hostsim.mm.rmap import EXT_DESCENDING, KIND_MASK, KIND_SWAP, KIND_SWAPCACHE
from hostsim.mm.split import COMPOUND_DEFERRED, COMPOUND_SHIFT, COMPOUND_SWAPCACHE
from hostsim.mm.swapfile import CLUSTER_FREE, CLUSTER_NONFULL, CLUSTER_USED, HEADER_SLOTS
from hostsim.mm.vmstat import NR_SWAPCACHED


def _slots_of(mem: Memory, kind: int, first: str) -> tuple[Ints, Ints]:
    """Return extent and slot of every page of a kind of extents, lowest slot first."""
    used = int(mem.pool[P_EXT_USED])
    chosen = (mem.ext["nr"][:used] > 0) & (mem.ext["flags"][:used] & KIND_MASK == kind)
    at = np.flatnonzero(chosen)
    nr = mem.ext["nr"][at].astype(np.int64)
    return np.repeat(at, nr), span_all(mem.ext[first][at].astype(np.int64), nr)


def _check_clusters(mem: Memory, in_use: Mask) -> None:
    """Compare counts and lists of the clusters with the slots in use."""
    nr = in_use.size >> HPAGE_PMD_ORDER
    clusters = mem.swap_cluster[NR_CLUSTER_HEADS : NR_CLUSTER_HEADS + nr]
    count = in_use.reshape(nr, HPAGE_PMD_NR).sum(axis=1)
    agree("slots in use of each cluster", counter=clusters["count"], slots=count)
    agree("free slots", pool=mem.pool[P_SWAP_FREE], slots=in_use.size - in_use.sum())
    expected = np.where(count == 0, CLUSTER_FREE, CLUSTER_NONFULL)
    expected[count == HPAGE_PMD_NR] = CLUSTER_USED
    current = int(mem.pool[P_SWAP_CLUSTER]) - 1
    if current >= 0:
        expected[current] = CLUSTER_USED
    agree("list of each cluster", stored=clusters["state"], count=expected)
    for state in (CLUSTER_FREE, CLUSTER_NONFULL):
        met: list[int] = []
        row, before = int(mem.swap_cluster["next"][state]), state
        while row != state and len(met) <= nr:
            agree("back link of a cluster", stored=mem.swap_cluster["prev"][row], walked=before)
            met.append(row - NR_CLUSTER_HEADS)
            before, row = row, int(mem.swap_cluster["next"][row])
        agree(
            f"clusters on list {state}",
            listed=np.sort(np.array(met, np.int64)),
            states=np.flatnonzero(expected == state),
        )


def _check_queue(mem: Memory, state: Ints) -> None:
    """Compare the deferred split queue with the flags of compound pages."""
    flags = unpacked(mem.pb[: state.size]).b
    met: list[int] = []
    back, ahead = all_of(mem, "prev", state.size), all_of(mem, "next", state.size)
    at, before = int(mem.pool[P_SPLIT_FIRST]), 0
    while at != 0 and len(met) <= state.size:
        agree("back link in the split queue", stored=back[at - 1], walked=before)
        met.append(at - 1)
        before, at = at, int(ahead[at - 1])
    agree("end of the split queue", pool=mem.pool[P_SPLIT_LAST], walked=before)
    agree("length of the split queue", pool=mem.pool[P_SPLIT_LEN], walked=len(met))
    listed = np.array(met, np.int64)
    partly = (state == PB_COMPOUND) & (flags & COMPOUND_DEFERRED != 0)
    on_queue = np.zeros(state.size, np.bool_)
    on_queue[listed] = True
    page = np.arange(state.size)
    forbid("partly mapped huge page off the split queue", partly & ~on_queue, pageblock=page)
    odd = on_queue & ~np.isin(state, (PB_HUGE, PB_COMPOUND))
    odd |= on_queue & (state == PB_COMPOUND) & (flags & COMPOUND_SWAPCACHE != 0)
    forbid("not a mapped huge page on the split queue", odd, pageblock=page, state=state)
    stale = ~on_queue & ((back != 0) | (ahead != 0))
    forbid("link of a page off the split queue", stale, pageblock=page)


def check_swap(mem: Memory, state: NDArray[np.int64]) -> Mask:
    """Compare slots with swap entries and cached pages; return the pageblocks cached whole.

    Parameters
    ----------
    state
        PB_* of every pageblock.

    Raises
    ------
    InvariantError
        The first contradiction, with both sides.
    """
    _check_queue(mem, state)
    used = int(mem.pool[P_EXT_USED])
    generation = int(max(mem.lru.max(initial=0), mem.ext_lru[:used].max(initial=0))) >> 4
    forbid("stamp from the future", [generation > mem.pool[P_LRU_SEQ]], generation=[generation])
    nr = int(mem.pool[P_SWAP_SLOTS])
    compound = (state == PB_COMPOUND) & (unpacked(mem.pb[: state.size]).b & COMPOUND_SWAPCACHE != 0)
    _, entries = _slots_of(mem, KIND_SWAP, "pfn")
    at, cached = _slots_of(mem, KIND_SWAPCACHE, "vpn")
    beyond = np.concatenate([entries, cached])
    forbid("slot outside of the swap area", (beyond < HEADER_SLOTS) | (beyond >= nr), slot=beyond)
    if nr == 0:
        return compound
    uses = np.bincount(entries, minlength=nr)
    uses[:HEADER_SLOTS] = 1
    agree("page-table entries of each slot", swap_map=mem.swap_map[:nr], entries=uses)
    frame = np.zeros(nr, np.int64)
    i = cached - mem.ext["vpn"][at]
    down = mem.ext["flags"][at] & EXT_DESCENDING != 0
    offset = np.where(down, mem.ext["nr"][at].astype(np.int64) - 1 - i, i)
    frame[cached] = mem.ext["pfn"][at] + offset + 1
    huge = np.flatnonzero(compound)
    first = (unpacked(mem.pb[huge]).b >> COMPOUND_SHIFT) << HPAGE_PMD_ORDER
    pages = np.arange(HPAGE_PMD_NR)
    frame[first[:, None] + pages] = (huge[:, None] << PAGEBLOCK_ORDER) + pages + 1
    agree("frame that caches each slot", swap_cache=mem.swap_cache[:nr], extents=frame)
    agree("nr_swapcached", vmstat=mem.vmstat[NR_SWAPCACHED], slots=int((frame > 0).sum()))
    _check_clusters(mem, (uses > 0) | (frame > 0))
    return compound
