"""The state of one kernel's memory manager, declared in one place.

All fields but bitmaps are signed: unsigned and signed 64-bit numbers mix to floats in numba.
Every mechanism's records are one structured array and all of them one NamedTuple, `Memory`,
which every kernel takes first: few arrays keep kernels quick to compile and to call, and a
record keeps what belongs together on one or two cache lines.  What the fields mean stands with
the mechanism: `physmem`, `rmap`, `pcp`, `mmap`.

Source: the place of Linux include/linux/mm_types.h and mmzone.h.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.byref import ByReference
from hostsim.core.units import (
    HPAGE_PUD_ORDER,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)

ZONE_DMA: Final = 0
ZONE_DMA32: Final = 1
ZONE_NORMAL: Final = 2
NR_ZONES: Final = 3  # of node 0; every further node has one more, its Normal zone
MAX_NUMNODES: Final = 4
ZONE_NAMES: Final = ("DMA", "DMA32", "Normal")

MIGRATE_UNMOVABLE: Final = 0  # include/linux/mmzone.h, numbering since 3.x
MIGRATE_MOVABLE: Final = 1
MIGRATE_RECLAIMABLE: Final = 2
MIGRATE_HIGHATOMIC: Final = 3
MIGRATE_RESERVE: Final = 3  # in 2.6.38, which numbers reclaimable 1 and movable 2
NR_PCP_TYPES: Final = 3
NR_TYPES: Final = 4
TYPE_NAMES: Final = ("Unmovable", "Movable", "Reclaimable", "HighAtomic")

NIL: Final = -1  # no record
NR_PCP_LISTS: Final = NR_PCP_TYPES * 4 + 2  # orders 0..3 of 3 types, and two of huge pages
NR_SMALL_ORDERS: Final = PAGEBLOCK_ORDER  # orders 0..8 live inside a pageblock
WORD_FRAMES: Final = 32  # frames in one word of a record's bitmap
NR_WORDS: Final = PAGEBLOCK_NR_PAGES // WORD_FRAMES
BIG_HEADS_PER_ZONE: Final = NR_TYPES * 2  # list heads of orders 9 and 10, behind the pageblocks

PAGEBLOCK_DTYPE: Final = np.dtype(
    [
        ("a", "i4"),  # by state: next, mm, first extent or record
        ("packed", "i4"),  # state, label, and by state previous, window or flags: pb_packed
    ]
)
RECORD_DTYPE: Final = np.dtype(
    [
        ("bits", "u4", (NR_WORDS,)),  # 1 = frame free
        ("count", "i2", (NR_SMALL_ORDERS,)),  # free blocks of exactly each order
        ("next", "i4", (NR_SMALL_ORDERS,)),  # next record on the (zone, type, order) list
        ("prev", "i4", (NR_SMALL_ORDERS,)),
        ("pb", "i4"),  # its pageblock; free chain when unused
        ("ext", "i4"),  # first extent of the pageblock's used frames
        ("fresh", "u1", (NR_SMALL_ORDERS,)),  # blocks to take before it goes to the list's end
        ("burst", "u1", (NR_SMALL_ORDERS,)),  # blocks it got in a row when it last led the list
    ]
)
EXTENT_DTYPE: Final = np.dtype(
    [
        ("pfn", "i4"),  # lowest frame
        ("vpn", "i4"),  # first page in the owner's address space
        ("next", "i4"),  # next of the window or owner; free chain when unused
        ("next_b", "i4"),  # next of the pageblock
        ("prev_b", "i4"),  # previous of the pageblock, NIL at its head
        ("nr", "i2"),  # pages, 1..512
        ("owner", "i2"),  # mm, NIL for the kernel itself
        ("flags", "i2"),  # KIND_* and EXT_*
    ]
)
CLUSTER_DTYPE: Final = np.dtype(
    [
        ("count", "i4"),  # slots in use
        ("state", "i4"),  # CLUSTER_*: hostsim.mm.swapfile
        ("next", "i4"),  # next cluster + 1 on its list
        ("prev", "i4"),
    ]
)
PAGE_EXT_DTYPE: Final = np.dtype(
    [
        ("pb", "i4"),  # its pageblock, NIL when unused
        ("chain", "i4"),  # next of the same hash + 1; free chain when unused
        ("written", "i4"),  # record + 1 of a huge page in `wrec`, 0: all of it is written
        ("next", "i4"),  # deferred split queue: pageblock + 1, 0 at the ends
        ("prev", "i4"),
        ("unmovable", "i2"),  # pages of it that cannot be moved
    ]
)
RUN_DTYPE: Final = np.dtype(
    [
        ("first", "i4"),  # first frame of the block nearest the list's head
        ("nr", "i4"),  # blocks
        ("step", "i4"),  # frames from one block to the next, negative if descending
        ("next", "i4"),  # toward the tail; free chain when unused
        ("prev", "i4"),
    ]
)
VMA_DTYPE: Final = np.dtype(
    [
        ("start", "i4"),  # first page
        ("end", "i4"),  # one past the last page
        ("flags", "i4"),  # VM_*
        ("next", "i4"),  # next area of the process; free chain when unused
    ]
)
WRITTEN_DTYPE: Final = np.dtype(
    [
        ("bits", "u4", (NR_WORDS,)),  # 1 = page written since the huge page was cleared
        ("nr", "i4"),  # of them, how many; free chain when unused
    ]
)
REPORTED_DTYPE: Final = np.dtype(
    [
        ("bits", "u4", (NR_WORDS,)),  # 1 = a free block that the host knows of begins here
        ("done", "i4"),  # 1 << order: all free blocks of that order are reported
    ]
)
KSM_NODE_DTYPE: Final = np.dtype(
    [
        ("key", "i8"),  # content
        ("pfn", "i4"),  # the shared frame, NIL once nobody maps it
        ("nr", "i4"),  # rmap items that lead here (rmap_hlist_len)
        ("maps", "i4"),  # page-table entries that map the frame
        ("next", "i4"),  # next of the same hash with room; free chain when unused
        ("prev", "i4"),  # previous of these, NIL at the head; OFF_LIST: without room
    ]
)
KSM_ITEM_DTYPE: Final = np.dtype(
    [
        ("checksum", "i8"),  # content at the last visit
        ("vpn", "i4"),
        ("next", "i4"),  # next of the process, by page; free chain when unused
        ("node", "i4"),  # stable node, or NIL
        ("chain", "i4"),  # unstable tree: next of the same hash
        ("seq", "i4"),  # unstable tree: the scan in which it was put there, 0 if it is not
        ("mm", "i2"),
        ("age", "u1"),  # smart scan: visits
        ("skips", "u1"),  # smart scan: visits still to be left out
    ]
)
EPT_TABLE_DTYPE: Final = np.dtype(
    [
        ("frames", "i4"),  # sum over leaves of mmu_notifier.leaf_sum, modulo 2**31
        ("nr", "i4"),  # leaves; free chain when unused
        ("bits", "i4"),  # row + 1 of `ept_bits`, 0: all 512 leaves are present, or none
        ("mm", "i4"),
        ("window", "i4"),
        ("nx_next", "i4"),  # next + 1 table that an instruction fetch made; NIL if it was not
        ("nx_prev", "i4"),
    ]
)
EPT_BITS_DTYPE: Final = np.dtype(
    [("bits", "u4", (NR_WORDS,))]  # 1 = a 4 KiB leaf is present; free chain in the first word
)

# Columns of Memory.zone
Z_START: Final = 0  # first pfn
Z_END: Final = 1  # one past the last pfn
Z_MANAGED: Final = 2  # pages the buddy allocator was given
Z_FREE: Final = 3  # nr_free_pages
Z_VIRGIN: Final = 4  # first pageblock of the virgin region
Z_VIRGIN_END: Final = 5  # one past its last pageblock
Z_WMARK_MIN: Final = 6
Z_WMARK_LOW: Final = 7
Z_WMARK_HIGH: Final = 8
Z_RESERVE: Final = 9  # lowmem_reserve against requests that may use a higher zone
Z_PCP_HIGH_MIN: Final = 10
Z_PCP_HIGH_MAX: Final = 11
Z_PCP_BATCH: Final = 12
PCP_COUNT: Final = 13  # pages on all per-CPU lists of the zone
PCP_FREE_FACTOR: Final = 14  # 6.1
PCP_HIGH: Final = 15  # 6.12, moves between high_min and high_max
PCP_ALLOC_FACTOR: Final = 16  # 6.12
PCP_FREE_COUNT: Final = 17  # 6.12
PCP_PREV_HIGH_ORDER: Final = 18  # 6.12, the previous free was of an order 1..3
PCP_BELOW_HIGH: Final = 19  # 6.12, ZONE_BELOW_HIGH
Z_LABEL: Final = 20  # + type: pageblocks of each label
Z_CACHED_MIGRATE: Final = Z_LABEL + NR_TYPES  # where migrate scanners go on: async, sync
Z_CACHED_FREE: Final = Z_CACHED_MIGRATE + 2  # where the free scanner goes on
Z_INIT_MIGRATE: Final = Z_CACHED_FREE + 1  # where a scan of the whole zone began
Z_INIT_FREE: Final = Z_INIT_MIGRATE + 1
Z_BLOCKSKIP_FLUSH: Final = Z_INIT_FREE + 1  # 1: skip bits are to be cleared
Z_COMPACT_CONSIDERED: Final = Z_BLOCKSKIP_FLUSH + 1
Z_COMPACT_DEFER_SHIFT: Final = Z_COMPACT_CONSIDERED + 1
Z_COMPACT_ORDER_FAILED: Final = Z_COMPACT_DEFER_SHIFT + 1
Z_BOOST: Final = Z_COMPACT_ORDER_FAILED + 1  # watermark_boost
NR_ZONE_FIELDS: Final = Z_BOOST + 1

# Columns of Memory.mm
MAX_PROCESSES: Final = 4096
MM_LIVE: Final = 0
MM_BASE: Final = 1  # first word of its windows
MM_WINDOWS: Final = 2
MM_RAM_PAGES: Final = 3  # end of the area that may be huge
MM_ADVICE: Final = 4
MM_ANON: Final = 5  # resident pages
MM_HUGE: Final = 6  # windows mapped by a huge PMD
MM_RAM_ANON: Final = 7  # resident pages of the area that may be huge
MM_PGTABLES: Final = 8
MM_EPT: Final = 9  # EPT table pages
MM_HAS_EPT: Final = 10
MM_KERNEL: Final = 11  # first extent + 1 of its page tables and EPT pages
MM_THP_ALLOC: Final = 12
MM_THP_FALLBACK: Final = 13
MM_VM: Final = 14  # VM number in the trace
MM_KHUGEPAGED: Final = 15  # place in khugepaged's list (rising), 0 if not registered
MM_SWAP: Final = 16  # pages swapped out
MM_PINNED: Final = 17  # first pin + 1: hostsim.mm.pins
MM_MERGEABLE: Final = 18  # 1: MADV_MERGEABLE
MM_VMAS: Final = 19  # first area + 1; 0: guest RAM is one plain area
MM_CONTENT: Final = 20  # what written pages hold: hostsim.mm.content
MM_KSM_NEXT: Final = 21  # ksmd's list of processes: next + 1, 0 at its end
MM_KSM_PREV: Final = 22
MM_KSM_ITEMS: Final = 23  # first rmap item + 1
MM_EPT_FLAGS: Final = 24  # EPT_* of hostsim.mm.mmu_notifier: what keeps large leaves away
MM_EPT_2M: Final = 25  # leaves of 2 MiB
MM_EPT_4K: Final = 26  # leaves of 4 KiB
MM_EPT_TABLES: Final = 27  # tables of 4 KiB leaves
MM_EPT_VIOLATIONS: Final = 28
MM_NX_SPLITS: Final = 29  # large leaves that an instruction fetch split (nx_lpage_splits)
MM_NX_FIRST: Final = 30  # the oldest of them + 1
MM_NX_LAST: Final = 31
MM_HUGETLB: Final = 32  # HUGETLB_2M or HUGETLB_1G + 1: its guest RAM is a hugetlbfs file; 0: not
MM_HUGETLB_RESV: Final = 33  # pages of that size still reserved for it
MM_HUGETLB_PAGES: Final = 34  # pages of that size that it maps
MM_SWAP_RA: Final = 35  # last page read from swap << 16 | window << 8 | hits
MM_ALIKE: Final = 36  # shares of written pages that are zero, the VM's own, of its image
MM_IMAGE: Final = 37  # number of the image from which they come
MM_NODE: Final = 38  # node on whose CPUs it runs; the first of several
MM_NR_NODES: Final = 39  # nodes over which its CPUs are spread; 0: one
MM_VCPUS: Final = 40  # of a VM
NR_MM_FIELDS: Final = 41

# Memory.pool: high-water marks and free chains (first + 1, so that zero is an empty chain)
P_PAGEBLOCKS: Final = 0
P_REC_USED: Final = 1
P_REC_FREE: Final = 2
P_REC_LIVE: Final = 3
P_EXT_USED: Final = 4
P_EXT_FREE: Final = 5
P_EXT_LIVE: Final = 6
P_RUN_USED: Final = 7
P_RUN_FREE: Final = 8
P_WORDS_USED: Final = 9
P_MM_USED: Final = 10
P_ZERO_PB: Final = 11  # pageblock + 1 of the huge zero page
P_ZERO_USERS: Final = 12
P_RESUME: Final = 13  # page at which an unfinished touch stopped
P_NOW_NS: Final = 14  # simulated time
P_COST_NS: Final = 15  # simulated time that operations have cost: hostsim.mm.cost
P_STALL_NS: Final = 16  # of that, direct compaction and direct reclaim
P_LRU_SEQ: Final = 17  # the latest generation stamp
P_VMA_USED: Final = 18
P_VMA_FREE: Final = 19
P_WRITTEN_USED: Final = 20
P_WRITTEN_FREE: Final = 21
P_KSM_NODE_USED: Final = 22
P_KSM_NODE_FREE: Final = 23
P_KSM_ITEM_USED: Final = 24
P_KSM_ITEM_FREE: Final = 25
P_KSM_ITEMS: Final = 26  # rmap items in use
P_KSM_NODES: Final = 27  # stable nodes in use
P_KSM_SLAB: Final = 28  # first extent + 1 of the kernel pages that hold them
P_KSM_SLAB_PAGES: Final = 29
P_KSM_FIRST: Final = 30  # ksmd's list of processes: first + 1
P_KSM_LAST: Final = 31
P_KSM_MM: Final = 32  # ksmd's cursor: process + 1, 0 between two scans
P_KSM_PAGE: Final = 33  # its next page
P_KSM_PREV_ITEM: Final = 34  # the last item before it + 1
P_KSM_SEQ: Final = 35  # number of the scan, from 1
P_KSM_SHARED: Final = 36  # pages_shared
P_KSM_SHARING: Final = 37  # pages_sharing
P_KSM_UNSHARED: Final = 38  # pages_unshared: items in the unstable tree
P_KSM_ZERO: Final = 39  # ksm_zero_pages: mappings given to the zero page
P_KSM_SKIPPED: Final = 40  # pages_skipped
P_KSM_FULL_SCANS: Final = 41  # full_scans
P_PINS: Final = 42  # ranges of pages pinned, of all processes
P_EPT_USED: Final = 43
P_EPT_FREE: Final = 44
P_CAPTURE: Final = 45  # zone + 1 in which a direct compactor takes the first free huge page
P_CAPTURED: Final = 46  # pageblock + 1 that it took
P_TRACED: Final = 47  # 1: `touched` is kept, of a guest's memory
P_TOUCHED: Final = 48  # entries of `touched`
P_MAP_SEQ: Final = 49  # counts changes of windows other than by their own fault: hostsim.mm.rmap
P_LRU_TAIL: Final = 50  # the latest generation put at a list's tail
P_SWAP_SLOTS: Final = 51  # slots of the swap area, 0 without one
P_SWAP_FREE: Final = 52  # slots that nothing uses
P_SWAP_NEXT: Final = 53  # slot after the last single one given out
P_SWAP_CLUSTER: Final = 54  # cluster + 1 from which single slots come
P_SPLIT_FIRST: Final = 55  # pageblock + 1 at the head of the deferred split queue
P_SPLIT_LAST: Final = 56
P_SPLIT_LEN: Final = 57
P_SPLIT_LEFT: Final = 58  # what shrinker rounds were too small to scan
P_BOOSTED: Final = 59  # 1: a watermark was boosted since kswapd was last woken for it
P_RECLAIM_ACTIVE: Final = 60  # node + 1 whose kswapd runs: short per-CPU lists
P_NR_CPUS: Final = 61  # CPUs of the machine
P_SETTLED_NS: Final = 62  # of P_COST_NS, what has become simulated time: hostsim.mm.daemons
P_TIME_SCALE: Final = 63  # simulated time for one nanosecond of cost, in 1/2**16
P_DAEMON_NS: Final = 64  # of P_COST_NS, what daemons spent
P_DAEMON_SCALE: Final = 65  # the same for what daemons do
P_BUSY: Final = 66  # 1: a process runs on the machine's only CPU, and daemons get what is left
P_NODE_PAGES: Final = 67  # frames of each node
P_NODE: Final = 68  # node of the CPU that runs now: hostsim.mm.numa
P_NODEMASK: Final = 69  # nodes that may serve requests, a bit each; 0: all
P_FREE_32M: Final = 70  # aligned units of 32 MiB that are wholly free: hostsim.mm.contig
P_FREE_1G: Final = 71
P_UNMOVABLE_BLOCKS: Final = 72  # pageblocks that hold unmovable pages
P_REPORTED_SMALL: Final = 73  # 1: `reported` is kept, blocks below a pageblock are reported
P_IN_ORDER: Final = 74  # 1: `touched` has a run's page tables where they were taken, not behind it
P_NEAR: Final = 75  # extent + 1 at which the last fault in a list of extents went on
P_EPT_BITS_USED: Final = 76
P_EPT_BITS_FREE: Final = 77
P_PAGE_EXT_USED: Final = 78
P_PAGE_EXT_FREE: Final = 79
NR_POOL: Final = 80
UNIT_32M_SHIFT: Final = 4  # pageblocks of a unit of 32 MiB
UNIT_1G_SHIFT: Final = HPAGE_PUD_ORDER - PAGEBLOCK_ORDER
TIME_SCALE_ONE: Final = 1 << 16

# Columns of Memory.hugetlb, a row a page size
HUGETLB_2M: Final = 0
HUGETLB_1G: Final = 1
NR_HUGETLB_SIZES: Final = 2
H_NR: Final = 0  # nr_hugepages, surplus ones included
H_FREE: Final = 1  # free_hugepages
H_RESV: Final = 2  # resv_hugepages: of the free ones, promised to mappings
H_SURPLUS: Final = 3  # surplus_hugepages
H_OVERCOMMIT: Final = 4  # nr_overcommit_hugepages
H_LIST: Final = 5  # + node: first free page: its first pageblock + 1
NR_HUGETLB_FIELDS: Final = H_LIST + MAX_NUMNODES

SCRATCH: Final = 1024
NR_COSTS_MAX: Final = 32
NR_COMPACT: Final = 4096  # hostsim.mm.compact_control
MAX_VMAS: Final = 1 << 18  # all processes together; Linux allows 65530 a process
NR_SCAN_CONTROL: Final = 16
NR_CLUSTER_HEADS: Final = 3  # rows of `swap_cluster` before the clusters: list heads, by state
LRU_FIRST_GENERATION: Final = 1 << 20  # below: pages put at a list's tail
NR_LRU_LISTS: Final = 4  # inactive anon, active anon, inactive file, active file


# Columns of Memory.node
N_KSWAPD_FAILURES: Final = 0  # runs of kswapd without any progress
N_KCOMPACTD_ORDER: Final = 1  # order that kcompactd is asked for, 0 if none
N_PAGEOUTRUN: Final = 2  # runs of kswapd
N_NUMA_HIT: Final = 3  # requests served by the node they preferred, this one
N_NUMA_MISS: Final = 4  # requests served here that preferred another node
N_NUMA_FOREIGN: Final = 5  # requests that preferred this node, served by another
N_NUMA_LOCAL: Final = 6  # requests served to a CPU of this node
N_NUMA_OTHER: Final = 7  # to a CPU of another node
N_LRU_ANON: Final = 8  # pages on the anonymous lists
N_LRU_FILE: Final = 9
N_LRU_ACTIVE: Final = 10  # + 0 anon, 1 file: pages on the active list
N_LRU_FIRST: Final = 12  # + list: next key of its queue (hostsim.mm.lru)
N_LRU_END: Final = N_LRU_FIRST + NR_LRU_LISTS  # + list: one past its queue's last key
N_COST_ANON: Final = N_LRU_END + NR_LRU_LISTS  # what reclaim has cost lately (lru_note_cost)
N_COST_FILE: Final = N_COST_ANON + 1
NR_NODE_FIELDS: Final = N_COST_FILE + 1

# Rows of Memory.daemon, the kernel threads; columns 0 and 28 on are common
DAEMON_KHUGEPAGED: Final = 0
DAEMON_KSWAPD: Final = 1
DAEMON_KCOMPACTD: Final = 2
DAEMON_KSMD: Final = 3
DAEMON_VMSTAT: Final = 4  # the worker that runs once a second
NR_DAEMONS: Final = 5  # behind them, a kcompactd for every node but the first
D_WAKE: Final = 0  # when it runs next, in ns + 1; 0 while it sleeps until woken
D_WORK: Final = 31  # what is left to do of its last step, in ns of CPU time
D_SINCE: Final = 30  # the time of which that was said
D_CREDIT: Final = 29  # CPU time that it gets at once though a process runs
D_SAVED: Final = 28  # work space of hostsim.mm.daemons
NR_DAEMON_FIELDS: Final = 32


class _MemoryArrays(NamedTuple):
    pb: NDArray[Any]  # (nr_pageblocks + heads,) PAGEBLOCK_DTYPE
    rec: NDArray[Any]  # (heads + nr_pageblocks,) RECORD_DTYPE, partial pageblocks
    ext: NDArray[Any]  # (extents,) EXTENT_DTYPE
    run: NDArray[Any]  # (heads + runs,) RUN_DTYPE, per-CPU lists
    lru: NDArray[Any]  # int32 (nr_pageblocks,) stamp of a huge page: hostsim.mm.lru_stamp
    ext_lru: NDArray[Any]  # int32 (extents,) stamp of an extent; like `lru` empty without swap
    nr_free: NDArray[Any]  # int64 (zones, types, 11) free blocks on each list
    zone: NDArray[Any]  # int64 (zones, NR_ZONE_FIELDS): DMA, DMA32, Normal, further nodes' Normal
    node: NDArray[Any]  # int64 (nodes, NR_NODE_FIELDS)
    mm: NDArray[Any]  # int64 (MAX_PROCESSES, NR_MM_FIELDS)
    windows: NDArray[Any]  # int32 (words,) W_* of every window of every process
    pool: NDArray[Any]  # int64 (NR_POOL,)
    vmstat: NDArray[Any]  # int64 (NR_VMSTAT,) in the order of hostsim.mm.vmstat.NAMES
    tunables: NDArray[Any]  # int64 (NR_TUNABLES,)
    cost: NDArray[Any]  # int64 (NR_COSTS_MAX,) nanoseconds: hostsim.mm.cost
    scratch: NDArray[Any]  # int64 (SCRATCH,) work space of one kernel at a time
    vma: NDArray[Any]  # (areas,) VMA_DTYPE of processes that have more than one
    wrec: NDArray[Any]  # (nr_pageblocks,) WRITTEN_DTYPE, huge pages with pages never written
    ksm_node: NDArray[Any]  # (nr_pages,) KSM_NODE_DTYPE, the stable tree
    ksm_item: NDArray[Any]  # (as `ext`) KSM_ITEM_DTYPE, pages that ksmd has seen
    ksm_frame: NDArray[Any]  # int32 (nr_pages,) stable node + 1 of a shared frame
    ksm_stable: NDArray[Any]  # int32 (power of 2,) node with room + 1 by content
    ksm_unstable: NDArray[Any]  # int32 (power of 2,) item + 1 by content
    hugetlb: NDArray[Any]  # int64 (NR_HUGETLB_SIZES, NR_HUGETLB_FIELDS)
    ept: NDArray[Any]  # int32 (words,) EPT entry of every window: hostsim.mm.mmu_notifier
    ept_child: NDArray[np.int32]  # (words,) of windows with a table: its record, or its sum
    ept_table: NDArray[Any]  # (words,) EPT_TABLE_DTYPE, tables that lack 4 KiB leaves
    ept_bits: NDArray[Any]  # (words,) EPT_BITS_DTYPE, which leaves a table in part has
    compact: NDArray[Any]  # int64 (NR_COMPACT,) the compaction in progress
    touched: NDArray[Any]  # int64 (entries, 2) runs of frames handed out: first, pages
    lru_queue: NDArray[Any]  # int64 (4 * keys,) lists in order, as reclaim found them
    scan: NDArray[Any]  # int64 (NR_SCAN_CONTROL,) what a reclaim is after: hostsim.mm.shrink
    swap_map: NDArray[Any]  # int16 (slots,) entries in page tables that name a slot
    swap_cache: NDArray[Any]  # int32 (slots,) frame + 1 that holds a slot's page
    swap_zero: NDArray[Any]  # uint8 (slots,) 1 = the slot stands for a page of zeros
    swap_cluster: NDArray[Any]  # (clusters,) CLUSTER_DTYPE
    page_ext: NDArray[Any]  # (nr_pageblocks,) PAGE_EXT_DTYPE: hostsim.mm.page_ext
    page_ext_bucket: NDArray[Any]  # int32 (power of 2,) record + 1 by pageblock
    daemon: NDArray[Any]  # int64 (daemons, NR_DAEMON_FIELDS): hostsim.mm.daemons
    unit_32m: NDArray[Any]  # int16 (units,) pageblocks of it not wholly free: hostsim.mm.contig
    unit_1g: NDArray[Any]  # int16 (units,)
    reported: NDArray[Any]  # (nr_pageblocks,) REPORTED_DTYPE, blocks below order 9: PageReported


class Memory(ByReference, _MemoryArrays):
    """One kernel's memory manager: all its state.

    Pageblock ``i`` covers pfn ``512 * i .. 512 * i + 511``.  Invariants: `hostsim.mm.check`.
    """
