"""What a scenario file may say, and what it means once every default is filled in.

The models below are the file's sections; :func:`resolve` turns them into plain numbers, and
only those go further down.  Reading files, ``--set`` and error messages are in
:mod:`fleet.loading`.
"""

import difflib
import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from fleet.behaviours import behaviour, behaviour_names
from fleet.kernel_files import KhugepagedSection, KsmSection, ThpSection, VmSection, settings_of
from fleet.sections import (
    GIB_PAGES,
    MIB_PAGES,
    Count,
    Duration,
    HugePages,
    Pages,
    Positive,
    Ratio,
    Section,
    duration_text,
    pages_text,
)
from guestsim.spec import GuestSpec
from hostsim.core.units import (
    HPAGE_PMD_NR,
    MAX_PAGE_ORDER,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MIN,
    NS_PER_MS,
    NS_PER_S,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.physmem import DMA32_END_PFN
from hostsim.mm.state import max_swap_slots
from hostsim.spec import HostSpec, SlabSpec


class RunSection(Section):
    """``[run]``: how long, how fine, and what is written."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 1
    duration: Duration = NS_PER_DAY
    tick: Duration = 5 * NS_PER_MIN
    epoch_ticks: Count = 12
    vm_rows: Duration = NS_PER_HOUR
    hosts_per_part: Count = 256

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
    lifetime: Duration = NS_PER_MIN
    long_lived_ratio: Ratio = 0.2
    long_lifetime: Duration = NS_PER_DAY
    base: Pages = GIB_PAGES


class SwapSection(Section):
    """``[hosts.swap]``: a swap area on a solid-state disk."""

    size: Pages = 0


class HostsSection(Section):
    """``[[hosts]]``: a group of equal hosts."""

    name: str = "host"
    count: Count = 1
    vcpus: Count = 96
    memory: HugePages = 256 * GIB_PAGES
    numa_nodes: Literal[1, 2, 4] = 1
    reserved: Pages = 8 * GIB_PAGES
    cpu: str = "ice-lake-sp"
    kernel: Literal["6.12", "6.1"] = "6.12"
    thp: ThpSection = ThpSection()
    khugepaged: KhugepagedSection = KhugepagedSection()
    vm: VmSection = VmSection()
    ksm: KsmSection = KsmSection()
    swap: SwapSection = SwapSection()
    slab: SlabSection = SlabSection()

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
                f" {pages_text(max_swap_slots(self.memory))}, four times the memory"
            )
        return self


DEFAULT_MIX = {"build-server": 0.15, "hpc": 0.15, "idle": 0.3, "jvm": 0.2, "key-value": 0.2}


class GuestThpSection(Section):
    """``[guests.thp]``: transparent_hugepage inside the guests."""

    enabled: Literal["always", "madvise", "never"] = "always"
    defrag: Literal["always", "defer", "defer+madvise", "madvise", "never"] = "madvise"
    use_zero_page: bool = True


class GuestsSection(Section):
    """``[guests]``: the kernels in the VMs, and how they touch, free and reuse memory."""

    kernel: Literal["6.12", "6.1"] = "6.12"
    thp: GuestThpSection = GuestThpSection()
    khugepaged: KhugepagedSection = KhugepagedSection()
    boot: Pages = 256 * MIB_PAGES
    touched_share_mean: Annotated[float, Field(gt=0, le=1)] = 0.85
    touched_share_concentration: Positive = 8.0
    growth: Duration = 2 * NS_PER_HOUR
    reuse_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    madvise_ratio: Ratio = 1.0
    overhead: Pages = 32 * MIB_PAGES
    ram_offset: Pages = 0
    free_page_reporting_ratio: Ratio = 0.0
    free_page_reporting_order: Annotated[int, Field(ge=0, le=MAX_PAGE_ORDER)] = PAGEBLOCK_ORDER
    free_page_reporting_delay: Duration = 2 * NS_PER_S
    balloon_ratio: Ratio = 0.0
    balloon_below: Ratio = 0.1
    used_ratio: Ratio = 0.65  # memory used within five minutes: Weiner et al., TMO, ASPLOS 2022
    cold_reads_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1  # assumed
    images: Count = 4  # systems that the VMs run (assumed)
    mix: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = DEFAULT_MIX

    @field_validator("mix")
    @classmethod
    def _known_classes(cls, mix: dict[str, float]) -> dict[str, float]:
        for name in mix:
            if name not in behaviour_names():
                raise ValueError(f"{name!r} is not one of {', '.join(behaviour_names())}")
        if not sum(mix.values()) > 0:
            raise ValueError("no class of guests has a weight above 0")
        return dict(sorted(mix.items()))

    @model_validator(mode="after")
    def _offset_within_a_window(self) -> "GuestsSection":
        if self.ram_offset >= HPAGE_PMD_NR:
            raise ValueError(f"ram_offset {pages_text(self.ram_offset)} is not less than 2MiB")
        return self


_VMS_UNREAD = {"azure-v1": {"path"}, "trace": {"scale", "standing"}}


class VmsSection(Section):
    """``[vms]``: where the VMs come from."""

    source: Literal["azure-v1", "trace"] = "azure-v1"
    scale: Positive = 0.01
    standing: bool = True
    path: str = ""

    @model_validator(mode="after")
    def _only_what_the_source_reads(self) -> "VmsSection":
        for name in sorted(_VMS_UNREAD[self.source] & self.model_fields_set):
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
    choices: Annotated[int, Field(ge=1, le=4)] = 2  # hosts that power-of-k looks at
    lifetime_error: Annotated[float, Field(ge=0, le=10)] = 1.0  # of lifetime-predicted
    vcpu_overcommit: Positive = 1.0
    memory_overcommit: Positive = 1.0
    reject_oversized: bool = False
    restart: Literal["never", "anywhere", "elsewhere"] = "never"  # VMs that were killed


class MigrationSection(Section):
    """``[migration]``: how VMs move, and when the fleet moves them by itself.

    Defaults of speed and downtime: a 10 Gbit/s network; QEMU 8.2 downtime-limit.
    """

    mode: Literal["precopy", "postcopy"] = "precopy"
    mib_per_s: Positive = 1192.0
    downtime_limit: Duration = 300 * NS_PER_MS
    auto_converge: bool = True
    rebalance_below: Ratio = 0.0  # share of free memory under which a host gives a VM away
    defragment_above: Ratio = 1.0  # unusable index of order 9 above which it does


class FailuresSection(Section):
    """``[failures]``: hosts that break down."""

    mtbf: Duration | None = None  # mean time between a host's failures; none: never
    repair: Duration = 4 * NS_PER_HOUR


class MaintenanceSection(Section):
    """``[[maintenance]]``: hosts that are emptied, rebooted and taken back."""

    first_host: Annotated[int, Field(ge=0)] = 0
    hosts: Count = 1
    start: Duration
    duration: Duration = 2 * NS_PER_HOUR


class MmuSection(Section):
    """``[mmu]``: samples of what address translation costs the guests."""

    enabled: bool = True
    accesses: Annotated[int, Field(ge=8_000, le=10_000_000)] = 20_000


class ScenarioFile(Section):
    """A whole scenario file."""

    run: RunSection = RunSection()
    hosts: Annotated[tuple[HostsSection, ...], Field(min_length=1, strict=False)]
    guests: GuestsSection = GuestsSection()
    vms: VmsSection = VmsSection()
    placement: PlacementSection = PlacementSection()
    migration: MigrationSection = MigrationSection()
    failures: FailuresSection = FailuresSection()
    maintenance: Annotated[tuple[MaintenanceSection, ...], Field(strict=False)] = ()
    mmu: MmuSection = MmuSection()


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
    for key in _VMS_UNREAD[file.vms.source]:
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
