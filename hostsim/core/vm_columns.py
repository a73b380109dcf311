"""The columns of the table ``vms``: a row a VM every so often, and when it ends."""

from hostsim.core.column import HOST_ID, T_NS, VM_ID, Column
from hostsim.core.host_columns import MMU_COLUMNS

VM_COLUMNS: tuple[Column, ...] = (
    T_NS,
    HOST_ID,
    VM_ID,
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
