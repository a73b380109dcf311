"""Every counter of /proc/vmstat that the specification names is kept and printed by a replay."""

import pytest

from fleet.replay import Replay
from fleet.replay_script import read_script

# By section of kernel.md.  Not there: balloon_migrate (the host has no balloon), nr_free_cma (no
# CMA), nr_free_pages_blocks (since 6.15), zswpout (no zswap).  2.6.38 keeps few of the thp_ ones
# itself; the model counts them in every era.
ALL = {
    "1.14": ["nr_free_pages", "pgalloc_dma", "pgalloc_dma32", "pgalloc_normal", "pgfree"],
    "1.14 allocstall": ["allocstall"],
    "3.8": ["thp_fault_alloc", "thp_fault_fallback", "thp_fault_fallback_charge", "pgfault"],
    "3.8 gauges": ["nr_anon_pages", "nr_anon_transparent_hugepages"],
    "4": ["thp_split_page", "thp_split_pmd"],
    "6.8": ["compact_stall", "compact_success", "compact_fail"],
    "7.1": ["pageoutrun", "pgscan_kswapd", "pgsteal_kswapd", "pgscan_direct", "pgsteal_direct"],
    "7.4": ["pswpout", "pswpin", "pgmajfault"],
    "7.6": ["oom_kill"],
    "8.5": ["balloon_inflate", "balloon_deflate"],
    "10": ["htlb_buddy_alloc_success", "htlb_buddy_alloc_fail"],
}
MODERN = {
    "3.4": ["thp_zero_page_alloc", "thp_zero_page_alloc_failed"],
    "4": ["thp_split_page_failed", "thp_deferred_split_page"],
    "5.4": ["thp_collapse_alloc", "thp_collapse_alloc_failed"],
    "5.6": [f"thp_scan_exceed_{what}_pte" for what in ("none", "swap", "share")],
    "6.6": [f"compact_daemon_{what}" for what in ("wake", "migrate_scanned", "free_scanned")],
    "6.8": ["compact_migrate_scanned", "compact_free_scanned", "compact_isolated"],
    "6.8 migration": ["pgmigrate_success", "pgmigrate_fail"],
    "6.8 thp": [f"thp_migration_{what}" for what in ("success", "fail", "split")],
    "7.1": ["kswapd_low_wmark_hit_quickly", "kswapd_high_wmark_hit_quickly"],
    "7.1 by kind": [f"pg{a}_{b}" for a in ("scan", "steal") for b in ("anon", "file")],
    "7.4": ["thp_swpout", "thp_swpout_fallback", "swap_ra", "swap_ra_hit"],
    "11": ["cow_ksm", "ksm_swpin_copy"],
}
NAMED = {
    "2.6.38": {
        **ALL,
        "6.8 2.6.38": ["compact_blocks_moved", "compact_pages_moved", "compact_pagemigrate_failed"],
    },
    "6.1": {**ALL, **{f"modern {section}": names for section, names in MODERN.items()}},
    "6.12": {
        **ALL,
        **{f"modern {section}": names for section, names in MODERN.items()},
        "4.6": ["thp_underused_split_page"],
        "7.1 khugepaged": ["pgscan_khugepaged", "pgsteal_khugepaged"],
        "7.4 zeros": ["swpout_zero", "swpin_zero"],
    },
}


@pytest.mark.parametrize("kernel", NAMED)
def test_a_replay_prints_every_counter_that_the_specification_names(kernel, tmp_path):
    path = tmp_path / "one.ops"
    path.write_text("# memory_mb=256\nvm a 1024\ntouch a 0 1024\nsnapshot end\n")
    (snapshot,) = Replay(read_script(path), kernel).run()
    printed = snapshot["vmstat"]
    missing = [n for names in NAMED[kernel].values() for n in names if n not in printed]
    assert missing == []
    assert printed["pgfault"] > 0
    assert printed["nr_anon_pages"] > 1024
