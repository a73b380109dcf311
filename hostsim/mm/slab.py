"""Kernel memory that can't be moved: what is there from boot, and slab-like churn.

Blocks of orders 0..3 are born at a steady rate and live exponentially long, most of them
briefly.  They are what pollutes movable pageblocks by the fallback rules.

Source: the role of Linux mm/slub.c; rates and lifetimes are the scenario's.
Simplified: blocks that are born and freed within one tick are left out: they reuse pages of
the per-CPU lists.
Simplified: CPUs of all nodes allocate it in turn.
Simplified: all of it is of type Unmovable; reclaimable caches are not told apart.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.arena import Field, carve
from hostsim.core.byref import ByReference
from hostsim.core.counter_rng import hash64, uniform
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import COSTLY_ORDER, NO_PFN, PAGEBLOCK_NR_PAGES
from hostsim.mm.contig import count_unmovable
from hostsim.mm.mm_types import MIGRATE_UNMOVABLE, NIL, Memory
from hostsim.mm.numa import run_on_next_node
from hostsim.mm.page_alloc import free_order
from hostsim.mm.rmap import EXT_DESCENDING, KIND_BOOT, KIND_KERNEL, add_extent, del_extent
from hostsim.mm.slowpath import alloc_pages
from hostsim.mm.vmstat import NR_KERNEL

BLOCK_DTYPE: Final = np.dtype(
    [("pfn", "i4"), ("ext", "i4"), ("die_tick", "i4"), ("next", "i4"), ("order", "i4")]
)
MAX_BLOCKS: Final = 1 << 22
WHEEL: Final = 1 << 12  # lists of blocks by tick of death, modulo
S_LIVE: Final = 0  # blocks alive
S_USED: Final = 1  # blocks ever used
S_FREE: Final = 2  # first of the free chain + 1
S_OWED: Final = 3  # thousandths of a block still to be born, short- then long-lived
NR_S_FIELDS: Final = 5
MILLI: Final = 1000


class _SlabArrays(NamedTuple):
    blocks: NDArray[Any]  # (MAX_BLOCKS,) BLOCK_DTYPE
    wheel: NDArray[Any]  # int32 (WHEEL,) first block + 1 of each list
    state: NDArray[Any]  # int64 (NR_S_FIELDS,)


class Slab(ByReference, _SlabArrays):
    """Blocks alive, on lists by the tick at which they die; KIND_KERNEL extents own the frames."""


def new_slab() -> Slab:
    """Return an empty table."""
    return Slab(
        **carve(
            [
                Field("state", (NR_S_FIELDS,), np.dtype("i8")),
                Field("wheel", (WHEEL,), np.dtype("i4")),
                Field("blocks", (MAX_BLOCKS,), BLOCK_DTYPE),
            ]
        )
    )


def restore_slab(parts: dict[str, NDArray[Any]]) -> Slab:
    """Return the table whose used parts these are.

    Raises
    ------
    ValueError
        They do not fit.
    """
    slab = new_slab()
    if parts.keys() != set(Slab._fields):
        raise ValueError(f"slab: parts are {', '.join(parts)}, not {', '.join(Slab._fields)}")
    for name, part in parts.items():
        into = getattr(slab, name)
        if into.dtype != part.dtype or part.ndim != 1 or len(part) > len(into):
            raise ValueError(f"slab.{name}: {part.dtype} {part.shape} does not fit {into.shape}")
        into[: len(part)] = part
    if slab.state[S_USED] != len(parts["blocks"]):
        raise ValueError(f"slab.blocks: {len(parts['blocks'])}, not {slab.state[S_USED]}")
    return slab


@kernel
def alloc_boot_pages(mem: Memory, nr: int) -> bool:
    """Allocate kernel memory that stays for ever; return whether there was enough."""
    share = -(-nr // len(mem.node))
    while nr > 0:
        run_on_next_node(mem)
        pfn, taken, step = alloc_pages(mem, 0, MIGRATE_UNMOVABLE, min(nr, share))
        if pfn == NO_PFN:
            return False
        nr -= taken
        mem.vmstat[NR_KERNEL] += taken
        low = pfn if step > 0 else pfn - taken + 1
        while taken > 0:
            here = min(taken, PAGEBLOCK_NR_PAGES - (low & (PAGEBLOCK_NR_PAGES - 1)))
            add_extent(mem, low, here, NIL, 0, KIND_BOOT | (EXT_DESCENDING if step < 0 else 0))
            count_unmovable(mem, low, here)
            low += here
            taken -= here
    return True


@kernel
def _bear(mem: Memory, slab: Slab, tick: int, nr: int, life_ticks: float, key: int) -> bool:
    """Allocate ``nr`` blocks whose lifetimes are exponential; return whether memory sufficed."""
    for i in range(nr):
        run_on_next_node(mem)
        salt = tick * 2 + (1 if life_ticks > 1.0 else 0)
        order = min(hash64(key, salt, 2 * i) & 7, COSTLY_ORDER + 4) >> 1  # 0..3, equally likely
        pfn, _, _ = alloc_pages(mem, order, MIGRATE_UNMOVABLE, 1)
        if pfn == NO_PFN:
            order = 0
            pfn, _, _ = alloc_pages(mem, 0, MIGRATE_UNMOVABLE, 1)
        if pfn == NO_PFN or slab.state[S_LIVE] == slab.blocks.size:
            return False
        life = -np.log(uniform(key, salt, 2 * i + 1)) * life_ticks
        at = slab.state[S_FREE] - 1
        if at != NIL:
            slab.state[S_FREE] = slab.blocks[at].next
        else:
            at = slab.state[S_USED]
            slab.state[S_USED] += 1
        slab.state[S_LIVE] += 1
        slab.blocks[at].pfn = pfn
        slab.blocks[at].order = order
        slab.blocks[at].die_tick = tick + 1 + int(min(life, 1e9))
        slab.blocks[at].ext = add_extent(mem, pfn, 1 << order, NIL, 0, KIND_KERNEL)
        _queue(slab, at)
        mem.vmstat[NR_KERNEL] += 1 << order
        count_unmovable(mem, pfn, 1 << order)
    return True


@inline_kernel
def _queue(slab: Slab, at: int) -> None:
    """Put a block on the list of its tick of death."""
    turn = slab.blocks[at].die_tick % WHEEL
    slab.blocks[at].next = slab.wheel[turn]
    slab.wheel[turn] = at + 1


@kernel
def _bury(mem: Memory, slab: Slab, tick: int) -> None:
    """Free the blocks whose time has come."""
    turn = tick % WHEEL
    at = int(slab.wheel[turn]) - 1
    slab.wheel[turn] = 0
    while at != NIL:
        after = int(slab.blocks[at].next) - 1
        if slab.blocks[at].die_tick > tick:  # a later round of the wheel
            _queue(slab, at)
            at = after
            continue
        pfn = int(slab.blocks[at].pfn)
        order = int(slab.blocks[at].order)
        del_extent(mem, int(slab.blocks[at].ext))
        count_unmovable(mem, pfn, -(1 << order))
        free_order(mem, pfn, order)
        mem.vmstat[NR_KERNEL] -= 1 << order
        slab.blocks[at].next = slab.state[S_FREE]
        slab.state[S_FREE] = at + 1
        slab.state[S_LIVE] -= 1
        at = after


@kernel
def slab_tick(
    mem: Memory,
    slab: Slab,
    tick: int,
    short_births: float,
    short_life_ticks: float,
    long_births: float,
    long_life_ticks: float,
    key: int,
) -> bool:
    """Advance kernel memory by one tick.

    Parameters
    ----------
    short_births, long_births
        Blocks a tick that are alive at its end, of each sort; fractions are carried over.
    short_life_ticks, long_life_ticks
        Mean lifetimes.
    key
        Random key of the host.

    Returns
    -------
    bool
        False if memory ran out; the rest of the tick's births is dropped.
    """
    _bury(mem, slab, tick)
    slab.state[S_OWED] += int(short_births * MILLI)
    slab.state[S_OWED + 1] += int(long_births * MILLI)
    short = slab.state[S_OWED] // MILLI
    long = slab.state[S_OWED + 1] // MILLI
    slab.state[S_OWED] -= short * MILLI
    slab.state[S_OWED + 1] -= long * MILLI
    return _bear(mem, slab, tick, short, short_life_ticks, key) and _bear(
        mem, slab, tick, long, long_life_ticks, key + 1
    )
