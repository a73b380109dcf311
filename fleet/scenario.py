"""What a scenario file may say, and what it means once every default is filled in.

The models below are the file's sections; :func:`resolve` turns them into plain numbers, and
only those go further down.  Reading files, ``--set`` and error messages are in
:mod:`fleet.loading`.
"""

import difflib
import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from fleet.behaviours import behaviour
from fleet.kernel_files import KhugepagedSection, KsmSection, ThpSection, VmSection, settings_of
from fleet.scenario_fleet import (
    VMS_UNREAD,
    FailuresSection,
    MaintenanceSection,
    MigrationSection,
    MmuSection,
    PlacementSection,
    VmsSection,
)
from fleet.scenario_guests import GuestsSection
from fleet.scenario_state import CostsSection, SnapshotSection
from fleet.sections import (
    GIB_PAGES,
    MIB_PAGES,
    Count,
    Duration,
    HugePages,
    Pages,
    Ratio,
    Section,
    duration_text,
    pages_text,
)
from guestsim.spec import NO_GUEST_KERNEL, GuestSpec
from hostsim.core.units import (
    MAX_PAGE_ORDER,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MIN,
)
from hostsim.mm.physmem import DMA32_END_PFN
from hostsim.mm.snapshot import plan_state
from hostsim.mm.state import max_swap_slots
from hostsim.spec import HostSpec, SlabSpec


class RunSection(Section):
    """``[run]``: how long, how fine, and what is written."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    """Seed of every random stream; runs that differ in nothing else are samples of one fleet."""
    duration: Duration = NS_PER_DAY
    """Simulated time, a multiple of the tick."""
    tick: Duration = 5 * NS_PER_MIN
    """Time between two rows of the table hosts; guests act at its grid."""
    epoch_ticks: Count = 12
    """Ticks between two barriers, at which VMs are placed and moved."""
    vm_rows: Duration = NS_PER_HOUR
    """Time between two rows of a VM in the table vms, a multiple of the tick."""
    hosts_per_part: Count = 1024
    """Hosts whose rows share a parquet file."""

    @model_validator(mode="after")
    def _whole_ticks(self) -> "RunSection":
        for name in ("duration", "vm_rows"):
            value_ns = getattr(self, name)
            if value_ns % self.tick:
                raise ValueError(
                    f"{name} {duration_text(value_ns)} is not a multiple of"
                    f" tick {duration_text(self.tick)}"
                )
        return self


class SlabSection(Section):
    """``[hosts.slab]``: unmovable kernel memory that comes and goes."""

    rate_pages_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Kernel pages allocated a second, in blocks of orders 0 to 3."""
    lifetime: Duration = NS_PER_MIN
    """Mean life of most of them."""
    long_lived_ratio: Ratio = 0.2
    """Share of them that lives longer."""
    long_lifetime: Duration = NS_PER_DAY
    """Mean life of those."""
    base: Pages = GIB_PAGES
    """Kernel memory allocated at boot, which stays; part of reserved."""


class SwapSection(Section):
    """``[hosts.swap]``: a swap area on a solid-state disk."""

    size: Pages = 0
    """Size of the swap area; 0 for none, at most four times the memory and 2 TiB."""


class HostsSection(Section):
    """``[[hosts]]``: a group of equal hosts."""

    name: str = "host"
    """Name of the group, for people."""
    count: Count = 1
    """Hosts in the group."""
    vcpus: Count = 96
    """vCPUs that a host offers: its hardware threads."""
    memory: HugePages = 256 * GIB_PAGES
    """Physical memory of a host, a multiple of 4MiB a NUMA node."""
    numa_nodes: Literal[1, 2, 4] = 1
    """NUMA nodes, equal in memory and vCPUs."""
    reserved: Pages = 8 * GIB_PAGES
    """Memory that is not rented to VMs: the kernel's, QEMU's, the agents'."""
    cpu: str = "ice-lake-sp"
    """CPU whose TLBs and walk caches are sampled: a name that fleet cpus lists."""
    kernel: Literal["6.12", "6.1"] = "6.12"
    """Kernel profile of the hosts."""
    thp: ThpSection = ThpSection()
    """Files under /sys/kernel/mm/transparent_hugepage."""
    khugepaged: KhugepagedSection = KhugepagedSection()
    """Files under /sys/kernel/mm/transparent_hugepage/khugepaged."""
    vm: VmSection = VmSection()
    """Files under /proc/sys/vm."""
    ksm: KsmSection = KsmSection()
    """Files under /sys/kernel/mm/ksm."""
    swap: SwapSection = SwapSection()
    """The swap area."""
    slab: SlabSection = SlabSection()
    """Unmovable kernel memory."""
    costs: CostsSection = CostsSection()
    """What operations cost; in a file also the name of a file that fleet calibrate wrote."""
    snapshot: SnapshotSection | None = None
    """State to start from; in a file the name of a file that fleet snapshot capture wrote."""

    @field_validator("cpu")
    @classmethod
    def _known_cpu(cls, name: str) -> str:
        from fleet.hardware import builtin_names  # which reads scenarios, too

        known = builtin_names()
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
            raise ValueError(f"{name!r} is no CPU; nearest: {', '.join(near or known)}")
        return name

    @model_validator(mode="after")
    def _nodes_are_equal(self) -> "HostsSection":
        nodes = self.numa_nodes
        if self.vcpus % nodes:
            raise ValueError(f"vcpus {self.vcpus} is not a multiple of numa_nodes {nodes}")
        if self.memory % (nodes << MAX_PAGE_ORDER):
            raise ValueError(
                f"memory {pages_text(self.memory)} is not a multiple of"
                f" {pages_text(nodes << MAX_PAGE_ORDER)}, 4MiB a node"
            )
        if nodes > 1 and self.memory < nodes * DMA32_END_PFN:
            raise ValueError(
                f"memory {pages_text(self.memory)} is less than"
                f" {pages_text(nodes * DMA32_END_PFN)}, 4GiB a node"
            )
        return self

    @model_validator(mode="after")
    def _as_the_snapshot(self) -> "HostsSection":
        snapshot = self.snapshot
        if snapshot is None:
            return self
        for name, own, captured in (
            ("memory", pages_text(self.memory), pages_text(snapshot.memory_pages)),
            ("numa_nodes", self.numa_nodes, snapshot.nr_nodes),
            ("vcpus", self.vcpus, snapshot.vcpus),
        ):
            if own != captured:
                raise ValueError(
                    f"{name} {own} is not that of the snapshot {snapshot.source}, {captured};"
                    " leave it out"
                )
        if self.reserved < snapshot.used_pages:
            raise ValueError(
                f"reserved {pages_text(self.reserved)} is less than what is in use in the snapshot"
                f" {snapshot.source}, {pages_text(snapshot.used_pages)}"
            )
        try:
            plan_state(snapshot.spec(), self.kernel)
        except ValueError as error:
            raise ValueError(f"snapshot {snapshot.source}: {error}") from None
        return self

    @model_validator(mode="after")
    def _memory_for_vms(self) -> "HostsSection":
        if self.reserved >= self.memory:
            raise ValueError(
                f"reserved {pages_text(self.reserved)} leaves nothing of"
                f" memory {pages_text(self.memory)}"
            )
        if self.slab.base >= self.reserved and self.slab.base:
            raise ValueError(
                f"slab.base {pages_text(self.slab.base)} does not fit in"
                f" reserved {pages_text(self.reserved)}"
            )
        if self.swap.size > max_swap_slots(self.memory):
            raise ValueError(
                f"swap.size {pages_text(self.swap.size)} is more than"
                f" {pages_text(max_swap_slots(self.memory))}, four times the memory or 2TiB"
            )
        return self


class ScenarioFile(Section):
    """A whole scenario file."""

    run: RunSection = RunSection()
    """How long, how fine, and what is written."""
    hosts: Annotated[tuple[HostsSection, ...], Field(min_length=1, strict=False)]
    """Groups of equal hosts, at least one."""
    guests: GuestsSection = GuestsSection()
    """What is in the VMs."""
    vms: VmsSection = VmsSection()
    """Where the VMs come from."""
    placement: PlacementSection = PlacementSection()
    """Which host takes a VM."""
    migration: MigrationSection = MigrationSection()
    """How VMs move."""
    failures: FailuresSection = FailuresSection()
    """Hosts that break down."""
    maintenance: Annotated[tuple[MaintenanceSection, ...], Field(strict=False)] = ()
    """Hosts that are emptied and rebooted."""
    mmu: MmuSection = MmuSection()
    """Samples of address translation."""

    @model_validator(mode="after")
    def _translation_needs_kernels(self) -> "ScenarioFile":
        if self.mmu.enabled and self.guests.kernel == NO_GUEST_KERNEL:
            raise ValueError(
                f"mmu.enabled true needs page tables of guests, and guests.kernel is"
                f" {NO_GUEST_KERNEL!r}; set it to false"
            )
        return self


class HostGroup(NamedTuple):
    """Equal hosts with consecutive host numbers."""

    name: str
    first_host_id: int
    nr_hosts: int
    spec: HostSpec


class MigrationTerms(NamedTuple):
    """How migrations are carried out."""

    pages_per_s: float  # of the network
    downtime_limit_ns: int
    auto_converge: bool  # slow the guest down when rounds do not get shorter
    postcopy: bool


class Scenario(NamedTuple):
    """A resolved scenario: every default filled in, every number in base units."""

    name: str
    origin: str  # the file it came from, for messages
    seed: int
    duration_ns: int
    tick_ns: int
    epoch_ticks: int
    vm_rows_ns: int
    hosts_per_part: int
    groups: tuple[HostGroup, ...]
    guests: GuestSpec
    vms: VmsSection
    placement: PlacementSection
    migration: MigrationSection
    failures: FailuresSection
    maintenance: tuple[MaintenanceSection, ...]
    document: dict[str, Any]  # the same, in the file's own words

    @property
    def nr_hosts(self) -> int:
        """Number of hosts over all groups."""
        return sum(group.nr_hosts for group in self.groups)

    @property
    def epoch_ns(self) -> int:
        """Length of an epoch; the last one may be shorter."""
        return self.epoch_ticks * self.tick_ns

    @property
    def nr_epochs(self) -> int:
        """Number of epochs, the last one possibly shorter."""
        return math.ceil(self.duration_ns / self.epoch_ns)

    def epoch_bounds_ns(self, epoch: int) -> tuple[int, int]:
        """Return the start and the end of an epoch."""
        t0_ns = epoch * self.epoch_ns
        return t0_ns, min(t0_ns + self.epoch_ns, self.duration_ns)

    @property
    def migration_terms(self) -> MigrationTerms:
        """How VMs move, in base units."""
        section = self.migration
        return MigrationTerms(
            section.mib_per_s * MIB_PAGES,
            section.downtime_limit,
            section.auto_converge,
            section.mode == "postcopy",
        )

    def host_specs(self) -> list[HostSpec]:
        """Return one spec a host, in host-id order."""
        return [group.spec for group in self.groups for _ in range(group.nr_hosts)]


def _host_spec(section: HostsSection, mmu: MmuSection) -> HostSpec:
    slab = section.slab
    return HostSpec(
        vcpus=section.vcpus,
        memory_pages=section.memory,
        reserved_pages=section.reserved,
        kernel=section.kernel,
        thp_enabled=section.thp.enabled,
        thp_defrag=section.thp.defrag,
        use_zero_page=section.thp.use_zero_page,
        slab=SlabSpec(
            rate_pages_per_s=slab.rate_pages_per_s,
            lifetime_ns=slab.lifetime,
            long_lived_ratio=slab.long_lived_ratio,
            long_lifetime_ns=slab.long_lifetime,
            base_pages=slab.base,
        ),
        settings=settings_of(section.thp, section.khugepaged, section.vm, section.ksm),
        cpu=section.cpu,
        mmu_accesses=mmu.accesses if mmu.enabled else 0,
        nr_nodes=section.numa_nodes,
        swap_pages=section.swap.size,
        state=section.snapshot.spec() if section.snapshot else None,
        costs=section.costs.spec(),
    )


def _guest_spec(section: GuestsSection) -> GuestSpec:
    return GuestSpec(
        kernel=section.kernel,
        thp_enabled=section.thp.enabled,
        thp_defrag=section.thp.defrag,
        use_zero_page=section.thp.use_zero_page,
        boot_pages=section.boot,
        touched_share_mean=section.touched_share_mean,
        touched_share_concentration=section.touched_share_concentration,
        growth_ns=section.growth,
        reuse_per_hour=section.reuse_per_hour,
        madvise_ratio=section.madvise_ratio,
        overhead_pages=section.overhead,
        ram_offset_pages=section.ram_offset,
        reporting_ratio=section.free_page_reporting_ratio,
        balloon_ratio=section.balloon_ratio,
        balloon_below=section.balloon_below,
        behaviours=tuple(behaviour(name, weight) for name, weight in section.mix.items()),
        used_ratio=section.used_ratio,
        cold_reads_per_hour=section.cold_reads_per_hour,
        images=section.images,
        reporting_order=section.free_page_reporting_order,
        reporting_delay_ns=section.free_page_reporting_delay,
        settings=tuple((f"khugepaged/{name}", str(value)) for name, value in section.khugepaged),
    )


def resolve(file: ScenarioFile, name: str = "scenario", origin: str = "") -> Scenario:
    """Return the numbers that a valid scenario file stands for."""
    groups = []
    first_host_id = 0
    for section in file.hosts:
        spec = _host_spec(section, file.mmu)
        groups.append(HostGroup(section.name, first_host_id, section.count, spec))
        first_host_id += section.count
    run = file.run
    document = file.model_dump(mode="json")
    for key in VMS_UNREAD[file.vms.source]:
        del document["vms"][key]
    return Scenario(
        name=name,
        origin=origin or name,
        seed=run.seed,
        duration_ns=run.duration,
        tick_ns=run.tick,
        epoch_ticks=run.epoch_ticks,
        vm_rows_ns=run.vm_rows,
        hosts_per_part=run.hosts_per_part,
        groups=tuple(groups),
        guests=_guest_spec(file.guests),
        vms=file.vms,
        placement=file.placement,
        migration=file.migration,
        failures=file.failures,
        maintenance=file.maintenance,
        document=document,
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of scenario files, with defaults in the file's own words."""
    return ScenarioFile.model_json_schema(mode="serialization")


def to_toml(document: dict[str, Any]) -> str:
    """Print a resolved scenario as TOML that reads back to the same scenario."""
    lines: list[str] = []
    _table(lines, "", document)
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], path: str, table: dict[str, Any]) -> None:
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in table.items() if isinstance(value, list)}
    for key, value in table.items():
        if key not in tables and key not in arrays and value is not None:
            lines.append(f"{key} = {_scalar(value)}")
    prefix = f"{path}." if path else ""
    for key, value in tables.items():
        lines += ["", f"[{prefix}{key}]"]
        _table(lines, f"{prefix}{key}", value)
    for key, rows in arrays.items():
        for row in rows:
            lines += ["", f"[[{prefix}{key}]]"]
            _table(lines, f"{prefix}{key}", row)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
