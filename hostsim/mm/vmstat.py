"""Counters under their /proc/vmstat names.

Source: Linux v6.1 mm/vmstat.c vmstat_text[].
"""

from typing import Final

NAMES: Final = (
    "nr_anon_pages",
    "nr_anon_transparent_hugepages",
    "nr_page_table_pages",
    "nr_secondary_page_table_pages",
    "nr_kernel_pages",
    "pgalloc_dma",
    "pgalloc_dma32",
    "pgalloc_normal",
    "pgfree",
    "pgfault",
    "allocstall",
    "oom_kill",
    "thp_fault_alloc",
    "thp_fault_fallback",
    "thp_fault_fallback_charge",
    "thp_zero_page_alloc",
    "thp_zero_page_alloc_failed",
    "thp_split_page",
    "thp_split_page_failed",
    "thp_deferred_split_page",
    "thp_split_pmd",
    "extfrag_events",
    "nr_guest_pages",
    "vm_starts",
    "vm_ends",
)

NR_ANON_PAGES: Final = 0
NR_ANON_THPS: Final = 1
NR_PAGETABLE: Final = 2
NR_EPT: Final = 3
NR_KERNEL: Final = 4
PGALLOC: Final = 5  # + zone
PGFREE: Final = 8
PGFAULT: Final = 9
ALLOCSTALL: Final = 10
OOM_KILL: Final = 11
THP_FAULT_ALLOC: Final = 12
THP_FAULT_FALLBACK: Final = 13
THP_FAULT_FALLBACK_CHARGE: Final = 14
THP_ZERO_PAGE_ALLOC: Final = 15
THP_ZERO_PAGE_ALLOC_FAILED: Final = 16
THP_SPLIT_PAGE: Final = 17
THP_SPLIT_PAGE_FAILED: Final = 18
THP_DEFERRED_SPLIT_PAGE: Final = 19
THP_SPLIT_PMD: Final = 20
EXTFRAG_EVENTS: Final = 21
NR_GUEST_PAGES: Final = 22
VM_STARTS: Final = 23
VM_ENDS: Final = 24
NR_VMSTAT: Final = len(NAMES)
EVENTS: Final = frozenset(range(PGALLOC, EXTFRAG_EVENTS + 1)) | {VM_STARTS, VM_ENDS}
