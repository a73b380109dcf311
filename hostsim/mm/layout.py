"""Where a zone's free blocks lie, given only how many there are: by order, by type.

A free block of order k is a half of an aligned run of order k + 1 that is not wholly free, else it
would have merged.  So a pageblock that is not wholly free is a run of order 9; of such runs of
order k + 1 as many as there are blocks of order k give one half to a block and keep the other as
a run of order k, the others become two runs of order k each.  A state of a real zone always fits.

The rule: pageblocks of a zone from its start, the types Unmovable, Reclaimable, Movable, HighAtomic
in turn; of a type's pageblocks first those without free memory, then those with small free blocks,
then whole free ones.  Small blocks are spread thinly, one of an order a pageblock until every
pageblock has one; pageblocks known to hold huge pages get none while the others suffice.  If the
types do not fit one after the other, whole free pageblocks of all types stand beside pageblocks
that are not free, and order-10 blocks last.
"""

import functools
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import kernel
from hostsim.core.units import (
    HPAGE_PMD_ORDER,
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.buddy import HEAD, TAIL, add_free_block, add_free_pageblocks
from hostsim.mm.mm_types import (
    MIGRATE_HIGHATOMIC,
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NIL,
    NR_SMALL_ORDERS,
    NR_TYPES,
    TYPE_NAMES,
    Z_FREE,
    Memory,
)
from hostsim.mm.physmem import (
    PB_FULL,
    PB_PARTIAL,
    record_alloc,
    set_frames,
    set_pageblock_migratetype,
    set_state,
)
from hostsim.mm.rmap import KIND_BOOT, add_extent

LAYOUT_TYPES: Final = (
    MIGRATE_UNMOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_MOVABLE,
    MIGRATE_HIGHATOMIC,
)

USED: Final = 0  # what a pageblock is to hold: no wholly free one; with small blocks or without
NINE: Final = 1  # a free block of order 9
TEN: Final = 2  # the first half of one of order 10
TEN_TAIL: Final = 3


class ZoneState(NamedTuple):
    """What pagetypeinfo says of one zone."""

    free: NDArray[np.int64]  # (types, 11) free blocks
    pageblocks: NDArray[np.int64]  # (types,)
    keep_full: int = 0  # movable pageblocks that hold huge pages


class Plan(NamedTuple):
    """What every pageblock of a zone is to hold."""

    holds: NDArray[np.int64]  # USED, NINE and so on
    label: NDArray[np.int64]
    on_type: NDArray[np.int64]  # on which type's lists its free blocks stand
    blocks: NDArray[np.int64]  # (pageblocks, 9) small free blocks


def fits_in(blocks: NDArray[np.int64], nr: int) -> bool:
    """Tell whether small free blocks, by order, fit into so many pageblocks."""
    runs = nr
    for order in range(NR_SMALL_ORDERS - 1, -1, -1):
        if blocks[order] > runs:
            return False
        runs = 2 * runs - int(blocks[order])
    return True


def pageblocks_needed(blocks: NDArray[np.int64]) -> int:
    """Return the fewest pageblocks that hold small free blocks."""
    least, most = 0, int(blocks[:NR_SMALL_ORDERS].sum())
    while least < most:
        middle = (least + most) // 2
        if fits_in(blocks, middle):
            most = middle
        else:
            least = middle + 1
    return least


def spread(blocks: NDArray[np.int64], nr: int, keep_full: int = 0) -> NDArray[np.int64]:
    """Return how many small blocks of each order each of ``nr`` pageblocks gets, thinly.

    The blocks fit in (`fits_in`); the last ``keep_full`` pageblocks get none, or as many of them as
    is possible.

    Raises
    ------
    ValueError
        They do not fit.
    """
    if keep_full:
        some = max(nr - keep_full, min(pageblocks_needed(blocks), nr))
        return np.concatenate(
            [spread(blocks, some), np.zeros((nr - some, NR_SMALL_ORDERS), np.int64)]
        )
    out = np.zeros((nr, NR_SMALL_ORDERS), np.int64)
    runs: NDArray[np.int64] = np.ones(nr, np.int64)
    for order in range(NR_SMALL_ORDERS - 1, -1, -1):
        left = int(blocks[order])
        while left > 0:
            takers = np.flatnonzero(runs > out[:, order])[:left]
            if not len(takers):
                raise ValueError(f"{left} free blocks of order {order} do not fit")
            out[takers, order] += 1
            left -= len(takers)
        runs = 2 * runs - out[:, order]
    return out


def _type_after_type(state: ZoneState) -> Plan | None:
    """Return the plan with the types one after the other, or None if that does not fit."""
    plan = _empty_plan(int(state.pageblocks.sum()))
    at = 0
    for migratetype in LAYOUT_TYPES:
        free = state.free[migratetype]
        end = at + int(state.pageblocks[migratetype])
        plan.label[at:end] = plan.on_type[at:end] = migratetype
        tens, nines = int(free[MAX_PAGE_ORDER]), int(free[PAGEBLOCK_ORDER])
        ten_at = (end & ~1) - 2 * tens
        if tens and ten_at < at:
            return None
        plan.holds[ten_at : ten_at + 2 * tens : 2] = TEN
        plan.holds[ten_at + 1 : ten_at + 2 * tens : 2] = TEN_TAIL
        rest = np.arange(end - 1, at - 1, -1)
        rest = rest[plan.holds[rest] == USED]
        inner = np.isin(rest ^ 1, rest)  # of a pair, the second half comes first
        outer_whole = np.zeros(len(rest), np.bool_)
        in_zone = (rest ^ 1) < len(plan.holds)
        outer_whole[in_zone] = plan.holds[rest[in_zone] ^ 1] == NINE
        places = rest[np.where(inner, rest & 1 == 1, ~outer_whole)]
        if nines > len(places):
            return None
        plan.holds[places[:nines]] = NINE
        rest = rest[plan.holds[rest] == USED]
        if not fits_in(free, len(rest)):
            return None
        keep_full = state.keep_full if migratetype == MIGRATE_MOVABLE else 0
        plan.blocks[rest] = spread(free, len(rest), keep_full)
        at = end
    return plan


def _empty_plan(nr: int) -> Plan:
    holds, label, on_type = np.zeros((3, nr), np.int64)
    return Plan(holds, label, on_type, np.zeros((nr, NR_SMALL_ORDERS), np.int64))


def _labels(state: ZoneState, needed: list[int], borrow: bool) -> dict[int, list[int]]:
    """Return the labels of the pageblocks on the lists of each type.

    Where a type's lists need more pageblocks than have its label, they get some of the types that
    have the most to spare, as stealing left them before 6.12.

    Raises
    ------
    ValueError
        There are too few, or ``borrow`` is false and they would be needed.
    """
    spare = {t: int(state.pageblocks[t]) - needed[t] for t in LAYOUT_TYPES}
    if sum(spare.values()) < 0:
        most, total = sum(needed), int(state.pageblocks.sum())
        raise ValueError(f"free blocks need {most} pageblocks, there are {total}")
    labels = {t: [t] * int(state.pageblocks[t]) for t in LAYOUT_TYPES}
    for t in LAYOUT_TYPES:
        while spare[t] < 0:
            if not borrow:
                raise ValueError(
                    f"free blocks of type {TYPE_NAMES[t]} need {needed[t]} pageblocks, there are"
                    f" {state.pageblocks[t]} of it; a kernel before 6.12 may have that"
                )
            donor = max(LAYOUT_TYPES, key=lambda other: spare[other])
            nr = min(-spare[t], spare[donor])
            labels[t] += [labels[donor].pop() for _ in range(nr)]
            spare[t] += nr
            spare[donor] -= nr
    return labels


def _side_by_side(state: ZoneState, borrow: bool) -> Plan:
    """Return the plan for what does not fit type after type."""
    whole = [2 * int(f[MAX_PAGE_ORDER]) + int(f[PAGEBLOCK_ORDER]) for f in state.free]
    needed = [whole[t] + pageblocks_needed(state.free[t]) for t in range(NR_TYPES)]
    labels = _labels(state, needed, borrow)
    plan = _empty_plan(int(state.pageblocks.sum()))
    nr_tens = int(state.free[:, MAX_PAGE_ORDER].sum())
    nr_nines = int(state.free[:, PAGEBLOCK_ORDER].sum())
    nr_rest = len(plan.holds) - 2 * nr_tens
    if nr_nines > -(-nr_rest // 2):
        raise ValueError(f"{nr_nines} free blocks of order 9 want neighbours, there are {nr_rest}")
    ten_at = nr_rest & ~1
    rest = np.delete(np.arange(len(plan.holds)), np.arange(ten_at, ten_at + 2 * nr_tens))
    nine_at = np.append(rest[1::2], rest[len(rest) & ~1 :])[:nr_nines]
    used_at = np.setdiff1d(rest, nine_at)
    for t in LAYOUT_TYPES:
        tens, nines = (int(state.free[t, o]) for o in (MAX_PAGE_ORDER, PAGEBLOCK_ORDER))
        ten_places = np.arange(ten_at, ten_at + 2 * tens)
        ten_at += 2 * tens
        nine_places, nine_at = nine_at[:nines], nine_at[nines:]
        nr_used = len(labels[t]) - 2 * tens - nines
        used_places, used_at = used_at[:nr_used][::-1], used_at[nr_used:]
        plan.holds[ten_places] = np.tile([TEN, TEN_TAIL], tens)
        plan.holds[nine_places] = NINE
        keep_full = state.keep_full if t == MIGRATE_MOVABLE else 0
        plan.blocks[used_places] = spread(state.free[t], nr_used, keep_full)
        places = np.concatenate([ten_places, nine_places, used_places])
        plan.on_type[places] = t
        plan.label[places] = labels[t]
    return plan


def plan_zone(state: ZoneState, borrow: bool) -> Plan:
    """Return what every pageblock of a zone is to hold.

    Parameters
    ----------
    borrow
        Whether free blocks may stand on another type's lists than their pageblock's label says,
        as before 6.12.

    Raises
    ------
    ValueError
        No arrangement of pageblocks has these counts.
    """
    return _plan_zone(state.free.tobytes(), state.pageblocks.tobytes(), state.keep_full, borrow)


@functools.lru_cache(maxsize=16)
def _plan_zone(free: bytes, pageblocks: bytes, keep_full: int, borrow: bool) -> Plan:
    """Return the same plan for every host of a group."""
    by_type = np.frombuffer(free, np.int64).reshape(NR_TYPES, NR_PAGE_ORDERS)
    state = ZoneState(by_type, np.frombuffer(pageblocks, np.int64), keep_full)
    return _type_after_type(state) or _side_by_side(state, borrow)


def lay_zone(mem: Memory, zone: int, first: int, plan: Plan) -> None:
    """Place a zone's free blocks; what is left of its pageblocks is in use since boot."""
    for migratetype in LAYOUT_TYPES:
        _lay_type(mem, zone, first, migratetype, *plan)


@kernel
def _lay_type(
    mem: Memory,
    zone: int,
    first: int,
    migratetype: int,
    holds: NDArray[np.int64],
    label: NDArray[np.int64],
    on_type: NDArray[np.int64],
    blocks: NDArray[np.int64],
) -> None:
    """Lay the pageblocks on the lists of one type: order 10 upward, the others downward."""
    for i in range(len(holds)):
        if on_type[i] == migratetype:
            set_pageblock_migratetype(mem, first + i, label[i])
            if holds[i] == TEN:
                add_free_pageblocks(mem, first + i, zone, migratetype, MAX_PAGE_ORDER, TAIL)
                mem.zone[zone, Z_FREE] += 1 << MAX_PAGE_ORDER
    for back in range(len(holds)):
        i = len(holds) - 1 - back
        if on_type[i] != migratetype:
            continue
        pb = first + i
        if holds[i] == NINE:
            add_free_pageblocks(mem, pb, zone, migratetype, HPAGE_PMD_ORDER, TAIL)
            mem.zone[zone, Z_FREE] += PAGEBLOCK_NR_PAGES
        elif holds[i] == USED:
            _lay_used(mem, zone, pb, migratetype, blocks[i])


@kernel
def _lay_used(mem: Memory, zone: int, pb: int, migratetype: int, blocks: NDArray[np.int64]) -> None:
    """Place the small free blocks of a pageblock, and what is in use between them."""
    total = 0
    for order in range(NR_SMALL_ORDERS):
        total += blocks[order] << order
    if total == 0:
        set_state(mem, pb, PB_FULL, migratetype)
        mem.pb[pb].a = NIL
        add_extent(mem, pb << PAGEBLOCK_ORDER, PAGEBLOCK_NR_PAGES, NIL, 0, KIND_BOOT)
        return
    record = record_alloc(mem, pb, NIL)
    set_state(mem, pb, PB_PARTIAL, migratetype)
    mem.zone[zone, Z_FREE] += total
    starts = mem.scratch  # of the runs that are not wholly free, ascending; free blocks behind
    starts[0] = 0
    runs = 1
    used_from = PAGEBLOCK_NR_PAGES  # frames of this map: 1 is free
    for i in range(PAGEBLOCK_NR_PAGES):
        starts[used_from + i] = 0
    for order in range(NR_SMALL_ORDERS - 1, -1, -1):
        half = 1 << order
        taken = blocks[order]
        at = 2 * runs - taken
        for i in range(runs - 1, -1, -1):  # from the last on, so that they make room
            start = starts[i]
            if i < taken:
                set_frames(mem, record, start + half, half, True)
                add_free_block(mem, record, zone, migratetype, order, HEAD)
                for frame in range(start + half, start + 2 * half):
                    starts[used_from + frame] = 1
            else:
                at -= 1
                starts[at] = start + half
            at -= 1
            starts[at] = start
        runs = 2 * runs - taken
    start = 0
    for frame in range(1, PAGEBLOCK_NR_PAGES + 1):
        ends = frame == PAGEBLOCK_NR_PAGES
        if ends or starts[used_from + frame] != starts[used_from + start]:
            if starts[used_from + start] == 0:
                pfn = (pb << PAGEBLOCK_ORDER) + start
                add_extent(mem, pfn, frame - start, NIL, 0, KIND_BOOT)
            start = frame
