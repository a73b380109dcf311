"""The columns of the views, declared once, as those of the tables are."""

from hostsim.core.column import HOST_ID, Column

_T_H = Column("t_h", "float64", "key", "h", "Simulated time since the start of the run.")


def _rate(name: str, unit: str, doc: str, source: str = "") -> Column:
    return Column(name, "float64", "rate", unit, doc, source)


def _gauge(name: str, unit: str, doc: str, source: str = "") -> Column:
    return Column(name, "float64", "gauge", unit, doc, source)


_HUGE = _gauge(
    "huge_coverage_ratio", "", "Guest memory resident on the host that huge PMDs map, of all."
)
_EFFECTIVE = _gauge(
    "effective_coverage_ratio",
    "",
    "Memory in use inside the guests that is huge on both sides and aligned alike, of all; as of"
    " each VM's last row in vms.",
)
_FALLBACK = _rate("thp_fallback_ratio", "", "Eligible faults that fell back to 4 KiB, of all.")


def _over_hosts(name: str, unit: str, what: str) -> tuple[Column, ...]:
    return (
        _gauge(f"{name}_p5", unit, f"{what}: 5th percentile over hosts."),
        _gauge(f"{name}_median", unit, f"{what}: median over hosts."),
        _gauge(f"{name}_p95", unit, f"{what}: 95th percentile over hosts."),
    )


VIEW_DOCS = {
    "top": "One row per host as of the last tick, the host whose guests lose most first: in order"
    " of lost_vcpus, then of unusable_ratio. Rates are over the last step.",
    "coverage": "One row per step: how much memory is huge, sums over hosts.",
    "fragmentation": "One row per step: how broken up free memory is, over hosts.",
    "buddy": "One row per step and order: the free lists of the buddy allocator.",
    "stalls": "One row per step: what guests waited for and the kernel's daemons used, rates over"
    " the step.",
    "tlb": "One row per step and class of guests, and one for all of them (`fleet`): what address"
    " translation costs, means over the vCPUs that run programs.",
}

VIEW_COLUMNS: dict[str, tuple[Column, ...]] = {
    "top": (
        HOST_ID._replace(doc="Host number."),
        _gauge(
            "lost_vcpus",
            "vCPUs",
            "What the guests lose: running vCPUs times the share of run time that huge pages"
            " everywhere would return, and vCPUs that wait in stalls.",
        ),
        _rate("stall_ms_per_h", "ms/h", "Time that accesses waited for compaction and reclaim."),
        Column("oom_kills", "int64", "rate", "VMs", "VMs killed because memory ran out."),
        Column("nr_vms", "int32", "gauge", "VMs", "VMs running."),
        _HUGE,
        _EFFECTIVE,
        _FALLBACK,
        _gauge("unusable_ratio", "", "Free memory in blocks smaller than a huge page, of all."),
        _gauge("free_gib", "GiB", "Free memory."),
        _gauge("swap_used_gib", "GiB", "Swap area in use."),
    ),
    "coverage": (
        _T_H,
        Column("nr_vms", "int64", "gauge", "VMs", "VMs running."),
        _gauge("guest_gib", "GiB", "Guest memory resident on the hosts."),
        _HUGE,
        _gauge(
            "guest_coverage_ratio",
            "",
            "Memory in use inside the guests that their own kernels map by huge pages, of all; as"
            " of each VM's last row in vms.",
        ),
        _EFFECTIVE,
        _FALLBACK,
        _rate("collapses_per_host_h", "1/h", "Windows that khugepaged made huge, a host and hour."),
    ),
    "fragmentation": (
        _T_H,
        *_over_hosts("unusable_ratio", "", "Free memory in blocks smaller than a huge page"),
        _gauge("free_gib_per_host", "GiB", "Free memory of a host, mean."),
        _gauge("partial_pageblocks_ratio", "", "Pageblocks partly free, partly used, of all."),
        Column("hosts_no_free_2m", "int64", "gauge", "hosts", "Hosts without a block of 2 MiB."),
        Column("hosts_no_free_32m", "int64", "gauge", "hosts", "Hosts without a block of 32 MiB."),
        Column("hosts_no_free_1g", "int64", "gauge", "hosts", "Hosts without a block of 1 GiB."),
    ),
    "buddy": (
        _T_H,
        Column("order", "int64", "key", "", "A block has 2 to the order pages."),
        *_over_hosts("free_blocks", "blocks", "Free blocks"),
        _gauge("share_of_free_ratio", "", "Free memory in blocks of this order, of all free."),
    ),
    "stalls": (
        _T_H,
        _rate(
            "stall_ms_per_host_h",
            "ms/h",
            "Time that accesses waited for direct compaction and reclaim, a host and hour.",
        ),
        _rate(
            "allocstalls_per_host_h",
            "1/h",
            "Order-0 allocations that found no page above the watermark, a host and hour.",
            "/proc/vmstat allocstall_*",
        ),
        _rate(
            "daemon_s_per_host_h",
            "s/h",
            "CPU time of khugepaged, kcompactd and ksmd, a host and hour.",
        ),
        _rate("swap_in_mib_per_host_h", "MiB/h", "Read from swap, a host and hour.", "pswpin"),
        _rate("swap_out_mib_per_host_h", "MiB/h", "Written to swap, a host and hour.", "pswpout"),
        _gauge("swap_used_gib_per_host", "GiB", "Swap area in use, mean over hosts."),
        Column("oom_kills", "int64", "rate", "VMs", "VMs killed because memory ran out, all."),
    ),
    "tlb": (
        _T_H,
        Column("behaviour", "string", "key", "", "Class of the guests, or fleet for all."),
        Column("nr_vms", "int64", "gauge", "VMs", "VMs with figures."),
        _gauge("running_vcpus", "vCPUs", "vCPUs that run programs: the weight of the means."),
        _gauge("misses_per_1000", "1/1000", "Accesses that need a page walk, of a thousand."),
        _gauge("misses_per_1000_error", "1/1000", "Standard error of that."),
        _gauge("guest_reads_per_walk", "references", "References of a walk to guest page tables."),
        _gauge("ept_reads_per_walk", "references", "References of a walk to the EPT."),
        _gauge("cycles_per_walk", "cycles", "Cycles of a walk, guest page tables and EPT."),
        _gauge("walk_ratio", "", "Cycles of all page walkers, of those of the run."),
        _gauge("slowdown_all_huge", "", "Run time against that with huge pages everywhere."),
        _gauge("slowdown_native", "", "Run time against that without a hypervisor."),
    ),
}
