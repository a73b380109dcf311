"""The state of a real host's memory as plain numbers: what a simulated one starts from."""

from typing import NamedTuple


class ZoneSpec(NamedTuple):
    """One zone."""

    zone: int  # row of Memory.zone: DMA, DMA32, Normal, further nodes' Normal
    free: tuple[tuple[int, ...], ...]  # free blocks by type and order
    pageblocks: tuple[int, ...]  # by type
    managed_pages: int
    pcp_pages: int  # on the per-CPU lists
    marks: tuple[int, ...] = ()  # min, low, high; none: unknown
    keep_full: int = 0  # movable pageblocks that hold huge pages: no free block lies in them


class VmSpec(NamedTuple):
    """A VM that ran; what it had is in use in the zones."""

    vcpus: int
    memory_pages: int
    rss_pages: int
    huge_pages: int  # of these, in huge pages


class StateSpec(NamedTuple):
    """All zones of a host, and the VMs on it."""

    nr_nodes: int
    zones: tuple[ZoneSpec, ...]
    vms: tuple[VmSpec, ...] = ()
