"""Every result column, declared once: name, kind, unit, sentence, source.

The parquet schema, ``docs/columns.md``, ``fleet columns`` and the checks on a run come from
these tables.  A node returns each table as one ``int64`` array whose columns stand in this
order; ratios are computed when reading.
"""

from hostsim.core.column import HOST_ID, T_NS, VM_ID, Column
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.vm_columns import VM_COLUMNS

SCHEMA_VERSION = 8

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

EVENT_COLUMNS: tuple[Column, ...] = (
    T_NS,
    HOST_ID,
    VM_ID,
    Column("event", "label", "label", "", "What happened.", labels=EVENT_NAMES),
    Column("reason", "label", "label", "", "Why, where it has a reason.", labels=REASON_NAMES),
    Column("vcpus", "int32", "gauge", "vCPUs", "vCPUs of the VM."),
    Column("memory_pages", "int64", "gauge", "pages", "Memory size of the VM."),
)

FLEET_COLUMNS: tuple[Column, ...] = (
    T_NS._replace(doc="End of the epoch that the row describes."),
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
    T_NS._replace(doc="Barrier at which the VM moved."),
    HOST_ID._replace(doc="Host that the VM came to."),
    VM_ID,
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
