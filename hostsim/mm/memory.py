"""One kernel's memory manager: its state put together, and the thin class over it.

Source: Linux v6.1 mm/page_alloc.c free_area_init; /proc formats from mm/vmstat.c
frag_show_print, pagetypeinfo_showfree_print, extfrag_show_print.
"""

from typing import Any, Final

import numpy as np

from hostsim.core.units import MAX_PAGE_ORDER, NR_PAGE_ORDERS, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    NR_TYPES,
    NR_ZONES,
    TYPE_NAMES,
    Z_END,
    Z_LABEL,
    Z_MANAGED,
    Z_START,
    ZONE_NAMES,
    Memory,
    carve_memory,
)
from hostsim.mm.pageblock import fragmentation_index, unusable_free_index
from hostsim.mm.pcp import init_pcp
from hostsim.mm.physmem import init_lists, zone_spans
from hostsim.mm.tunables import NR_TUNABLES, T_DEFRAG, T_ENABLED, T_USE_ZERO_PAGE, set_profile
from hostsim.mm.vmstat import NR_VMSTAT
from hostsim.mm.watermark import min_free_kbytes, set_watermarks

PAGETYPEINFO_CAP: Final = 100_000  # mm/vmstat.c: larger counts print as ">100000"


def new_memory(nr_pages: int, kernel: str, nr_cpus: int) -> Memory:
    """Return the memory of a freshly booted machine, every frame free.

    Parameters
    ----------
    nr_pages
        Frames, a multiple of 1024.
    kernel
        Profile name, "6.1" or "6.12".
    nr_cpus
        CPUs, for the limits of the per-CPU lists.

    Raises
    ------
    ValueError
        ``nr_pages`` is not a positive multiple of 1024, or the profile is unknown.
    """
    step = 1 << MAX_PAGE_ORDER
    if nr_pages <= 0 or nr_pages % step:
        raise ValueError(f"nr_pages {nr_pages} is not a positive multiple of {step}")
    mem = carve_memory(nr_pages, NR_VMSTAT, NR_TUNABLES)
    for zone, (start, end) in enumerate(zone_spans(nr_pages)):
        mem.zone[zone, Z_START] = start
        mem.zone[zone, Z_END] = end
        mem.zone[zone, Z_MANAGED] = end - start
        mem.zone[zone, Z_LABEL + MIGRATE_MOVABLE] = (end - start) >> PAGEBLOCK_ORDER
    init_lists(mem)
    init_pcp(mem)
    set_profile(mem.tunables, kernel)
    mem.tunables[T_ENABLED] = 0
    mem.tunables[T_DEFRAG] = 3
    mem.tunables[T_USE_ZERO_PAGE] = 1
    setup_watermarks(mem, nr_cpus)
    return mem


def setup_watermarks(mem: Memory, nr_cpus: int) -> None:
    """Compute watermarks, reserves and per-CPU limits from the zones' managed pages."""
    managed = mem.zone[:, Z_MANAGED]
    kbytes = min_free_kbytes(int(managed.sum()), int((managed > 0).sum()), thp=True)
    set_watermarks(mem.zone, kbytes, nr_cpus)


def _populated(mem: Memory) -> list[int]:
    zone = mem.zone
    return [z for z in range(NR_ZONES) if zone[z, Z_END] > zone[z, Z_START]]


def buddyinfo(mem: Memory) -> list[str]:
    """Return the lines of /proc/buddyinfo."""
    counts = mem.nr_free.sum(axis=1)
    return [
        f"Node 0, zone {ZONE_NAMES[z]:>8} " + "".join(f"{n:6d} " for n in counts[z])
        for z in _populated(mem)
    ]


def pagetypeinfo(mem: Memory) -> list[str]:
    """Return the lines of /proc/pagetypeinfo."""
    names = (*TYPE_NAMES, "Isolate")
    lines = [
        f"Page block order: {PAGEBLOCK_ORDER}",
        f"Pages per block:  {1 << PAGEBLOCK_ORDER}",
        "",
        "Free pages count per migrate type at order "
        + "".join(f"{order:6d} " for order in range(NR_PAGE_ORDERS)),
    ]
    for z in _populated(mem):
        for t, name in enumerate(names):
            counts = mem.nr_free[z, t] if t < NR_TYPES else np.zeros(NR_PAGE_ORDERS, int)
            cells = "".join(
                f"{'>' if n > PAGETYPEINFO_CAP else ''}{min(n, PAGETYPEINFO_CAP)}".rjust(6) + " "
                for n in counts
            )
            lines.append(f"Node {0:4d}, zone {ZONE_NAMES[z]:>8}, type {name:>12} {cells}")
    lines += ["", "Number of blocks type " + "".join(f"{name:>12} " for name in names)]
    for z in _populated(mem):
        cells = "".join(
            f"{mem.zone[z, Z_LABEL + t] if t < NR_TYPES else 0:12d} " for t in range(len(names))
        )
        lines.append(f"Node 0, zone {ZONE_NAMES[z]:>8} {cells}")
    return lines


def _index_lines(mem: Memory, index: Any) -> list[str]:
    counts = mem.nr_free.sum(axis=1)
    lines = []
    for z in _populated(mem):
        values = [int(index(counts[z], order)) for order in range(NR_PAGE_ORDERS)]
        cells = "".join(
            f"{'-' if v < 0 else ''}{abs(v) // 1000}.{abs(v) % 1000:03d} " for v in values
        )
        lines.append(f"Node 0, zone {ZONE_NAMES[z]:>8} {cells}")
    return lines


def unusable_index(mem: Memory) -> list[str]:
    """Return the lines of debugfs extfrag/unusable_index."""
    return _index_lines(mem, unusable_free_index)


def extfrag_index(mem: Memory) -> list[str]:
    """Return the lines of debugfs extfrag/extfrag_index."""
    return _index_lines(mem, fragmentation_index)
