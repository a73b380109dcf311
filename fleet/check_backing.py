"""Recompute whether guest and host agree on what is backed."""

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import (
    G_CACHE,
    G_HEAD,
    G_MM,
    G_PAGES,
    G_RING,
    G_SLOT,
    G_TAIL,
    NR_SLOTS,
)
from guestsim.gpa import may_be_large
from guestsim.guest import FIRST_MM, MM_BALLOON, MM_CACHE
from hostsim.core.errors import InvariantError
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_BASE,
    MM_LIVE,
    NIL,
    P_MM_USED,
    P_TOUCHED,
    P_TRACED,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_TABLE, W_TAG, is_folded, table_head, window_word
from hostsim.mm.mmu_notifier import E_LEAF, E_TAG
from hostsim.mm.physmem import (
    PB_COMPOUND,
    PB_FULL,
    PB_HUGE,
    PB_PARTIAL,
    PB_RESERVED,
    pageblock_state,
)
from hostsim.mm.rmap import FOLDED, extents_of, folds
from hostsim.mm.touched import TRACE_LOST


@kernel
def mark_backed(host: Memory, mm: int, offset: int, backed: NDArray[np.uint8]) -> None:
    """Set an entry for every frame of a guest that its host backs."""
    nr = backed.shape[0]
    for window in range((offset + nr + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER):
        word = window_word(host, mm, window)
        first = (window << HPAGE_PMD_ORDER) - offset
        if word & W_TAG == W_HUGE or is_folded(word):
            for frame in range(max(first, 0), min(first + HPAGE_PMD_NR, nr)):
                backed[frame] = 1
        elif word & W_TAG == W_TABLE:
            x = table_head(word)
            while x != NIL:
                low = int(host.ext[x].vpn) - offset
                for frame in range(max(low, 0), min(low + int(host.ext[x].nr), nr)):
                    backed[frame] = 1
                x = int(host.ext[x].next)


@kernel
def mark_in_use(mem: Memory, used: NDArray[np.uint8]) -> None:
    """Set an entry for every frame that a guest has in use and has written: not the balloon's."""
    for pb in range(used.shape[0] >> HPAGE_PMD_ORDER):
        state = pageblock_state(mem, pb)
        first = pb << HPAGE_PMD_ORDER
        whole = state in (PB_HUGE, PB_RESERVED)
        if folds(mem, pb):
            whole = FOLDED - int(mem.pb[pb].a) != MM_BALLOON
        if whole:
            for frame in range(first, first + HPAGE_PMD_NR):
                used[frame] = 1
        elif state in (PB_FULL, PB_PARTIAL, PB_COMPOUND) and not folds(mem, pb):
            x = extents_of(mem, pb)
            while x != NIL:
                if int(mem.ext[x].owner) != MM_BALLOON:
                    low = int(mem.ext[x].pfn)
                    for frame in range(low, low + int(mem.ext[x].nr)):
                        used[frame] = 1
                x = int(mem.ext[x].next_b)


def _check_leaves(host: Memory, guest: NDArray[np.int64], offset: int) -> None:
    """Check that no EPT leaf is larger than the guest's memory slots allow."""
    mm, pages = int(guest[G_MM]), int(guest[G_PAGES])
    base = int(host.mm[mm, MM_BASE])
    words = host.ept[base : base + (pages >> HPAGE_PMD_ORDER)]
    for window in np.flatnonzero(words & E_TAG == E_LEAF):
        if not may_be_large(int(window), pages, offset):
            raise InvariantError(f"2 MiB EPT leaf where none is allowed: window {window}")


def _check_processes(guest: NDArray[np.int64], mem: Memory) -> None:
    """Check that the processes of a guest are those that it began and did not end."""
    slots = guest[G_SLOT : G_SLOT + 2 * NR_SLOTS : 2]
    live = FIRST_MM + np.flatnonzero(mem.mm[FIRST_MM : mem.pool[P_MM_USED], MM_LIVE])
    if sorted(slots[slots != NIL]) != list(live):
        raise InvariantError(f"processes {list(live)} live, slots name {list(slots)}")


def _check_cache(guest: NDArray[np.int64], mem: Memory) -> None:
    """Check that page cache lies at its places in the ring, and that it can grow to its limit."""
    head, tail, ring = (int(guest[column]) for column in (G_HEAD, G_TAIL, G_RING))
    more = int(guest[G_CACHE] - mem.mm[MM_CACHE, MM_ANON])
    if not 0 <= head - tail <= ring - more:
        raise InvariantError(f"page cache at {tail}..{head}: {more} more do not fit {ring}")
    present = np.zeros(ring, np.uint8)
    mark_backed(mem, MM_CACHE, 0, present)
    present[np.arange(tail, head) % ring] = 0
    if present.any():
        raise InvariantError(f"page cache at {tail}..{head}, but also at {present.argmax()}")


def check_backing(host: Memory, guest: NDArray[np.int64], mem: Memory, offset: int) -> None:
    """Check that every frame a guest has written and not given up is backed.

    Raises
    ------
    InvariantError
        One is not, or the guest's log of frames is not empty, or a process is nobody's, or page
        cache lies where it should not.
    """
    _check_processes(guest, mem)
    _check_cache(guest, mem)
    if mem.pool[P_TOUCHED] != 0 or mem.pool[P_TRACED] == TRACE_LOST:
        raise InvariantError(f"{mem.pool[P_TOUCHED]} runs of frames were never backed")
    nr = len(mem.pb[: guest[G_PAGES] >> HPAGE_PMD_ORDER]) << HPAGE_PMD_ORDER
    backed, used = np.zeros(nr, np.uint8), np.zeros(nr, np.uint8)
    mark_backed(host, int(guest[G_MM]), offset, backed)
    mark_in_use(mem, used)
    _check_leaves(host, guest, offset)
    lost = np.flatnonzero(used > backed)
    if len(lost):
        raise InvariantError(
            f"{len(lost)} frames in use are not backed, the first is {lost[0]} of {nr}"
        )
