"""Radix page tables as a page walker sees them: entries, and the frames the tables lie in.

A table of level ``l`` has 512 entries; level 1 maps base pages, level 2 is the page directory,
4 or 5 the root.  Of a guest's tables the frames are guest-physical, of an EPT host-physical.

Source: Intel SDM vol. 3A section 5.5 (4-level and 5-level paging), vol. 3C section 29.3 (EPT).
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.byref import ByReference
from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER, NO_PFN, PTRS_PER_TABLE

INDEX_BITS: Final = HPAGE_PMD_ORDER  # of a page number, a level
INDEX_MASK: Final = PTRS_PER_TABLE - 1
MIN_LEVELS: Final = 4
MAX_LEVELS: Final = 5
PAGE_SIZES: Final = ("4K", "2M", "1G")  # leaf at level 1, 2, 3
NR_SIZES: Final = len(PAGE_SIZES)

E_TAG: Final = 3
E_NONE: Final = 0  # not present
E_LEAF: Final = 1  # tag: a page, its first frame above
E_TABLE: Final = 2  # tag: a table of the next lower level, its number above; one bit tells both
MAX_FRAME: Final = (1 << 29) - 1  # of an entry in 32 bits: 2 TiB

R_ROOT: Final = 0  # table number of the root
R_LEVELS: Final = 1
R_USED: Final = 2  # tables in use, numbered from 0
R_NEXT_FRAME: Final = 3  # frame of the next table that `map_leaf` makes
NR_R_FIELDS: Final = 4


class _TableArrays(NamedTuple):
    entry: NDArray[np.int32]  # (tables * 512,) E_*
    frame: NDArray[np.int32]  # (tables,) where each table lies
    root: NDArray[np.int64]  # (NR_R_FIELDS,)


class PageTables(ByReference, _TableArrays):
    """One address space's tables."""


def new_page_tables(nr_tables: int, levels: int, first_frame: int) -> PageTables:
    """Return empty tables with room for ``nr_tables``, the root among them.

    Parameters
    ----------
    first_frame
        Frame of the root; tables that `map_leaf` makes lie behind it, one a frame.

    Raises
    ------
    ValueError
        ``levels`` is neither 4 nor 5, or a frame is beyond 2 TiB.
    """
    if not MIN_LEVELS <= levels <= MAX_LEVELS:
        raise ValueError(f"levels {levels} is neither {MIN_LEVELS} nor {MAX_LEVELS}")
    if first_frame + nr_tables > MAX_FRAME:
        raise ValueError(f"frame {first_frame + nr_tables} is beyond {MAX_FRAME}")
    root = np.zeros(NR_R_FIELDS, np.int64)
    root[R_LEVELS] = levels
    root[R_USED] = 1
    root[R_NEXT_FRAME] = first_frame + 1
    frame = np.zeros(nr_tables, np.int32)
    frame[0] = first_frame
    return PageTables(np.zeros(nr_tables * PTRS_PER_TABLE, np.int32), frame, root)


@inline_kernel
def index_at(page: int, level: int) -> int:
    """Return the index of a page number into its table of a level."""
    return (page >> ((level - 1) * INDEX_BITS)) & INDEX_MASK


@inline_kernel
def put_leaf(tables: PageTables, table: int, page: int, level: int, frame: int) -> None:
    """Write the leaf of a page into its table of a level."""
    tables.entry[table * PTRS_PER_TABLE + index_at(page, level)] = (frame << 2) | E_LEAF


@kernel
def map_leaf(tables: PageTables, page: int, level: int, frame: int) -> bool:
    """Map a page by a leaf of a level, making the tables above it.

    What the leaf replaces is forgotten; its tables stay unused.

    Returns
    -------
    bool
        False if there is no room for another table.
    """
    table = tables.root[R_ROOT]
    at = tables.root[R_LEVELS]
    while at > level:
        slot = table * PTRS_PER_TABLE + index_at(page, at)
        entry = int(tables.entry[slot])
        if entry & E_TAG != E_TABLE:
            new = tables.root[R_USED]
            if new >= tables.frame.size:
                return False
            tables.root[R_USED] = new + 1
            tables.frame[new] = tables.root[R_NEXT_FRAME]
            tables.root[R_NEXT_FRAME] += 1
            tables.entry[slot] = (new << 2) | E_TABLE
            table = new
        else:
            table = entry >> 2
        at -= 1
    put_leaf(tables, table, page, level, frame)
    return True


@kernel
def unmap(tables: PageTables, page: int) -> int:
    """Clear the leaf that maps a page; return its level, or 0 if nothing does."""
    table = tables.root[R_ROOT]
    level = tables.root[R_LEVELS]
    while level > 0:
        slot = table * PTRS_PER_TABLE + index_at(page, level)
        entry = int(tables.entry[slot])
        if entry & E_TAG == E_LEAF:
            tables.entry[slot] = E_NONE
            return int(level)
        if entry == E_NONE:
            return 0
        table = entry >> 2
        level -= 1
    return 0


@kernel
def look_up(tables: PageTables, page: int) -> tuple[int, int]:
    """Return the frame of a page and the level of its leaf, or (NO_PFN, 0); counts nothing."""
    table = tables.root[R_ROOT]
    level = tables.root[R_LEVELS]
    while level > 0:
        entry = int(tables.entry[table * PTRS_PER_TABLE + index_at(page, level)])
        if entry & E_TAG == E_LEAF:
            below = page & ((1 << ((level - 1) * INDEX_BITS)) - 1)
            return (entry >> 2) + below, int(level)
        if entry == E_NONE:
            return NO_PFN, 0
        table = entry >> 2
        level -= 1
    return NO_PFN, 0


@hot_kernel
def _table_start(entry: int) -> int:
    """Return where the table begins that an entry leads to."""
    return (entry - E_TABLE) << (INDEX_BITS - 2)


@hot_kernel
def leaf_slot(tables: PageTables, page: int) -> tuple[int, int]:
    """Return where the entry that maps a page stands, if any does, and its level.

    An entry of level 1 is not read: it is where this is called to look ahead.
    """
    start = int(tables.root[R_ROOT]) << INDEX_BITS
    if tables.root[R_LEVELS] == MAX_LEVELS:
        slot = start + index_at(page, MAX_LEVELS)
        entry = int(tables.entry[np.uint64(slot)])
        if entry & E_TABLE == 0:
            return slot, MAX_LEVELS
        start = _table_start(entry)
    for level in range(MIN_LEVELS, 1, -1):  # unrolled: what is known of a level is not computed
        slot = start + index_at(page, level)
        entry = int(tables.entry[np.uint64(slot)])
        if entry & E_TABLE == 0:
            return slot, level
        start = _table_start(entry)
    return start + index_at(page, 1), 1


@kernel
def table_at(tables: PageTables, page: int, level: int) -> int:
    """Return the table of a level on the way to a page, which must be mapped below it."""
    table = tables.root[R_ROOT]
    at = tables.root[R_LEVELS]
    while at > level:
        table = int(tables.entry[table * PTRS_PER_TABLE + index_at(page, at)]) >> 2
        at -= 1
    return int(table)


def tables_needed(nr_pages: int, levels: int, leaf_level: int) -> int:
    """Return how many tables map pages ``0 .. nr_pages - 1`` with leaves of one level."""
    return sum(
        -(-nr_pages // (1 << (level * INDEX_BITS))) for level in range(leaf_level, levels + 1)
    )
