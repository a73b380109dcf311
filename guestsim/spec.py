"""Resolved description of how guests use their memory: numbers only."""

from typing import Final, NamedTuple

from hostsim.core.units import NS_PER_S, PAGEBLOCK_ORDER

NO_GUEST_KERNEL: Final = "none"


class Behaviour(NamedTuple):
    """What one class of guests does with its memory over time.

    Shares are of the memory that the VM grows to beyond its boot footprint.
    """

    name: str
    weight: float  # of the class among the scenario's VMs
    heap_ratio: float  # share that the main process grows to; page cache takes the rest
    heap_advice: str  # none, huge or nohuge: what the main process told its kernel
    growth_ratio: float  # time constant of growth, in units of the scenario's
    free_ratio: float  # how much of its heap it frees and reuses, in units of the scenario's rate
    small_ratio: float  # of that, share in runs of 4 KiB pages
    jobs_per_hour: float  # short-lived processes
    job_ratio: float  # mean size of one
    job_life_ns: int  # mean life of one
    cache_reads_per_hour: float  # share of its page cache that it reads anew
    cache_drops_per_hour: float  # share of its page cache that goes with deleted files
    restart_ns: int  # the main process lives so long, 0: as long as the VM
    period_ns: int  # how often the guest acts
    workload: str = ""  # profile of what its processes access, "": they access nothing
    load: float = 1.0  # share of its vCPUs that run it
    hot_ratio: float = 0.0  # share of its resident memory that it keeps writing
    dirty_pages_per_s: float = 0.0  # pages of that it writes, a running vCPU
    zero_ratio: float = 0.0  # of the pages it writes: share that holds zeros again,
    alike_ratio: float = 0.0  # that others of the VM are equal to,
    image_ratio: float = 0.0  # that stands in the image of its system


class GuestSpec(NamedTuple):
    """How the VMs of a scenario touch, free and reuse memory; the fleet does not know it."""

    kernel: str  # profile name of the guests' kernels, or NO_GUEST_KERNEL
    thp_enabled: str  # always, madvise, never: inside the guests
    thp_defrag: str
    use_zero_page: bool
    boot_pages: int  # of its kernel, cache and daemons at boot; at most a quarter of the VM
    touched_share_mean: float  # mean of the hidden share of its size a VM grows to, in (0, 1]
    touched_share_concentration: float  # Beta(mean * c, (1 - mean) * c); larger is narrower
    growth_ns: int  # time constant of the exponential growth to that share
    reuse_per_hour: float  # share of its heap that a guest frees and touches again an hour
    madvise_ratio: float  # share of VMs whose RAM has MADV_HUGEPAGE on the host
    overhead_pages: int  # QEMU's own 4 KiB memory, touched at start
    ram_offset_pages: int  # where guest RAM begins in a 2 MiB window of QEMU's address space
    reporting_ratio: float  # share of VMs with free page reporting
    balloon_ratio: float  # share of VMs with a balloon that the host may inflate
    balloon_below: float  # share of free host memory under which it does
    behaviours: tuple[Behaviour, ...]
    settings: tuple[tuple[str, str], ...] = ()  # further settings files: name, value
    used_ratio: float = 1.0  # share of its memory that a guest uses all the time
    cold_reads_per_hour: float = 0.0  # how often it uses the rest
    images: int = 1  # systems that the VMs run
    reporting_order: int = PAGEBLOCK_ORDER  # lowest order that is reported free
    reporting_delay_ns: int = 2 * NS_PER_S  # from one pass to the next: PAGE_REPORTING_DELAY
