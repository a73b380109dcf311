"""``[hosts.snapshot]`` and ``[hosts.costs]``: what was measured on a real host, as values.

A scenario names files (``snapshot = "host.json"``, ``costs = "costs.json"``); the resolved scenario
holds what they say, so that a run can be resumed and repeated where the files are not.
"""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from fleet.sections import Count, Pages, Section, pages_text
from hostsim.core.units import NR_PAGE_ORDERS, PAGEBLOCK_ORDER
from hostsim.mm.cost import (
    C_CLEAR_PAGE,
    C_COPY_PAGE,
    C_EPT_VIOLATION,
    C_FAULT,
    C_FREE_PAGE,
    C_HUGE_FAULT,
    C_KSM_PAGE,
    C_MIGRATE_PAGE,
    C_SCAN_PAGE,
    C_SCAN_PTE,
    C_SCAN_WINDOW,
    C_SPLIT,
    C_SWAP_PAGE,
    DEFAULT_NS,
    NAMES,
)
from hostsim.mm.mm_types import MAX_NUMNODES, MIGRATE_MOVABLE, NR_TYPES, ZONE_NAMES, ZONE_NORMAL
from hostsim.mm.snapshot import pages_of
from hostsim.mm.state_spec import StateSpec, VmSpec, ZoneSpec

BY_TYPE: Final = ("unmovable", "movable", "reclaimable", "high_atomic")  # by migratetype
NO_BLOCKS: Final = " ".join(["0"] * NR_PAGE_ORDERS)


def _numbers(text: str) -> list[int]:
    return [int(cell) for cell in text.split()]


def _counted(text: str, nr: int) -> str:
    cells = text.split()
    if len(cells) != nr or not all(cell.isdecimal() for cell in cells):
        raise ValueError(f"{text!r} is not {nr} counts")
    return " ".join(cells)


def _by_order(text: str) -> str:
    return _counted(text, NR_PAGE_ORDERS)


def _by_type(text: str) -> str:
    return _counted(text, NR_TYPES)


def _three(text: str) -> str:
    return _counted(text, 3) if text else text


Blocks = Annotated[str, AfterValidator(_by_order)]


class ZoneSection(Section):
    """``[[hosts.snapshot.zones]]``: a zone of the host; counts by order as /proc prints them."""

    node: Annotated[int, Field(ge=0, lt=MAX_NUMNODES)]
    """NUMA node of the zone."""
    zone: Literal["DMA", "DMA32", "Normal"]
    """Name of the zone; nodes but the first have Normal only."""
    managed: Pages
    """Memory that the zone's allocator was given."""
    per_cpu: Pages
    """Memory on the per-CPU lists."""
    marks: Annotated[str, AfterValidator(_three)] = ""
    """Watermarks min, low and high in pages; computed if empty."""
    pageblocks: Annotated[str, AfterValidator(_by_type)]
    """Pageblocks labelled unmovable, movable, reclaimable, high-atomic."""
    unmovable: Blocks = NO_BLOCKS
    """Free unmovable blocks of orders 0 to 10."""
    movable: Blocks = NO_BLOCKS
    """Free movable blocks of orders 0 to 10."""
    reclaimable: Blocks = NO_BLOCKS
    """Free reclaimable blocks of orders 0 to 10."""
    high_atomic: Blocks = NO_BLOCKS
    """Free blocks of orders 0 to 10 kept for atomic requests."""

    @property
    def row(self) -> int:
        """Row of Memory.zone."""
        return ZONE_NORMAL + self.node if self.node else ZONE_NAMES.index(self.zone)

    @property
    def nr_pageblocks(self) -> int:
        """Pageblocks of all types."""
        return sum(_numbers(self.pageblocks))

    @property
    def full_pageblocks(self) -> int:
        """Movable pageblocks that can hold huge pages in use: wholly used ones, at most."""
        free = sum(nr << order for order, nr in enumerate(_numbers(self.movable)))
        return max(_numbers(self.pageblocks)[MIGRATE_MOVABLE] - -(-free >> PAGEBLOCK_ORDER), 0)

    @property
    def free_pages(self) -> int:
        """Pages in free blocks of all types."""
        rows = [_numbers(getattr(self, name)) for name in BY_TYPE]
        return sum(nr << order for row in rows for order, nr in enumerate(row))

    @model_validator(mode="after")
    def _adds_up(self) -> "ZoneSection":
        if self.node and self.zone != "Normal":
            raise ValueError(f"node {self.node} has a zone {self.zone}; only node 0 may")
        held = self.nr_pageblocks << PAGEBLOCK_ORDER
        if self.managed > held:
            raise ValueError(
                f"managed {pages_text(self.managed)} is more than the {pages_text(held)} of its"
                f" {self.nr_pageblocks} pageblocks"
            )
        if self.free_pages + self.per_cpu > self.managed:
            raise ValueError(
                f"free {pages_text(self.free_pages)} and per_cpu {pages_text(self.per_cpu)} are"
                f" more than managed {pages_text(self.managed)}"
            )
        return self

    def spec(self) -> ZoneSpec:
        """Return the zone as plain numbers."""
        return ZoneSpec(
            zone=self.row,
            free=tuple(tuple(_numbers(getattr(self, name))) for name in BY_TYPE),
            pageblocks=tuple(_numbers(self.pageblocks)),
            managed_pages=self.managed,
            pcp_pages=self.per_cpu,
            marks=tuple(_numbers(self.marks)),
        )


class CapturedVmSection(Section):
    """``[[hosts.snapshot.vms]]``: a VM that ran on the host, and runs there at the start."""

    vcpus: Count
    """vCPUs that it was given."""
    memory: Pages
    """Memory that it was given."""
    rss: Pages
    """Memory that its process had, QEMU's own included."""
    huge: Pages
    """Of that, in huge pages."""

    @model_validator(mode="after")
    def _huge_is_part_of_it(self) -> "CapturedVmSection":
        if self.huge > self.rss:
            raise ValueError(
                f"huge {pages_text(self.huge)} is more than rss {pages_text(self.rss)}"
            )
        return self

    def spec(self) -> VmSpec:
        """Return the VM as plain numbers."""
        rss, huge = (min(pages, self.memory) for pages in (self.rss, self.huge))
        return VmSpec(self.vcpus, self.memory, rss, huge)


class SnapshotSection(Section):
    """``[hosts.snapshot]``: the memory that hosts start with, as it was on a real host.

    In a file: ``snapshot = "host.json"``, which fleet snapshot capture writes. Memory, NUMA nodes,
    vCPUs, kernel, reserved memory and settings that the file does not set are the host's.
    """

    source: str
    """File that it came from."""
    vcpus: Count
    """CPUs of the host."""
    types_known: bool
    """Whether free memory by migratetype was known, or a rule divided it."""
    zones: Annotated[tuple[ZoneSection, ...], Field(min_length=1, strict=False)]
    """Zones with memory."""
    vms: Annotated[tuple[CapturedVmSection, ...], Field(strict=False)] = ()
    """VMs whose size was known; memory of others is in use until the host reboots."""

    @model_validator(mode="after")
    def _whole_nodes(self) -> "SnapshotSection":
        rows = [zone.row for zone in self.zones]
        if len(set(rows)) < len(rows):
            raise ValueError("a zone stands there twice")
        nodes = {zone.node for zone in self.zones}
        if nodes != set(range(self.nr_nodes)) or self.nr_nodes not in (1, 2, 4):
            raise ValueError(f"NUMA nodes {sorted(nodes)} are not 0 to 0, 1 or 3")
        return self

    @property
    def nr_nodes(self) -> int:
        """NUMA nodes."""
        return max(zone.node for zone in self.zones) + 1

    @property
    def memory_pages(self) -> int:
        """Memory that the zones span."""
        return pages_of({zone.row: zone.nr_pageblocks for zone in self.zones}, self.nr_nodes)

    @property
    def used_pages(self) -> int:
        """Memory that is neither free, nor on per-CPU lists, nor a known VM's."""
        free = sum(zone.free_pages + zone.per_cpu for zone in self.zones)
        of_vms = sum(vm.spec().rss_pages for vm in self.vms)
        return max(self.memory_pages - free - of_vms, 0)

    def spec(self) -> StateSpec:
        """Return the state as plain numbers."""
        zones = sorted(self.zones, key=lambda zone: zone.row)
        room = [zone.full_pageblocks for zone in zones]
        huge = sum(vm.huge for vm in self.vms) >> PAGEBLOCK_ORDER
        specs = [
            zone.spec()._replace(keep_full=min(-(-huge * here // max(sum(room), 1)), here))
            for zone, here in zip(zones, room, strict=True)
        ]
        return StateSpec(self.nr_nodes, tuple(specs), tuple(vm.spec() for vm in self.vms))


Cost = Annotated[int, Field(ge=1, le=1_000_000_000)]  # nanoseconds


class CostsSection(Section):
    """``[hosts.costs]``: what operations of the kernel cost, in nanoseconds.

    In a file also ``costs = "costs.json"``, which fleet calibrate writes. They say how long guests
    stall and how fast daemons get on.
    """

    fault: Cost = DEFAULT_NS[C_FAULT]
    """A page fault without clearing the page."""
    clear_page: Cost = DEFAULT_NS[C_CLEAR_PAGE]
    """Clearing 4 KiB."""
    huge_fault: Cost = DEFAULT_NS[C_HUGE_FAULT]
    """A fault of 2 MiB without clearing."""
    copy_page: Cost = DEFAULT_NS[C_COPY_PAGE]
    """Copying 4 KiB."""
    migrate_page: Cost = DEFAULT_NS[C_MIGRATE_PAGE]
    """Unmapping, copying and remapping a page."""
    scan_page: Cost = DEFAULT_NS[C_SCAN_PAGE]
    """A scanner of compaction or reclaim looks at a page."""
    scan_pte: Cost = DEFAULT_NS[C_SCAN_PTE]
    """Khugepaged looks at a page-table entry."""
    free_page: Cost = DEFAULT_NS[C_FREE_PAGE]
    """Unmapping and freeing a page."""
    split: Cost = DEFAULT_NS[C_SPLIT]
    """Splitting a huge page or its PMD."""
    swap_page: Cost = DEFAULT_NS[C_SWAP_PAGE]
    """Writing or reading 4 KiB of swap."""
    scan_window: Cost = DEFAULT_NS[C_SCAN_WINDOW]
    """Khugepaged finds and locks a window."""
    ksm_page: Cost = DEFAULT_NS[C_KSM_PAGE]
    """Ksmd reads a page and looks for its like."""
    ept_violation: Cost = DEFAULT_NS[C_EPT_VIOLATION]
    """An EPT violation: exit, walk, install a leaf."""

    def spec(self) -> tuple[int, ...]:
        """Return the costs in the order of hostsim.mm.cost."""
        return tuple(getattr(self, name) for name in NAMES)
