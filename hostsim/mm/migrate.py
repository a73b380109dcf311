"""Page migration: the pages of extents move to other frames, with all their mappings.

A frame leads to its extents by its pageblock's list, and so to the owners; a piece of an extent
that moves as a whole keeps its place in its window's list, so that only frames change.

Source: Linux v6.1 and v6.12 mm/migrate.c migrate_pages; mm/compaction.c compaction_alloc.
Simplified: a migration does not fail for a lock or a passing reference.
"""

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER, NO_PFN, PAGEBLOCK_ORDER
from hostsim.mm.compact_control import CC_MAP, CC_NR_MIGRATE, CC_NR_WANTED, CC_SOURCE
from hostsim.mm.compact_target import compaction_alloc
from hostsim.mm.cost import C_MIGRATE_PAGE, charge
from hostsim.mm.ksm_tree import ksm_migrate_page
from hostsim.mm.lru_stamp import extent_stamp
from hostsim.mm.mm_types import NIL, P_MAP_SEQ, Memory
from hostsim.mm.mmu_notifier import notify
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    EXT_PMD,
    EXT_SHARED,
    KIND_ANON,
    KIND_MASK,
    KIND_SWAPCACHE,
    cut_extent,
    del_extent,
    extents_of,
    frame_at,
    is_movable,
    set_extents_of,
)
from hostsim.mm.vmstat import PGMIGRATE_FAIL, PGMIGRATE_SUCCESS


@inline_kernel
def is_migratable(mem: Memory, x: int) -> bool:
    """Tell whether an extent's pages can move, pins apart: they are on the LRU lists."""
    kind = mem.ext[x].flags & KIND_MASK
    return is_movable(kind) and mem.ext[x].flags & EXT_PMD == 0


@kernel
def _remap(mem: Memory, x: int, pfn: int, descending: bool) -> None:
    """Let an extent map other frames, ``pfn`` the lowest; every moved page passes here."""
    vpn = int(mem.ext[x].vpn)
    mem.pool[P_MAP_SEQ] += 1
    kind = int(mem.ext[x].flags) & KIND_MASK
    if kind == KIND_ANON:
        notify(mem, int(mem.ext[x].owner), vpn >> HPAGE_PMD_ORDER, vpn, vpn + int(mem.ext[x].nr))
    before = int(mem.ext[x].prev_b)
    after = int(mem.ext[x].next_b)
    if after != NIL:
        mem.ext[after].prev_b = before
    if before != NIL:
        mem.ext[before].next_b = after
    else:
        set_extents_of(mem, int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER, after)
    mem.ext[x].pfn = pfn
    flags = int(mem.ext[x].flags) & ~EXT_DESCENDING
    mem.ext[x].flags = flags | (EXT_DESCENDING if descending and mem.ext[x].nr > 1 else 0)
    pb = pfn >> PAGEBLOCK_ORDER
    head = extents_of(mem, pb)
    mem.ext[x].next_b = head
    mem.ext[x].prev_b = NIL
    if head != NIL:
        mem.ext[head].prev_b = x
    set_extents_of(mem, pb, x)
    if kind == KIND_SWAPCACHE:
        for slot in range(vpn, vpn + int(mem.ext[x].nr)):
            mem.swap_cache[slot] = frame_at(mem, x, slot) + 1


@kernel
def merge_next(mem: Memory, x: int) -> bool:
    """Join an extent with the next one of its window if that continues it on both sides."""
    if mem.ext[x].flags & KIND_MASK != KIND_ANON:
        return False
    y = int(mem.ext[x].next)
    if y == NIL or mem.ext[y].vpn != mem.ext[x].vpn + int(mem.ext[x].nr):
        return False
    flags = int(mem.ext[x].flags)
    other = int(mem.ext[y].flags)
    if (flags ^ other) & ~EXT_DESCENDING != 0 or extent_stamp(mem, x) != extent_stamp(mem, y):
        return False
    pfn = int(mem.ext[x].pfn)
    nr = int(mem.ext[x].nr)
    next_pfn = int(mem.ext[y].pfn)
    next_nr = int(mem.ext[y].nr)
    if pfn >> PAGEBLOCK_ORDER != next_pfn >> PAGEBLOCK_ORDER:
        return False
    upward = (nr == 1 or flags & EXT_DESCENDING == 0) and (
        next_nr == 1 or other & EXT_DESCENDING == 0
    )
    downward = (nr == 1 or flags & EXT_DESCENDING != 0) and (
        next_nr == 1 or other & EXT_DESCENDING != 0
    )
    if upward and next_pfn == pfn + nr:
        mem.ext[x].flags = flags & ~EXT_DESCENDING
    elif downward and next_pfn + next_nr == pfn:
        mem.ext[x].flags = flags | EXT_DESCENDING
        mem.ext[x].pfn = next_pfn
    else:
        return False
    mem.ext[x].nr = nr + next_nr
    mem.ext[x].next = mem.ext[y].next
    del_extent(mem, y)
    return True


@kernel
def _only(mem: Memory, x: int, frame: int) -> int:
    """Cut an extent so that one frame has an extent of its own; return that."""
    vpn = int(mem.ext[x].vpn)
    if mem.ext[x].flags & EXT_DESCENDING:
        page = vpn + int(mem.ext[x].pfn) + int(mem.ext[x].nr) - 1 - frame
    else:
        page = vpn + frame - int(mem.ext[x].pfn)
    if page > vpn:
        x = cut_extent(mem, x, page)
    if mem.ext[x].nr > 1:
        cut_extent(mem, x, page + 1)
    return x


@kernel
def _migrate_shared(mem: Memory, frame: int, target: int) -> None:
    """Move one frame that several processes may map."""
    x = extents_of(mem, frame >> PAGEBLOCK_ORDER)
    while x != NIL:
        after = int(mem.ext[x].next_b)
        first = int(mem.ext[x].pfn)
        if first <= frame < first + int(mem.ext[x].nr):
            _remap(mem, _only(mem, x, frame), target, False)
        x = after
    ksm_migrate_page(mem, frame, target)


@kernel
def _top_piece(mem: Memory, x: int, nr: int) -> tuple[int, int]:
    """Cut the ``nr`` highest frames off an extent; return their extent and that of the rest."""
    rest = int(mem.ext[x].nr) - nr
    if rest == 0:
        return x, NIL
    if mem.ext[x].flags & EXT_DESCENDING:
        return x, cut_extent(mem, x, int(mem.ext[x].vpn) + nr)
    return cut_extent(mem, x, int(mem.ext[x].vpn) + rest), x


@kernel
def _migrate_extent(mem: Memory, x: int, nr: int) -> int:
    """Move an extent whose ``nr`` pages are the last ones to move; return how many found a place.

    The highest frame goes first, as in the kernel's list, and each frame is freed when its page
    has moved.
    """
    source = int(mem.ext[x].pfn) >> PAGEBLOCK_ORDER
    frame = int(mem.ext[x].pfn) + nr - 1
    moved = 0
    before = NIL  # a piece already moved whose next one is the rest
    while moved < nr:
        target, taken, step = compaction_alloc(mem, nr - moved)
        if target == NO_PFN:
            return moved
        piece, rest = _top_piece(mem, x, taken)
        down = (mem.ext[piece].flags & EXT_DESCENDING != 0) == (step < 0)
        _remap(mem, piece, target if step > 0 else target - taken + 1, down)
        if target >> PAGEBLOCK_ORDER != source:  # else scanned extents could vanish
            if before != NIL and merge_next(mem, before):
                piece = before
            if rest == NIL or mem.ext[piece].next != rest:
                merge_next(mem, piece)
        before = piece if rest != NIL and mem.ext[piece].next == rest else NIL
        x = rest
        free_pages(mem, frame, taken, -1)
        frame -= taken
        moved += taken
    return moved


@kernel
def _extent_to_move(mem: Memory) -> tuple[int, int]:
    """Return an extent of exactly the last pages to move that one extent maps, and how many."""
    nr = mem.compact[CC_NR_MIGRATE]
    base = mem.compact[CC_SOURCE + nr - 1] >> PAGEBLOCK_ORDER << PAGEBLOCK_ORDER
    frame = mem.compact[CC_SOURCE + nr - 1]
    x = mem.compact[CC_MAP + frame - base]
    taken = 1
    while (
        taken < nr
        and mem.compact[CC_SOURCE + nr - 1 - taken] == frame - taken
        and mem.compact[CC_MAP + frame - taken - base] == x
    ):
        taken += 1
    if mem.ext[x].flags & EXT_SHARED:
        return x, taken
    above = int(mem.ext[x].pfn) + int(mem.ext[x].nr) - 1 - frame
    if above > 0:
        _, x = _top_piece(mem, x, above)
    if mem.ext[x].nr > taken:
        x, _ = _top_piece(mem, x, taken)
    return x, taken


@kernel
def migrate_pages(mem: Memory) -> bool:
    """Move the isolated pages to isolated free pages; tell whether all found one.

    6.12 looks for places for the pages still to move, 6.1 for as many as there were at first.
    """
    mem.compact[CC_NR_WANTED] = mem.compact[CC_NR_MIGRATE]
    while mem.compact[CC_NR_MIGRATE] > 0:
        x, nr = _extent_to_move(mem)
        if mem.ext[x].flags & EXT_SHARED:
            moved = _migrate_run(mem, nr)
        else:
            moved = _migrate_extent(mem, x, nr)
        mem.vmstat[PGMIGRATE_SUCCESS] += moved
        charge(mem, C_MIGRATE_PAGE, moved)
        mem.compact[CC_NR_MIGRATE] -= moved
        if moved < nr:
            mem.vmstat[PGMIGRATE_FAIL] += 1
            return False
    return True


@kernel
def _migrate_run(mem: Memory, nr: int) -> int:
    """Move the last ``nr`` pages, shared ones, one by one; return how many found a place."""
    end = mem.compact[CC_NR_MIGRATE]
    for i in range(nr):
        target, _, _ = compaction_alloc(mem, 1)
        if target == NO_PFN:
            return i
        frame = mem.compact[CC_SOURCE + end - 1 - i]
        _migrate_shared(mem, frame, target)
        free_pages(mem, frame, 1, 1)
    return nr
