"""Resolved description of one host: numbers only, every default filled in."""

from typing import NamedTuple

from hostsim.mm.state_spec import StateSpec


class SlabSpec(NamedTuple):
    """Slab-like churn of unmovable kernel pages.

    Pages are born at a steady rate in runs of 2**0 .. 2**3 pages; a share of them lives long,
    the others briefly; both lifetimes are exponential.
    """

    rate_pages_per_s: float
    lifetime_ns: int  # mean of the short-lived
    long_lived_ratio: float  # share of births that live long, in [0, 1]
    long_lifetime_ns: int  # mean of the long-lived
    base_pages: int  # kernel memory present from boot, never freed


class HostSpec(NamedTuple):
    """One host's hardware and kernel settings."""

    vcpus: int
    memory_pages: int  # all of it, a multiple of a pageblock
    reserved_pages: int  # kept from VMs by the scheduler: host kernel, QEMU, slack
    kernel: str  # profile name: "6.1" or "6.12"
    thp_enabled: str  # always, madvise, never
    thp_defrag: str  # always, defer, defer+madvise, madvise, never
    use_zero_page: bool
    slab: SlabSpec
    settings: tuple[tuple[str, str], ...] = ()  # further settings files: name, value
    cpu: str = "ice-lake-sp"  # name of a description in scenarios/cpus
    mmu_accesses: int = 0  # accesses of a guest's program that a sample counts, 0: no samples
    nr_nodes: int = 1  # NUMA nodes, each with an equal part of vCPUs and memory
    swap_pages: int = 0  # swap area on a solid-state disk, 0: none
    state: StateSpec | None = None  # what it starts with; none: all memory free
    costs: tuple[int, ...] = ()  # in the order of hostsim.mm.cost; none: its defaults
