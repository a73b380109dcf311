"""The swap area: slots, the clusters that they come from, and who uses a slot.

A slot is in use while an entry of a page table names it (`Memory.swap_map` counts them) or the
swap cache holds its page (`Memory.swap_cache`).  Slots come in clusters of 512: a huge page needs
one that is completely free; single slots are taken one after the other from a cluster that was
free when they began.

Source: Linux v6.1 mm/swapfile.c scan_swap_map_slots, scan_swap_map_try_ssd_cluster,
swap_alloc_cluster, swap_free; v6.12 cluster_alloc_swap_entry (lists of clusters not full).
Simplified: one swap area, on a solid-state disk; a freed slot is free at once, not after 64 of
them; 6.1 without a free cluster takes the next free slot, as 6.12 its oldest cluster not full.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.lru_stamp import keeps_lru
from hostsim.mm.mm_types import (
    NIL,
    NR_CLUSTER_HEADS,
    P_SWAP_CLUSTER,
    P_SWAP_FREE,
    P_SWAP_NEXT,
    P_SWAP_SLOTS,
    Memory,
)

CLUSTER_USED: Final = 0  # on no list: full, or the one in use
CLUSTER_FREE: Final = 1
CLUSTER_NONFULL: Final = 2
HEADER_SLOTS: Final = 1  # slot 0 is the area's header


@inline_kernel
def _row(cluster: int) -> int:
    """Return the row of a cluster."""
    return cluster + NR_CLUSTER_HEADS


@kernel
def _unlink(mem: Memory, cluster: int) -> None:
    """Take a cluster off its list."""
    row = _row(cluster)
    after = int(mem.swap_cluster[row].next)
    before = int(mem.swap_cluster[row].prev)
    mem.swap_cluster[before].next = after
    mem.swap_cluster[after].prev = before
    mem.swap_cluster[row].state = CLUSTER_USED


@kernel
def _append(mem: Memory, cluster: int, state: int) -> None:
    """Put a cluster at the end of the list of its new state."""
    row = _row(cluster)
    last = int(mem.swap_cluster[state].prev)
    mem.swap_cluster[row].state = state
    mem.swap_cluster[row].next = state
    mem.swap_cluster[row].prev = last
    mem.swap_cluster[last].next = row
    mem.swap_cluster[state].prev = row


@inline_kernel
def _first(mem: Memory, state: int) -> int:
    """Return the first cluster of a list, or NIL."""
    row = int(mem.swap_cluster[state].next)
    return NIL if row == state else row - NR_CLUSTER_HEADS


@kernel
def swapon(mem: Memory, slots: int) -> bool:
    """Make a swap area of so many slots available; return whether the state has room for it.

    Of a last cluster that is not whole, the slots are left out.
    """
    clusters = slots >> HPAGE_PMD_ORDER
    if not keeps_lru(mem):
        return False
    if clusters + NR_CLUSTER_HEADS > mem.swap_cluster.size or mem.pool[P_SWAP_SLOTS] != 0:
        return False
    for state in range(NR_CLUSTER_HEADS):
        mem.swap_cluster[state].next = state
        mem.swap_cluster[state].prev = state
    for cluster in range(clusters):
        mem.swap_cluster[_row(cluster)].count = 0
        if cluster > 0:
            _append(mem, cluster, CLUSTER_FREE)
    mem.pool[P_SWAP_SLOTS] = clusters << HPAGE_PMD_ORDER
    mem.pool[P_SWAP_FREE] = mem.pool[P_SWAP_SLOTS]
    for slot in range(HEADER_SLOTS):
        mem.swap_map[slot] = 1
    mem.swap_cluster[_row(0)].count = HEADER_SLOTS
    mem.pool[P_SWAP_FREE] -= HEADER_SLOTS
    _append(mem, 0, CLUSTER_NONFULL)
    mem.pool[P_SWAP_CLUSTER] = 0
    mem.pool[P_SWAP_NEXT] = 0
    return True


@inline_kernel
def used_slots(mem: Memory) -> int:
    """Return how many slots hold pages."""
    if mem.pool[P_SWAP_SLOTS] == 0:
        return 0
    return mem.pool[P_SWAP_SLOTS] - HEADER_SLOTS - mem.pool[P_SWAP_FREE]


@inline_kernel
def slot_in_use(mem: Memory, slot: int) -> bool:
    """Tell whether page tables or the swap cache use a slot."""
    return mem.swap_map[slot] != 0 or mem.swap_cache[slot] != 0


@kernel
def alloc_cluster(mem: Memory) -> int:
    """Take a completely free cluster; return its first slot, or NIL."""
    if mem.pool[P_SWAP_SLOTS] == 0:
        return NIL
    cluster = _first(mem, CLUSTER_FREE)
    if cluster == NIL:
        return NIL
    _unlink(mem, cluster)
    mem.swap_cluster[_row(cluster)].count = HPAGE_PMD_NR
    mem.pool[P_SWAP_FREE] -= HPAGE_PMD_NR
    return cluster << HPAGE_PMD_ORDER


@kernel
def _next_cluster(mem: Memory) -> int:
    """Choose the cluster from which single slots come next, or NIL if the area is full."""
    cluster = _first(mem, CLUSTER_FREE)
    if cluster == NIL:
        cluster = _first(mem, CLUSTER_NONFULL)
    if cluster != NIL:
        _unlink(mem, cluster)
    return cluster


@kernel
def alloc_slots(mem: Memory, nr: int) -> tuple[int, int]:
    """Take up to ``nr`` slots that follow each other in one cluster.

    Returns
    -------
    slot, taken
        The first one, and how many; NIL and 0 if the area is full.

    The caller uses each slot at once.
    """
    if mem.pool[P_SWAP_FREE] == 0:
        return NIL, 0
    while True:
        cluster = mem.pool[P_SWAP_CLUSTER] - 1
        if cluster == NIL:
            cluster = _next_cluster(mem)
            if cluster == NIL:
                return NIL, 0
            mem.pool[P_SWAP_CLUSTER] = cluster + 1
            mem.pool[P_SWAP_NEXT] = cluster << HPAGE_PMD_ORDER
        end = (cluster + 1) << HPAGE_PMD_ORDER
        slot = mem.pool[P_SWAP_NEXT]
        while slot < end and slot_in_use(mem, slot):
            slot += 1
        if slot < end:
            break
        mem.pool[P_SWAP_CLUSTER] = 0
        count = int(mem.swap_cluster[_row(cluster)].count)
        if count < HPAGE_PMD_NR:
            _append(mem, cluster, CLUSTER_NONFULL if count > 0 else CLUSTER_FREE)
    taken = 0
    while taken < nr and slot + taken < end and not slot_in_use(mem, slot + taken):
        taken += 1
    mem.pool[P_SWAP_NEXT] = slot + taken
    mem.swap_cluster[_row(cluster)].count += taken
    mem.pool[P_SWAP_FREE] -= taken
    return slot, taken


@kernel
def slot_free(mem: Memory, slot: int) -> None:
    """Return a slot that nothing uses any more."""
    cluster = slot >> HPAGE_PMD_ORDER
    row = _row(cluster)
    mem.swap_cluster[row].count -= 1
    mem.pool[P_SWAP_FREE] += 1
    if mem.pool[P_SWAP_CLUSTER] == cluster + 1:
        return
    count = int(mem.swap_cluster[row].count)
    state = int(mem.swap_cluster[row].state)
    if count == 0:
        if state == CLUSTER_NONFULL:
            _unlink(mem, cluster)
        _append(mem, cluster, CLUSTER_FREE)
    elif state == CLUSTER_USED:
        _append(mem, cluster, CLUSTER_NONFULL)


@kernel
def swap_free(mem: Memory, slot: int) -> int:
    """Drop one page-table entry's use of a slot; return how many are left."""
    mem.swap_map[slot] -= 1
    left = int(mem.swap_map[slot])
    if left == 0 and mem.swap_cache[slot] == 0:
        slot_free(mem, slot)
    return left


@kernel
def delete_from_swap_cache(mem: Memory, slot: int) -> None:
    """Let the swap cache forget a slot's page."""
    mem.swap_cache[slot] = 0
    if mem.swap_map[slot] == 0:
        slot_free(mem, slot)
