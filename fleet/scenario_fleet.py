"""Sections of a scenario that describe the fleet: where VMs come from, and where they go."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fleet.sections import Count, Duration, Positive, Ratio, Section
from hostsim.core.units import NS_PER_HOUR, NS_PER_MS

VMS_UNREAD = {"azure-v1": {"path"}, "trace": {"scale", "standing"}}


class VmsSection(Section):
    """``[vms]``: where the VMs come from."""

    source: Literal["azure-v1", "trace"] = "azure-v1"
    """The generator azure-v1, or a trace that fleet trace wrote."""
    scale: Positive = 0.01
    """Of azure-v1: share of that region's arrivals and standing VMs (144,977)."""
    standing: bool = True
    """Of azure-v1: whether the run begins with the VMs that had been running before."""
    path: str = ""
    """Of a trace: its parquet file; in a scenario file relative to the file."""

    @model_validator(mode="after")
    def _only_what_the_source_reads(self) -> "VmsSection":
        for name in sorted(VMS_UNREAD[self.source] & self.model_fields_set):
            raise ValueError(f'{name} is not read when source is "{self.source}"')
        return self


class PlacementSection(Section):
    """``[placement]``: which host takes a VM, and how far hosts are oversold."""

    policy: Literal[
        "first-fit",
        "next-fit",
        "best-fit",
        "best-fit-l2",
        "worst-fit",
        "random",
        "power-of-k",
        "dot-product",
        "cosine",
        "lifetime-aligned",
        "lifetime-predicted",
        "hugepage-aware",
        "drain-fragmented",
        "numa-aware",
    ] = "best-fit"  # the keys of fleet.policies.POLICIES
    """Which of the fitting hosts takes a VM."""
    choices: Annotated[int, Field(ge=1, le=4)] = 2  # hosts that power-of-k looks at
    """Hosts that power-of-k looks at."""
    lifetime_error: Annotated[float, Field(ge=0, le=10)] = 1.0  # of lifetime-predicted
    """Standard deviation of the logarithm of the lifetimes that lifetime-predicted believes."""
    vcpu_overcommit: Positive = 1.0
    """vCPUs sold for each vCPU of a host."""
    memory_overcommit: Positive = 1.0
    """Memory sold for each byte of a host that is not reserved."""
    reject_oversized: bool = False
    """Turn VMs away that no host could hold even if empty; false: they are an error."""
    restart: Literal["never", "anywhere", "elsewhere"] = "never"  # VMs that were killed
    """Whether, and where, VMs that were killed start again."""


class MigrationSection(Section):
    """``[migration]``: how VMs move, and when the fleet moves them by itself.

    Defaults of speed and downtime: a 10 Gbit/s network; QEMU 8.2 downtime-limit.
    """

    mode: Literal["precopy", "postcopy"] = "precopy"
    """When the VM moves: after the rounds, or after the first, with its memory to follow."""
    mib_per_s: Positive = 1192.0
    """Speed of the network, MiB/s."""
    downtime_limit: Duration = 300 * NS_PER_MS
    """The VM stops when the rest can be sent in this time."""
    auto_converge: bool = True
    """Slow a VM down whose rounds do not get shorter."""
    rebalance_below: Ratio = 0.0  # share of free memory under which a host gives a VM away
    """Share of free memory under which a host gives a VM away; 0: never."""
    defragment_above: Ratio = 1.0  # unusable index of order 9 above which it does
    """Unusable index of order 9, 0 to 1, above which it does; 1: never."""


class FailuresSection(Section):
    """``[failures]``: hosts that break down."""

    mtbf: Duration | None = None  # mean time between a host's failures; none: never
    """Mean time between the failures of a host; left out: hosts never fail."""
    repair: Duration = 4 * NS_PER_HOUR
    """Time until a failed host is back."""


class MaintenanceSection(Section):
    """``[[maintenance]]``: hosts that are emptied, rebooted and taken back."""

    first_host: Annotated[int, Field(ge=0)] = 0
    """Number of the first host."""
    hosts: Count = 1
    """How many hosts, from there on."""
    start: Duration
    """Simulated time at which they begin to be drained."""
    duration: Duration = 2 * NS_PER_HOUR
    """Time until they are taken back."""


class MmuSection(Section):
    """``[mmu]``: samples of what address translation costs the guests."""

    enabled: bool = True
    """Whether translation is sampled; without, the columns of translation are 0."""
    accesses: Annotated[int, Field(ge=8_000, le=10_000_000)] = 20_000
    """Memory accesses of a sample; more of them narrow its standard error."""
