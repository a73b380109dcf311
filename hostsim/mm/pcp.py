"""Per-CPU page lists: they hide free pages from the buddy lists and keep them from merging.

A list is a chain of runs of pages at equal steps, so that a run of a thousand pages costs as
much as one page.

Source: Linux v6.1 and v6.12 mm/page_alloc.c: rmqueue_bulk, __rmqueue_pcplist, nr_pcp_alloc,
nr_pcp_high, nr_pcp_free, free_unref_page_commit, free_pcppages_bulk, decay_pcp_high.
Simplified: the lists of all CPUs of a node are one set with the limits times the CPUs; CPUs of
other nodes use the same set.
"""

from typing import Final

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.prefetch import prefetch
from hostsim.core.units import COSTLY_ORDER, HPAGE_PMD_ORDER, PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.buddy import free_block, free_run
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NIL,
    NR_PCP_LISTS,
    NR_PCP_TYPES,
    P_RECLAIM_ACTIVE,
    P_RUN_FREE,
    P_RUN_USED,
    PCP_ALLOC_FACTOR,
    PCP_BELOW_HIGH,
    PCP_COUNT,
    PCP_FREE_COUNT,
    PCP_FREE_FACTOR,
    PCP_HIGH,
    PCP_PREV_HIGH_ORDER,
    Z_FREE,
    Z_PCP_BATCH,
    Z_PCP_HIGH_MAX,
    Z_PCP_HIGH_MIN,
    Z_WMARK_HIGH,
    Memory,
)
from hostsim.mm.physmem import PB_PCP, get_pageblock_migratetype, set_state, zone_of, zone_to_nid
from hostsim.mm.tunables import T_PCP_ORDER_0

LIST_THP: Final = NR_PCP_LISTS - 2  # 6.1 keeps one THP list, 6.12 another for movable
SCALE_MAX: Final = 5  # CONFIG_PCP_BATCH_SCALE_MAX


@kernel
def init_pcp(mem: Memory) -> None:
    """Make every list empty."""
    nr_heads = len(mem.zone) * NR_PCP_LISTS
    for head in range(nr_heads):
        mem.run[head].next = head
        mem.run[head].prev = head
    mem.pool[P_RUN_USED] = nr_heads
    mem.pool[P_RUN_FREE] = 0


@inline_kernel
def list_index(order: int, migratetype: int, era_6_12: bool) -> int:
    """Return the list of an order and type (order_to_pindex)."""
    if order == HPAGE_PMD_ORDER:
        return LIST_THP + (1 if era_6_12 and migratetype == MIGRATE_MOVABLE else 0)
    return order * NR_PCP_TYPES + migratetype


@inline_kernel
def list_order(index: int) -> int:
    """Return the order of a list's blocks (pindex_to_order)."""
    return HPAGE_PMD_ORDER if index >= LIST_THP else index // NR_PCP_TYPES


@hot_kernel
def _new_run(mem: Memory, first: int, nr: int, step: int, before: int) -> None:
    """Link a new run behind a slot."""
    run = mem.pool[P_RUN_FREE] - 1
    if run != NIL:
        mem.pool[P_RUN_FREE] = mem.run[run].next + 1
    else:
        run = mem.pool[P_RUN_USED]
        mem.pool[P_RUN_USED] += 1
    mem.run[run].first = first
    mem.run[run].nr = nr
    mem.run[run].step = step
    after = mem.run[before].next
    mem.run[run].next = after
    mem.run[run].prev = before
    mem.run[after].prev = run
    mem.run[before].next = run


@hot_kernel
def _drop_run(mem: Memory, run: int) -> None:
    """Unlink a run and return it to the pool."""
    mem.run[mem.run[run].prev].next = mem.run[run].next
    mem.run[mem.run[run].next].prev = mem.run[run].prev
    mem.run[run].next = mem.pool[P_RUN_FREE] - 1
    mem.pool[P_RUN_FREE] = run + 1


@hot_kernel
def push_head(mem: Memory, head: int, pfn: int, nr: int, step: int) -> None:
    """Put ``nr`` blocks at a list's head one after the other, ``pfn`` first, ``step`` apart."""
    last = pfn + (nr - 1) * step
    run = int(mem.run[head].next)
    if (
        run != head
        and pfn == mem.run[run].first + step
        and (mem.run[run].nr == 1 or mem.run[run].step == -step)
    ):
        mem.run[run].first = last
        mem.run[run].nr += nr
        mem.run[run].step = -step
        return
    _new_run(mem, last, nr, -step, head)


@hot_kernel
def push_tail(mem: Memory, head: int, pfn: int, nr: int, step: int) -> None:
    """Put ``nr`` blocks at a list's tail one after the other, ``pfn`` first."""
    run = int(mem.run[head].prev)
    if run != head and (mem.run[run].nr == 1 or mem.run[run].step == step):
        if pfn == mem.run[run].first + int(mem.run[run].nr) * step:
            mem.run[run].nr += nr
            mem.run[run].step = step
            return
    _new_run(mem, pfn, nr, step, run)


@hot_kernel
def pop_head(mem: Memory, head: int, nr: int) -> tuple[int, int, int]:
    """Take up to ``nr`` blocks from a list's head that lie at equal steps.

    Returns
    -------
    pfn, taken, step
        First frame of the first block, blocks taken, frames from one to the next.
    """
    run = int(mem.run[head].next)
    taken = min(nr, int(mem.run[run].nr))
    pfn = int(mem.run[run].first)
    step = int(mem.run[run].step)
    if taken == mem.run[run].nr:
        _drop_run(mem, run)
    else:
        mem.run[run].first = pfn + taken * step
        mem.run[run].nr -= taken
    return pfn, taken, step


@hot_kernel
def pop_tail(mem: Memory, head: int, nr: int) -> tuple[int, int, int]:
    """Take up to ``nr`` blocks from a list's tail, the last one first; see `pop_head`."""
    run = int(mem.run[head].prev)
    taken = min(nr, int(mem.run[run].nr))
    step = int(mem.run[run].step)
    pfn = mem.run[run].first + (int(mem.run[run].nr) - 1) * step
    if taken == mem.run[run].nr:
        _drop_run(mem, run)
    else:
        mem.run[run].nr -= taken
    return pfn, taken, -step


@hot_kernel
def free_pages_run(mem: Memory, pfn: int, nr: int, step: int) -> None:
    """Free order-0 pages to the buddy lists one after the other, ``step`` (1 or -1) apart."""
    low = pfn if step > 0 else pfn - nr + 1
    high = low + nr
    while low < high:
        if step > 0:
            stop = min(high, (low | (PAGEBLOCK_NR_PAGES - 1)) + 1)
            free_run(mem, low, stop - low, False)
            low = stop
        else:
            start = max(low, (high - 1) & ~(PAGEBLOCK_NR_PAGES - 1))
            free_run(mem, start, high - start, True)
            high = start


@inline_kernel
def _prefetch_tail(mem: Memory, head: int) -> None:
    """Ask for the record of the pageblock of a list's last run, and the pageblock before."""
    last = int(mem.run[head].prev)
    before = int(mem.run[last].prev)
    prefetch(mem.rec, int(mem.pb[int(mem.run[last].first) >> PAGEBLOCK_ORDER].a))
    prefetch(mem.pb, int(mem.run[before].first) >> PAGEBLOCK_ORDER)


@kernel
def free_pcppages_bulk(mem: Memory, zone: int, count: int, index: int) -> None:
    """Return ``count`` pages from the lists' tails to the buddy, from one list on.

    A list is emptied before the next one is touched.
    """
    count = min(mem.zone[zone, PCP_COUNT], count)
    while count > 0:
        head = zone * NR_PCP_LISTS + index
        if mem.run[head].next == head:
            index = index + 1 if index < NR_PCP_LISTS - 1 else 0
            continue
        order = list_order(index)
        want = max(count >> order, 1)
        pfn, taken, step = pop_tail(mem, head, want)
        count -= taken << order
        mem.zone[zone, PCP_COUNT] -= taken << order
        if order == 0:
            _prefetch_tail(mem, head)
            free_pages_run(mem, pfn, taken, 1 if step > 0 else -1)
        else:
            for i in range(taken):
                free_block(mem, pfn + i * step, order)


@kernel
def drain_zone_pages(mem: Memory, zone: int) -> None:
    """Return everything on a zone's lists to the buddy (drain_all_pages)."""
    free_pcppages_bulk(mem, zone, mem.zone[zone, PCP_COUNT], 0)


@kernel
def nr_pcp_alloc(mem: Memory, zone: int, order: int, era_6_12: bool) -> int:
    """Return how many blocks an empty list is refilled with."""
    base = mem.zone[zone, Z_PCP_BATCH]
    if not era_6_12:
        return max(base >> order, 2) if order > 0 and base > 1 else base
    state = mem.zone[zone]
    high_min = mem.zone[zone, Z_PCP_HIGH_MIN]
    high_max = mem.zone[zone, Z_PCP_HIGH_MAX]
    high = min(max(state[PCP_HIGH], high_min), high_max)
    state[PCP_HIGH] = high
    if high < base:
        return 1
    batch = base if order > 0 else base << state[PCP_ALLOC_FACTOR]
    if high_min != high_max and state[PCP_BELOW_HIGH] == 0:
        high = min(high + batch, high_max)
        state[PCP_HIGH] = high
    if order == 0:
        room = max(high - state[PCP_COUNT] - base, base)
        if batch <= room and state[PCP_ALLOC_FACTOR] < SCALE_MAX:
            state[PCP_ALLOC_FACTOR] += 1
        batch = min(batch, room)
    return max(batch >> order, 2) if batch > 1 else batch


@hot_kernel
def note_alloc(mem: Memory, zone: int, nr: int) -> None:
    """Account ``nr`` allocations from the lists: each halves the pace of freeing."""
    shift = min(nr, 62)
    mem.zone[zone, PCP_FREE_FACTOR] >>= shift
    mem.zone[zone, PCP_FREE_COUNT] >>= shift


@hot_kernel
def _limit_6_1(mem: Memory, zone: int, order: int) -> int:
    """Return the page count at which a free of an order empties the lists (nr_pcp_high, 6.1)."""
    if 0 < order <= COSTLY_ORDER and mem.zone[zone, PCP_FREE_FACTOR] > 0:
        return 0
    high = mem.zone[zone, Z_PCP_HIGH_MIN]
    if mem.pool[P_RECLAIM_ACTIVE] == zone_to_nid(zone) + 1:
        return min(mem.zone[zone, Z_PCP_BATCH] << 2, high)
    return high


@hot_kernel
def _bulk_6_1(mem: Memory, zone: int, limit: int) -> int:
    """Return how many pages one emptying returns (nr_pcp_free, 6.1)."""
    state = mem.zone[zone]
    base = mem.zone[zone, Z_PCP_BATCH]
    if mem.tunables[T_PCP_ORDER_0] != 0:
        return base
    if limit == 0:
        return state[PCP_COUNT]
    if limit < base:
        return 1
    batch = base << state[PCP_FREE_FACTOR]
    if batch < limit - base:
        state[PCP_FREE_FACTOR] += 1
    return min(max(batch, base), limit - base)


@hot_kernel
def _limit_6_12(mem: Memory, zone: int, free_high: bool) -> int:
    """Return the page count at which a free empties the lists, and move it (nr_pcp_high)."""
    state = mem.zone[zone]
    base = mem.zone[zone, Z_PCP_BATCH]
    high_min = mem.zone[zone, Z_PCP_HIGH_MIN]
    high_max = mem.zone[zone, Z_PCP_HIGH_MAX]
    high = min(max(state[PCP_HIGH], high_min), high_max)
    state[PCP_HIGH] = high
    if free_high:
        state[PCP_HIGH] = max(high - (base << SCALE_MAX), high_min)
        return 0
    if mem.pool[P_RECLAIM_ACTIVE] == zone_to_nid(zone) + 1:
        state[PCP_HIGH] = max(high - max(state[PCP_FREE_COUNT], base), high_min)
        return min(base << 2, state[PCP_HIGH])
    if high_min == high_max:
        return high
    if state[PCP_BELOW_HIGH] != 0:
        state[PCP_HIGH] = max(high - max(state[PCP_FREE_COUNT], base), high_min)
        return max(state[PCP_COUNT], high_min)
    if state[PCP_COUNT] >= high:
        need = state[PCP_FREE_COUNT] + base
        if high < need:
            state[PCP_HIGH] = min(max(need, high_min), high_max)
    return high


@hot_kernel
def _bulk_6_12(mem: Memory, zone: int, limit: int, free_high: bool) -> int:
    """Return how many pages one emptying returns (nr_pcp_free, 6.12)."""
    state = mem.zone[zone]
    base = mem.zone[zone, Z_PCP_BATCH]
    if free_high:
        return min(state[PCP_COUNT], base << SCALE_MAX)
    if limit < base:
        return 1
    return min(max(state[PCP_FREE_COUNT], base), limit - base)


@hot_kernel
def _after_free(mem: Memory, zone: int, order: int, nr: int, index: int, era_6_12: bool) -> None:
    """Account ``nr`` blocks just put on a list and return pages to the buddy if due."""
    state = mem.zone[zone]
    state[PCP_COUNT] += nr << order
    if not era_6_12:
        limit = _limit_6_1(mem, zone, order)
        if state[PCP_COUNT] >= limit:
            free_pcppages_bulk(mem, zone, _bulk_6_1(mem, zone, limit), index)
        return
    base = mem.zone[zone, Z_PCP_BATCH]
    state[PCP_ALLOC_FACTOR] >>= min(nr, 62)
    free_high = False
    if 0 < order <= COSTLY_ORDER:
        free_high = state[PCP_FREE_COUNT] >= base and state[PCP_PREV_HIGH_ORDER] != 0
        state[PCP_PREV_HIGH_ORDER] = 1
    else:
        state[PCP_PREV_HIGH_ORDER] = 0
    cap = base << SCALE_MAX
    if state[PCP_FREE_COUNT] < cap:
        grown = state[PCP_FREE_COUNT] + (nr << order)
        state[PCP_FREE_COUNT] = min(grown, cap) if order == 0 else grown
    limit = _limit_6_12(mem, zone, free_high)
    if state[PCP_COUNT] >= limit:
        bulk = _bulk_6_12(mem, zone, limit, free_high)
        free_pcppages_bulk(mem, zone, bulk, index)
        if mem.zone[zone, Z_FREE] > mem.zone[zone, Z_WMARK_HIGH]:
            state[PCP_BELOW_HIGH] = 0


@kernel
def free_unref_run(mem: Memory, pfn: int, nr: int, step: int, era_6_12: bool) -> None:
    """Free order-0 pages through the per-CPU lists, ``step`` (1 or -1) apart.

    All of them lie in one pageblock.  Exactly as one free after the other: the run is cut where
    the lists reach their limit.
    """
    zone = zone_of(mem, pfn)
    migratetype = get_pageblock_migratetype(mem, pfn >> PAGEBLOCK_ORDER)
    index = list_index(0, min(migratetype, NR_PCP_TYPES - 1), era_6_12)
    if migratetype >= NR_PCP_TYPES:
        index = list_index(0, MIGRATE_MOVABLE, era_6_12)
    while nr > 0:
        if mem.pool[P_RECLAIM_ACTIVE] == zone_to_nid(zone) + 1:
            limit = 0
        elif not era_6_12:
            limit = mem.zone[zone, Z_PCP_HIGH_MIN]
        elif mem.zone[zone, PCP_BELOW_HIGH] != 0:
            limit = mem.zone[zone, Z_PCP_HIGH_MIN]
            if mem.zone[zone, PCP_HIGH] != limit:  # which each page freed brings nearer
                limit = 0
        else:
            limit = min(
                max(mem.zone[zone, PCP_HIGH], mem.zone[zone, Z_PCP_HIGH_MIN]),
                mem.zone[zone, Z_PCP_HIGH_MAX],
            )
        here = min(nr, max(limit - mem.zone[zone, PCP_COUNT], 1))
        push_head(mem, zone * NR_PCP_LISTS + index, pfn, here, step)
        _after_free(mem, zone, 0, here, index, era_6_12)
        pfn += here * step
        nr -= here


@kernel
def free_unref_block(mem: Memory, pfn: int, order: int, era_6_12: bool) -> None:
    """Free one block of order 1..3 or 9 through the per-CPU lists."""
    zone = zone_of(mem, pfn)
    pb = pfn >> PAGEBLOCK_ORDER
    migratetype = get_pageblock_migratetype(mem, pb)
    if migratetype >= NR_PCP_TYPES:
        migratetype = MIGRATE_MOVABLE
    if order == HPAGE_PMD_ORDER:
        set_state(mem, pb, PB_PCP, migratetype)
    if mem.tunables[T_PCP_ORDER_0] != 0:
        free_block(mem, pfn, order)
        return
    index = list_index(order, migratetype, era_6_12)
    push_head(mem, zone * NR_PCP_LISTS + index, pfn, 1, 1 << order)
    _after_free(mem, zone, order, 1, index, era_6_12)


@kernel
def decay_pcp(mem: Memory, seconds: int) -> None:
    """Let the once-a-second vmstat worker shrink the lists of 6.12 (decay_pcp_high)."""
    for zone in range(len(mem.zone)):
        state = mem.zone[zone]
        base = mem.zone[zone, Z_PCP_BATCH]
        high_min = mem.zone[zone, Z_PCP_HIGH_MIN]
        for _ in range(seconds):
            high = state[PCP_HIGH]
            if high <= high_min and state[PCP_COUNT] <= high:
                break
            if high > high_min:
                high = max(
                    max(state[PCP_COUNT] - (base << SCALE_MAX), high - (high >> 3)), high_min
                )
                state[PCP_HIGH] = high
            if state[PCP_COUNT] > high:
                free_pcppages_bulk(mem, zone, state[PCP_COUNT] - high, 0)
