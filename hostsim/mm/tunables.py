"""Kernel profiles and sysfs settings, as numbers that kernels read.

A profile says which alternative of a mechanism an era uses; the settings are the files under
/sys/kernel/mm/transparent_hugepage, /sys/kernel/mm/ksm and /proc/sys/vm.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hostsim.core.units import HPAGE_PMD_NR

FALLBACK_6_1: Final = 0  # one loop, largest block first
FALLBACK_6_12: Final = 1  # claim phase, then steal phase
FALLBACK_2_6_38: Final = 2  # largest block first, whole pageblocks for reclaimable ones, RESERVE
COMPACTION_6_1: Final = 0  # a fast search that finds a source marks it to be skipped
COMPACTION_2_6_38: Final = 2  # scanners begin at the zone's ends: compaction_2_6_38
COMPACTION_6_12: Final = 1  # pageblocks are finished; free blocks are kept whole

SWAPIN_6_1: Final = 0  # tail pages of a huge page in the swap cache are copied
SWAPIN_6_12: Final = 1  # a huge page in the swap cache is mapped as a whole
SPLIT_BEFORE_SWAP_TABLE: Final = 0  # huge pages that no PMD maps
SPLIT_BEFORE_SWAP_PARTIAL: Final = 1  # huge pages of which a part is not mapped

T_ENABLED: Final = 0
T_DEFRAG: Final = 1
T_USE_ZERO_PAGE: Final = 2
T_FALLBACK: Final = 3  # FALLBACK_*
T_PCP_6_12: Final = 4  # 1: self-tuning per-CPU lists
T_REVERSE_ZAP: Final = 5  # 1: a gather batch is freed last page first
T_KHUGEPAGED_DEFRAG: Final = 6
T_KHUGEPAGED_PAGES_TO_SCAN: Final = 7
T_KHUGEPAGED_SCAN_SLEEP_MILLISECS: Final = 8
T_KHUGEPAGED_ALLOC_SLEEP_MILLISECS: Final = 9
T_KHUGEPAGED_MAX_PTES_NONE: Final = 10
T_KHUGEPAGED_MAX_PTES_SWAP: Final = 11
T_KHUGEPAGED_MAX_PTES_SHARED: Final = 12
T_SHRINK_UNDERUSED: Final = 13
T_SWAPPINESS: Final = 14
T_PAGE_CLUSTER: Final = 15
T_WATERMARK_BOOST_FACTOR: Final = 16
T_EXTFRAG_THRESHOLD: Final = 17
T_COMPACTION_PROACTIVENESS: Final = 18
T_COMPACT_UNEVICTABLE_ALLOWED: Final = 19
T_KSM_RUN: Final = 20
T_KSM_PAGES_TO_SCAN: Final = 21
T_KSM_SLEEP_MILLISECS: Final = 22
T_KSM_MAX_PAGE_SHARING: Final = 23
T_KSM_USE_ZERO_PAGES: Final = 24
T_UNMAP_DEFERS: Final = 25  # 1: unmapping any small page of a huge page queues that for splitting
T_SPLIT_FREES_ZERO: Final = 26  # 1: a split huge page's pages of zeros are freed
T_KSM_SMART_SCAN: Final = 27  # 1: ksmd visits pages that never merge less often
T_KVM_LARGEPAGES: Final = 28  # the CPU and the hypervisor can use 2 MiB leaves
T_KVM_NX_HUGE_PAGES: Final = 29  # 2 MiB leaves are not executable (iTLB multihit)
T_KVM_NX_RATIO: Final = 30
T_KVM_EAGER_PAGE_SPLIT: Final = 31
T_KVM_EPT_AD: Final = 32  # EPT entries have accessed and dirty bits (Haswell on)
T_COMPACTION: Final = 33  # COMPACTION_*
T_SWAPIN: Final = 34  # SWAPIN_*
T_THP_SWAP: Final = 35  # 1: a huge page is swapped out whole if there is a free cluster
T_SPLIT_BEFORE_SWAP: Final = 36  # SPLIT_BEFORE_SWAP_*
T_ALLOC_RETRIES: Final = 37  # failed huge allocations that a pass of khugepaged sleeps off
T_COLLAPSE_WRITABLE: Final = 38  # WRITABLE_*
T_PCP_ORDER_0: Final = 39  # 1: per-CPU lists hold single pages only, and give back one batch
T_WATERMARK_DECAY: Final = 40  # 1: a request of an order wants large blocks left in proportion
T_NOFRAGMENT: Final = 41  # 1: the first pass does not mix migratetypes (ALLOC_NOFRAGMENT)
T_PHYSICAL_SPLIT: Final = 42  # 1: splitting a PMD splits the huge page, with all its mappings
T_COW_HUGE: Final = 43  # 1: a write to a shared huge page copies 2 MiB
T_SEED_FILES: Final = 44  # 1: only the settings of 2.6.38 exist
T_THP_POLICY: Final = 45  # THP_POLICIES
T_KHUGEPAGED_WAKEUP: Final = 46  # WAKEUPS
T_SWAP_ZEROMAP: Final = 47  # 1: pages of zeros are not written to swap
T_DEFER_UNDERUSED: Final = 48  # 1: new huge pages are queued to be looked at for zeros
T_KEEP_WRITTEN: Final = 49  # 1: which pages of a huge page were ever written is kept
NR_TUNABLES: Final = 50

WRITABLE_ONE: Final = 0  # khugepaged wants at least one writable page in a window
WRITABLE_NOT_NEEDED: Final = 1  # since 6.18
WRITABLE_ALL: Final = 2  # 2.6.38

_NO_LIMIT: Final = (1 << 31) - 1
# file: index, default, least and most; defaults of v6.1 and v6.12
NUMBERS: Final[dict[str, tuple[int, int, int, int]]] = {
    "khugepaged/defrag": (T_KHUGEPAGED_DEFRAG, 1, 0, 1),
    "khugepaged/pages_to_scan": (T_KHUGEPAGED_PAGES_TO_SCAN, 4096, 1, _NO_LIMIT),
    "khugepaged/scan_sleep_millisecs": (T_KHUGEPAGED_SCAN_SLEEP_MILLISECS, 10000, 0, _NO_LIMIT),
    "khugepaged/alloc_sleep_millisecs": (T_KHUGEPAGED_ALLOC_SLEEP_MILLISECS, 60000, 0, _NO_LIMIT),
    "khugepaged/max_ptes_none": (T_KHUGEPAGED_MAX_PTES_NONE, 511, 0, 511),
    "khugepaged/max_ptes_swap": (T_KHUGEPAGED_MAX_PTES_SWAP, 64, 0, 511),
    "khugepaged/max_ptes_shared": (T_KHUGEPAGED_MAX_PTES_SHARED, 256, 0, 511),
    "shrink_underused": (T_SHRINK_UNDERUSED, 1, 0, 1),
    "swappiness": (T_SWAPPINESS, 60, 0, 200),
    "page-cluster": (T_PAGE_CLUSTER, 3, 0, 10),
    "watermark_boost_factor": (T_WATERMARK_BOOST_FACTOR, 15000, 0, _NO_LIMIT),
    "extfrag_threshold": (T_EXTFRAG_THRESHOLD, 500, 0, 1000),
    "compaction_proactiveness": (T_COMPACTION_PROACTIVENESS, 20, 0, 100),
    "compact_unevictable_allowed": (T_COMPACT_UNEVICTABLE_ALLOWED, 1, 0, 1),
    "kvm/largepages": (T_KVM_LARGEPAGES, 1, 0, 1),
    "kvm/nx_huge_pages": (T_KVM_NX_HUGE_PAGES, 0, 0, 1),  # auto, on a CPU without the erratum
    "kvm/nx_huge_pages_recovery_ratio": (T_KVM_NX_RATIO, 60, 0, _NO_LIMIT),
    "kvm/eager_page_split": (T_KVM_EAGER_PAGE_SPLIT, 1, 0, 1),
    "kvm/eptad": (T_KVM_EPT_AD, 1, 0, 1),
    "ksm/run": (T_KSM_RUN, 0, 0, 2),
    "ksm/pages_to_scan": (T_KSM_PAGES_TO_SCAN, 100, 0, _NO_LIMIT),
    "ksm/sleep_millisecs": (T_KSM_SLEEP_MILLISECS, 20, 0, _NO_LIMIT),
    "ksm/max_page_sharing": (T_KSM_MAX_PAGE_SHARING, 256, 2, _NO_LIMIT),
    "ksm/use_zero_pages": (T_KSM_USE_ZERO_PAGES, 0, 0, 1),
}

LATER_FILES: Final = (
    "use_zero_page",
    "khugepaged/max_ptes_swap",
    "khugepaged/max_ptes_shared",
    "watermark_boost_factor",
    "compaction_proactiveness",
    "compact_unevictable_allowed",
    "ksm/max_page_sharing",
    "ksm/use_zero_pages",
)  # not in 2.6.38
ENABLED: Final = {"always": 0, "madvise": 1, "never": 2}
DEFRAG: Final = {"always": 0, "defer": 1, "defer+madvise": 2, "madvise": 3, "never": 4}

WAKEUPS: Final = {"timer": 0, "event": 1}  # what ends khugepaged's sleep
THP_POLICIES: Final = {"linux": 0, "reservation": 1, "utilisation": 2}  # hostsim.mm.promotion
WORDS: Final = {  # files that take a word: index, words
    "enabled": (T_ENABLED, ENABLED),
    "defrag": (T_DEFRAG, DEFRAG),
    "khugepaged/wakeup": (T_KHUGEPAGED_WAKEUP, WAKEUPS),
    "thp_policy": (T_THP_POLICY, THP_POLICIES),
}

PROFILES: Final[dict[str, dict[int, int]]] = {
    "2.6.38": {
        T_FALLBACK: FALLBACK_2_6_38,
        T_COMPACTION: COMPACTION_2_6_38,
        T_PCP_6_12: 0,
        T_REVERSE_ZAP: 0,  # mm/swap.c release_pages frees through a pagevec, in order
        T_UNMAP_DEFERS: 0,
        T_SWAP_ZEROMAP: 0,
        T_SPLIT_FREES_ZERO: 0,
        T_KSM_SMART_SCAN: 0,
        T_PCP_ORDER_0: 1,
        T_WATERMARK_DECAY: 1,
        T_NOFRAGMENT: 0,
        T_PHYSICAL_SPLIT: 1,
        T_COW_HUGE: 1,
        T_SEED_FILES: 1,
        T_SWAPIN: SWAPIN_6_1,
        T_THP_SWAP: 0,
        T_SPLIT_BEFORE_SWAP: SPLIT_BEFORE_SWAP_TABLE,
        T_ALLOC_RETRIES: 0,  # one failure ends the pass
        T_COLLAPSE_WRITABLE: WRITABLE_ALL,
    },
    "6.1": {
        T_NOFRAGMENT: 1,
        T_UNMAP_DEFERS: 1,  # mm/rmap.c page_remove_rmap looks at one page
        T_SWAP_ZEROMAP: 0,
        T_SPLIT_FREES_ZERO: 0,
        T_KSM_SMART_SCAN: 0,  # since 6.7
        T_FALLBACK: FALLBACK_6_1,
        T_COMPACTION: COMPACTION_6_1,
        T_PCP_6_12: 0,
        T_ALLOC_RETRIES: 1,
        T_COLLAPSE_WRITABLE: WRITABLE_ONE,
        T_REVERSE_ZAP: 1,  # mm/swap.c release_pages builds its list with list_add
        T_SWAPIN: SWAPIN_6_1,
        T_THP_SWAP: 1,
        T_SPLIT_BEFORE_SWAP: SPLIT_BEFORE_SWAP_TABLE,
    },
    "6.12": {
        T_NOFRAGMENT: 1,
        T_UNMAP_DEFERS: 0,  # __folio_remove_rmap looks at what stays mapped
        T_SWAP_ZEROMAP: 1,  # mm/page_io.c swap_writepage
        T_SPLIT_FREES_ZERO: 1,  # mm/huge_memory.c remap_page with RMP_USE_SHARED_ZEROPAGE
        T_KSM_SMART_SCAN: 1,
        T_FALLBACK: FALLBACK_6_12,
        T_COMPACTION: COMPACTION_6_12,
        T_PCP_6_12: 1,
        T_ALLOC_RETRIES: 1,
        T_COLLAPSE_WRITABLE: WRITABLE_ONE,
        T_REVERSE_ZAP: 0,  # mm/swap.c folios_put_refs frees a batch in order
        T_SWAPIN: SWAPIN_6_12,
        T_THP_SWAP: 1,
        T_SPLIT_BEFORE_SWAP: SPLIT_BEFORE_SWAP_PARTIAL,
    },
}


def set_profile(tunables: NDArray[np.int64], kernel: str) -> None:
    """Select the alternatives of a kernel version.

    Raises
    ------
    ValueError
        No profile of that name.
    """
    if kernel not in PROFILES:
        raise ValueError(f"kernel {kernel!r}: expected one of {', '.join(PROFILES)}")
    for index, value in PROFILES[kernel].items():
        tunables[index] = value
    for index, default, _, _ in NUMBERS.values():
        tunables[index] = default
    if tunables[T_SEED_FILES]:
        tunables[T_KVM_EPT_AD] = 0  # no CPU of that time had the bits
        for index in (
            T_USE_ZERO_PAGE,
            T_WATERMARK_BOOST_FACTOR,
            T_COMPACTION_PROACTIVENESS,
            T_KHUGEPAGED_MAX_PTES_SWAP,
            T_KHUGEPAGED_MAX_PTES_SHARED,
        ):
            tunables[index] = 0
    tunables[T_KEEP_WRITTEN] = 1
    _derive(tunables)


def _derive(tunables: NDArray[np.int64]) -> None:
    """Set what follows from other tunables."""
    tunables[T_DEFER_UNDERUSED] = (
        tunables[T_SPLIT_FREES_ZERO]
        and tunables[T_SHRINK_UNDERUSED]
        and tunables[T_KHUGEPAGED_MAX_PTES_NONE] < HPAGE_PMD_NR - 1
    )


def set_tunable(tunables: NDArray[np.int64], name: str, value: str) -> None:
    """Write a settings file by its name below its folder.

    Raises
    ------
    ValueError
        The file does not exist in the model, or does not take the value.
    """
    words = dict(WORDS)
    if tunables[T_SEED_FILES]:
        words["defrag"] = (T_DEFRAG, {w: DEFRAG[w] for w in ("always", "madvise", "never")})
        if name in LATER_FILES:
            raise ValueError(f"unknown setting {name!r}: 2.6.38 does not have it")
    if name == "shrink_underused" and not tunables[T_SPLIT_FREES_ZERO]:
        raise ValueError("unknown setting 'shrink_underused': kernels before 6.12 do not have it")
    if name in words:
        index, known = words[name]
        if value not in known:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(known)}")
        tunables[index] = known[value]
    elif name == "use_zero_page":
        if value not in ("0", "1"):
            raise ValueError(f"use_zero_page: {value!r} is not 0 or 1")
        tunables[T_USE_ZERO_PAGE] = int(value)
    elif name in NUMBERS:
        index, _, least, most = NUMBERS[name]
        if not value.isdigit() or not least <= int(value) <= most:
            raise ValueError(f"{name}: {value!r} is not a number from {least} to {most}")
        tunables[index] = int(value)
        _derive(tunables)
    else:
        known_names = ", ".join((*WORDS, "use_zero_page", *NUMBERS))
        raise ValueError(f"unknown setting {name!r}: expected one of {known_names}")
