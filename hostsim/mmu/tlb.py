"""Translation look-aside buffers: set-associative LRU stores of page translations.

All stores of one hardware thread, TLBs and walk caches alike, lie in one state, `Mmu`: a row of
``geometry`` says where a store's entries lie, how many sets and ways it has.  A set is a row of
entries, most recently used first; a hit moves to the front, an insertion drops the last.

Where page sizes share a store but not its ways (the second level of Zen), an entry may stand in
one of several groups of ways, chosen by its page number; groups of different sizes overlap, so
such a store keeps the moment of each entry's last use instead of an order.

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

from hostsim.core.byref import ByReference
from hostsim.core.jit import hot_kernel, kernel
from hostsim.mmu.paging import INDEX_BITS, MAX_LEVELS, NR_SIZES

# Rows of Mmu.geometry
L1_TLB: Final = 0  # + size: its first-level store (several sizes may name the same entries)
L2_TLB: Final = L1_TLB + NR_SIZES  # + size: its second-level store
L2_OTHER: Final = L2_TLB + NR_SIZES  # + size: a further one, if the size is spread over two
PWC: Final = L2_OTHER + NR_SIZES  # + level: entries of tables of that level, by guest address
EPT_PWC: Final = PWC + MAX_LEVELS + 1  # + level: the same of the EPT, by guest-physical address
NESTED_TLB: Final = EPT_PWC + MAX_LEVELS + 1  # guest frames of guest tables -> host frames
NR_STORES: Final = NESTED_TLB + 1

# Columns of Mmu.geometry
G_FIRST: Final = 0  # first entry
G_SETS_MASK: Final = 1  # sets - 1
G_WAYS: Final = 2  # ways of a set; 0: there is no such store
G_GROUP: Final = 3  # ways of a group; 0: a plain set, ordered by use
G_GROUPS_MASK: Final = 4  # groups - 1, or the number of groups if that is no power of two
G_ODD_GROUPS: Final = 5  # 1: `G_GROUPS_MASK` is the number of groups
G_SETS_BITS: Final = 6
NR_G_FIELDS: Final = 8  # a power of two: rows are found by a shift

# Columns of Mmu.state
S_SIZES: Final = 0  # bit per page size that was ever inserted into a TLB
S_NESTED_SIZES: Final = 1  # the same of the nested TLB
S_CLOCK: Final = 2  # uses of stores that keep moments
S_FORCE_GUEST: Final = 3  # every walk makes this many reads of guest entries; 0: as caches say
S_FORCE_HOST: Final = 4  # every walk of the EPT makes this many reads, plus one; 0: as caches say
S_LOGGED: Final = 5  # reads of the last walk, in Mmu.log
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
AHEAD: Final = 64  # accesses whose page-table lines are asked for at a time
NOTHING: Final = -1

# A tag: page number of the entry's size, size, whether it leads to a table, and VPID.
TAG_SIZE_SHIFT: Final = 45  # page numbers of 57-bit addresses
TAG_SIZE_MASK: Final = 7
TAG_TABLE: Final = 1 << (TAG_SIZE_SHIFT + 3)
TAG_VPID_SHIFT: Final = TAG_SIZE_SHIFT + 4
FOUR_WAYS: Final = 4
EIGHT_WAYS: Final = 8
TWELVE_WAYS: Final = 12
MAX_VPID: Final = (1 << 14) - 1


class _MmuArrays(NamedTuple):
    geometry: NDArray[np.int64]  # (NR_STORES, NR_G_FIELDS)
    tag: NDArray[np.int64]  # (entries,) NOTHING if empty
    value: NDArray[np.int64]  # (entries,) what the entry leads to: a frame or a table
    moment: NDArray[np.int64]  # (entries,) last use, in stores with groups of ways
    state: NDArray[np.int64]  # (NR_S_FIELDS,)
    counts: NDArray[np.int64]  # (NR_COUNTERS,)
    ahead: NDArray[np.int64]  # (AHEAD,) scratch: where entries of accesses to come stand
    log: NDArray[np.int64]  # (LOG_ENTRIES,) reads of the last walk: class, level and entry


class Mmu(ByReference, _MmuArrays):
    """TLBs and walk caches of one hardware thread, and what they counted."""


@hot_kernel
def tag_of(page: int, size: int, vpid: int) -> int:
    """Return the tag of an entry: page number in units of its size, size, VPID."""
    return page | (size << TAG_SIZE_SHIFT) | (vpid << TAG_VPID_SHIFT)


# Indices are unsigned below: numba tests signed ones for wrap-around at each use.  Sets of four
# ways, and second levels of eight and twelve, have straight code; all others share a loop.


@hot_kernel
def geometry_of(mmu: Mmu, store: int, column: int) -> int:
    """Return one number of a store's geometry."""
    return int(mmu.geometry[np.uint64(store), np.uint64(column)])


@hot_kernel
def _set_row(mmu: Mmu, store: int, page: int) -> int:
    """Return the first entry of the set in which a page may stand."""
    number = page & geometry_of(mmu, store, G_SETS_MASK)
    return int(geometry_of(mmu, store, G_FIRST) + number * geometry_of(mmu, store, G_WAYS))


@hot_kernel
def _among_four(mmu: Mmu, first: int, tag: int) -> bool:
    at = np.uint64(first)
    return bool(
        (mmu.tag[at] == tag)
        | (mmu.tag[at + np.uint64(1)] == tag)
        | (mmu.tag[at + np.uint64(2)] == tag)
        | (mmu.tag[at + np.uint64(3)] == tag)
    )


@hot_kernel
def _probe_four(mmu: Mmu, row: int, tag: int) -> int:
    """Look up a set of four without branches on where the tag stands, which nothing predicts."""
    if not _among_four(mmu, row, tag):
        return NOTHING
    at0 = np.uint64(row)
    at1, at2, at3 = at0 + np.uint64(1), at0 + np.uint64(2), at0 + np.uint64(3)
    tag0, tag1, tag2, tag3 = mmu.tag[at0], mmu.tag[at1], mmu.tag[at2], mmu.tag[at3]
    value0, value1, value2, value3 = mmu.value[at0], mmu.value[at1], mmu.value[at2], mmu.value[at3]
    first = tag0 == tag
    second = first | (tag1 == tag)
    third = second | (tag2 == tag)
    mmu.tag[at0] = tag
    mmu.value[at0] = value0 if first else (value1 if second else (value2 if third else value3))
    mmu.tag[at1] = tag1 if first else tag0
    mmu.value[at1] = value1 if first else value0
    mmu.tag[at2] = tag2 if second else tag1
    mmu.value[at2] = value2 if second else value1
    mmu.tag[at3] = tag3 if third else tag2
    mmu.value[at3] = value3 if third else value2
    return row


@kernel
def _probe_many(mmu: Mmu, row: int, ways: int, tag: int) -> int:
    first = np.uint64(row)
    end = np.uint64(row + ways)
    i = first
    while i < end:
        if mmu.tag[i] == tag:
            value = mmu.value[i]
            while i > first:
                mmu.tag[i] = mmu.tag[i - np.uint64(1)]
                mmu.value[i] = mmu.value[i - np.uint64(1)]
                i -= np.uint64(1)
            mmu.tag[first] = tag
            mmu.value[first] = value
            return row
        i += np.uint64(1)
    return NOTHING


@hot_kernel
def _probe_ordered(mmu: Mmu, store: int, page: int, tag: int) -> int:
    row = _set_row(mmu, store, page)
    ways = geometry_of(mmu, store, G_WAYS)
    if ways == FOUR_WAYS:
        return _probe_four(mmu, row, tag)
    if mmu.tag[np.uint64(row)] == tag:
        return row
    return _probe_many(mmu, row, ways, tag)


@hot_kernel
def _shift_four(mmu: Mmu, at: int) -> None:
    """Move three entries back by one, and with them forget a fourth."""
    at0 = np.uint64(at)
    at1, at2, at3 = at0 + np.uint64(1), at0 + np.uint64(2), at0 + np.uint64(3)
    tag0, tag1, tag2 = mmu.tag[at0], mmu.tag[at1], mmu.tag[at2]
    value0, value1, value2 = mmu.value[at0], mmu.value[at1], mmu.value[at2]
    mmu.tag[at1], mmu.tag[at2], mmu.tag[at3] = tag0, tag1, tag2
    mmu.value[at1], mmu.value[at2], mmu.value[at3] = value0, value1, value2


@hot_kernel
def _carry(mmu: Mmu, to: int) -> None:
    """Move the entry before one on its place."""
    at = np.uint64(to)
    before = np.uint64(to - 1)
    mmu.tag[at] = mmu.tag[before]
    mmu.value[at] = mmu.value[before]


@kernel
def _shift_many(mmu: Mmu, row: int, ways: int) -> None:
    """Move the entries of a set back by one; the last is lost."""
    for i in range(row + ways - 1, row, -1):
        _carry(mmu, i)


@hot_kernel
def _insert_ordered(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    row = _set_row(mmu, store, page)
    ways = geometry_of(mmu, store, G_WAYS)
    if ways == FOUR_WAYS:
        _shift_four(mmu, row)
    else:
        _shift_many(mmu, row, ways)
    mmu.tag[np.uint64(row)] = tag
    mmu.value[np.uint64(row)] = value


@kernel
def _group_row(mmu: Mmu, store: int, page: int) -> int:
    """Return the first entry of the group of ways in which a page may stand."""
    above = page >> geometry_of(mmu, store, G_SETS_BITS)
    if geometry_of(mmu, store, G_ODD_GROUPS) != 0:
        group = above % geometry_of(mmu, store, G_GROUPS_MASK)
    else:
        group = above & geometry_of(mmu, store, G_GROUPS_MASK)
    row = (page & geometry_of(mmu, store, G_SETS_MASK)) * geometry_of(mmu, store, G_WAYS)
    return int(geometry_of(mmu, store, G_FIRST) + row + group * geometry_of(mmu, store, G_GROUP))


@kernel
def _probe_grouped(mmu: Mmu, store: int, page: int, tag: int) -> int:
    row = _group_row(mmu, store, page)
    for i in range(row, row + geometry_of(mmu, store, G_GROUP)):
        if mmu.tag[i] == tag:
            mmu.state[S_CLOCK] += 1
            mmu.moment[i] = mmu.state[S_CLOCK]
            return int(i)
    return NOTHING


@kernel
def _insert_grouped(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    row = _group_row(mmu, store, page)
    oldest = row
    for i in range(row, row + geometry_of(mmu, store, G_GROUP)):
        if mmu.tag[i] == NOTHING:
            oldest = i
            break
        if mmu.moment[i] < mmu.moment[oldest]:
            oldest = i
    mmu.state[S_CLOCK] += 1
    mmu.moment[oldest] = mmu.state[S_CLOCK]
    mmu.tag[oldest] = tag
    mmu.value[oldest] = value


@hot_kernel
def probe(mmu: Mmu, store: int, page: int, tag: int) -> int:
    """Look a tag up and mark it used; return where its value stands, or NOTHING."""
    if geometry_of(mmu, store, G_GROUP) != 0:
        return _probe_grouped(mmu, store, page, tag)
    return _probe_ordered(mmu, store, page, tag)


@hot_kernel
def insert(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    """Add a tag that is not in a store as the most recently used of its set."""
    if geometry_of(mmu, store, G_WAYS) == 0:
        return
    if geometry_of(mmu, store, G_GROUP) != 0:
        _insert_grouped(mmu, store, page, tag, value)
    else:
        _insert_ordered(mmu, store, page, tag, value)


@hot_kernel
def _probe_second_level(mmu: Mmu, store: int, page: int, tag: int) -> int:
    """Look a tag up in a second-level store: most often it is not there."""
    if geometry_of(mmu, store, G_GROUP) != 0:
        return _probe_grouped(mmu, store, page, tag)
    row = _set_row(mmu, store, page)
    ways = geometry_of(mmu, store, G_WAYS)
    if ways == EIGHT_WAYS or ways == TWELVE_WAYS:
        found = _among_four(mmu, row, tag) | _among_four(mmu, row + FOUR_WAYS, tag)
        if ways == TWELVE_WAYS:
            found |= _among_four(mmu, row + EIGHT_WAYS, tag)
        if not found:
            return NOTHING
    return _probe_many(mmu, row, ways, tag)


@hot_kernel
def _insert_second_level(mmu: Mmu, store: int, page: int, tag: int, value: int) -> None:
    if geometry_of(mmu, store, G_GROUP) == 0 and geometry_of(mmu, store, G_WAYS) == TWELVE_WAYS:
        row = _set_row(mmu, store, page)
        _shift_four(mmu, row + EIGHT_WAYS)
        _carry(mmu, row + EIGHT_WAYS)
        _shift_four(mmu, row + FOUR_WAYS)
        _carry(mmu, row + FOUR_WAYS)
        _shift_four(mmu, row)
        mmu.tag[np.uint64(row)] = tag
        mmu.value[np.uint64(row)] = value
    else:
        insert(mmu, store, page, tag, value)


@hot_kernel
def second_level(mmu: Mmu, size: int, page: int) -> int:
    """Return the second-level store in which a page of a size belongs.

    A size that two stores hold is spread over them by the page-number bit above the set's.
    """
    store = L2_TLB + size
    if geometry_of(mmu, L2_OTHER + size, G_WAYS) != 0:
        if (page >> geometry_of(mmu, store, G_SETS_BITS)) & 1:
            return L2_OTHER + size
    return store


@hot_kernel
def first_level_hit_of(mmu: Mmu, size: int, vpn: int, vpid: int) -> int:
    """Look a page up in the first level by one size; return where, or NOTHING."""
    page = vpn >> (size * INDEX_BITS)
    return _probe_ordered(mmu, L1_TLB + size, page, tag_of(page, size, vpid))


@hot_kernel
def second_level_hit_of(mmu: Mmu, size: int, vpn: int, vpid: int) -> int:
    """Look a page up in the second level by one size, copying a hit to the first."""
    page = vpn >> (size * INDEX_BITS)
    tag = tag_of(page, size, vpid)
    at = _probe_second_level(mmu, second_level(mmu, size, page), page, tag)
    if at != NOTHING:
        _insert_ordered(mmu, L1_TLB + size, page, tag, mmu.value[np.uint64(at)])
    return at


@hot_kernel
def first_level_hit(mmu: Mmu, vpn: int, vpid: int) -> int:
    """Look a page up in the first level by every size in use; return where, or NOTHING."""
    sizes = mmu.state[S_SIZES]
    size = 0
    while sizes != 0:
        if sizes & 1:
            at = first_level_hit_of(mmu, size, vpn, vpid)
            if at != NOTHING:
                return at
        sizes >>= 1
        size += 1
    return NOTHING


@hot_kernel
def second_level_hit(mmu: Mmu, vpn: int, vpid: int) -> int:
    """Look a page up in the second level, copying a hit to the first; return where, or NOTHING."""
    sizes = mmu.state[S_SIZES]
    size = 0
    while sizes != 0:
        if sizes & 1:
            at = second_level_hit_of(mmu, size, vpn, vpid)
            if at != NOTHING:
                return at
        sizes >>= 1
        size += 1
    return NOTHING


@hot_kernel
def fill(mmu: Mmu, vpn: int, size: int, vpid: int, frame: int) -> None:
    """Enter the translation that a walk found into both levels.

    Parameters
    ----------
    frame
        Frame of page ``vpn`` itself; the entry keeps that of its first page.
    """
    page = vpn >> (size * INDEX_BITS)
    first = frame & ~((1 << (size * INDEX_BITS)) - 1)
    tag = tag_of(page, size, vpid)
    _insert_second_level(mmu, second_level(mmu, size, page), page, tag, first)
    _insert_ordered(mmu, L1_TLB + size, page, tag, first)
    mmu.state[S_SIZES] |= 1 << size
    mmu.counts[np.uint64(C_FILLS + size)] += 1


@hot_kernel
def entry_bits(tag: int) -> int:
    """Return how many bits of a base-page number an entry leaves open."""
    return ((tag >> TAG_SIZE_SHIFT) & TAG_SIZE_MASK) * INDEX_BITS


@kernel
def _drop(mmu: Mmu, store: int, at: int) -> None:
    """Remove an entry; in an ordered store the rest of its set keeps its order."""
    if geometry_of(mmu, store, G_GROUP) == 0:
        ways = geometry_of(mmu, store, G_WAYS)
        offset = at - geometry_of(mmu, store, G_FIRST)
        end = at - offset % ways + ways
        for j in range(at, end - 1):
            mmu.tag[j] = mmu.tag[j + 1]
            mmu.value[j] = mmu.value[j + 1]
        at = end - 1
    mmu.tag[at] = NOTHING


@kernel
def invalidate_store(mmu: Mmu, store: int, vpid: int, first: int, nr: int) -> int:
    """Drop a VPID's entries of a store that overlap base pages ``first .. first + nr - 1``.

    Returns
    -------
    int
        Entries dropped.
    """
    dropped = 0
    begin = geometry_of(mmu, store, G_FIRST)
    entries = (geometry_of(mmu, store, G_SETS_MASK) + 1) * geometry_of(mmu, store, G_WAYS)
    for back in range(entries):
        at = begin + entries - 1 - back  # from the last, as dropping moves later ones up
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
        if geometry_of(mmu, store, G_WAYS) != 0:
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
        if geometry_of(mmu, store, G_WAYS) != 0:
            dropped += invalidate_store(mmu, store, vpid, 0, 1 << TAG_SIZE_SHIFT)
    return dropped


@kernel
def forget_all(mmu: Mmu) -> None:
    """Empty every store and counter."""
    mmu.tag[:] = NOTHING
    mmu.moment[:] = 0
    mmu.counts[:] = 0
    mmu.state[S_SIZES] = 0
    mmu.state[S_NESTED_SIZES] = 0
    mmu.state[S_CLOCK] = 0


def forget_counts(mmu: Mmu) -> None:
    """Set every counter to zero and keep the entries: the end of a warm-up."""
    mmu.counts[:] = 0
