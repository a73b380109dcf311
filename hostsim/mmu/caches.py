"""Data caches simulated line by line: the check of the analytic cost model.

Three set-associative LRU caches, each of which sees what missed the one before it; every access
reads one line of its page, and before that the table lines of its walk.

Simplified: loads and stores alike, no coherence; a miss of data may bring in the line's pair.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.byref import ByReference
from hostsim.core.counter_rng import hash64
from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.units import NO_PFN
from hostsim.mmu.cpus import Cpu
from hostsim.mmu.paging import PageTables
from hostsim.mmu.tlb import LEVEL_STRIDE, NR_READ_CLASSES, S_LOGGED, Mmu
from hostsim.mmu.walker import LOG_CLASS_SHIFT, LOG_LEVEL_SHIFT, translate

WAYS: Final = 16
LINE_ENTRIES_SHIFT: Final = 3  # eight entries a line
LINES_PER_PAGE_SHIFT: Final = 6
LINE_BYTES: Final = 64
NR_CACHES: Final = 3
NR_PLACES: Final = NR_CACHES + 1
TABLE_LINE: Final = 1 << 50  # lines of tables are numbered above those of data
EPT_LINE: Final = 1 << 51

CS_SETS: Final = 0  # + cache
CS_FIRST: Final = NR_CACHES  # + cache: its first entry
CS_FILL: Final = 2 * NR_CACHES  # lines that a miss of data brings in
NR_CS_FIELDS: Final = 2 * NR_CACHES + 1


class _CacheArrays(NamedTuple):
    tag: NDArray[np.int64]  # (entries,) lines, most recently used first in each set; -1 empty
    shape: NDArray[np.int64]  # (NR_CS_FIELDS,)
    found: NDArray[np.int64]  # (classes * LEVEL_STRIDE * NR_PLACES,) reads by where they hit


class Caches(ByReference, _CacheArrays):
    """The three caches that one hardware thread sees."""


def new_caches(cpu: Cpu) -> Caches:
    """Return empty caches of a CPU's sizes."""
    shape = np.zeros(NR_CS_FIELDS, np.int64)
    first = 0
    for cache, size in enumerate((cpu.cache.l1_bytes, cpu.cache.l2_bytes, cpu.cache.llc_bytes)):
        sets = max(1, size // (LINE_BYTES * WAYS))
        shape[CS_SETS + cache] = sets
        shape[CS_FIRST + cache] = first
        first += sets * WAYS
    shape[CS_FILL] = cpu.cache.fill_lines
    return Caches(
        np.full(first, -1, np.int64),
        shape,
        np.zeros(NR_READ_CLASSES * LEVEL_STRIDE * NR_PLACES, np.int64),
    )


@hot_kernel
def _touch(caches: Caches, cache: int, line: int) -> bool:
    """Look a line up in one cache and make it the most recent; return whether it was there."""
    chosen = hash64(0, line, cache) % caches.shape[CS_SETS + cache]
    first = np.uint64(caches.shape[CS_FIRST + cache] + chosen * WAYS)
    i = first
    last = first + np.uint64(WAYS - 1)
    while i < last and caches.tag[i] != line:
        i += np.uint64(1)
    hit = caches.tag[i] == line
    while i > first:
        caches.tag[i] = caches.tag[i - np.uint64(1)]
        i -= np.uint64(1)
    caches.tag[first] = line
    return bool(hit)


@kernel
def read_line(caches: Caches, line: int) -> int:
    """Read a line; return where it was found: 0 (L1) to 3 (memory)."""
    for cache in range(NR_CACHES):
        if _touch(caches, cache, line):
            return cache
    return NR_CACHES


@kernel
def read_pages(
    mmu: Mmu,
    caches: Caches,
    guest: PageTables,
    ept: PageTables,
    nested: bool,
    vpid: int,
    pages: NDArray[np.int64],
    key: int,
    start: int,
) -> None:
    """Translate accesses one by one, reading the lines of their walks and of their data.

    Parameters
    ----------
    key, start
        The line within a page is a pure function of the key and the access's number.
    """
    for i in range(pages.size):
        mmu.state[S_LOGGED] = 0
        if translate(mmu, guest, ept, nested, pages[i], vpid) == NO_PFN:
            continue
        for j in range(mmu.state[S_LOGGED]):
            read = mmu.log[j]
            level = (read >> LOG_LEVEL_SHIFT) & 15
            kind = read >> LOG_CLASS_SHIFT
            line = (read & ((1 << LOG_LEVEL_SHIFT) - 1)) >> LINE_ENTRIES_SHIFT
            place = read_line(caches, line | (EPT_LINE if kind > 0 else TABLE_LINE))
            caches.found[(kind * LEVEL_STRIDE + level) * NR_PLACES + place] += 1
        line = (pages[i] << LINES_PER_PAGE_SHIFT) | (
            hash64(key, start + i, 0) & ((1 << LINES_PER_PAGE_SHIFT) - 1)
        )
        if read_line(caches, line) > 0 and caches.shape[CS_FILL] > 1:
            _touch(caches, 1, line ^ 1)
            _touch(caches, 2, line ^ 1)
