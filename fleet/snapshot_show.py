"""A host's health from its snapshot, in the metrics of the simulator.

Source of the indices: `hostsim.mm.pageblock`, the kernel's own formulas.  A full scan of
khugepaged takes ``windows / ceil(pages_to_scan / 512)`` passes of ``scan_sleep_millisecs``
(Linux v6.1 mm/khugepaged.c khugepaged_do_scan): a window counts 512 pages whatever it holds.
Simplified: the time that khugepaged spends on looking and copying is left out of a full scan.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleet.snapshot_file import HostSnapshot
from fleet.snapshot_text import parse_buddyinfo, parse_pagetypeinfo
from hostsim.core.units import (
    HPAGE_PMD_BYTES,
    HPAGE_PMD_NR,
    HPAGE_PMD_ORDER,
    HPAGE_PUD_ORDER,
    MAX_PAGE_ORDER,
    NR_PAGE_ORDERS,
    PAGE_BYTES,
    PAGE_SHIFT,
)
from hostsim.mm.pageblock import fragmentation_index, unusable_free_index

KB: Final = 1024
MIB: Final = 1 << 20
INDEX_SCALE: Final = 1000  # the kernel's indices are in thousandths


def health(snapshot: HostSnapshot) -> dict[str, Any]:
    """Return what a snapshot says; names say the unit, ratios are in [0, 1], None is unknown."""
    return {
        "kernel_release": snapshot.kernel_release,
        "cpu_model": snapshot.cpu_model,
        "nr_cpus": snapshot.nr_cpus,
        "nr_nodes": max(len(snapshot.nodes), 1),
        "virtualised": snapshot.virtualised,
        "captured_at": snapshot.captured_at,
        "uptime_s": snapshot.uptime_s,
        "consistent": snapshot.consistent,
        "memory": _memory(snapshot),
        "zones": _zones(snapshot),
        "pageblocks": _pageblocks(snapshot),
        "vms": _vms(snapshot),
        "khugepaged": _khugepaged(snapshot),
        "thp": snapshot.thp,
        "rates": _rates(snapshot),
        "ept": _ept(snapshot),
        "hugetlb": snapshot.hugetlb,
        "ksm": _ksm(snapshot),
        "unread": [entry.model_dump() for entry in snapshot.unread],
    }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _blocks_bytes(counts: list[int] | NDArray[np.int64], first: int) -> int:
    """Return the bytes in free blocks of an order and above."""
    pages = sum(int(n) << order for order, n in enumerate(counts) if order >= first)
    return pages << PAGE_SHIFT


def _memory(snapshot: HostSnapshot) -> dict[str, Any]:
    blocks = np.sum(list(parse_buddyinfo(snapshot.buddyinfo).values()), axis=0)
    free, huge = _blocks_bytes(blocks, 0), _blocks_bytes(blocks, HPAGE_PMD_ORDER)
    kb = snapshot.meminfo_kb
    tens = int(blocks[MAX_PAGE_ORDER])
    return {
        "total_bytes": kb.get("MemTotal", 0) * KB,
        "available_bytes": kb.get("MemAvailable", 0) * KB,
        "free_bytes": free,
        "free_2m_bytes": huge,
        "free_2m_ratio": _ratio(huge, free),
        # no file says which blocks of 4 MiB are neighbours: what they could be at most
        "free_1g_pages_at_most": tens >> (HPAGE_PUD_ORDER - MAX_PAGE_ORDER),
        "per_cpu_bytes": sum(zone.pcp_pages for zone in snapshot.zones) << PAGE_SHIFT,
        "anon_bytes": kb.get("AnonPages", 0) * KB,
        "anon_huge_bytes": kb.get("AnonHugePages", 0) * KB,
        "page_cache_bytes": kb.get("Cached", 0) * KB,
        "slab_bytes": kb.get("Slab", 0) * KB,
        "swap_used_bytes": (kb.get("SwapTotal", 0) - kb.get("SwapFree", 0)) * KB,
        "swap_total_bytes": kb.get("SwapTotal", 0) * KB,
        "min_free_kbytes": snapshot.vm.get("min_free_kbytes"),
    }


def _zones(snapshot: HostSnapshot) -> list[dict[str, Any]]:
    known = {(zone.node, zone.name): zone for zone in snapshot.zones}
    rows = []
    for (node, name), counts in parse_buddyinfo(snapshot.buddyinfo).items():
        free = np.array(counts, np.int64)
        zone = known.get((node, name))
        orders = range(min(len(free), NR_PAGE_ORDERS))
        rows.append(
            {
                "node": node,
                "zone": name,
                "managed_bytes": zone.managed_pages * PAGE_BYTES if zone else None,
                "free_bytes": _blocks_bytes(free, 0),
                "free_2m_bytes": _blocks_bytes(free, HPAGE_PMD_ORDER),
                "free_blocks": free.tolist(),
                "unusable_index": [int(unusable_free_index(free, o)) / INDEX_SCALE for o in orders],
                "extfrag_index": [int(fragmentation_index(free, o)) / INDEX_SCALE for o in orders],
                "min_bytes": zone.min_pages * PAGE_BYTES if zone else None,
                "low_bytes": zone.low_pages * PAGE_BYTES if zone else None,
                "high_bytes": zone.high_pages * PAGE_BYTES if zone else None,
            }
        )
    return rows


def _pageblocks(snapshot: HostSnapshot) -> dict[str, Any] | None:
    if not snapshot.pagetypeinfo:
        return None
    found: dict[str, int] = {}
    for row in parse_pagetypeinfo(snapshot.pagetypeinfo).pageblocks.values():
        for kind, count in row.items():
            found[kind] = found.get(kind, 0) + count
    total = sum(found.values())
    unmovable = found.get("Unmovable", 0) + found.get("Reclaimable", 0)
    return {"by_type": found, "total": total, "unmovable_ratio": _ratio(unmovable, total)}


def _vms(snapshot: HostSnapshot) -> dict[str, Any]:
    rows = []
    for process in snapshot.processes:
        huge = process.anon_huge_kb
        rows.append(
            {
                **process.model_dump(),
                "coverage_ratio": None if huge is None else _ratio(huge, process.rss_kb),
            }
        )
    known = [row for row in rows if row["anon_huge_kb"] is not None]
    covered, rss = sum(r["anon_huge_kb"] for r in known), sum(r["rss_kb"] for r in known)
    return {
        "processes": rows,
        "rss_bytes": sum(row["rss_kb"] for row in rows) * KB,
        "coverage_ratio": _ratio(covered, rss),
    }


def scan_windows(snapshot: HostSnapshot) -> int:
    """Return the 2 MiB windows of the VMs' memory: what they were given, else what they have."""
    given = sum(
        process.memory_mib * MIB if process.memory_mib else process.rss_kb * KB
        for process in snapshot.processes
    )
    return -(-given // HPAGE_PMD_BYTES)


def _khugepaged(snapshot: HostSnapshot) -> dict[str, Any]:
    files = snapshot.khugepaged
    pages, sleep_ms = files.get("pages_to_scan"), files.get("scan_sleep_millisecs")
    windows = scan_windows(snapshot)
    known = pages and sleep_ms is not None and windows
    return {
        **files,
        "windows": windows,
        "full_scan_s": full_scan_s(windows, pages or 1, sleep_ms or 0) if known else None,
    }


def full_scan_s(windows: int, pages_to_scan: int, sleep_ms: int) -> float:
    """Return how long khugepaged takes to look at every window once."""
    return math.ceil(windows / math.ceil(pages_to_scan / HPAGE_PMD_NR)) * sleep_ms / 1000


def _rates(snapshot: HostSnapshot) -> dict[str, Any]:
    """Return ratios of counters since boot."""
    count = snapshot.vmstat.get
    hours = snapshot.uptime_s / 3600

    def failed(good: str, bad: str) -> float | None:
        return _ratio(count(bad, 0), count(good, 0) + count(bad, 0))

    return {
        "thp_fault_fallback_ratio": failed("thp_fault_alloc", "thp_fault_fallback"),
        "thp_collapse_alloc_failed_ratio": failed(
            "thp_collapse_alloc", "thp_collapse_alloc_failed"
        ),
        "compact_fail_ratio": failed("compact_success", "compact_fail"),
        "thp_fault_alloc": count("thp_fault_alloc"),
        "compact_stall_per_hour": _ratio(count("compact_stall", 0), hours),
        "thp_split_page_per_hour": _ratio(count("thp_split_page", 0), hours),
        "pswpout_per_hour": _ratio(count("pswpout", 0), hours),
        "oom_kill": count("oom_kill"),
    }


def _ept(snapshot: HostSnapshot) -> dict[str, Any] | None:
    kvm = snapshot.kvm
    if not kvm:
        return None
    small, large, giant = (kvm.get(f"pages_{size}", 0) for size in ("4k", "2m", "1g"))
    pages = small + large * HPAGE_PMD_NR + (giant << HPAGE_PUD_ORDER)
    return {**kvm, "huge_ratio": _ratio(pages - small, pages)}


def _ksm(snapshot: HostSnapshot) -> dict[str, Any]:
    ksm = snapshot.ksm
    shared, sharing = ksm.get("pages_shared", 0), ksm.get("pages_sharing", 0)
    return {"run": ksm.get("run"), "saved_bytes": sharing * PAGE_BYTES, "pages_shared": shared}


# When advice is given: judgements, each named with the advice
FALLBACK_HIGH: Final = 0.1
UNUSABLE_HIGH: Final = 0.5
COVERAGE_LOW: Final = 0.8
UNMOVABLE_HIGH: Final = 0.25
SCAN_LONG_S: Final = 3600.0
FREE_ENOUGH: Final = 0.02  # share of a zone that must be free for its index to matter


def advice(found: dict[str, Any], scenario: str = "my-hosts.toml") -> list[dict[str, str]]:
    """Return advice that the numbers justify: what, why, and the command that tries it."""

    def entry(what: str, why: str, setting: str) -> dict[str, str]:
        return {"advice": what, "reason": why, "try": f"fleet run {scenario} --set {setting}"}

    out = []
    enabled, rates, vms = found["thp"].get("enabled"), found["rates"], found["vms"]
    if enabled == "never":
        why = "transparent_hugepage/enabled is never: no guest memory can be huge"
        out.append(entry("allow huge pages for guests", why, "hosts.thp.enabled=madvise"))
    fallback = rates["thp_fault_fallback_ratio"]
    if fallback is not None and fallback > FALLBACK_HIGH:
        why = f"{fallback:.0%} of huge faults fell back to small pages (above {FALLBACK_HIGH:.0%})"
        out.append(entry("let faults compact", why, "hosts.thp.defrag=defer+madvise"))
    for zone in found["zones"]:
        index = zone["unusable_index"][HPAGE_PMD_ORDER]
        managed = zone["managed_bytes"] or 0
        large = managed >= 1 << 30 and zone["free_bytes"] > managed * FREE_ENOUGH
        if large and index > UNUSABLE_HIGH:
            why = (
                f"node {zone['node']} {zone['zone']}: {index:.0%} of free memory is in blocks"
                f" below 2 MiB (above {UNUSABLE_HIGH:.0%})"
            )
            out.append(entry("compact ahead", why, "hosts.vm.compaction_proactiveness=60"))
    out += _scan_advice(found, entry)
    coverage = vms["coverage_ratio"]
    if coverage is not None and coverage < COVERAGE_LOW and found["ksm"]["run"] == 1:
        why = f"ksmd splits huge pages; guests' coverage is {coverage:.0%}"
        out.append(entry("weigh KSM against huge pages", why, "hosts.ksm.run=0"))
    blocks = found["pageblocks"]
    if blocks and blocks["unmovable_ratio"] > UNMOVABLE_HIGH:
        share = blocks["unmovable_ratio"]
        why = f"{share:.0%} of pageblocks are unmovable or reclaimable (above {UNMOVABLE_HIGH:.0%})"
        how = "placement.policy=hugepage-aware"
        out.append(entry("place guests where memory is whole", why, how))
    if found["memory"]["swap_used_bytes"] > 0 and rates["pswpout_per_hour"]:
        gib = found["memory"]["swap_used_bytes"] / (1 << 30)
        why = f"{gib:.2f} GiB are in swap"
        out.append(entry("sell less memory", why, "placement.memory_overcommit=1.0"))
    return out


def _scan_advice(found: dict[str, Any], entry: Any) -> list[dict[str, str]]:
    """Return advice on khugepaged's pace, where small pages wait for it."""
    daemon, coverage = found["khugepaged"], found["vms"]["coverage_ratio"]
    full_s = daemon["full_scan_s"]
    if full_s is None or full_s <= SCAN_LONG_S or (coverage or 0.0) >= COVERAGE_LOW:
        return []
    passes = max(int(SCAN_LONG_S * 1000) // max(daemon["scan_sleep_millisecs"], 1), 1)
    pages = math.ceil(daemon["windows"] / passes) * HPAGE_PMD_NR
    why = (
        f"a full scan of {daemon['windows']:,} windows takes {full_s / 3600:.1f} h;"
        f" {pages} pages a pass make it one hour"
    )
    return [entry("let khugepaged scan faster", why, f"hosts.khugepaged.pages_to_scan={pages}")]
