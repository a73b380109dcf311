"""Zone watermarks and lowmem reserves.

Source: Linux v6.1 mm/page_alloc.c init_per_zone_wmark_min, __setup_per_zone_wmarks,
setup_per_zone_lowmem_reserve, zone_set_pageset_high_and_batch; mm/khugepaged.c
set_recommended_min_free_kbytes.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import NR_PAGE_ORDERS, PAGE_SHIFT, PAGEBLOCK_NR_PAGES
from hostsim.mm.mm_types import (
    NR_PCP_TYPES,
    NR_TYPES,
    NR_ZONES,
    P_BOOSTED,
    Z_BOOST,
    Z_FREE,
    Z_MANAGED,
    Z_PCP_BATCH,
    Z_PCP_HIGH_MAX,
    Z_PCP_HIGH_MIN,
    Z_RESERVE,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    Memory,
)
from hostsim.mm.physmem import zone_idx
from hostsim.mm.tunables import T_WATERMARK_BOOST_FACTOR, T_WATERMARK_DECAY

BOOST_SCALE: Final = 10000  # vm.watermark_boost_factor is in 1/10000 of the high watermark
MIN_FREE_KB_FLOOR: Final = 128
MIN_FREE_KB_CAP: Final = 262144
SEED_MIN_FREE_KB_CAP: Final = 65536  # v2.6.38
SEED_PCP_HIGH_BATCHES: Final = 6  # v2.6.38 setup_pageset
WATERMARK_SCALE_FACTOR: Final = 10  # vm.watermark_scale_factor, per 10000
LOWMEM_RESERVE_RATIO: Final = (256, 256, 32)  # vm.lowmem_reserve_ratio
KB_SHIFT: Final = PAGE_SHIFT - 10
PCP_HIGH_FRACTION: Final = 8  # MIN_PERCPU_PAGELIST_HIGH_FRACTION


def min_free_kbytes(managed_pages: int, nr_zones: int, thp: bool, seed: bool = False) -> int:
    """Return vm.min_free_kbytes as the kernel computes it at boot.

    Parameters
    ----------
    managed_pages
        Pages of all lowmem zones.
    nr_zones
        Populated zones.
    thp
        Whether transparent hugepages are on, which raises the value.
    seed
        Whether as in 2.6.38.
    """
    base = math.isqrt(16 * (managed_pages << KB_SHIFT))
    kbytes = min(max(base, MIN_FREE_KB_FLOOR), SEED_MIN_FREE_KB_CAP if seed else MIN_FREE_KB_CAP)
    if thp:
        blocks = nr_zones * 2 + nr_zones * NR_PCP_TYPES * NR_PCP_TYPES
        pages = min(PAGEBLOCK_NR_PAGES * blocks, managed_pages * 5 // 100)
        kbytes = max(kbytes, pages << KB_SHIFT)
    return kbytes


def set_watermarks(zone: NDArray[np.int64], min_free_kb: int, nr_cpus: int) -> None:
    """Fill in watermarks, reserves and per-CPU list limits of every zone.

    Parameters
    ----------
    zone
        `Physmem.zone`, whose managed pages are set; modified.
    min_free_kb
        vm.min_free_kbytes.
    nr_cpus
        CPUs of the machine, those of a node as many as those of any other: a zone's one set of
        lists stands for the lists of its node's CPUs.
    """
    total = int(zone[:, Z_MANAGED].sum())
    pages_min = min_free_kb >> KB_SHIFT
    node_cpus = max(nr_cpus // (len(zone) - NR_ZONES + 1), 1)
    for z in range(len(zone)):
        managed = int(zone[z, Z_MANAGED])
        mark = pages_min * managed // total if total else 0
        step = max(mark // 4, managed * WATERMARK_SCALE_FACTOR // 10000)
        zone[z, Z_WMARK_MIN] = mark
        zone[z, Z_WMARK_LOW] = mark + step
        zone[z, Z_WMARK_HIGH] = mark + 2 * step
        higher = int(zone[z + 1 : NR_ZONES, Z_MANAGED].sum())  # of its node
        zone[z, Z_RESERVE] = higher // LOWMEM_RESERVE_RATIO[zone_idx(z)]
        batch = max(min(managed >> 10, (1 << 20) >> PAGE_SHIFT) // 4, 1)
        batch = (1 << ((batch + batch // 2).bit_length() - 1)) - 1
        batch = max(batch, 1)
        zone[z, Z_PCP_BATCH] = batch
        floor = 4 * batch * node_cpus
        zone[z, Z_PCP_HIGH_MIN] = max(int(zone[z, Z_WMARK_LOW]), floor)
        zone[z, Z_PCP_HIGH_MAX] = max(managed // PCP_HIGH_FRACTION, floor)


def set_seed_watermarks(zone: NDArray[np.int64], min_free_kb: int, nr_cpus: int) -> None:
    """Fill in what `set_watermarks` does by the rules of 2.6.38: fixed steps, small lists."""
    set_watermarks(zone, min_free_kb, nr_cpus)
    for z in range(len(zone)):
        mark = int(zone[z, Z_WMARK_MIN])
        zone[z, Z_WMARK_LOW] = mark + mark // 4
        zone[z, Z_WMARK_HIGH] = mark + mark // 2
        batch = max(min(int(zone[z, Z_MANAGED]) >> 10, (512 << 10) >> PAGE_SHIFT) // 4, 1)
        batch = max((1 << ((batch + batch // 2).bit_length() - 1)) - 1, 1)
        zone[z, Z_PCP_BATCH] = batch
        zone[z, Z_PCP_HIGH_MIN] = SEED_PCP_HIGH_BATCHES * batch * nr_cpus
        zone[z, Z_PCP_HIGH_MAX] = zone[z, Z_PCP_HIGH_MIN]


@inline_kernel
def _decayed_watermark_ok(mem: Memory, zone: int, order: int, mark: int) -> bool:
    """Tell the same as 2.6.38 does: each order must leave half the mark of the one below."""
    free = mem.zone[zone, Z_FREE] - ((1 << order) + 1)
    if free <= mark + mem.zone[zone, Z_RESERVE]:
        return False
    for current in range(order):
        for migratetype in range(NR_TYPES):
            free -= mem.nr_free[zone, migratetype, current] << current
        mark >>= 1
        if free <= mark:
            return False
    return True


@inline_kernel
def zone_watermark_ok(mem: Memory, zone: int, order: int, mark: int) -> bool:
    """Tell whether an allocation would leave a zone above a mark, boost added.

    Source: Linux v6.1 mm/page_alloc.c __zone_watermark_ok; wmark_pages.
    """
    if mem.tunables[T_WATERMARK_DECAY] != 0:
        return _decayed_watermark_ok(mem, zone, order, mark)
    free = mem.zone[zone, Z_FREE] - ((1 << order) - 1)
    if free <= mark + mem.zone[zone, Z_BOOST] + mem.zone[zone, Z_RESERVE]:
        return False
    if order == 0:
        return True
    for current in range(order, NR_PAGE_ORDERS):
        for migratetype in range(NR_PCP_TYPES):
            if mem.nr_free[zone, migratetype, current] > 0:
                return True
    return False


@kernel
def boost_watermark(mem: Memory, zone: int) -> None:
    """Raise a zone's watermarks because a request is about to mix types in a pageblock.

    kswapd, which brings them down again, is woken by the next allocation that may wake it.

    Source: Linux v6.1 mm/page_alloc.c boost_watermark.
    """
    factor = mem.tunables[T_WATERMARK_BOOST_FACTOR]
    if factor == 0 or mem.zone[zone, Z_MANAGED] < PAGEBLOCK_NR_PAGES * 4:
        return
    high = mem.zone[zone, Z_WMARK_HIGH]
    most = max(high * factor // BOOST_SCALE, PAGEBLOCK_NR_PAGES)
    mem.zone[zone, Z_BOOST] = min(mem.zone[zone, Z_BOOST] + PAGEBLOCK_NR_PAGES, most)
    mem.pool[P_BOOSTED] = 1
