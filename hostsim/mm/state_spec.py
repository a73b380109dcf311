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


class StateSpec(NamedTuple):
    """All zones of a host."""

    nr_nodes: int
    zones: tuple[ZoneSpec, ...]
