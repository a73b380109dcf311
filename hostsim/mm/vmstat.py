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
    "thp_collapse_alloc",
    "thp_collapse_alloc_failed",
    "thp_scan_exceed_none_pte",
    "thp_scan_exceed_swap_pte",
    "thp_scan_exceed_share_pte",
    "thp_underused_split_page",
    "thp_swpout",
    "thp_swpout_fallback",
    "thp_migration_success",
    "thp_migration_fail",
    "thp_migration_split",
    "pgmajfault",
    "pswpin",
    "pswpout",
    "swpin_zero",
    "swpout_zero",
    "swap_ra",
    "swap_ra_hit",
    "ksm_swpin_copy",
    "cow_ksm",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgscan_khugepaged",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "pgsteal_khugepaged",
    "pgscan_anon",
    "pgscan_file",
    "pgsteal_anon",
    "pgsteal_file",
    "pgactivate",
    "pgdeactivate",
    "pageoutrun",
    "kswapd_low_wmark_hit_quickly",
    "kswapd_high_wmark_hit_quickly",
    "pgmigrate_success",
    "pgmigrate_fail",
    "compact_migrate_scanned",
    "compact_free_scanned",
    "compact_isolated",
    "compact_stall",
    "compact_fail",
    "compact_success",
    "compact_daemon_wake",
    "compact_daemon_migrate_scanned",
    "compact_daemon_free_scanned",
    "htlb_buddy_alloc_success",
    "htlb_buddy_alloc_fail",
    "balloon_inflate",
    "balloon_deflate",
    "nr_zone_active_anon",
    "nr_zone_inactive_file",
    "nr_zone_active_file",
    "nr_file_pages",
    "nr_swapcached",
    "nr_hugetlb",
    "nr_ksm_pages",
    "pages_collapsed",
    "full_scans",
    "khugepaged_windows",
    "nr_ept_leaves_2m",
    "nr_ept_leaves_4k",
    "nr_nx_lpage_splits",
    "ept_violations",
    "ept_leaves_zapped",
    "thp_reservation_alloc",
    "thp_reservation_promote",
    "compact_blocks_moved",
    "compact_pages_moved",
    "compact_pagemigrate_failed",
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
THP_COLLAPSE_ALLOC: Final = 25
THP_COLLAPSE_ALLOC_FAILED: Final = 26
THP_SCAN_EXCEED_NONE_PTE: Final = 27
THP_SCAN_EXCEED_SWAP_PTE: Final = 28
THP_SCAN_EXCEED_SHARE_PTE: Final = 29
THP_UNDERUSED_SPLIT_PAGE: Final = 30
THP_SWPOUT: Final = 31
THP_SWPOUT_FALLBACK: Final = 32
THP_MIGRATION_SUCCESS: Final = 33
THP_MIGRATION_FAIL: Final = 34
THP_MIGRATION_SPLIT: Final = 35
PGMAJFAULT: Final = 36
PSWPIN: Final = 37
PSWPOUT: Final = 38
SWPIN_ZERO: Final = 39
SWPOUT_ZERO: Final = 40
SWAP_RA: Final = 41
SWAP_RA_HIT: Final = 42
KSM_SWPIN_COPY: Final = 43
COW_KSM: Final = 44
PGSCAN_KSWAPD: Final = 45
PGSCAN_DIRECT: Final = 46
PGSCAN_KHUGEPAGED: Final = 47
PGSTEAL_KSWAPD: Final = 48
PGSTEAL_DIRECT: Final = 49
PGSTEAL_KHUGEPAGED: Final = 50
PGSCAN_ANON: Final = 51
PGSCAN_FILE: Final = 52
PGSTEAL_ANON: Final = 53
PGSTEAL_FILE: Final = 54
PGACTIVATE: Final = 55
PGDEACTIVATE: Final = 56
PAGEOUTRUN: Final = 57
KSWAPD_LOW_WMARK_HIT_QUICKLY: Final = 58
KSWAPD_HIGH_WMARK_HIT_QUICKLY: Final = 59
PGMIGRATE_SUCCESS: Final = 60
PGMIGRATE_FAIL: Final = 61
COMPACT_MIGRATE_SCANNED: Final = 62
COMPACT_FREE_SCANNED: Final = 63
COMPACT_ISOLATED: Final = 64
COMPACT_STALL: Final = 65
COMPACT_FAIL: Final = 66
COMPACT_SUCCESS: Final = 67
COMPACT_DAEMON_WAKE: Final = 68
COMPACT_DAEMON_MIGRATE_SCANNED: Final = 69
COMPACT_DAEMON_FREE_SCANNED: Final = 70
HTLB_BUDDY_ALLOC_SUCCESS: Final = 71
HTLB_BUDDY_ALLOC_FAIL: Final = 72
BALLOON_INFLATE: Final = 73
BALLOON_DEFLATE: Final = 74
NR_ACTIVE_ANON: Final = 75
NR_INACTIVE_FILE: Final = 76
NR_ACTIVE_FILE: Final = 77
NR_FILE_PAGES: Final = 78
NR_SWAPCACHED: Final = 79
NR_HUGETLB: Final = 80
NR_KSM_PAGES: Final = 81
PAGES_COLLAPSED: Final = 82
FULL_SCANS: Final = 83
KHUGEPAGED_WINDOWS: Final = 84
NR_EPT_LEAVES_2M: Final = 85
NR_EPT_LEAVES_4K: Final = 86
NR_NX_LPAGE_SPLITS: Final = 87
EPT_VIOLATIONS: Final = 88
EPT_LEAVES_ZAPPED: Final = 89
THP_RESERVATION_ALLOC: Final = 90  # thp_policy reservation
THP_RESERVATION_PROMOTE: Final = 91
COMPACT_BLOCKS_MOVED: Final = 92  # 2.6.38: batches
COMPACT_PAGES_MOVED: Final = 93
COMPACT_PAGEMIGRATE_FAILED: Final = 94
NR_VMSTAT: Final = len(NAMES)
EVENTS: Final = frozenset(range(PGALLOC, EXTFRAG_EVENTS + 1)) | {
    number for number, name in enumerate(NAMES) if number > NR_GUEST_PAGES and name[:3] != "nr_"
}
