"""One kernel's memory manager: its state put together, and the thin class over it.

Source: Linux v6.1 mm/page_alloc.c free_area_init; /proc formats from mm/vmstat.c
frag_show_print, pagetypeinfo_showfree_print, extfrag_show_print.
"""

from typing import Any, Final

import numpy as np

from hostsim.core.units import MAX_PAGE_ORDER, NR_PAGE_ORDERS, PAGE_BYTES, PAGEBLOCK_ORDER
from hostsim.mm.buddy import TAIL, add_free_pageblocks
from hostsim.mm.contig import blocks_taken_run, init_units
from hostsim.mm.cost import set_costs
from hostsim.mm.mm_types import (
    MAX_NUMNODES,
    MIGRATE_MOVABLE,
    MIGRATE_RESERVE,
    NR_TYPES,
    P_NODE_PAGES,
    P_NR_CPUS,
    PCP_HIGH,
    TYPE_NAMES,
    Z_END,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
    Z_PCP_HIGH_MIN,
    Z_START,
    Z_VIRGIN,
    Z_VIRGIN_END,
    Z_WMARK_MIN,
    ZONE_NAMES,
    Memory,
)
from hostsim.mm.pageblock import fragmentation_index, unusable_free_index
from hostsim.mm.pb_packed import repack
from hostsim.mm.pcp import init_pcp
from hostsim.mm.physmem import (
    DMA32_END_PFN,
    PB_RESERVED,
    init_lists,
    set_pageblock_migratetype,
    zone_idx,
    zone_spans,
    zone_to_nid,
)
from hostsim.mm.state import carve_memory
from hostsim.mm.tunables import (
    ENABLED,
    FALLBACK_2_6_38,
    NR_TUNABLES,
    T_ENABLED,
    T_FALLBACK,
    T_SEED_FILES,
    set_profile,
    set_tunable,
)
from hostsim.mm.vmstat import NR_VMSTAT
from hostsim.mm.watermark import min_free_kbytes, set_seed_watermarks, set_watermarks

STRUCT_PAGE_BYTES: Final = 64  # include/linux/mm_types.h, x86-64
KERNEL_IMAGE_PAGES: Final = 8192  # 32 MiB: text, data and early allocations
RESERVE_BLOCKS: Final = 2  # v2.6.38 mm/page_alloc.c setup_zone_migrate_reserve
SEED_TYPE_NAMES: Final = ("Unmovable", "Movable", "Reclaimable", "Reserve")
PAGETYPEINFO_CAP: Final = 100_000  # mm/vmstat.c: larger counts print as ">100000"


def new_memory(
    nr_pages: int,
    kernel: str,
    nr_cpus: int,
    memmap: bool = False,
    dma32_end: int = DMA32_END_PFN,
    nr_nodes: int = 1,
    overcommit: int = 1,
    keep_lru: bool = True,
) -> Memory:
    """Return the memory of a freshly booted machine, every frame free.

    Parameters
    ----------
    nr_pages
        Frames, a multiple of 1024.
    kernel
        Profile name, "6.1" or "6.12".
    nr_cpus
        CPUs, for the limits of the per-CPU lists.
    memmap
        Whether struct pages (1/64 of memory) and the kernel image are taken out first; they lie
        at the start of the highest zone, those of further nodes in these.
    dma32_end
        Frames below the PCI hole: where the DMA32 zone ends.
    nr_nodes
        NUMA nodes of equal size: 1 to MAX_NUMNODES.
    overcommit
        Mappings of a frame, beside its first, for which there is room: of forks and merging.
    keep_lru
        Whether the order of pages on the LRU lists is kept; not of a machine that never swaps.

    Raises
    ------
    ValueError
        ``nr_pages`` is not a positive multiple of 1024 a node, the number of nodes is out of its
        range, or the profile is unknown.
    """
    if not 1 <= nr_nodes <= MAX_NUMNODES:
        raise ValueError(f"nr_nodes {nr_nodes} is not 1 to {MAX_NUMNODES}")
    step = nr_nodes << MAX_PAGE_ORDER
    if nr_pages <= 0 or nr_pages % step:
        raise ValueError(f"nr_pages {nr_pages} is not a positive multiple of {step}")
    mem = carve_memory(nr_pages, NR_VMSTAT, NR_TUNABLES, nr_nodes, overcommit, keep_lru)
    for zone, (start, end) in enumerate(zone_spans(nr_pages, dma32_end, nr_nodes)):
        mem.zone[zone, Z_START] = start
        mem.zone[zone, Z_END] = end
        mem.zone[zone, Z_MANAGED] = end - start
        mem.zone[zone, Z_LABEL + MIGRATE_MOVABLE] = (end - start) >> PAGEBLOCK_ORDER
    init_lists(mem)
    init_units(mem)
    init_pcp(mem)
    set_profile(mem.tunables, kernel)
    set_costs(mem.cost)
    set_thp(mem, "always", "always" if mem.tunables[T_SEED_FILES] else "madvise", True)
    if memmap:
        _reserve_memmap(mem, nr_pages)
    mem.pool[P_NR_CPUS] = nr_cpus
    setup_watermarks(mem)
    if mem.tunables[T_FALLBACK] == FALLBACK_2_6_38:
        _setup_migrate_reserve(mem)
    return mem


def _setup_migrate_reserve(mem: Memory) -> None:
    """Keep up to two pageblocks a zone for requests that find nothing else (2.6.38).

    Source: Linux v2.6.38 mm/page_alloc.c setup_zone_migrate_reserve.
    """
    for zone in _populated(mem):
        pb = int(mem.zone[zone, Z_VIRGIN])
        blocks = min(-(-int(mem.zone[zone, Z_WMARK_MIN]) >> PAGEBLOCK_ORDER), RESERVE_BLOCKS)
        if blocks < 1 or pb + 2 >= int(mem.zone[zone, Z_VIRGIN_END]):
            continue
        mem.zone[zone, Z_VIRGIN] += 2
        mem.nr_free[zone, MIGRATE_MOVABLE, MAX_PAGE_ORDER] -= 1
        blocks_taken_run(mem, pb, 2)
        set_pageblock_migratetype(mem, pb, MIGRATE_RESERVE)
        if blocks == RESERVE_BLOCKS:
            set_pageblock_migratetype(mem, pb + 1, MIGRATE_RESERVE)
        add_free_pageblocks(mem, pb, zone, MIGRATE_RESERVE, MAX_PAGE_ORDER, TAIL)


def _reserve_memmap(mem: Memory, nr_pages: int) -> None:
    """Take each node's struct pages, and the kernel image, out of its highest zone."""
    node_pages = nr_pages // len(mem.node)
    for nid in range(len(mem.node)):
        zone = max(z for z in _populated(mem) if zone_to_nid(z) == nid)
        image = KERNEL_IMAGE_PAGES if nid == 0 else 0
        _reserve_frames(mem, zone, node_pages * STRUCT_PAGE_BYTES // PAGE_BYTES + image)


def _reserve_frames(mem: Memory, zone: int, nr: int) -> None:
    """Take whole blocks of the largest order out of a zone's low end."""
    nr_pages = len(mem.node) * int(mem.pool[P_NODE_PAGES])
    first = int(mem.zone[zone, Z_VIRGIN])
    pageblocks = -(-nr // 1024) * 2
    if first + pageblocks >= int(mem.zone[zone, Z_VIRGIN_END]):
        raise ValueError(f"{nr_pages} pages are too few for a host")
    repack(mem.pb, slice(first, first + pageblocks), flags=PB_RESERVED)
    blocks_taken_run(mem, first, pageblocks)
    mem.zone[zone, Z_VIRGIN] += pageblocks
    frames = pageblocks << PAGEBLOCK_ORDER
    mem.zone[zone, Z_MANAGED] -= frames
    mem.zone[zone, Z_FREE] -= frames
    mem.nr_free[zone, MIGRATE_MOVABLE, MAX_PAGE_ORDER] -= pageblocks >> 1


def set_thp(mem: Memory, enabled: str, defrag: str, use_zero_page: bool) -> None:
    """Write the sysfs files of transparent_hugepage.

    Raises
    ------
    ValueError
        A value that the file does not take.
    """
    set_tunable(mem.tunables, "enabled", enabled)
    set_tunable(mem.tunables, "defrag", defrag)
    if not mem.tunables[T_SEED_FILES]:
        set_tunable(mem.tunables, "use_zero_page", "1" if use_zero_page else "0")


def setup_watermarks(mem: Memory) -> None:
    """Compute watermarks, reserves and per-CPU limits from the zones' managed pages."""
    managed = mem.zone[:, Z_MANAGED]
    thp = mem.tunables[T_ENABLED] != ENABLED["never"]
    seed = bool(mem.tunables[T_SEED_FILES])
    kbytes = min_free_kbytes(int(managed.sum()), int((managed > 0).sum()), thp, seed)
    (set_seed_watermarks if seed else set_watermarks)(mem.zone, kbytes, int(mem.pool[P_NR_CPUS]))
    mem.zone[:, PCP_HIGH] = np.maximum(mem.zone[:, PCP_HIGH], mem.zone[:, Z_PCP_HIGH_MIN])


def _populated(mem: Memory) -> list[int]:
    zone = mem.zone
    return [z for z in range(len(mem.zone)) if zone[z, Z_END] > zone[z, Z_START]]


def _node_and_zone(zone: int) -> str:
    return f"Node {zone_to_nid(zone)}, zone {ZONE_NAMES[zone_idx(zone)]:>8}"


def buddyinfo(mem: Memory) -> list[str]:
    """Return the lines of /proc/buddyinfo."""
    counts = mem.nr_free.sum(axis=1)
    return [
        f"{_node_and_zone(z)} " + "".join(f"{n:6d} " for n in counts[z]) for z in _populated(mem)
    ]


def pagetypeinfo(mem: Memory) -> list[str]:
    """Return the lines of /proc/pagetypeinfo."""
    names = (*(SEED_TYPE_NAMES if mem.tunables[T_SEED_FILES] else TYPE_NAMES), "Isolate")
    lines = [
        f"Page block order: {PAGEBLOCK_ORDER}",
        f"Pages per block:  {1 << PAGEBLOCK_ORDER}",
        "",
        "Free pages count per migrate type at order  "
        + "".join(f"{order:6d} " for order in range(NR_PAGE_ORDERS)),
    ]
    for z in _populated(mem):
        for t, name in enumerate(names):
            counts = mem.nr_free[z, t] if t < NR_TYPES else np.zeros(NR_PAGE_ORDERS, int)
            cells = "".join(
                f"{'>' if n > PAGETYPEINFO_CAP else ''}{min(n, PAGETYPEINFO_CAP)}".rjust(6) + " "
                for n in counts
            )
            place = f"Node {zone_to_nid(z):4d}, zone {ZONE_NAMES[zone_idx(z)]:>8}"
            lines.append(f"{place}, type {name:>12} {cells}")
    lines += ["", "Number of blocks type  " + "".join(f"{name:>12} " for name in names)]
    for z in _populated(mem):
        cells = "".join(
            f"{mem.zone[z, Z_LABEL + t] if t < NR_TYPES else 0:12d} " for t in range(len(names))
        )
        lines.append(f"{_node_and_zone(z)} {cells}")
    return lines


def _index_lines(mem: Memory, index: Any) -> list[str]:
    counts = mem.nr_free.sum(axis=1)
    lines = []
    for z in _populated(mem):
        values = [int(index(counts[z], order)) for order in range(NR_PAGE_ORDERS)]
        cells = "".join(
            f"{'-' if v < 0 else ''}{abs(v) // 1000}.{abs(v) % 1000:03d} " for v in values
        )
        lines.append(f"{_node_and_zone(z)} {cells}")
    return lines


def unusable_index(mem: Memory) -> list[str]:
    """Return the lines of debugfs extfrag/unusable_index."""
    return _index_lines(mem, unusable_free_index)


def extfrag_index(mem: Memory) -> list[str]:
    """Return the lines of debugfs extfrag/extfrag_index."""
    return _index_lines(mem, fragmentation_index)
