"""What a host says of itself every tick: its row of the table ``hosts``.

Source: Linux v6.1 /proc/vmstat, /proc/buddyinfo, /proc/pagetypeinfo, /sys/kernel/mm/ksm.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_ORDER, NR_PAGE_ORDERS
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NR_TYPES,
    P_DAEMON_NS,
    P_FREE_1G,
    P_FREE_32M,
    P_KSM_SHARED,
    P_KSM_SHARING,
    P_REC_LIVE,
    P_STALL_NS,
    P_UNMOVABLE_BLOCKS,
    PCP_COUNT,
    Z_FREE,
    Z_LABEL,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.numa import nr_numa_miss, smallest_free
from hostsim.mm.pageblock import fragmentation_index, unusable_free_index
from hostsim.mm.swapfile import used_slots
from hostsim.mm.vmstat import (
    ALLOCSTALL,
    EPT_VIOLATIONS,
    EXTFRAG_EVENTS,
    FULL_SCANS,
    KHUGEPAGED_WINDOWS,
    NR_ANON_PAGES,
    NR_ANON_THPS,
    NR_EPT,
    NR_EPT_LEAVES_2M,
    NR_EPT_LEAVES_4K,
    NR_GUEST_PAGES,
    NR_KERNEL,
    NR_NX_LPAGE_SPLITS,
    NR_PAGETABLE,
    OOM_KILL,
    PAGES_COLLAPSED,
    PGALLOC,
    PGFAULT,
    PGFREE,
    PSWPIN,
    PSWPOUT,
    THP_COLLAPSE_ALLOC,
    THP_COLLAPSE_ALLOC_FAILED,
    THP_DEFERRED_SPLIT_PAGE,
    THP_FAULT_ALLOC,
    THP_FAULT_FALLBACK,
    THP_SPLIT_PAGE,
    THP_SPLIT_PMD,
    VM_ENDS,
    VM_STARTS,
)

NR_ROW_HEAD: Final = 5  # t_ns, host_id, nr_vms, committed_vcpus, committed_pages


@kernel
def fill_host_row(mem: Memory, row: NDArray[np.int64], free: NDArray[np.int64], first: int) -> None:
    """Write the gauges and counters of a host from column ``first`` on.

    Parameters
    ----------
    row
        One row of the table ``hosts``.
    free
        Work space for 11 numbers.
    """
    at = _put_use(mem, row, first)
    at = _put_free_blocks(mem, row, free, at)
    at = _put_thp(mem, row, at)
    at = _put_ept_and_daemons(mem, row, at)
    _put_pressure(mem, row, at)


@inline_kernel
def _put(row: NDArray[np.int64], at: int, values: tuple[int, ...]) -> int:
    """Write values from a column on; return the next column."""
    for value in values:
        row[at] = value
        at += 1
    return at


@kernel
def _put_use(mem: Memory, row: NDArray[np.int64], at: int) -> int:
    """Write what memory is used for; return the next column."""
    managed = 0
    nr_free = 0
    pcp = 0
    for zone in range(len(mem.zone)):
        managed += mem.zone[zone, Z_MANAGED]
        nr_free += mem.zone[zone, Z_FREE]
        pcp += mem.zone[zone, PCP_COUNT]
    return _put(
        row,
        at,
        (
            managed,
            nr_free,
            pcp,
            mem.vmstat[NR_ANON_PAGES],
            mem.vmstat[NR_ANON_THPS],
            mem.vmstat[NR_GUEST_PAGES],
            mem.vmstat[NR_PAGETABLE],
            mem.vmstat[NR_EPT],
            mem.vmstat[NR_KERNEL],
        ),
    )


@kernel
def _put_free_blocks(mem: Memory, row: NDArray[np.int64], free: NDArray[np.int64], at: int) -> int:
    """Write free blocks by order, pageblocks by type, and how fragmented that is."""
    for order in range(NR_PAGE_ORDERS):
        free[order] = 0
        for zone in range(len(mem.zone)):
            for migratetype in range(NR_TYPES):
                free[order] += mem.nr_free[zone, migratetype, order]
        row[at] = free[order]
        at += 1
    for migratetype in (MIGRATE_UNMOVABLE, MIGRATE_MOVABLE, MIGRATE_RECLAIMABLE):
        row[at] = 0
        for zone in range(len(mem.zone)):
            row[at] += mem.zone[zone, Z_LABEL + migratetype]
        at += 1
    row[at] = mem.pool[P_REC_LIVE]
    row[at + 1] = unusable_free_index(free, HPAGE_PMD_ORDER)
    row[at + 2] = fragmentation_index(free, HPAGE_PMD_ORDER)
    return at + 3


@kernel
def _put_thp(mem: Memory, row: NDArray[np.int64], at: int) -> int:
    """Write faults, huge pages, allocations and their troubles, and VMs that came and went."""
    return _put(
        row,
        at,
        (
            mem.vmstat[PGFAULT],
            mem.vmstat[THP_FAULT_ALLOC],
            mem.vmstat[THP_FAULT_FALLBACK],
            mem.vmstat[THP_SPLIT_PMD],
            mem.vmstat[THP_SPLIT_PAGE],
            mem.vmstat[THP_DEFERRED_SPLIT_PAGE],
            mem.vmstat[PGALLOC] + mem.vmstat[PGALLOC + 1] + mem.vmstat[PGALLOC + 2],
            mem.vmstat[PGFREE],
            mem.vmstat[EXTFRAG_EVENTS],
            mem.vmstat[ALLOCSTALL],
            mem.vmstat[OOM_KILL],
            mem.vmstat[VM_STARTS],
            mem.vmstat[VM_ENDS],
        ),
    )


@kernel
def _put_ept_and_daemons(mem: Memory, row: NDArray[np.int64], at: int) -> int:
    """Write the EPTs' leaves and violations, and what khugepaged did."""
    return _put(
        row,
        at,
        (
            mem.vmstat[NR_EPT_LEAVES_2M],
            mem.vmstat[NR_EPT_LEAVES_4K],
            mem.vmstat[NR_NX_LPAGE_SPLITS],
            mem.vmstat[EPT_VIOLATIONS],
            mem.vmstat[THP_COLLAPSE_ALLOC],
            mem.vmstat[THP_COLLAPSE_ALLOC_FAILED],
            mem.vmstat[PAGES_COLLAPSED],
            mem.vmstat[FULL_SCANS],
            mem.vmstat[KHUGEPAGED_WINDOWS],
            mem.pool[P_DAEMON_NS],
        ),
    )


@kernel
def _put_pressure(mem: Memory, row: NDArray[np.int64], at: int) -> int:
    """Write large free blocks, swap, KSM, stalls and NUMA."""
    return _put(
        row,
        at,
        (
            mem.pool[P_FREE_32M],
            mem.pool[P_FREE_1G],
            mem.pool[P_UNMOVABLE_BLOCKS],
            mem.vmstat[PSWPIN],
            mem.vmstat[PSWPOUT],
            used_slots(mem),
            mem.pool[P_KSM_SHARED],
            mem.pool[P_KSM_SHARING],
            mem.pool[P_STALL_NS],
            nr_numa_miss(mem),
            smallest_free(mem),
        ),
    )
