"""LRU lists without links: every extent and huge page carries a stamp.

A stamp is a generation, counted up by one for each batch of pages that is put at a list's head
and down for each put at a tail, and flags that say on which list it is.  The order of a list is
the order of its stamps; it is found, by sorting, when reclaim begins to scan and has used up what
it found before.  Entries whose stamp has changed since are skipped; new pages come after all of
them, and pages put at the tail are pushed in front.

An entity on a list is a huge page (`Memory.lru` by pageblock, also when page tables map it, or
the swap cache alone holds it) or an extent of small pages (its field ``lru``).

Source: the role of struct lruvec and page->lru, Linux v6.1 include/linux/mmzone.h; mm/swap.c
lru_add_fn: new anonymous pages start inactive (since 5.9).
Simplified: the pages of one extent have one place on a list and one accessed bit.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, PAGEBLOCK_ORDER
from hostsim.mm.lru_stamp import (
    LRU_ACTIVE,
    LRU_FLAGS,
    LRU_LAST_GENERATION,
    LRU_SHIFT,
    extent_stamp,
    huge_stamp,
    keeps_lru,
    set_extent_stamp,
    set_huge_stamp,
)
from hostsim.mm.mm_types import (
    N_LRU_ACTIVE,
    N_LRU_ANON,
    N_LRU_END,
    N_LRU_FILE,
    N_LRU_FIRST,
    NIL,
    NR_LRU_LISTS,
    P_EXT_USED,
    P_LRU_SEQ,
    P_LRU_TAIL,
    P_NODE_PAGES,
    P_PAGEBLOCKS,
    P_ZERO_PB,
    Memory,
)
from hostsim.mm.mmap import huge_word, window_word
from hostsim.mm.pb_packed import pb_b
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FULL,
    PB_HUGE,
    PB_PARTIAL,
    pageblock_state,
    pfn_to_nid,
)
from hostsim.mm.rmap import KIND_ANON, KIND_FILE, KIND_MASK, KIND_SWAPCACHE

INACTIVE_ANON: Final = 0
ACTIVE_ANON: Final = 1
INACTIVE_FILE: Final = 2
ACTIVE_FILE: Final = 3

_KEY_SHIFT: Final = 33  # of a generation in a key; entity << 1 | whether a pageblock below


@inline_kernel
def fresh_stamp(mem: Memory, flags: int) -> int:
    """Return the stamp of pages put at the head of a list now."""
    mem.pool[P_LRU_SEQ] += 1
    if mem.pool[P_LRU_SEQ] >= LRU_LAST_GENERATION:
        halve_generations(mem)
    return (mem.pool[P_LRU_SEQ] << LRU_SHIFT) | flags


@inline_kernel
def tail_stamp(mem: Memory, flags: int) -> int:
    """Return the stamp of pages put at the tail of a list now."""
    mem.pool[P_LRU_TAIL] = max(mem.pool[P_LRU_TAIL] - 1, 0)
    return (mem.pool[P_LRU_TAIL] << LRU_SHIFT) | flags


@kernel
def halve_generations(mem: Memory) -> None:
    """Renumber: every generation is halved, so that order stays and neighbours may tie."""
    nr_huge = mem.pool[P_PAGEBLOCKS] if keeps_lru(mem) else 0
    for pb in range(nr_huge):
        stamp = huge_stamp(mem, pb)
        if stamp != 0:
            set_huge_stamp(mem, pb, (stamp >> (LRU_SHIFT + 1) << LRU_SHIFT) | (stamp & LRU_FLAGS))
    nr_small = mem.pool[P_EXT_USED] if keeps_lru(mem) else 0
    for x in range(nr_small):
        stamp = extent_stamp(mem, x)
        if stamp != 0:
            set_extent_stamp(mem, x, (stamp >> (LRU_SHIFT + 1) << LRU_SHIFT) | (stamp & LRU_FLAGS))
    mem.pool[P_LRU_SEQ] = (mem.pool[P_LRU_SEQ] >> 1) + 1
    mem.pool[P_LRU_TAIL] >>= 1
    for nid in range(len(mem.node)):
        for lru in range(NR_LRU_LISTS):
            mem.node[nid, N_LRU_FIRST + lru] = 0
            mem.node[nid, N_LRU_END + lru] = 0


@kernel
def huge_on_lru(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock is a huge page on a list."""
    state = pageblock_state(mem, pb)
    if state == PB_COMPOUND:
        return True
    if state != PB_HUGE or pb == mem.pool[P_ZERO_PB] - 1 or mem.pb[pb].a == NIL:
        return False
    return window_word(mem, int(mem.pb[pb].a), pb_b(mem, pb)) == huge_word(pb)


@kernel
def extent_on_lru(mem: Memory, x: int, file: bool) -> bool:
    """Tell whether an extent is an entity of the anonymous or of the file lists."""
    if mem.ext[x].nr == 0:
        return False
    kind = int(mem.ext[x].flags) & KIND_MASK
    if file:
        return kind == KIND_FILE
    if kind != KIND_ANON and kind != KIND_SWAPCACHE:
        return False
    state = pageblock_state(mem, int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER)
    return state == PB_FULL or state == PB_PARTIAL


@inline_kernel
def _room(mem: Memory) -> int:
    """Return how many keys a list's part of the queue holds."""
    return mem.lru_queue.size // (NR_LRU_LISTS * len(mem.node))


@inline_kernel
def _base(mem: Memory, nid: int, lru: int) -> int:
    """Return where a list's part of the queue begins."""
    return _room(mem) * (nid * NR_LRU_LISTS + lru)


@kernel
def collect(mem: Memory, nid: int, lru: int) -> int:
    """Find the entities of a list and put them into its queue, oldest first; return its pages."""
    file = lru >= INACTIVE_FILE
    active = LRU_ACTIVE if lru == ACTIVE_ANON or lru == ACTIVE_FILE else 0
    base = _base(mem, nid, lru)
    room = _room(mem)
    nr = 0
    pages = 0
    if not file:
        nr_pageblocks = mem.pool[P_NODE_PAGES] >> PAGEBLOCK_ORDER
        for pb in range(nid * nr_pageblocks, (nid + 1) * nr_pageblocks):
            if huge_stamp(mem, pb) & LRU_ACTIVE == active and huge_on_lru(mem, pb):
                generation = huge_stamp(mem, pb) >> LRU_SHIFT
                mem.lru_queue[base + nr] = (generation << _KEY_SHIFT) | (pb << 1) | 1
                nr += 1
                pages += HPAGE_PMD_NR
    for x in range(mem.pool[P_EXT_USED]):
        if extent_stamp(mem, x) & LRU_ACTIVE == active and extent_on_lru(mem, x, file):
            if pfn_to_nid(mem, int(mem.ext[x].pfn)) != nid:
                continue
            generation = extent_stamp(mem, x) >> LRU_SHIFT
            mem.lru_queue[base + nr] = (generation << _KEY_SHIFT) | (x << 1)
            nr += 1
            pages += int(mem.ext[x].nr)
    _sort(mem, base, nr)
    shift = min(nr, room - nr)  # what is put at the tail goes in front
    for i in range(nr - 1, -1, -1):
        mem.lru_queue[base + shift + i] = mem.lru_queue[base + i]
    mem.node[nid, N_LRU_FIRST + lru] = shift
    mem.node[nid, N_LRU_END + lru] = shift + nr
    return pages


@kernel
def _sift(mem: Memory, base: int, start: int, nr: int) -> None:
    """Let a key sink to its place in a heap."""
    at = start
    key = mem.lru_queue[base + at]
    while True:
        child = 2 * at + 1
        if child >= nr:
            break
        if child + 1 < nr and mem.lru_queue[base + child + 1] > mem.lru_queue[base + child]:
            child += 1
        if mem.lru_queue[base + child] <= key:
            break
        mem.lru_queue[base + at] = mem.lru_queue[base + child]
        at = child
    mem.lru_queue[base + at] = key


@kernel
def _sort(mem: Memory, base: int, nr: int) -> None:
    """Sort keys in place (heap sort: no work space, no bad case)."""
    for start in range(nr // 2 - 1, -1, -1):
        _sift(mem, base, start, nr)
    for end in range(nr - 1, 0, -1):
        key = mem.lru_queue[base + end]
        mem.lru_queue[base + end] = mem.lru_queue[base]
        mem.lru_queue[base] = key
        _sift(mem, base, 0, end)


@inline_kernel
def key_of(entity: int, stamp: int) -> int:
    """Return the key of an entity with a stamp."""
    return ((stamp >> LRU_SHIFT) << _KEY_SHIFT) | entity


@kernel
def _entity_of(mem: Memory, key: int, lru: int) -> int:
    """Return the entity of a key, or NIL if it is not at that place of that list any more."""
    active = LRU_ACTIVE if lru == ACTIVE_ANON or lru == ACTIVE_FILE else 0
    entity = key & ((1 << _KEY_SHIFT) - 1)
    at = entity >> 1
    if entity & 1:
        alive = huge_on_lru(mem, at)
        stamp = huge_stamp(mem, at)
    else:
        alive = extent_on_lru(mem, at, lru >= INACTIVE_FILE)
        stamp = extent_stamp(mem, at)
    if alive and stamp >> LRU_SHIFT == key >> _KEY_SHIFT and stamp & LRU_ACTIVE == active:
        return entity
    return NIL


@kernel
def next_entity(mem: Memory, nid: int, lru: int) -> int:
    """Take the oldest entity off a list's queue; NIL if the queue is used up.

    Returns
    -------
    int
        ``pageblock << 1 | 1`` of a huge page, ``extent << 1`` of small pages.
    """
    base = _base(mem, nid, lru)
    own = mem.node[nid]
    while own[N_LRU_FIRST + lru] < own[N_LRU_END + lru]:
        key = mem.lru_queue[base + own[N_LRU_FIRST + lru]]
        own[N_LRU_FIRST + lru] += 1
        entity = _entity_of(mem, key, lru)
        if entity != NIL:
            return entity
    return NIL


@kernel
def push_front(mem: Memory, lru: int, entity: int, stamp: int) -> None:
    """Let an entity just put at a list's tail be the next that is taken off.

    An empty queue is found anew, which puts the entity first, too.
    """
    at = entity >> 1
    pfn = at << PAGEBLOCK_ORDER if entity & 1 else int(mem.ext[at].pfn)
    nid = pfn_to_nid(mem, pfn)
    first = mem.node[nid, N_LRU_FIRST + lru]
    if first == 0 or first >= mem.node[nid, N_LRU_END + lru]:
        return
    mem.node[nid, N_LRU_FIRST + lru] = first - 1
    mem.lru_queue[_base(mem, nid, lru) + first - 1] = key_of(entity, stamp)


@kernel
def rotate(mem: Memory, key: int, lru: int) -> None:
    """Put an entity, if it is where its key says, at the tail of its list."""
    entity = _entity_of(mem, key, lru)
    if entity == NIL:
        return
    if entity & 1:
        set_huge_stamp(mem, entity >> 1, tail_stamp(mem, huge_stamp(mem, entity >> 1) & LRU_FLAGS))
        push_front(mem, lru, entity, huge_stamp(mem, entity >> 1))
    else:
        x = entity >> 1
        set_extent_stamp(mem, x, tail_stamp(mem, extent_stamp(mem, x) & LRU_FLAGS))
        push_front(mem, lru, entity, extent_stamp(mem, x))


@kernel
def lru_size(mem: Memory, nid: int, lru: int) -> int:
    """Return the pages on a list of a node.

    Those of the active lists are counted when their queue is filled; pages unmapped since are
    still in.
    """
    if lru == ACTIVE_ANON or lru == ACTIVE_FILE:
        return mem.node[nid, N_LRU_ACTIVE + (1 if lru == ACTIVE_FILE else 0)]
    if lru == INACTIVE_FILE:
        return max(mem.node[nid, N_LRU_FILE] - mem.node[nid, N_LRU_ACTIVE + 1], 0)
    return max(mem.node[nid, N_LRU_ANON] - mem.node[nid, N_LRU_ACTIVE], 0)
