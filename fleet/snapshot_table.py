"""A host's health as text that fits a terminal."""

from collections.abc import Iterator
from typing import Any, Final

from hostsim.core.units import NS_PER_S, format_bytes, format_duration

SHOWN_ORDERS: Final = (3, 6, 9, 10)
MAX_VMS: Final = 8  # lines; the number of the others is stated
UNKNOWN: Final = "unknown"


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _bytes(value: float | None) -> str:
    return UNKNOWN if value is None else format_bytes(value)


def as_lines(name: str, found: dict[str, Any], advice: list[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of a host."""
    inside = ", inside a VM" if found["virtualised"] else ""
    nodes = found["nr_nodes"]
    yield (
        f"{name}: Linux {found['kernel_release']}, {found['nr_cpus']} CPUs"
        f" ({found['cpu_model']}), {nodes} NUMA node{'s' * (nodes > 1)}{inside}"
    )
    up = format_duration(int(found["uptime_s"]) * NS_PER_S)
    state = "" if found["consistent"] else "; its files are not of one moment"
    yield f"captured {found['captured_at']}, up {up}{state}"
    yield ""
    yield from _memory_lines(found["memory"])
    yield ""
    yield from _zone_lines(found["zones"])
    yield ""
    yield from _use_lines(found)
    yield from _vm_lines(found["vms"])
    for entry in advice:
        yield ""
        yield f"advice: {entry['advice']}"
        yield f"  because {entry['reason']}"
        yield f"  try     {entry['try']}"
    if not advice:
        yield ""
        yield "advice: none; no number is out of its usual range"
    if found["unread"]:
        yield ""
        yield "not read when it was captured:"
        for entry in found["unread"]:
            yield f"  {entry['what']} ({entry['why']}): {entry['cost']}"


def _memory_lines(memory: dict[str, Any]) -> Iterator[str]:
    yield (
        f"  memory            {_bytes(memory['total_bytes'])},"
        f" available {_bytes(memory['available_bytes'])}"
    )
    yield (
        f"  free              {_bytes(memory['free_bytes'])},"
        f" in blocks of 2 MiB and more {_bytes(memory['free_2m_bytes'])}"
        f" ({_share(memory['free_2m_ratio'])});"
        f" 1 GiB pages at most {memory['free_1g_pages_at_most']}"
    )
    yield f"  per-CPU lists     {_bytes(memory['per_cpu_bytes'])}"
    yield (
        f"  anonymous         {_bytes(memory['anon_bytes'])},"
        f" huge {_bytes(memory['anon_huge_bytes'])}; page cache"
        f" {_bytes(memory['page_cache_bytes'])}; slab {_bytes(memory['slab_bytes'])}"
    )
    yield (
        f"  swap              {_bytes(memory['swap_used_bytes'])}"
        f" of {_bytes(memory['swap_total_bytes'])}; min_free_kbytes"
        f" {memory['min_free_kbytes'] or UNKNOWN}"
    )


def _zone_lines(zones: list[dict[str, Any]]) -> Iterator[str]:
    orders = "".join(f"{order:>7}" for order in SHOWN_ORDERS)
    yield f"  {'':<15}{'':>11}{'':>11}{'unusable index of order':>28}{'extfrag':>9}{'':>11}"
    yield f"  {'zone':<15}{'managed':>11}{'free':>11}{orders}{'order 9':>9}{'low mark':>11}"
    for zone in zones:
        cells = "".join(f"{zone['unusable_index'][order]:>7.3f}" for order in SHOWN_ORDERS)
        place = f"{zone['node']} {zone['zone']}"
        yield (
            f"  {place:<15}{_bytes(zone['managed_bytes']):>11}{_bytes(zone['free_bytes']):>11}"
            f"{cells}{zone['extfrag_index'][9]:>9.3f}{_bytes(zone['low_bytes']):>11}"
        )


def _use_lines(found: dict[str, Any]) -> Iterator[str]:
    blocks, thp, rates, daemon = (
        found[key] for key in ("pageblocks", "thp", "rates", "khugepaged")
    )
    if blocks:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in blocks["by_type"].items() if count)
        yield f"  pageblocks        {kinds} ({_share(blocks['unmovable_ratio'])} not movable)"
    else:
        yield f"  pageblocks        {UNKNOWN} (pagetypeinfo was not readable)"
    words = [f"{name} {thp.get(name, UNKNOWN)}" for name in ("enabled", "defrag")]
    yield f"  THP               {', '.join(words)}"
    yield (
        f"  huge faults       {rates['thp_fault_alloc'] or 0:,} since boot, fallback"
        f" {_share(rates['thp_fault_fallback_ratio'])}; collapses without a page"
        f" {_share(rates['thp_collapse_alloc_failed_ratio'])}"
    )
    yield f"  compaction        failed {_share(rates['compact_fail_ratio'])} of direct runs"
    full_s = daemon["full_scan_s"]
    scan = UNKNOWN if full_s is None else format_duration(int(full_s * NS_PER_S))
    yield (
        f"  khugepaged        pages_to_scan {daemon.get('pages_to_scan', UNKNOWN)}, sleep"
        f" {daemon.get('scan_sleep_millisecs', UNKNOWN)} ms; a full scan of"
        f" {daemon['windows']:,} windows of VMs takes {scan}"
    )
    ept = found["ept"]
    pages = (
        UNKNOWN if ept is None else f"{_share(ept['huge_ratio'])} of guest memory in large leaves"
    )
    yield f"  EPT               {pages}"
    ksm = found["ksm"]
    yield f"  KSM               run {ksm['run']}, saved {_bytes(ksm['saved_bytes'])}"


def _vm_lines(vms: dict[str, Any]) -> Iterator[str]:
    rows = vms["processes"]
    yield (
        f"  VMs               {len(rows)}, Rss {_bytes(vms['rss_bytes'])},"
        f" huge {_share(vms['coverage_ratio'])}"
    )
    for row in rows[:MAX_VMS]:
        given = UNKNOWN if row["memory_mib"] is None else format_bytes(row["memory_mib"] << 20)
        yield (
            f"    {row['comm']:<16}{row['vcpus'] or UNKNOWN:>8} vCPUs, given {given:>9},"
            f" Rss {format_bytes(row['rss_kb'] << 10):>9}, huge {_share(row['coverage_ratio'])}"
        )
    if len(rows) > MAX_VMS:
        yield f"    and {len(rows) - MAX_VMS} more (--json lists them)"
