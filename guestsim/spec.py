"""Resolved description of how guests use their memory: numbers only."""

from typing import NamedTuple


class GuestSpec(NamedTuple):
    """How the VMs of a scenario touch, free and reuse memory; the fleet does not know it."""

    boot_pages: int  # touched at start, at most the VM's size
    touched_share_mean: float  # mean of the hidden share of its size a VM grows to, in (0, 1]
    touched_share_concentration: float  # Beta(mean * c, (1 - mean) * c); larger is narrower
    growth_ns: int  # time constant of the exponential growth to that share
    reuse_per_hour: float  # share of its touched memory a VM frees and touches again an hour
    small_release_ratio: float  # of what is freed, share returned in 4 KiB pieces (balloon)
    madvise_ratio: float  # share of VMs whose RAM has MADV_HUGEPAGE
    overhead_pages: int  # QEMU's own 4 KiB memory, touched at start
