"""Every result column, declared once: name, kind, unit, sentence, source.

The parquet schema, ``docs/columns.md``, ``fleet columns`` and the checks on a run come from
these tables.  A node returns each table as one ``int64`` array whose columns stand in this
order; ratios are computed when reading.
"""

from typing import Literal, NamedTuple

SCHEMA_VERSION = 8

Kind = Literal["key", "gauge", "counter", "label"]


class Column(NamedTuple):
    """One column of a result table.

    A ``key`` places the row, a ``gauge`` holds at the row's time, a ``counter`` is cumulative
    and monotone within its host, a ``label`` is a code with the names in ``labels``.
    """

    name: str
    dtype: str  # parquet type: int64, int32, int16, int8 or label
    kind: Kind
    unit: str
    doc: str
    source: str = ""
    labels: tuple[str, ...] = ()


EVENT_NAMES = ("start", "reject", "end", "kill", "migrate", "restart", "host_down", "host_up")
REASON_NAMES = (
    "",
    "no_host_fits",
    "oom",
    "larger_than_any_host",
    "failure",
    "maintenance",
    "rebalance",
    "defragment",
)

_T = Column("t_ns", "int64", "key", "ns", "Simulated time since the start of the run.")
_HOST = Column("host_id", "int32", "key", "", "Host number; -1 where no host is concerned.")
_VM = Column("vm_id", "int64", "key", "", "VM number in the trace.")

_ORDERS = tuple(
    Column(
        f"nr_free_order{order}",
        "int32",
        "gauge",
        "blocks",
        f"Free buddy blocks of order {order} over all zones and types.",
        "/proc/buddyinfo",
    )
    for order in range(11)
)

# What address translation costs the programs of a guest: sampled, as of a VM's last row in vms
MMU_COLUMNS: tuple[Column, ...] = (
    Column(
        "tlb_misses", "int64", "gauge", "1/1000000", "Accesses that need a page walk, of a million."
    ),
    Column(
        "tlb_misses_error",
        "int64",
        "gauge",
        "1/1000000",
        "Standard error of that: the sample's, over its eight parts.",
    ),
    Column(
        "walk_guest_reads", "int64", "gauge", "1/1000", "References of a walk to guest page tables."
    ),
    Column("walk_ept_reads", "int64", "gauge", "1/1000", "References of a walk to the EPT."),
    Column(
        "walk_guest_cycles",
        "int64",
        "gauge",
        "1/1000 cycles",
        "Cycles of a walk in guest page tables.",
    ),
    Column("walk_ept_cycles", "int64", "gauge", "1/1000 cycles", "Cycles of a walk in the EPT."),
    Column(
        "walk_share",
        "int64",
        "gauge",
        "1/1000000",
        "Cycles of all page walkers, of a million cycles of the run.",
    ),
    Column(
        "slowdown_all_huge",
        "int64",
        "gauge",
        "1/1000000",
        "Run time against that with huge pages everywhere, in guest and EPT; 1000000 is equal.",
    ),
    Column(
        "slowdown_native",
        "int64",
        "gauge",
        "1/1000000",
        "Run time against that without a hypervisor, mapped as the guest maps it.",
    ),
    Column(
        "slowdown_remote",
        "int64",
        "gauge",
        "1/1000000",
        "Run time against that with all memory and the EPT on the NUMA nodes of the VM's CPUs.",
    ),
)

HOST_COLUMNS: tuple[Column, ...] = (
    _T._replace(doc="End of the tick that the row describes."),
    _HOST,
    Column("nr_vms", "int32", "gauge", "VMs", "VMs running."),
    Column("committed_vcpus", "int32", "gauge", "vCPUs", "vCPUs of the running VMs."),
    Column("committed_pages", "int64", "gauge", "pages", "Memory size of the running VMs."),
    Column(
        "managed_pages",
        "int64",
        "gauge",
        "pages",
        "Memory the buddy allocator manages.",
        "zoneinfo managed",
    ),
    Column(
        "nr_free_pages", "int64", "gauge", "pages", "Free pages in the buddy lists.", "/proc/vmstat"
    ),
    Column("nr_pcp_pages", "int64", "gauge", "pages", "Free pages hidden on per-CPU lists."),
    Column(
        "nr_anon_pages",
        "int64",
        "gauge",
        "pages",
        "Guest and QEMU memory resident on the host.",
        "/proc/vmstat",
    ),
    Column(
        "nr_anon_transparent_hugepages",
        "int64",
        "gauge",
        "huge pages",
        "PMD-mapped huge pages.",
        "/proc/vmstat",
    ),
    Column(
        "nr_guest_pages",
        "int64",
        "gauge",
        "pages",
        "Guest RAM resident on the host, QEMU's own memory excluded.",
    ),
    Column(
        "nr_page_table_pages",
        "int64",
        "gauge",
        "pages",
        "Page-table pages of the host's processes.",
        "/proc/vmstat",
    ),
    Column(
        "nr_ept_pages",
        "int64",
        "gauge",
        "pages",
        "EPT table pages.",
        "vmstat nr_secondary_page_table_pages",
    ),
    Column(
        "nr_kernel_pages",
        "int64",
        "gauge",
        "pages",
        "Other unmovable kernel memory: slab-like churn.",
    ),
    *_ORDERS,
    Column(
        "pageblocks_unmovable",
        "int32",
        "gauge",
        "pageblocks",
        "Pageblocks labelled Unmovable.",
        "/proc/pagetypeinfo",
    ),
    Column(
        "pageblocks_movable",
        "int32",
        "gauge",
        "pageblocks",
        "Pageblocks labelled Movable.",
        "/proc/pagetypeinfo",
    ),
    Column(
        "pageblocks_reclaimable",
        "int32",
        "gauge",
        "pageblocks",
        "Pageblocks labelled Reclaimable.",
        "/proc/pagetypeinfo",
    ),
    Column(
        "pageblocks_partial", "int32", "gauge", "pageblocks", "Pageblocks partly free, partly used."
    ),
    Column(
        "unusable_index_order9",
        "int32",
        "gauge",
        "1/1000",
        "Share of free memory in blocks smaller than a huge page, all zones.",
        "debugfs extfrag/unusable_index",
    ),
    Column(
        "extfrag_index_order9",
        "int32",
        "gauge",
        "1/1000",
        "Fragmentation index for order 9, all zones; -1000 if a block is free.",
        "debugfs extfrag/extfrag_index",
    ),
    Column("pgfault", "int64", "counter", "faults", "Page faults, huge or not.", "/proc/vmstat"),
    Column(
        "thp_fault_alloc",
        "int64",
        "counter",
        "huge pages",
        "Huge pages allocated at fault.",
        "/proc/vmstat",
    ),
    Column(
        "thp_fault_fallback",
        "int64",
        "counter",
        "faults",
        "Eligible faults that fell back to 4 KiB.",
        "/proc/vmstat",
    ),
    Column(
        "thp_split_pmd",
        "int64",
        "counter",
        "splits",
        "Huge PMDs split into page tables.",
        "/proc/vmstat",
    ),
    Column(
        "thp_split_page",
        "int64",
        "counter",
        "splits",
        "Compound huge pages split into base pages.",
        "/proc/vmstat",
    ),
    Column(
        "thp_deferred_split_page",
        "int64",
        "counter",
        "huge pages",
        "Huge pages queued because only part is mapped.",
        "/proc/vmstat",
    ),
    Column(
        "pgalloc",
        "int64",
        "counter",
        "pages",
        "Pages allocated, all zones.",
        "/proc/vmstat pgalloc_*",
    ),
    Column("pgfree", "int64", "counter", "pages", "Pages freed.", "/proc/vmstat"),
    Column(
        "extfrag_events",
        "int64",
        "counter",
        "events",
        "Allocations served from another migratetype's lists.",
        "tracepoint mm_page_alloc_extfrag",
    ),
    Column(
        "allocstall",
        "int64",
        "counter",
        "events",
        "Order-0 allocations that found no page above the watermark.",
        "/proc/vmstat allocstall_*",
    ),
    Column(
        "oom_kill", "int64", "counter", "VMs", "VMs killed because memory ran out.", "/proc/vmstat"
    ),
    Column("vm_starts", "int64", "counter", "VMs", "VMs started on this host."),
    Column("vm_ends", "int64", "counter", "VMs", "VMs that left this host, killed ones included."),
    Column(
        "nr_ept_leaves_2m",
        "int64",
        "gauge",
        "leaves",
        "EPT entries that map 2 MiB.",
        "debugfs kvm/pages_2m",
    ),
    Column(
        "nr_ept_leaves_4k",
        "int64",
        "gauge",
        "leaves",
        "EPT entries that map 4 KiB.",
        "debugfs kvm/pages_4k",
    ),
    Column(
        "nr_nx_lpage_splits",
        "int64",
        "gauge",
        "leaves",
        "Large EPT entries that an instruction fetch split.",
        "debugfs kvm/nx_lpage_splits",
    ),
    Column(
        "ept_violations",
        "int64",
        "counter",
        "faults",
        "Guest accesses that had to install an EPT entry.",
        "debugfs kvm/pf_fixed",
    ),
    Column(
        "thp_collapse_alloc",
        "int64",
        "counter",
        "huge pages",
        "Huge pages allocated to collapse small pages into.",
        "/proc/vmstat",
    ),
    Column(
        "thp_collapse_alloc_failed",
        "int64",
        "counter",
        "events",
        "Collapses for which there was no huge page.",
        "/proc/vmstat",
    ),
    Column(
        "pages_collapsed",
        "int64",
        "counter",
        "huge pages",
        "Windows that khugepaged made huge.",
        "sysfs khugepaged/pages_collapsed",
    ),
    Column(
        "full_scans",
        "int64",
        "counter",
        "rounds",
        "Rounds of khugepaged over all its processes.",
        "sysfs khugepaged/full_scans",
    ),
    Column(
        "khugepaged_windows", "int64", "counter", "windows", "Windows that khugepaged looked at."
    ),
    Column(
        "daemon_ns",
        "int64",
        "counter",
        "ns",
        "Simulated CPU time of the kernel's daemons: khugepaged, kcompactd, ksmd.",
    ),
    Column(
        "nr_free_32m",
        "int32",
        "gauge",
        "blocks",
        "Aligned blocks of 32 MiB, in one zone, all of whose pageblocks are free.",
    ),
    Column(
        "nr_free_1g",
        "int32",
        "gauge",
        "blocks",
        "Aligned blocks of 1 GiB, in one zone, all of whose pageblocks are free.",
    ),
    Column(
        "pageblocks_holding_unmovable",
        "int32",
        "gauge",
        "pageblocks",
        "Pageblocks with a page of the kernel, of a page table or of an EPT, whatever their label.",
        "Zhao et al., Contiguitas, ISCA 2023",
    ),
    Column("pswpin", "int64", "counter", "pages", "Pages read from swap.", "/proc/vmstat"),
    Column("pswpout", "int64", "counter", "pages", "Pages written to swap.", "/proc/vmstat"),
    Column(
        "swap_used_pages",
        "int64",
        "gauge",
        "pages",
        "Swap area in use.",
        "/proc/swaps",
    ),
    Column(
        "ksm_pages_shared",
        "int64",
        "gauge",
        "pages",
        "Frames that ksmd made out of equal pages.",
        "sysfs ksm/pages_shared",
    ),
    Column(
        "ksm_pages_sharing",
        "int64",
        "gauge",
        "pages",
        "Pages that share them beside the first: the memory saved.",
        "sysfs ksm/pages_sharing",
    ),
    Column(
        "stall_ns",
        "int64",
        "counter",
        "ns",
        "Simulated time that accesses waited for direct compaction and direct reclaim.",
    ),
    Column(
        "numa_miss",
        "int64",
        "counter",
        "requests",
        "Allocations that a NUMA node served though they preferred another, all nodes.",
        "/proc/vmstat",
    ),
    Column(
        "nr_free_fullest_node",
        "int64",
        "gauge",
        "pages",
        "Free pages of the NUMA node that has the fewest.",
        "/sys/devices/system/node/node*/meminfo",
    ),
    Column(
        "guest_used_pages",
        "int64",
        "gauge",
        "pages",
        "Frames in use inside the guests, as of each VM's last row in vms.",
    ),
    Column(
        "guest_huge_pages",
        "int64",
        "gauge",
        "huge pages",
        "Huge pages that the guests' own kernels map, as of each VM's last row in vms.",
    ),
    Column(
        "effective_huge_pages",
        "int64",
        "gauge",
        "huge pages",
        "Of them, those that the host maps by one EPT leaf: huge on both sides and aligned alike.",
    ),
    Column("balloon_pages", "int64", "gauge", "pages", "Pages in the balloons of the guests."),
    Column(
        "running_milli_vcpus",
        "int64",
        "gauge",
        "vCPUs/1000",
        "vCPUs that run programs, of the VMs with figures: the weight of the means below.",
    ),
    *(
        column._replace(doc=column.doc[:-1] + "; mean over the vCPUs that run programs.")
        for column in MMU_COLUMNS
    ),
)

VM_COLUMNS: tuple[Column, ...] = (
    _T,
    _HOST,
    _VM,
    Column("vcpus", "int32", "gauge", "vCPUs", "vCPUs of the VM."),
    Column("memory_pages", "int64", "gauge", "pages", "Memory size of the VM."),
    Column("rss_pages", "int64", "gauge", "pages", "Guest RAM resident on the host.", "smaps Rss"),
    Column(
        "huge_pages",
        "int64",
        "gauge",
        "huge pages",
        "Guest RAM mapped by huge PMDs.",
        "smaps AnonHugePages",
    ),
    Column("nr_ept_pages", "int64", "gauge", "pages", "EPT table pages of the VM."),
    Column(
        "thp_fault_alloc",
        "int64",
        "counter",
        "huge pages",
        "Huge pages allocated at fault, for this VM.",
    ),
    Column(
        "thp_fault_fallback",
        "int64",
        "counter",
        "faults",
        "Eligible faults of this VM that fell back.",
    ),
    Column("nr_ept_leaves_2m", "int64", "gauge", "leaves", "EPT entries that map 2 MiB."),
    Column("nr_ept_leaves_4k", "int64", "gauge", "leaves", "EPT entries that map 4 KiB."),
    Column(
        "ept_violations",
        "int64",
        "counter",
        "faults",
        "Accesses of this VM that had to install an EPT entry.",
    ),
    Column("ended", "int8", "gauge", "0 or 1", "1 in the row written when the VM ends."),
    Column("behaviour", "int8", "gauge", "number", "Class of the guest: its place in guests.mix."),
    Column("guest_used_pages", "int64", "gauge", "pages", "Frames in use inside the guest."),
    Column(
        "guest_anon_pages",
        "int64",
        "gauge",
        "pages",
        "Of them, memory of processes and page cache.",
        "guest vmstat nr_anon_pages",
    ),
    Column(
        "guest_huge_pages",
        "int64",
        "gauge",
        "huge pages",
        "Huge pages that the guest's own kernel maps.",
        "guest vmstat nr_anon_transparent_hugepages",
    ),
    Column(
        "effective_huge_pages",
        "int64",
        "gauge",
        "huge pages",
        "Of them, those that the host maps by one EPT leaf: huge on both sides and aligned alike.",
    ),
    Column("balloon_pages", "int64", "gauge", "pages", "Pages in the guest's balloon."),
    Column(
        "reported_pages",
        "int64",
        "counter",
        "pages",
        "Backed memory that the guest reported free and the host took back.",
    ),
    Column(
        "guest_oom_kill", "int64", "counter", "processes", "Kills by the guest's own OOM killer."
    ),
    Column(
        "home_node",
        "int8",
        "gauge",
        "number",
        "NUMA node on whose CPUs the VM runs; the first of several, which follow it.",
    ),
    Column(
        "remote_pages",
        "int64",
        "gauge",
        "pages",
        "Memory of the VM on another NUMA node than the CPUs that use it.",
        "/proc/PID/numa_maps",
    ),
    Column(
        "remote_ept_pages",
        "int64",
        "gauge",
        "pages",
        "EPT table pages on a NUMA node none of whose CPUs the VM uses.",
    ),
    Column("program_pages", "int64", "gauge", "pages", "Memory of the guest's programs."),
    Column(
        "program_guest_huge", "int64", "gauge", "pages", "Of it, what the guest maps by huge PMDs."
    ),
    Column(
        "program_host_huge",
        "int64",
        "gauge",
        "pages",
        "Of it, what lies where one EPT leaf maps 2 MiB.",
    ),
    Column(
        "program_effective_huge", "int64", "gauge", "pages", "Of it, both: TLB entries of 2 MiB."
    ),
    *MMU_COLUMNS,
)

EVENT_COLUMNS: tuple[Column, ...] = (
    _T,
    _HOST,
    _VM,
    Column("event", "label", "label", "", "What happened.", labels=EVENT_NAMES),
    Column("reason", "label", "label", "", "Why, where it has a reason.", labels=REASON_NAMES),
    Column("vcpus", "int32", "gauge", "vCPUs", "vCPUs of the VM."),
    Column("memory_pages", "int64", "gauge", "pages", "Memory size of the VM."),
)

FLEET_COLUMNS: tuple[Column, ...] = (
    _T._replace(doc="End of the epoch that the row describes."),
    Column("nr_hosts", "int32", "gauge", "hosts", "Hosts of the fleet."),
    Column("empty_hosts", "int32", "gauge", "hosts", "Hosts without a VM."),
    Column("full_hosts", "int32", "gauge", "hosts", "Hosts all of whose vCPUs are rented."),
    Column("nr_vms", "int64", "gauge", "VMs", "VMs running."),
    Column("committed_vcpus", "int64", "gauge", "vCPUs", "vCPUs of the running VMs."),
    Column(
        "offered_vcpus", "int64", "gauge", "vCPUs", "vCPUs that all hosts offer, oversold ones too."
    ),
    Column(
        "occupied_vcpus",
        "int64",
        "gauge",
        "vCPUs",
        "vCPUs that hosts with a VM offer; committed_vcpus of these is the packing density.",
        "Hadary et al., Protean, OSDI 2020; Barbalho et al., MLSys 2023",
    ),
    Column("committed_pages", "int64", "gauge", "pages", "Memory size of the running VMs."),
    Column(
        "offered_pages", "int64", "gauge", "pages", "Memory that all hosts offer, oversold too."
    ),
    Column(
        "stranded_pages",
        "int64",
        "gauge",
        "pages",
        "Memory that full hosts still offer: no vCPU is left to rent it with.",
        "Li et al., Pond, ASPLOS 2023, section 2",
    ),
    Column(
        "hosts_no_free_2m",
        "int32",
        "gauge",
        "hosts",
        "Hosts without a free block of 2 MiB.",
    ),
    Column("hosts_no_free_32m", "int32", "gauge", "hosts", "Hosts without a free block of 32 MiB."),
    Column("hosts_no_free_1g", "int32", "gauge", "hosts", "Hosts without a free block of 1 GiB."),
    Column("managed_pages", "int64", "gauge", "pages", "Memory of all hosts' buddy allocators."),
    Column(
        "unmovable_pages",
        "int64",
        "gauge",
        "pages",
        "Of it, page tables, EPTs and other memory of the kernels.",
    ),
    Column(
        "pageblocks_holding_unmovable",
        "int64",
        "gauge",
        "pageblocks",
        "Pageblocks with such a page, of managed_pages / 512.",
        "Zhao et al., Contiguitas, ISCA 2023",
    ),
    Column(
        "thp_fault_alloc",
        "int64",
        "counter",
        "huge pages",
        "Huge pages allocated at fault; THP success is their share of eligible faults.",
        "/proc/vmstat",
    ),
    Column(
        "thp_fault_fallback",
        "int64",
        "counter",
        "faults",
        "Eligible faults that fell back to 4 KiB.",
        "/proc/vmstat",
    ),
)

MIGRATION_COLUMNS: tuple[Column, ...] = (
    _T._replace(doc="Barrier at which the VM moved."),
    _HOST._replace(doc="Host that the VM came to."),
    _VM,
    Column("source_host_id", "int32", "key", "", "Host that it left."),
    Column("reason", "label", "label", "", "Why it moved.", labels=REASON_NAMES),
    Column("memory_pages", "int64", "gauge", "pages", "Memory size of the VM."),
    Column(
        "begin_ns", "int64", "gauge", "ns", "Wait for earlier migrations of the same source host."
    ),
    Column("total_ns", "int64", "gauge", "ns", "From its own begin to its end."),
    Column("downtime_ns", "int64", "gauge", "ns", "The guest stood still.", "QMP query-migrate"),
    Column("rounds", "int16", "gauge", "rounds", "Passes over the dirty bitmap that sent pages."),
    Column("sent_pages", "int64", "gauge", "pages", "Pages sent, repeats included."),
    Column(
        "throttle",
        "int8",
        "gauge",
        "percent",
        "CPU time denied to the guest so that rounds shrink.",
    ),
    Column("rss_before_pages", "int64", "gauge", "pages", "Guest RAM resident at the source."),
    Column("huge_before_pages", "int64", "gauge", "huge pages", "Of it, mapped by huge PMDs."),
    Column("rss_pages", "int64", "gauge", "pages", "Guest RAM resident on arrival."),
    Column("huge_pages", "int64", "gauge", "huge pages", "Of it, mapped by huge PMDs."),
)

TABLES: dict[str, tuple[Column, ...]] = {
    "hosts": HOST_COLUMNS,
    "vms": VM_COLUMNS,
    "events": EVENT_COLUMNS,
    "migrations": MIGRATION_COLUMNS,
    "fleet": FLEET_COLUMNS,
}
NODE_TABLES = (
    "hosts",
    "vms",
    "events",
    "migrations",
)  # what nodes write; the driver writes the others
