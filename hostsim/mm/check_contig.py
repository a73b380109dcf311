"""Validator of the counts of `hostsim.mm.contig`, recomputed from pageblocks and extents."""

import numpy as np

from hostsim.core.units import PAGEBLOCK_ORDER
from hostsim.mm.check_free import FREE_STATES, NO_ZONE, Ints, Scan, agree, forbid
from hostsim.mm.mm_types import (
    P_FREE_1G,
    P_FREE_32M,
    P_PAGEBLOCKS,
    P_UNMOVABLE_BLOCKS,
    UNIT_1G_SHIFT,
    UNIT_32M_SHIFT,
    Memory,
)
from hostsim.mm.page_ext import all_of
from hostsim.mm.rmap import KIND_BOOT, KIND_EPT, KIND_KERNEL, KIND_PGTABLE
from hostsim.mm.vmstat import NR_EPT, NR_KERNEL, NR_PAGETABLE


def check_units(mem: Memory, s: Scan) -> None:
    """Pageblocks of each unit that are not free, and how many units are."""
    taken = ~np.isin(s.state, FREE_STATES)
    for name, counts, nr_free, shift in (
        ("32 MiB", mem.unit_32m, P_FREE_32M, UNIT_32M_SHIFT),
        ("1 GiB", mem.unit_1g, P_FREE_1G, UNIT_1G_SHIFT),
    ):
        size = 1 << shift
        missing = -s.state.size % size  # of the last unit, beyond the end of memory
        zone = np.pad(s.zone, (0, missing), constant_values=NO_ZONE).reshape(-1, size)
        split = (zone != zone[:, :1]).any(axis=1) | (zone[:, 0] == NO_ZONE)
        in_use = np.pad(taken, (0, missing)).reshape(-1, size).sum(axis=1)
        agree(f"pageblocks in use of {name} units", stored=counts, states=in_use + split)
        free = int(((in_use == 0) & ~split).sum())
        agree(f"free {name} units", counter=mem.pool[nr_free], states=free)


def check_unmovable(mem: Memory, pfn: Ints, nr: Ints, kind: Ints) -> None:
    """Unmovable pages of each pageblock; boot memory counts only where the model allocated it."""
    pb = pfn >> PAGEBLOCK_ORDER
    own = np.isin(kind, (KIND_PGTABLE, KIND_EPT, KIND_KERNEL))
    size = int(mem.pool[P_PAGEBLOCKS])
    unmovable = all_of(mem, "unmovable", size)
    least = np.bincount(pb[own], weights=nr[own], minlength=size).astype(np.int64)
    boot = kind == KIND_BOOT
    most = least + np.bincount(pb[boot], weights=nr[boot], minlength=size).astype(np.int64)
    forbid(
        "unmovable pages of a pageblock",
        (unmovable < least) | (unmovable > most),
        pageblock=np.arange(size),
        stored=unmovable,
        extents=least,
    )
    counted = mem.vmstat[NR_PAGETABLE] + mem.vmstat[NR_EPT] + mem.vmstat[NR_KERNEL]
    agree("unmovable pages", stored=int(unmovable.sum()), vmstat=counted)
    agree(
        "pageblocks with unmovable pages",
        counter=mem.pool[P_UNMOVABLE_BLOCKS],
        stored=np.count_nonzero(unmovable),
    )
