"""A host's physical memory, pageblock by pageblock: what each holds, and its migratetype."""

from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.errors import InvariantError
from hostsim.core.units import PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    P_PAGEBLOCKS,
    TYPE_NAMES,
    Memory,
)
from hostsim.mm.page_ext import all_of
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FREE9,
    PB_FREE10,
    PB_FREE10_TAIL,
    PB_FULL,
    PB_HUGE,
    PB_HUGETLB,
    PB_PARTIAL,
    PB_PCP,
    PB_RESERVED,
    PB_VIRGIN,
)

QUARTERS: Final = 4


class Cell(IntEnum):
    """What a pageblock holds."""

    FREE = 0
    PER_CPU = 1  # a free huge page on a per-CPU list
    QUARTER = 2  # small pages, up to a quarter of it in use
    HALF = 3
    THREE_QUARTERS = 4
    NEARLY = 5  # small pages, more than three quarters in use, but not all
    SMALL = 6  # small pages, all in use
    HUGE = 7  # one huge page
    UNMOVABLE_PARTIAL = 8  # partly in use, with pages of the kernel, page tables or EPTs
    UNMOVABLE = 9  # all in use, with such pages
    RESERVED = 10  # not managed: kernel image, struct pages, firmware


class Word(NamedTuple):
    """How a kind of cell is called and coloured."""

    text: str
    colour: str


# Okabe and Ito's colours; what is partly in use goes from the colour of free to that of full
CELLS: Final = {
    Cell.FREE: Word("free", "#e9eef3"),
    Cell.PER_CPU: Word("free, on a per-CPU list", "#009e73"),
    Cell.QUARTER: Word("small pages, up to 1/4 in use", "#fbe7bf"),
    Cell.HALF: Word("small pages, up to 1/2 in use", "#f7d28c"),
    Cell.THREE_QUARTERS: Word("small pages, up to 3/4 in use", "#f2bd55"),
    Cell.NEARLY: Word("small pages, nearly all in use", "#eca82a"),
    Cell.SMALL: Word("small pages, all in use", "#cc7a00"),
    Cell.HUGE: Word("a huge page", "#0072b2"),
    Cell.UNMOVABLE_PARTIAL: Word("unmovable pages, partly free", "#cc79a7"),
    Cell.UNMOVABLE: Word("unmovable pages, all in use", "#8f2d62"),
    Cell.RESERVED: Word("reserved", "#3d434a"),
}
TYPES: Final = tuple(
    Word(name, colour)
    for name, colour in zip(TYPE_NAMES, ("#8f2d62", "#e9eef3", "#56b4e9", "#e69f00"), strict=True)
)
_FREE_STATES: Final = (PB_VIRGIN, PB_FREE9, PB_FREE10, PB_FREE10_TAIL)
_HUGE_STATES: Final = (PB_HUGE, PB_COMPOUND, PB_HUGETLB)


class MemoryMap(NamedTuple):
    """A host's pageblocks at one time, by address."""

    t_ns: int
    cells: NDArray[np.uint8]  # Cell
    types: NDArray[np.uint8]  # migratetype of the label: index into TYPES

    def counts(self) -> dict[Cell, int]:
        """Return how many pageblocks hold what."""
        found = np.bincount(self.cells, minlength=len(Cell))
        return {cell: int(found[cell]) for cell in Cell}

    def type_counts(self) -> dict[str, int]:
        """Return how many pageblocks have which migratetype."""
        found = np.bincount(self.types, minlength=len(TYPES))
        return {word.text: int(nr) for word, nr in zip(TYPES, found, strict=True)}


def memory_map(mem: Memory, t_ns: int) -> MemoryMap:
    """Look at all pageblocks of a host.

    Raises
    ------
    InvariantError
        A pageblock is in no known state.
    """
    nr = int(mem.pool[P_PAGEBLOCKS])
    packed = unpacked(mem.pb[:nr])
    state = packed.state
    unmovable = all_of(mem, "unmovable", nr) > 0
    cells = np.full(nr, len(Cell), np.uint8)
    cells[np.isin(state, _FREE_STATES)] = Cell.FREE
    cells[state == PB_PCP] = Cell.PER_CPU
    cells[np.isin(state, _HUGE_STATES)] = Cell.HUGE
    cells[state == PB_RESERVED] = Cell.RESERVED
    full, partial = state == PB_FULL, state == PB_PARTIAL
    cells[full] = np.where(unmovable[full], Cell.UNMOVABLE, Cell.SMALL)
    used = _used_pages(mem, np.flatnonzero(partial))
    fill = Cell.QUARTER + (used - 1) * QUARTERS // PAGEBLOCK_NR_PAGES
    cells[partial] = np.where(unmovable[partial], Cell.UNMOVABLE_PARTIAL, fill)
    if (cells == len(Cell)).any():
        raise InvariantError(f"pageblock {int(np.argmax(cells))} is in no known state")
    return MemoryMap(t_ns, cells, packed.label.astype(np.uint8))


def _used_pages(mem: Memory, pageblocks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pages of partial pageblocks are in use, those on per-CPU lists included."""
    bits = mem.rec["bits"][mem.pb["a"][pageblocks]]
    free = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    used: NDArray[np.int64] = PAGEBLOCK_NR_PAGES - free
    return used


def columns_of(nr_pageblocks: int) -> int:
    """Return how many pageblocks a row of a picture has: a power of two, twice as wide as high."""
    columns = 1
    while columns * columns < nr_pageblocks:
        columns *= 2
    return columns


def bytes_of_row(columns: int) -> int:
    """Return the memory that a row of a picture shows."""
    return columns << (PAGEBLOCK_ORDER + 12)
