"""The state of a memory manager as a whole: making it, saving it, taking it up again."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hostsim.core.arena import Field, carve
from hostsim.core.units import HPAGE_PMD_ORDER, NR_PAGE_ORDERS, PAGEBLOCK_ORDER
from hostsim.mm.mm_types import (
    BIG_HEADS_PER_ZONE,
    CLUSTER_DTYPE,
    EPT_BITS_DTYPE,
    EPT_TABLE_DTYPE,
    EXTENT_DTYPE,
    KSM_ITEM_DTYPE,
    KSM_NODE_DTYPE,
    LRU_FIRST_GENERATION,
    MAX_PROCESSES,
    MAX_VMAS,
    N_LRU_FIRST,
    NR_CLUSTER_HEADS,
    NR_COMPACT,
    NR_COSTS_MAX,
    NR_DAEMON_FIELDS,
    NR_DAEMONS,
    NR_HUGETLB_FIELDS,
    NR_HUGETLB_SIZES,
    NR_LRU_LISTS,
    NR_MM_FIELDS,
    NR_NODE_FIELDS,
    NR_PCP_LISTS,
    NR_POOL,
    NR_SCAN_CONTROL,
    NR_TYPES,
    NR_ZONE_FIELDS,
    NR_ZONES,
    P_DAEMON_SCALE,
    P_EPT_BITS_USED,
    P_EPT_USED,
    P_EXT_USED,
    P_KSM_ITEM_USED,
    P_KSM_NODE_USED,
    P_LRU_SEQ,
    P_LRU_TAIL,
    P_MM_USED,
    P_NODE_PAGES,
    P_PAGE_EXT_USED,
    P_PAGEBLOCKS,
    P_REC_USED,
    P_REPORTED_SMALL,
    P_RUN_USED,
    P_SWAP_SLOTS,
    P_TIME_SCALE,
    P_VMA_USED,
    P_WORDS_USED,
    P_WRITTEN_USED,
    PAGE_EXT_DTYPE,
    PAGEBLOCK_DTYPE,
    RECORD_DTYPE,
    REPORTED_DTYPE,
    RUN_DTYPE,
    SCRATCH,
    TIME_SCALE_ONE,
    UNIT_1G_SHIFT,
    UNIT_32M_SHIFT,
    VMA_DTYPE,
    WRITTEN_DTYPE,
    Memory,
)
from hostsim.mm.pb_packed import MAX_B

MAX_SWAP_SLOTS = 1 << 29  # 2 TiB: a huge page of the swap cache names its cluster in `pb_packed`


def max_swap_slots(nr_pages: int) -> int:
    """Return how many slots a host's swap area may have."""
    return min(max(4 * nr_pages, 1 << 20), MAX_SWAP_SLOTS)


def nr_cluster_rows(slots: int) -> int:
    """Return how many rows the clusters of so many slots take, list heads included."""
    return (slots >> HPAGE_PMD_ORDER) + NR_CLUSTER_HEADS


def carve_memory(
    nr_pages: int,
    nr_vmstat: int,
    nr_tunables: int,
    nr_nodes: int = 1,
    overcommit: int = 1,
    keep_lru: bool = True,
) -> Memory:
    """Return zero-filled state for a host with that many frames, resident where touched.

    Small pages have room for one mapping a frame and ``overcommit`` more, of forks and merging.
    Without ``keep_lru`` the machine can have no swap.
    """
    nr_pageblocks = nr_pages >> PAGEBLOCK_ORDER
    nr_zones = NR_ZONES + nr_nodes - 1
    nr_slots = nr_pageblocks + nr_zones * (BIG_HEADS_PER_ZONE + 1)
    if nr_slots > MAX_B:
        raise ValueError(f"nr_pages {nr_pages}: at most {MAX_B << PAGEBLOCK_ORDER} and list heads")
    nr_mappings = (1 + overcommit) * nr_pages
    max_entities = nr_mappings + nr_pageblocks
    words = (nr_pages >> HPAGE_PMD_ORDER) * 8 + (1 << 16)  # windows of all processes
    slots = max_swap_slots(nr_pages)
    buckets = 1 << (nr_pages >> 3).bit_length()
    whole = [  # used from the first to the last entry, so that they share their pages
        Field("pool", (NR_POOL,), np.dtype("i8")),
        Field("vmstat", (nr_vmstat,), np.dtype("i8")),
        Field("zone", (nr_zones, NR_ZONE_FIELDS), np.dtype("i8")),
        Field("node", (nr_nodes, NR_NODE_FIELDS), np.dtype("i8")),
        Field("nr_free", (nr_zones, NR_TYPES, NR_PAGE_ORDERS), np.dtype("i8")),
        Field("daemon", (NR_DAEMONS + nr_nodes - 1, NR_DAEMON_FIELDS), np.dtype("i8")),
        Field("unit_32m", (-(-nr_pageblocks >> UNIT_32M_SHIFT),), np.dtype("i2")),
        Field("unit_1g", (-(-nr_pageblocks >> UNIT_1G_SHIFT),), np.dtype("i2")),
        Field("pb", (nr_slots,), PAGEBLOCK_DTYPE),
        Field("page_ext_bucket", (1 << (nr_pageblocks >> 5).bit_length(),), np.dtype("i4")),
        Field("lru", (nr_pageblocks if keep_lru else 0,), np.dtype("i4")),
    ]
    growing = [  # used from the first entry up to as many as there ever were
        Field("page_ext", (nr_pageblocks,), PAGE_EXT_DTYPE),
        Field("mm", (MAX_PROCESSES, NR_MM_FIELDS), np.dtype("i8"), paged=True),
        Field("windows", (words,), np.dtype("i4"), paged=True),
        Field("run", (nr_pages + nr_zones * NR_PCP_LISTS,), RUN_DTYPE, paged=True),
        Field("rec", (nr_pageblocks + nr_zones * NR_TYPES,), RECORD_DTYPE, paged=True),
        Field("ext", (nr_mappings,), EXTENT_DTYPE, paged=True),
        Field("ext_lru", (nr_mappings if keep_lru else 0,), np.dtype("i4"), paged=True),
        Field("wrec", (nr_pageblocks,), WRITTEN_DTYPE, paged=True),
        Field("ept", (words,), np.dtype("i1"), paged=True),
        Field("ept_child", (words,), np.dtype("i4"), paged=True),
        Field("ept_table", (words,), EPT_TABLE_DTYPE, paged=True),
        Field("ept_bits", (words,), EPT_BITS_DTYPE, paged=True),
        Field("vma", (MAX_VMAS,), VMA_DTYPE, paged=True),
    ]
    seldom = [  # of machines with swap, KSM and so on, and work space
        Field("scan", (NR_SCAN_CONTROL,), np.dtype("i8"), paged=True),
        Field("hugetlb", (NR_HUGETLB_SIZES, NR_HUGETLB_FIELDS), np.dtype("i8")),
        Field("tunables", (nr_tunables,), np.dtype("i8")),
        Field("cost", (NR_COSTS_MAX,), np.dtype("i8")),
        Field("touched", (1, 2), np.dtype("i8")),
        Field("scratch", (SCRATCH,), np.dtype("i8")),
        Field("compact", (NR_COMPACT,), np.dtype("i8")),
        Field("reported", (nr_pageblocks,), REPORTED_DTYPE),
        Field("swap_map", (slots,), np.dtype("i2")),
        Field("swap_cache", (slots,), np.dtype("i4")),
        Field("swap_zero", (slots,), np.dtype("u1")),
        Field("swap_cluster", (nr_cluster_rows(slots),), CLUSTER_DTYPE),
        Field("ksm_node", (nr_pages,), KSM_NODE_DTYPE),
        Field("ksm_item", (nr_mappings,), KSM_ITEM_DTYPE),
        Field("ksm_frame", (nr_pages,), np.dtype("i4")),
        Field("ksm_stable", (buckets,), np.dtype("i4")),
        Field("ksm_unstable", (buckets,), np.dtype("i4")),
        Field("lru_queue", (nr_nodes * NR_LRU_LISTS * max_entities,), np.dtype("i8")),
    ]
    arrays = carve(whole + growing + seldom)
    arrays["pool"][P_PAGEBLOCKS] = nr_pageblocks
    arrays["pool"][P_NODE_PAGES] = nr_pages // nr_nodes
    arrays["pool"][P_LRU_SEQ] = arrays["pool"][P_LRU_TAIL] = LRU_FIRST_GENERATION
    arrays["pool"][P_TIME_SCALE] = TIME_SCALE_ONE
    arrays["pool"][P_DAEMON_SCALE] = TIME_SCALE_ONE
    return Memory(**{name: arrays[name] for name in Memory._fields})


def used_parts(mem: Memory) -> dict[str, NDArray[Any]]:
    """Return the part of each array that has ever been used, not copied: all of a state."""
    used = {
        "rec": int(mem.pool[P_REC_USED]),
        "ext": int(mem.pool[P_EXT_USED]),
        "ext_lru": int(mem.pool[P_EXT_USED]) if len(mem.lru) else 0,
        "run": int(mem.pool[P_RUN_USED]),
        "windows": int(mem.pool[P_WORDS_USED]),
        "mm": int(mem.pool[P_MM_USED]),
        "ept": int(mem.pool[P_WORDS_USED]),
        "ept_child": int(mem.pool[P_WORDS_USED]),
        "ept_table": int(mem.pool[P_EPT_USED]),
        "ept_bits": int(mem.pool[P_EPT_BITS_USED]),
        "vma": int(mem.pool[P_VMA_USED]),
        "page_ext": int(mem.pool[P_PAGE_EXT_USED]),
        "wrec": int(mem.pool[P_WRITTEN_USED]),
        "ksm_node": int(mem.pool[P_KSM_NODE_USED]),
        "ksm_item": int(mem.pool[P_KSM_ITEM_USED]),
        "ksm_frame": len(mem.ksm_frame) if mem.pool[P_KSM_NODE_USED] else 0,
        "ksm_stable": len(mem.ksm_stable) if mem.pool[P_KSM_NODE_USED] else 0,
        "ksm_unstable": len(mem.ksm_unstable) if mem.pool[P_KSM_ITEM_USED] else 0,
        "lru_queue": 0,  # found anew
        "reported": len(mem.reported) if mem.pool[P_REPORTED_SMALL] else 0,
        "swap_map": int(mem.pool[P_SWAP_SLOTS]),
        "swap_cache": int(mem.pool[P_SWAP_SLOTS]),
        "swap_zero": int(mem.pool[P_SWAP_SLOTS]),
        "swap_cluster": nr_cluster_rows(int(mem.pool[P_SWAP_SLOTS])),
    }
    return {
        name: array[: used.get(name, len(array))]
        for name, array in zip(Memory._fields, mem, strict=True)
    }


def fill_parts(mem: Memory, parts: dict[str, NDArray[Any]]) -> None:
    """Copy parts that `used_parts` returned into arrays that hold zeros.

    Raises
    ------
    ValueError
        They do not fit: they are another version's, or another host's.
    """
    for name, part in parts.items():
        into = getattr(mem, name)
        if into.dtype != part.dtype or into.shape[1:] != part.shape[1:] or len(part) > len(into):
            raise ValueError(
                f"{name}: {part.dtype} {part.shape} does not fit {into.dtype} {into.shape}"
            )
        into[: len(part)] = part
    for name, used in used_parts(mem).items():
        if name in parts and len(used) != len(parts[name]):
            raise ValueError(f"{name}: {len(parts[name])} entries, its counter says {len(used)}")
    mem.node[:, N_LRU_FIRST : N_LRU_FIRST + 2 * NR_LRU_LISTS] = 0


def restore_parts(parts: dict[str, NDArray[Any]], like: Memory) -> Memory:
    """Return the state whose used parts these are, of a machine like another.

    Raises
    ------
    ValueError
        Parts are missing, or do not fit.
    """
    if parts.keys() != set(Memory._fields):
        odd = ", ".join(sorted(parts.keys() ^ set(Memory._fields)))
        raise ValueError(f"missing or unknown: {odd}")
    nr_pages = int(like.pool[P_PAGEBLOCKS]) << PAGEBLOCK_ORDER
    overcommit = len(like.ext) // nr_pages - 1
    mem = carve_memory(
        nr_pages,
        len(like.vmstat),
        len(like.tunables),
        len(like.node),
        overcommit,
        len(like.lru) > 0,
    )
    fill_parts(mem, parts)
    if mem.pool[P_PAGEBLOCKS] != like.pool[P_PAGEBLOCKS]:
        raise ValueError(f"pool: of a machine of {mem.pool[P_PAGEBLOCKS]} pageblocks")
    return mem
