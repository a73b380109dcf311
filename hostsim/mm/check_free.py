"""Validators of the free side: pageblocks, records, free lists and per-CPU lists.

Plain numpy over whole arrays, independent of the kernels, so that a kernel's mistake can't hide
in its check.  The other half, who owns what is in use, is `hostsim.mm.check`.

Source: the invariants are Linux's own (VM_BUG_ON and page_is_buddy in mm/page_alloc.c) and those
that the representation in `physmem` and `pcp` adds.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.errors import InvariantError
from hostsim.core.units import (
    HPAGE_PMD_ORDER,
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.mm_types import (
    MAX_NUMNODES,
    MIGRATE_MOVABLE,
    NIL,
    NR_PCP_LISTS,
    NR_SMALL_ORDERS,
    NR_TYPES,
    NR_ZONES,
    P_PAGEBLOCKS,
    P_REC_FREE,
    P_REC_LIVE,
    P_REC_USED,
    P_REPORTED_SMALL,
    P_RUN_FREE,
    P_RUN_USED,
    PCP_COUNT,
    TYPE_NAMES,
    Z_END,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    ZONE_NAMES,
    Memory,
)
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.pcp import list_order
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_FREE10_TAIL,
    PB_FULL,
    PB_HUGETLB,
    PB_PARTIAL,
    PB_PCP,
    PB_REPORTED,
    PB_RESERVED,
    PB_VIRGIN,
    zone_idx,
    zone_to_nid,
)
from hostsim.mm.tunables import FALLBACK_6_12, T_FALLBACK

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
FREE_STATES = (PB_VIRGIN, PB_FREE9, PB_FREE10, PB_FREE10_TAIL)
SMALL_STATES = (PB_PARTIAL, PB_FULL)  # pageblocks of small pages
NO_ZONE = NR_ZONES + MAX_NUMNODES - 1  # of a pageblock in a gap between zones
LISTED_STATES = (PB_PARTIAL, PB_FULL, PB_COMPOUND)  # pageblocks with a list of extents


class Scan(NamedTuple):
    """What several checks need, gathered once."""

    state: Ints  # (pageblocks,) PB_*
    on_type: Ints  # (pageblocks,) type of the lists it stands on
    label: Ints  # (pageblocks,)
    zone: Ints  # (pageblocks,) or NO_ZONE
    partial: Ints  # pageblocks that are PB_PARTIAL
    record: Ints  # their records
    free: Mask  # (partial, 512) their free frames


def zone_name(zone: int) -> str:
    """Return a zone's name, with its node unless that is the first."""
    nid = int(zone_to_nid(zone))
    return f"{ZONE_NAMES[zone_idx(zone)]}" + (f" of node {nid}" if nid else "")


def agree(place: str, **sides: Any) -> None:
    """Require that two numbers or arrays are equal."""
    (left_name, left), (right_name, right) = sides.items()
    left, right = np.asarray(left), np.asarray(right)
    if left.shape != right.shape:
        raise InvariantError(
            f"{place}: {left_name} has {left.size} entries, {right_name} {right.size}"
        )
    wrong = np.argwhere(left != right)
    if len(wrong):  # argwhere of a scalar has a row and no column
        at = tuple(int(i) for i in wrong[0])
        where = f" [{', '.join(map(str, at))}]" if at else ""
        raise InvariantError(
            f"{place}{where}: {left_name} {left[at]}, {right_name} {right[at]}"
            + (f" ({len(wrong)} differ)" if len(wrong) > 1 else "")
        )


def forbid(place: str, wrong: Any, **show: Any) -> None:
    """Require that no entry of a mask is set; show the columns of the first that is."""
    found = np.flatnonzero(wrong)
    if found.size:
        cells = ", ".join(f"{name} {np.asarray(column)[found[0]]}" for name, column in show.items())
        raise InvariantError(f"{place}: {cells} ({found.size} such)")


def span_all(starts: Ints, lengths: Ints) -> Ints:
    """Return ``start .. start + length - 1`` of every pair, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    return np.repeat(starts - ends + lengths, lengths) + np.arange(total)


def chain(place: str, following: list[int], first: int, limit: int) -> list[int]:
    """Return a singly linked pool chain, which ends in NIL."""
    chain: list[int] = []
    at = first
    while at != NIL:
        chain.append(at)
        if len(chain) > limit:
            raise InvariantError(f"{place}: {len(chain)} entries chained, pool has {limit}")
        at = following[at]
    return chain


def _ring(place: str, following: Ints, preceding: Ints, head: int) -> list[int]:
    """Return the nodes of a circular list, whose links must agree both ways."""
    nodes: list[int] = []
    before, at = head, int(following[head])
    while True:
        if preceding[at] != before:
            raise InvariantError(f"{place}: {at} follows {before}, its back link {preceding[at]}")
        if at == head:
            return nodes
        nodes.append(at)
        if len(nodes) > following.size:
            raise InvariantError(f"{place}: more nodes than {following.size} slots")
        before, at = at, int(following[at])


def walk(place: str, following: Ints, heads: Ints, limit: int) -> tuple[Ints, Ints, Ints]:
    """Walk many lists at once.

    Returns
    -------
    entry, which, before
        Every entry met, the number of its list, and the entry before it (NIL at a head).
    """
    which = np.arange(heads.size)
    at, before = heads.astype(np.int64), np.full(heads.size, NIL)
    met: list[tuple[Ints, Ints, Ints]] = []
    nr = 0
    while True:
        keep = at != NIL
        at, which, before = at[keep], which[keep], before[keep]
        if not at.size:
            break
        met.append((at, which, before))
        nr += at.size
        if nr > limit:
            raise InvariantError(f"{place}: {nr} entries on lists, pool has {limit}")
        before, at = at, following[at].astype(np.int64)
    none = np.zeros(0, np.int64)
    if not met:
        return none, none, none
    entry, lists, previous = (np.concatenate(column) for column in zip(*met, strict=True))
    values, counts = np.unique(entry, return_counts=True)
    forbid(f"{place}: entry met twice", counts > 1, entry=values, times=counts)
    return entry, lists, previous


def free_frames(mem: Memory, records: Ints) -> Mask:
    """Return the free frames of partial pageblocks, (records, 512)."""
    words = np.ascontiguousarray(mem.rec["bits"][records]).astype("<u4")
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(np.bool_)


def scan(mem: Memory) -> Scan:
    """Gather what several checks need; a partial pageblock must lead to a record."""
    nr = int(mem.pool[P_PAGEBLOCKS])
    packed = unpacked(mem.pb[:nr])
    state = packed.state
    partial = np.flatnonzero(state == PB_PARTIAL)
    record = mem.pb["a"][partial].astype(np.int64)
    used = int(mem.pool[P_REC_USED])
    forbid(
        "partial pageblock without a record",
        (record < len(mem.zone) * NR_TYPES) | (record >= used),
        pageblock=partial,
        record=record,
    )
    starts = mem.zone[:, Z_START] >> PAGEBLOCK_ORDER
    zone = np.searchsorted(starts, np.arange(nr), side="right") - 1
    zone[np.arange(nr) >= (mem.zone[:, Z_END] >> PAGEBLOCK_ORDER)[zone]] = NO_ZONE
    return Scan(
        state=state,
        on_type=packed.list_type,
        label=packed.label,
        zone=zone,
        partial=partial,
        record=record,
        free=free_frames(mem, record),
    )


def nr_present(mem: Memory, s: Scan, zone: int) -> int:
    """Return the frames of a zone that are not reserved."""
    span = int(mem.zone[zone, Z_END] - mem.zone[zone, Z_START])
    reserved = (s.state == PB_RESERVED) & (s.zone == zone)
    return span - (int(reserved.sum()) << PAGEBLOCK_ORDER)


def check_pageblocks(mem: Memory, s: Scan) -> None:
    """States, halves of order-10 blocks, virgin regions, labels, unmerged buddies."""
    numbers = np.arange(s.state.size)
    forbid("unknown state", s.state > PB_HUGETLB, pageblock=numbers, state=s.state)
    even, odd = s.state[0::2], s.state[1::2]
    agree(
        "order-10 blocks: second halves",
        expected=even == PB_FREE10,
        found=odd == PB_FREE10_TAIL,
    )
    forbid("order-10 block begins at an odd pageblock", odd == PB_FREE10, pair=numbers[: odd.size])
    forbid("second half at an even pageblock", even == PB_FREE10_TAIL, pair=numbers[: odd.size])
    both = (even == PB_FREE9) & (odd == PB_FREE9)
    forbid("free buddies of order 9 are not merged", both, pair=numbers[: both.size])
    for z in range(len(mem.zone)):
        name = zone_name(z)
        first, end = int(mem.zone[z, Z_VIRGIN]), int(mem.zone[z, Z_VIRGIN_END])
        found = numbers[(s.state == PB_VIRGIN) & (s.zone == z)]
        agree(f"zone {name} virgin pageblocks", region=np.arange(first, end), states=found)
        agree(f"zone {name} virgin region: odd ends", found=(first | end) & 1, expected=0)
        labels = np.bincount(s.label[s.zone == z], minlength=NR_TYPES)
        agree(
            f"zone {name} pageblocks of each label",
            stored=mem.zone[z, Z_LABEL : Z_LABEL + NR_TYPES],
            labels=labels,
        )
        managed, present = int(mem.zone[z, Z_MANAGED]), nr_present(mem, s, z)
        forbid(f"zone {name}", [managed > present], managed=[managed], present=[present])
    outside = (s.zone == NO_ZONE) & (s.state != PB_RESERVED)
    forbid("pageblock in use outside of all zones", outside, pageblock=numbers, state=s.state)
    if mem.tunables[T_FALLBACK] == FALLBACK_6_12:
        listed = np.isin(s.state, (*FREE_STATES, PB_PARTIAL))
        forbid(
            "free pages on another type's list than their pageblock's label",
            listed & (s.on_type != s.label),
            pageblock=numbers,
            list_type=s.on_type,
            label=s.label,
        )


def check_records(mem: Memory, s: Scan) -> None:
    """Partial pageblocks: records, bitmaps and the decomposition into free blocks."""
    agree("pageblock of a partial one's record", record=mem.rec["pb"][s.record], state=s.partial)
    agree("records live", counter=mem.pool[P_REC_LIVE], partial=s.partial.size)
    used = int(mem.pool[P_REC_USED])
    unused = chain(
        "free records", mem.rec["pb"][:used].tolist(), int(mem.pool[P_REC_FREE]) - 1, used
    )
    agree(
        "records in use and in the pool",
        found=np.sort(np.concatenate([s.record, np.array(unused, np.int64)])),
        expected=np.arange(len(mem.zone) * NR_TYPES, used),
    )
    nr_free = s.free.sum(axis=1)
    forbid(
        "partial pageblock that is whole or full",
        (nr_free == 0) | (nr_free == PAGEBLOCK_NR_PAGES),
        pageblock=s.partial,
        free=nr_free,
    )
    whole: Any = s.free
    for order in range(NR_SMALL_ORDERS):
        pairs = whole.reshape(len(whole), PAGEBLOCK_NR_PAGES >> (order + 1), 2)
        merged = pairs.all(axis=2)
        exact = (pairs & ~merged[:, :, None]).sum(axis=(1, 2))
        agree(
            f"free blocks of order {order} in partial pageblocks",
            stored=mem.rec["count"][s.record, order],
            bitmap=exact,
        )
        whole = merged


def check_reported(mem: Memory, s: Scan) -> None:
    """PageReported stands on free blocks only, and below order 9 only where one begins."""
    numbers = np.arange(s.state.size)
    marked = unpacked(mem.pb[: s.state.size]).flags & PB_REPORTED != 0
    whole = np.isin(s.state, (PB_FREE9, PB_FREE10))
    forbid("reported block that is not free", marked & ~whole, pageblock=numbers, state=s.state)
    if not mem.pool[P_REPORTED_SMALL]:
        return
    bits = mem.reported["bits"].astype(np.int64)
    free: Ints = np.zeros_like(bits)
    free[s.partial] = mem.rec["bits"][s.record]
    forbid("reported frames in use", (bits & ~free).any(axis=1), pageblock=numbers)


def check_free_lists(mem: Memory, s: Scan) -> None:
    """Every list of every zone, type and order, against states, bitmaps and counts."""
    n = s.state.size
    big_next, big_prev = mem.pb["a"], unpacked(mem.pb).b
    part_zone, part_type = s.zone[s.partial], s.on_type[s.partial]
    for z in range(len(mem.zone)):
        virgin = n + len(mem.zone) * NR_TYPES * 2 + z
        virgin_pbs = int(mem.zone[z, Z_VIRGIN_END] - mem.zone[z, Z_VIRGIN])
        for t in range(NR_TYPES):
            place = f"zone {zone_name(z)} type {TYPE_NAMES[t]} order"
            mine = (part_zone == z) & (part_type == t)
            records = s.record[mine]
            counts = mem.rec["count"][records]
            for order in range(NR_SMALL_ORDERS):
                nodes = _ring(
                    f"{place} {order}",
                    mem.rec["next"][:, order],
                    mem.rec["prev"][:, order],
                    z * NR_TYPES + t,
                )
                agree(
                    f"{place} {order}: records listed",
                    listed=np.sort(np.array(nodes, np.int64)),
                    counting=np.sort(records[counts[:, order] > 0]),
                )
                agree(
                    f"{place} {order}: nr_free",
                    stored=mem.nr_free[z, t, order],
                    records=counts[:, order].sum(dtype=np.int64),
                )
            for order, state in ((PAGEBLOCK_ORDER, PB_FREE9), (MAX_PAGE_ORDER, PB_FREE10)):
                head = n + (z * NR_TYPES + t) * 2 + order - PAGEBLOCK_ORDER
                nodes = _ring(f"{place} {order}", big_next, big_prev, head)
                expected = np.flatnonzero((s.state == state) & (s.zone == z) & (s.on_type == t))
                nr = expected.size
                if t == MIGRATE_MOVABLE and order == MAX_PAGE_ORDER and virgin_pbs:
                    expected = np.append(expected, virgin)
                    nr += virgin_pbs >> 1
                agree(
                    f"{place} {order}: pageblocks listed",
                    listed=np.sort(np.array(nodes, np.int64)),
                    states=expected,
                )
                agree(f"{place} {order}: nr_free", stored=mem.nr_free[z, t, order], listed=nr)
        pages = (mem.nr_free[z].sum(axis=0) << np.arange(NR_PAGE_ORDERS)).sum()
        agree(f"zone {zone_name(z)} free pages", stored=mem.zone[z, Z_FREE], nr_free=pages)
        whole = int((np.isin(s.state, FREE_STATES) & (s.zone == z)).sum()) << PAGEBLOCK_ORDER
        frames = whole + int(s.free[part_zone == z].sum())
        agree(f"zone {zone_name(z)} free pages", stored=mem.zone[z, Z_FREE], frames=frames)


def pcp_blocks(mem: Memory) -> tuple[Ints, Ints, Ints]:
    """Return first frame, order and zone of every block on the per-CPU lists; check the lists."""
    used = int(mem.pool[P_RUN_USED])
    following = mem.run["next"][:used].astype(np.int64)
    preceding = mem.run["prev"][:used].astype(np.int64)
    heads = [
        (head, _ring(f"per-CPU list {head}", following, preceding, head))
        for head in range(len(mem.zone) * NR_PCP_LISTS)
    ]
    live = np.array([run for _, nodes in heads for run in nodes], np.int64)
    head_of = np.array([head for head, nodes in heads for _ in nodes], np.int64)
    unused = chain("free runs", following.tolist(), int(mem.pool[P_RUN_FREE]) - 1, used)
    agree(
        "runs in use and in the pool",
        found=np.sort(np.concatenate([live, np.array(unused, np.int64)])),
        expected=np.arange(len(mem.zone) * NR_PCP_LISTS, used),
    )
    nr = mem.run["nr"][live].astype(np.int64)
    forbid("empty run on a per-CPU list", nr < 1, run=live, blocks=nr)
    step = np.repeat(mem.run["step"][live].astype(np.int64), nr)
    first = np.repeat(mem.run["first"][live].astype(np.int64), nr)
    start = first + step * span_all(np.zeros(nr.size, np.int64), nr)
    orders = np.array([list_order(i) for i in range(NR_PCP_LISTS)], np.int64)
    order = np.repeat(orders[head_of % NR_PCP_LISTS], nr)
    zone = np.repeat(head_of // NR_PCP_LISTS, nr)
    return start, order, zone


def check_pcp(mem: Memory, s: Scan) -> Ints:
    """Per-CPU lists; return their frames in ascending order."""
    start, order, zone = pcp_blocks(mem)
    nr = s.state.size << PAGEBLOCK_ORDER
    forbid("per-CPU block outside of memory", (start < 0) | (start >= nr), pfn=start, order=order)
    forbid("misaligned per-CPU block", start & ((1 << order) - 1) != 0, pfn=start, order=order)
    pageblock = start >> PAGEBLOCK_ORDER
    agree("zone of per-CPU blocks", frame=s.zone[pageblock], list=zone)
    for z in range(len(mem.zone)):
        pages = (1 << order[zone == z]).sum()
        agree(
            f"zone {zone_name(z)} pages on per-CPU lists",
            stored=mem.zone[z, PCP_COUNT],
            runs=pages,
        )
    huge = order == HPAGE_PMD_ORDER
    state = s.state[pageblock]
    allowed = np.where(huge, np.isin(state, (PB_PCP, PB_FULL)), np.isin(state, SMALL_STATES))
    forbid("per-CPU block in a pageblock not in use", ~allowed, pfn=start, order=order, state=state)
    agree(
        "pageblocks marked as on a per-CPU list",
        states=np.flatnonzero(s.state == PB_PCP),
        listed=np.sort(pageblock[state == PB_PCP]),
    )
    frames = np.sort(span_all(start, 1 << order))
    forbid("frame twice on per-CPU lists", frames[1:] == frames[:-1], pfn=frames[1:])
    return frames
