"""Translation look-aside buffers: set-associative LRU stores of page translations.

All stores of one hardware thread, TLBs and walk caches alike, lie in one state, `Mmu`: a row of
``geometry`` says where a store's entries lie, how many sets and ways it has.  A set is a row of
tags that stay where they are; one word before them names its ways in the order of their use.

Where page sizes share a store but not its ways (the second level of Zen), an entry may stand in
one of several groups of ways, chosen by its page number; groups of different sizes overlap, so
such a store keeps the moment of each entry's last use instead of orders.  So does one with more
ways than a word names.

Source: Intel SDM vol. 3A section 5.10; AMD APM vol. 2 section 5.5; for the groups of ways A.
Seznec, Concurrent Support of Multiple Page Sizes on a Skewed Associative TLB, IEEE Trans. Comp.
53(7), 2004.
Simplified: replacement is true LRU; real CPUs approximate it.
Simplified: sets are chosen by the low bits of the page number; real CPUs may hash.
Simplified: the first level keeps stores and loads together, where some CPUs part them.
Simplified: instruction fetches are not translated; iTLBs are listed with a CPU, no more.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.bits import lowest_bit
from hostsim.core.byref import ByReference
from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.lanes import LANES, equal_lanes
from hostsim.mmu.paging import INDEX_BITS, MAX_LEVELS, NR_SIZES

# Rows of Mmu.geometry
L1_TLB: Final = 0  # + size: its first-level store (several sizes may name the same entries)
L2_TLB: Final = L1_TLB + NR_SIZES  # + size: its second-level store
PWC: Final = L2_TLB + NR_SIZES  # + level: entries of tables of that level, by guest address
EPT_PWC: Final = PWC + MAX_LEVELS + 1  # + level: the same of the EPT, by guest-physical address
NESTED_TLB: Final = EPT_PWC + MAX_LEVELS + 1  # guest frames of guest tables -> host frames
NR_STORES: Final = NESTED_TLB + 1

# Columns of Mmu.geometry
G_FIRST: Final = 0  # first word of the first set
G_SETS_MASK: Final = 1  # sets - 1
G_STRIDE: Final = 2  # words from a set to the next
G_KIND: Final = 3  # ABSENT, TIMED, WIDE or NARROW
G_WAYS: Final = 4  # ways of a set
G_LANES: Final = 5  # a bit for each way of a set that keeps an order
G_OLDEST_SHIFT: Final = 6  # where an order names the least recently used way
G_SETS_BITS: Final = 7  # TIMED, as what follows
G_GROUP: Final = 8  # ways of a group
G_GROUPS: Final = 9  # groups of a set
NR_G_FIELDS: Final = 16  # a power of two: rows are found by a shift

ABSENT: Final = 0  # there is no such store
TIMED: Final = 1  # entries keep moments
WIDE: Final = 2  # sets keep orders
NARROW: Final = 3  # the same, with no more ways than are looked at together

# Columns of Mmu.state
S_SIZES: Final = 0  # bit per page size that was ever inserted into a TLB
S_NESTED_SIZES: Final = 1  # the same of the nested TLB
S_CLOCK: Final = 2  # uses of TIMED stores
S_FORCE_GUEST: Final = 3  # every studied walk reads so many guest entries; 0: as caches say
S_FORCE_HOST: Final = 4  # and every one of the EPT this many, plus one; 0: as caches say
S_LOGGED: Final = 5  # reads of the last studied walk, in Mmu.log
NR_S_FIELDS: Final = 6

# Mmu.counts
C_ACCESSES: Final = 0
C_L1_HITS: Final = 1
C_L2_HITS: Final = 2
C_WALKS: Final = 3
C_NOT_PRESENT: Final = 4  # walks that found no page
C_FILLS: Final = 5  # + size: TLB entries made by walks
C_NESTED_HITS: Final = C_FILLS + NR_SIZES  # of the nested TLB
C_NESTED_MISSES: Final = C_NESTED_HITS + 1
C_READS: Final = C_NESTED_MISSES + 1  # + class * (MAX_LEVELS + 1) + level
READ_GUEST: Final = 0  # class: entries of the guest's (or, natively, the only) tables
READ_EPT_TABLE: Final = 1  # EPT entries on the way to a guest table
READ_EPT_DATA: Final = 2  # EPT entries on the way to the page itself
NR_READ_CLASSES: Final = 3
LEVEL_STRIDE: Final = MAX_LEVELS + 1
NR_COUNTERS: Final = C_READS + NR_READ_CLASSES * LEVEL_STRIDE

LOG_ENTRIES: Final = 64  # more than the 35 reads of the longest walk
AHEAD: Final = 64  # accesses to come whose page-table lines are asked for
NOTHING: Final = -1

# A tag: page number of the entry's size, size, whether it leads to a table, and VPID.
TAG_SIZE_SHIFT: Final = 45  # page numbers of 57-bit addresses
TAG_SIZE_MASK: Final = 7
TAG_TABLE: Final = 1 << (TAG_SIZE_SHIFT + 3)
TAG_VPID_SHIFT: Final = TAG_SIZE_SHIFT + 4
MAX_VPID: Final = (1 << 14) - 1

# An order: the ways of a set, a nibble each, the most recently used lowest; what is above is void.
ORDERED_WAYS: Final = 16
NIBBLE_BITS: Final = 4
NIBBLE: Final = 15
EACH_NIBBLE: Final = 0x1111111111111111
EACH_HIGH_BIT: Final = -0x7777777777777778  # of a nibble; signed
IN_TURN: Final = 0xFEDCBA9876543210 - (1 << 64)  # signed


class _MmuArrays(NamedTuple):
    geometry: NDArray[np.int64]  # (NR_STORES, NR_G_FIELDS)
    tag: NDArray[np.int64]  # (words,) of entries, NOTHING if empty; before those of a set its order
    value: NDArray[np.int32]  # (words,) what the entry leads to: a frame or a table
    moment: NDArray[np.int64]  # (words,) last use, in TIMED stores; 0 if empty
    state: NDArray[np.int64]  # (NR_S_FIELDS,)
    counts: NDArray[np.int64]  # (NR_COUNTERS,)
    ahead: NDArray[np.int64]  # (AHEAD,) scratch: where entries of accesses to come stand
    log: NDArray[np.int64]  # (LOG_ENTRIES,) reads of the last studied walk: class, level and entry


class Mmu(ByReference, _MmuArrays):
    """TLBs and walk caches of one hardware thread, and what they counted."""


@hot_kernel
def tag_of(page: int, size: int, vpid: int) -> int:
    """Return the tag of an entry: page number in units of its size, size, VPID."""
    return page | (size << TAG_SIZE_SHIFT) | (vpid << TAG_VPID_SHIFT)


# Indices are unsigned below: numba tests signed ones for wrap-around at each use.


@hot_kernel
def geometry_of(mmu: Mmu, store: int, column: int) -> int:
    """Return one number of a store's geometry."""
    return int(mmu.geometry[np.uint64(store), np.uint64(column)])


@hot_kernel
def _to_front(order: int, way: int) -> int:
    """Name a way first in an order; those named before it come behind (no branch on where)."""
    other = order ^ (way * EACH_NIBBLE)  # 0 in the nibble that names the way
    named = (other - EACH_NIBBLE) & ~other & EACH_HIGH_BIT  # its lowest bit: that nibble's highest
    through = named ^ (named - 1)  # up to that nibble
    return order ^ ((order ^ ((order << NIBBLE_BITS) | way)) & through)


@hot_kernel
def _set_of(mmu: Mmu, store: int, page: int) -> int:
    """Return where the set of a page begins, with its order."""
    number = page & geometry_of(mmu, store, G_SETS_MASK)
    return geometry_of(mmu, store, G_FIRST) + number * geometry_of(mmu, store, G_STRIDE)


@hot_kernel
def _use_ordered(mmu: Mmu, row: int, found: int) -> int:
    """Mark the way that was found in a set as used; return where its entry stands, or NOTHING."""
    if found == 0:
        return NOTHING
    way = lowest_bit(found)
    mmu.tag[np.uint64(row)] = _to_front(mmu.tag[np.uint64(row)], way)
    return int(row + 1 + way)


@hot_kernel
def _equal_wide(words: NDArray[np.int64], row: int, word: int) -> int:
    """Return a bit for each of `ORDERED_WAYS` words from a place on: whether it equals a word."""
    found = 0
    for i in range(0, ORDERED_WAYS, LANES):
        found |= equal_lanes(words, row + i, word) << i
    return found


@hot_kernel
def _probe_narrow(mmu: Mmu, store: int, page: int, tag: int) -> int:
    row = _set_of(mmu, store, page)
    found = equal_lanes(mmu.tag, row + 1, tag) & geometry_of(mmu, store, G_LANES)
    return _use_ordered(mmu, row, found)


@hot_kernel
def _probe_wide(mmu: Mmu, store: int, page: int, tag: int) -> int:
    row = _set_of(mmu, store, page)
    found = _equal_wide(mmu.tag, row + 1, tag) & geometry_of(mmu, store, G_LANES)
    return _use_ordered(mmu, row, found)


@hot_kernel
def _insert_ordered(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    row = _set_of(mmu, store, page)
    order = mmu.tag[np.uint64(row)]
    way = (order >> geometry_of(mmu, store, G_OLDEST_SHIFT)) & NIBBLE
    mmu.tag[np.uint64(row)] = (order << NIBBLE_BITS) | way
    entry = np.uint64(row + 1 + way)
    mmu.tag[entry] = tag
    mmu.value[entry] = value


@hot_kernel
def _find(words: NDArray[np.int64], row: int, ways: int, word: int) -> int:
    """Return the first way of a group that holds a word, or NOTHING.

    Many are looked at together: what stands behind the ways must not, or not first, be equal. A
    tag of one set stands in no other, and none behind the last.
    """
    for way in range(0, ways, ORDERED_WAYS):
        found = _equal_wide(words, row + way, word)
        if found != 0:
            return int(way + lowest_bit(found))
    return NOTHING


@kernel
def _group_row(mmu: Mmu, store: int, page: int) -> int:
    """Return the first entry of the group of ways in which a page may stand."""
    above = np.uint64(page >> geometry_of(mmu, store, G_SETS_BITS))
    group = int(above % np.uint64(geometry_of(mmu, store, G_GROUPS)))
    number = page & geometry_of(mmu, store, G_SETS_MASK)
    row = number * geometry_of(mmu, store, G_STRIDE) + group * geometry_of(mmu, store, G_GROUP)
    return int(geometry_of(mmu, store, G_FIRST) + row)


@kernel
def _probe_timed(mmu: Mmu, store: int, page: int, tag: int) -> int:
    row = _group_row(mmu, store, page)
    way = _find(mmu.tag, row, geometry_of(mmu, store, G_GROUP), tag)
    if way == NOTHING:
        return NOTHING
    mmu.state[S_CLOCK] += 1
    mmu.moment[row + way] = mmu.state[S_CLOCK]
    return int(row + way)


@kernel
def _insert_timed(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    row = _group_row(mmu, store, page)
    ways = geometry_of(mmu, store, G_GROUP)
    oldest = mmu.moment[row]
    for i in range(np.uint64(ways)):
        oldest = min(oldest, mmu.moment[np.uint64(row) + i])
    at = row + _find(mmu.moment, row, ways, oldest)
    mmu.state[S_CLOCK] += 1
    mmu.moment[at] = mmu.state[S_CLOCK]
    mmu.tag[at] = tag
    mmu.value[at] = value


# Merged into what calls them, so that a call's space is made ready only where there is a call.


@hot_kernel
def _probe_other(mmu: Mmu, store: int, page: int, tag: int) -> int:
    if geometry_of(mmu, store, G_KIND) == ABSENT:
        return NOTHING
    return _probe_timed(mmu, store, page, tag)


@hot_kernel
def _insert_other(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    if geometry_of(mmu, store, G_KIND) != ABSENT:
        _insert_timed(mmu, store, page, tag, value)


@hot_kernel
def probe(mmu: Mmu, store: int, page: int, tag: int) -> int:
    """Look a tag up and mark it used; return where it stands, or NOTHING."""
    if geometry_of(mmu, store, G_KIND) == NARROW:
        return _probe_narrow(mmu, store, page, tag)
    if geometry_of(mmu, store, G_KIND) == WIDE:
        return _probe_wide(mmu, store, page, tag)
    return _probe_other(mmu, store, page, tag)


@hot_kernel
def insert(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    """Add a tag that is not in a store in place of the least recently used of its set."""
    if geometry_of(mmu, store, G_KIND) >= WIDE:
        _insert_ordered(mmu, store, page, tag, value)
    else:
        _insert_other(mmu, store, page, tag, value)


@hot_kernel
def first_level_hit_of(mmu: Mmu, size: int, vpn: int, vpid: int) -> int:
    """Look a page up in the first level by one size; return where, or NOTHING."""
    page = vpn >> (size * INDEX_BITS)
    return probe(mmu, L1_TLB + size, page, tag_of(page, size, vpid))


@hot_kernel
def second_level_hit_of(mmu: Mmu, size: int, vpn: int, vpid: int) -> int:
    """Look a page up in the second level by one size, copying a hit to the first."""
    page = vpn >> (size * INDEX_BITS)
    tag = tag_of(page, size, vpid)
    at = probe(mmu, L2_TLB + size, page, tag)
    if at != NOTHING:
        insert(mmu, L1_TLB + size, page, tag, mmu.value[np.uint64(at)])
    return at


@hot_kernel
def first_level_hit(mmu: Mmu, vpn: int, vpid: int) -> int:
    """Look a page up in the first level by every size in use; return where, or NOTHING."""
    sizes = mmu.state[S_SIZES]
    for size in range(NR_SIZES):
        if (sizes >> size) & 1:
            at = first_level_hit_of(mmu, size, vpn, vpid)
            if at != NOTHING:
                return at
    return NOTHING


@hot_kernel
def second_level_hit(mmu: Mmu, vpn: int, vpid: int) -> int:
    """Look a page up in the second level, copying a hit to the first; return where, or NOTHING."""
    sizes = mmu.state[S_SIZES]
    for size in range(NR_SIZES):
        if (sizes >> size) & 1:
            at = second_level_hit_of(mmu, size, vpn, vpid)
            if at != NOTHING:
                return at
    return NOTHING


@hot_kernel
def note_size(mmu: Mmu, column: int, size: int) -> None:
    """Note that entries of a size are in use; what is known is not stored, for it is soon read."""
    sizes = mmu.state[column]
    if (sizes >> size) & 1 == 0:
        mmu.state[column] = sizes | (1 << size)


@hot_kernel
def _fill_of(mmu: Mmu, size: int, vpn: int, vpid: int, frame: int) -> None:
    page = vpn >> (size * INDEX_BITS)
    first = frame & ~((1 << (size * INDEX_BITS)) - 1)
    tag = tag_of(page, size, vpid)
    insert(mmu, L2_TLB + size, page, tag, first)
    insert(mmu, L1_TLB + size, page, tag, first)
    note_size(mmu, S_SIZES, size)
    mmu.counts[np.uint64(C_FILLS + size)] += 1


@hot_kernel
def fill(mmu: Mmu, vpn: int, size: int, vpid: int, frame: int) -> None:
    """Enter the translation that a walk found into both levels.

    Parameters
    ----------
    frame
        Frame of page ``vpn`` itself; the entry keeps that of its first page.
    """
    if size == 0:  # told apart, so that LLVM knows it: most pages are base pages
        _fill_of(mmu, 0, vpn, vpid, frame)
    else:
        _fill_of(mmu, size, vpn, vpid, frame)


@hot_kernel
def entry_bits(tag: int) -> int:
    """Return how many bits of a base-page number an entry leaves open."""
    return ((tag >> TAG_SIZE_SHIFT) & TAG_SIZE_MASK) * INDEX_BITS


@kernel
def _drop(mmu: Mmu, store: int, at: int) -> None:
    """Remove an entry; it is the next of its set to be replaced, the others keep their order."""
    mmu.tag[at] = NOTHING
    if geometry_of(mmu, store, G_KIND) == TIMED:
        mmu.moment[at] = 0
        return
    way = (at - geometry_of(mmu, store, G_FIRST)) % geometry_of(mmu, store, G_STRIDE) - 1
    row = at - 1 - way
    shift = geometry_of(mmu, store, G_OLDEST_SHIFT)
    others = (_to_front(mmu.tag[row], way) >> NIBBLE_BITS) & ((1 << shift) - 1)
    mmu.tag[row] = others | (way << shift)


@kernel
def invalidate_store(mmu: Mmu, store: int, vpid: int, first: int, nr: int) -> int:
    """Drop a VPID's entries of a store that overlap base pages ``first .. first + nr - 1``.

    Returns
    -------
    int
        Entries dropped.
    """
    dropped = 0
    ordered = 1 if geometry_of(mmu, store, G_KIND) >= WIDE else 0  # a word before the tags
    for number in range(geometry_of(mmu, store, G_SETS_MASK) + 1):
        row = _set_of(mmu, store, number) + ordered
        for at in range(row, row + geometry_of(mmu, store, G_WAYS)):
            tag = mmu.tag[at]
            if tag == NOTHING or tag >> TAG_VPID_SHIFT != vpid:
                continue
            shift = entry_bits(tag)
            page = (tag & ((1 << TAG_SIZE_SHIFT) - 1)) << shift
            if page < first + nr and page + (1 << shift) > first:
                _drop(mmu, store, at)
                dropped += 1
    return dropped


@kernel
def invalidate(mmu: Mmu, vpid: int, first: int, nr: int) -> int:
    """Drop what was cached of a range of a guest's (or process's) addresses, as INVLPG does.

    TLB entries and paging-structure entries that the range overlaps go; entries by
    guest-physical address stay, for no EPT changed.

    Returns
    -------
    int
        Entries dropped.
    """
    dropped = 0
    for store in range(EPT_PWC):
        if geometry_of(mmu, store, G_KIND) != ABSENT:
            dropped += invalidate_store(mmu, store, vpid, first, nr)
    return dropped


@kernel
def invalidate_vpid(mmu: Mmu, vpid: int) -> int:
    """Drop all of a VPID, as KVM does when it zapped an EPT range (INVEPT).

    Combined translations are not looked up by guest-physical address, so all go.

    Returns
    -------
    int
        Entries dropped.
    """
    dropped = 0
    for store in range(NR_STORES):
        if geometry_of(mmu, store, G_KIND) != ABSENT:
            dropped += invalidate_store(mmu, store, vpid, 0, 1 << TAG_SIZE_SHIFT)
    return dropped


@kernel
def forget_all(mmu: Mmu) -> None:
    """Empty every store and counter."""
    mmu.tag[:] = NOTHING
    for store in range(NR_STORES):
        if geometry_of(mmu, store, G_KIND) >= WIDE:
            for number in range(geometry_of(mmu, store, G_SETS_MASK) + 1):
                mmu.tag[_set_of(mmu, store, number)] = IN_TURN
    mmu.moment[:] = 0
    mmu.counts[:] = 0
    mmu.state[S_SIZES] = 0
    mmu.state[S_NESTED_SIZES] = 0
    mmu.state[S_CLOCK] = 0


def forget_counts(mmu: Mmu) -> None:
    """Set every counter to zero and keep the entries: the end of a warm-up."""
    mmu.counts[:] = 0
