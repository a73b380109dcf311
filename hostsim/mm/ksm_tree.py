"""ksmd's bookkeeping: pages it has seen, and the stable and unstable trees.

The trees are hash tables by content: what Linux finds by comparing pages, equal keys tell here.
The stable tree holds merged frames (several of one content once the first has
max_page_sharing mappings), the unstable tree pages that may change any time, forgotten after
each scan.  Only merged frames that may be shared more are on the lists of the stable tree: a
common content, as zero, fills thousands.

Source: Linux v6.1 mm/ksm.c struct ksm_rmap_item, ksm_stable_node, stable_node_dup,
stable_node_chain_add_dup, remove_rmap_item_from_tree, __ksm_enter, __ksm_exit.
Simplified: every search takes the fullest frame with room, not only one in
stable_node_chains_prune_millisecs.
Simplified: what a process's pages left in the trees goes at its exit, not at ksmd's next visit.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import PAGE_BYTES
from hostsim.mm.content import mix_key
from hostsim.mm.contig import count_unmovable
from hostsim.mm.mm_types import (
    MM_KSM_ITEMS,
    MM_KSM_NEXT,
    MM_KSM_PREV,
    MM_MERGEABLE,
    NIL,
    P_KSM_FIRST,
    P_KSM_ITEM_FREE,
    P_KSM_ITEM_USED,
    P_KSM_ITEMS,
    P_KSM_LAST,
    P_KSM_MM,
    P_KSM_NODE_FREE,
    P_KSM_NODE_USED,
    P_KSM_NODES,
    P_KSM_PAGE,
    P_KSM_PREV_ITEM,
    P_KSM_SEQ,
    P_KSM_SHARED,
    P_KSM_SHARING,
    P_KSM_SLAB,
    P_KSM_SLAB_PAGES,
    P_KSM_UNSHARED,
    Memory,
)
from hostsim.mm.numa import mod_node_page_state
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.rmap import del_extent
from hostsim.mm.tunables import T_KSM_MAX_PAGE_SHARING
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_KERNEL, NR_KSM_PAGES

ITEM_BYTES: Final = 64  # struct ksm_rmap_item and ksm_stable_node, mm/ksm.c, with NUMA
SLAB_ITEMS: Final = PAGE_BYTES // ITEM_BYTES
OFF_LIST: Final = -2


@inline_kernel
def _stable_bucket(mem: Memory, key: int) -> int:
    return mix_key(key) & (mem.ksm_stable.size - 1)


@inline_kernel
def _unstable_bucket(mem: Memory, key: int) -> int:
    return mix_key(key) & (mem.ksm_unstable.size - 1)


@inline_kernel
def slab_pages_needed(mem: Memory) -> int:
    """Return the kernel pages that items and nodes fill."""
    items = (mem.pool[P_KSM_ITEMS] + SLAB_ITEMS - 1) // SLAB_ITEMS
    return items + (mem.pool[P_KSM_NODES] + SLAB_ITEMS - 1) // SLAB_ITEMS


@kernel
def trim_slab(mem: Memory) -> None:
    """Free kernel pages that no item or node needs, the newest first."""
    while mem.pool[P_KSM_SLAB_PAGES] > slab_pages_needed(mem):
        x = mem.pool[P_KSM_SLAB] - 1
        pfn = int(mem.ext[x].pfn)
        mem.pool[P_KSM_SLAB] = mem.ext[x].next + 1
        del_extent(mem, x)
        mem.pool[P_KSM_SLAB_PAGES] -= 1
        mem.vmstat[NR_KERNEL] -= 1
        count_unmovable(mem, pfn, -1)
        free_pages(mem, pfn, 1, 1)


@kernel
def _list_node(mem: Memory, node: int) -> None:
    """Put a merged frame with room at the head of its content's list."""
    bucket = _stable_bucket(mem, mem.ksm_node[node].key)
    head = int(mem.ksm_stable[bucket]) - 1
    mem.ksm_node[node].next = head
    mem.ksm_node[node].prev = NIL
    if head != NIL:
        mem.ksm_node[head].prev = node
    mem.ksm_stable[bucket] = node + 1


@kernel
def _unlist_node(mem: Memory, node: int) -> None:
    """Take a merged frame off its content's list, if it is there."""
    before = int(mem.ksm_node[node].prev)
    if before == OFF_LIST:
        return
    after = int(mem.ksm_node[node].next)
    if before != NIL:
        mem.ksm_node[before].next = after
    else:
        mem.ksm_stable[_stable_bucket(mem, mem.ksm_node[node].key)] = after + 1
    if after != NIL:
        mem.ksm_node[after].prev = before
    mem.ksm_node[node].prev = OFF_LIST


@kernel
def new_node(mem: Memory, key: int, pfn: int, maps: int) -> int:
    """Put a merged frame into the stable tree; return its node."""
    node = mem.pool[P_KSM_NODE_FREE] - 1
    if node != NIL:
        mem.pool[P_KSM_NODE_FREE] = mem.ksm_node[node].next + 1
    else:
        node = mem.pool[P_KSM_NODE_USED]
        mem.pool[P_KSM_NODE_USED] += 1
    mem.pool[P_KSM_NODES] += 1
    mem.ksm_node[node].key = key
    mem.ksm_node[node].pfn = pfn
    mem.ksm_node[node].nr = 0
    mem.ksm_node[node].maps = maps
    _list_node(mem, node)
    mem.ksm_frame[pfn] = node + 1
    mem.vmstat[NR_KSM_PAGES] += 1
    return node


@kernel
def _drop_node(mem: Memory, node: int) -> None:
    """Forget a stable node that neither items nor page tables lead to."""
    _unlist_node(mem, node)
    mem.ksm_node[node].next = mem.pool[P_KSM_NODE_FREE] - 1
    mem.pool[P_KSM_NODE_FREE] = node + 1
    mem.pool[P_KSM_NODES] -= 1


@kernel
def ksm_migrate_page(mem: Memory, pfn: int, target: int) -> None:
    """Let a frame's stable node lead to the frame to which its page moved, if it has a node."""
    node = int(mem.ksm_frame[pfn])
    if node == 0:
        return
    mem.ksm_frame[pfn] = 0
    mem.ksm_frame[target] = node
    mem.ksm_node[node - 1].pfn = target


@kernel
def put_ksm_page(mem: Memory, pfn: int) -> None:
    """Drop one mapping of a merged frame, whose extent is already gone; the last frees it."""
    node = int(mem.ksm_frame[pfn]) - 1
    mem.ksm_node[node].maps -= 1
    if mem.ksm_node[node].maps > 0:
        return
    mem.ksm_frame[pfn] = 0
    mem.ksm_node[node].pfn = NIL
    _unlist_node(mem, node)
    if mem.ksm_node[node].nr == 0:
        _drop_node(mem, node)
    mem.vmstat[NR_KSM_PAGES] -= 1
    mod_node_page_state(mem, pfn, NR_ANON_PAGES, -1)
    free_pages(mem, pfn, 1, 1)


@kernel
def stable_node_dup(mem: Memory, key: int) -> int:
    """Return the fullest stable node of a content that may be shared more, or NIL."""
    best = NIL
    most = -1
    node = int(mem.ksm_stable[_stable_bucket(mem, key)]) - 1
    while node != NIL:
        if mem.ksm_node[node].key == key and mem.ksm_node[node].nr > most:
            best = node
            most = int(mem.ksm_node[node].nr)
        node = int(mem.ksm_node[node].next)
    return best


@kernel
def append_item(mem: Memory, item: int, node: int) -> None:
    """Let an item lead to a stable node."""
    if mem.ksm_node[node].nr == 0:
        mem.pool[P_KSM_SHARED] += 1
    else:
        mem.pool[P_KSM_SHARING] += 1
    mem.ksm_node[node].nr += 1
    if mem.ksm_node[node].nr == mem.tunables[T_KSM_MAX_PAGE_SHARING]:
        _unlist_node(mem, node)
    mem.ksm_item[item].node = node


@kernel
def unstable_find(mem: Memory, key: int) -> int:
    """Return the item of a content in this scan's unstable tree, or NIL."""
    seq = mem.pool[P_KSM_SEQ]
    item = int(mem.ksm_unstable[_unstable_bucket(mem, key)]) - 1
    while item != NIL and mem.ksm_item[item].seq == seq:
        if mem.ksm_item[item].checksum == key:
            return item
        item = int(mem.ksm_item[item].chain)
    return NIL


@kernel
def unstable_insert(mem: Memory, item: int, key: int) -> None:
    """Put an item into this scan's unstable tree."""
    bucket = _unstable_bucket(mem, key)
    head = int(mem.ksm_unstable[bucket]) - 1
    if head != NIL and mem.ksm_item[head].seq != mem.pool[P_KSM_SEQ]:
        head = NIL  # the list of an earlier scan
    mem.ksm_item[item].chain = head
    mem.ksm_item[item].seq = mem.pool[P_KSM_SEQ]
    mem.ksm_unstable[bucket] = item + 1
    mem.pool[P_KSM_UNSHARED] += 1


@kernel
def remove_item_from_tree(mem: Memory, item: int) -> None:
    """Take an item out of the tree in which it is, if any."""
    node = int(mem.ksm_item[item].node)
    if node != NIL:
        mem.ksm_item[item].node = NIL
        mem.ksm_node[node].nr -= 1
        if (
            mem.ksm_node[node].nr == mem.tunables[T_KSM_MAX_PAGE_SHARING] - 1
            and mem.ksm_node[node].pfn != NIL
        ):
            _list_node(mem, node)
        if mem.ksm_node[node].nr == 0:
            mem.pool[P_KSM_SHARED] -= 1
            if mem.ksm_node[node].maps == 0:
                _drop_node(mem, node)
        else:
            mem.pool[P_KSM_SHARING] -= 1
    if mem.ksm_item[item].seq != 0:
        if mem.ksm_item[item].seq == mem.pool[P_KSM_SEQ]:
            bucket = _unstable_bucket(mem, mem.ksm_item[item].checksum)
            x = int(mem.ksm_unstable[bucket]) - 1
            if x == item:
                mem.ksm_unstable[bucket] = mem.ksm_item[item].chain + 1
            else:
                while mem.ksm_item[x].chain != item:
                    x = int(mem.ksm_item[x].chain)
                mem.ksm_item[x].chain = mem.ksm_item[item].chain
        mem.ksm_item[item].seq = 0
        mem.pool[P_KSM_UNSHARED] -= 1


@kernel
def free_item(mem: Memory, item: int) -> None:
    """Forget an item that is off its process's list."""
    remove_item_from_tree(mem, item)
    mem.ksm_item[item].next = mem.pool[P_KSM_ITEM_FREE] - 1
    mem.pool[P_KSM_ITEM_FREE] = item + 1
    mem.pool[P_KSM_ITEMS] -= 1


@kernel
def new_item(mem: Memory, mm: int, vpn: int, after: int) -> int:
    """Return a new item of a page, to be linked by the caller; NIL if there is no room."""
    item = mem.pool[P_KSM_ITEM_FREE] - 1
    if item != NIL:
        mem.pool[P_KSM_ITEM_FREE] = mem.ksm_item[item].next + 1
    elif mem.pool[P_KSM_ITEM_USED] < mem.ksm_item.size:
        item = mem.pool[P_KSM_ITEM_USED]
        mem.pool[P_KSM_ITEM_USED] += 1
    else:
        return NIL
    mem.pool[P_KSM_ITEMS] += 1
    mem.ksm_item[item].checksum = NIL
    mem.ksm_item[item].vpn = vpn
    mem.ksm_item[item].mm = mm
    mem.ksm_item[item].node = NIL
    mem.ksm_item[item].seq = 0
    mem.ksm_item[item].age = 0
    mem.ksm_item[item].skips = 0
    mem.ksm_item[item].next = after
    return item


@kernel
def free_items_from(mem: Memory, mm: int, before: int) -> None:
    """Forget the items of a process behind one (NIL: all)."""
    item = int(mem.ksm_item[before].next) if before != NIL else mem.mm[mm, MM_KSM_ITEMS] - 1
    while item != NIL:
        after = int(mem.ksm_item[item].next)
        free_item(mem, item)
        item = after
    if before != NIL:
        mem.ksm_item[before].next = NIL
    else:
        mem.mm[mm, MM_KSM_ITEMS] = 0


@kernel
def ksm_enter(mem: Memory, mm: int) -> None:
    """Put a process on ksmd's list, just behind the cursor, so that it is visited last."""
    if mem.mm[mm, MM_MERGEABLE] != 0:
        return
    mem.mm[mm, MM_MERGEABLE] = 1
    after = mem.pool[P_KSM_MM]
    before = mem.mm[after - 1, MM_KSM_PREV] if after != 0 else mem.pool[P_KSM_LAST]
    mem.mm[mm, MM_KSM_NEXT] = after
    mem.mm[mm, MM_KSM_PREV] = before
    if before != 0:
        mem.mm[before - 1, MM_KSM_NEXT] = mm + 1
    else:
        mem.pool[P_KSM_FIRST] = mm + 1
    if after != 0:
        mem.mm[after - 1, MM_KSM_PREV] = mm + 1
    else:
        mem.pool[P_KSM_LAST] = mm + 1


@kernel
def ksm_exit(mem: Memory, mm: int) -> None:
    """Take a process off ksmd's list, with all that is known of its pages."""
    if mem.mm[mm, MM_MERGEABLE] == 0:
        return
    free_items_from(mem, mm, NIL)
    after = mem.mm[mm, MM_KSM_NEXT]
    before = mem.mm[mm, MM_KSM_PREV]
    if mem.pool[P_KSM_MM] == mm + 1:
        mem.pool[P_KSM_MM] = after
        mem.pool[P_KSM_PAGE] = 0
        mem.pool[P_KSM_PREV_ITEM] = 0
    if before != 0:
        mem.mm[before - 1, MM_KSM_NEXT] = after
    else:
        mem.pool[P_KSM_FIRST] = after
    if after != 0:
        mem.mm[after - 1, MM_KSM_PREV] = before
    else:
        mem.pool[P_KSM_LAST] = before
    mem.mm[mm, MM_MERGEABLE] = 0
    trim_slab(mem)
