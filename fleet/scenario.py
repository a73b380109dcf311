"""What a scenario file may say, and what it means once every default is filled in.

The models below are the file's sections; :func:`resolve` turns them into plain numbers, and
only those go further down.  Reading files, ``--set`` and error messages are in
:mod:`fleet.loading`.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from guestsim.spec import GuestSpec
from hostsim.core.units import (
    HPAGE_PMD_BYTES,
    HPAGE_PMD_NR,
    NS_PER_DAY,
    NS_PER_HOUR,
    NS_PER_MIN,
    NS_PER_MS,
    NS_PER_S,
    NS_PER_US,
    PAGE_SHIFT,
    parse_duration_ns,
    parse_pages,
)
from hostsim.spec import HostSpec, SlabSpec

MIB_PAGES = (1 << 20) >> PAGE_SHIFT
GIB_PAGES = (1 << 30) >> PAGE_SHIFT
_PAGE_UNITS = (("TiB", GIB_PAGES << 10), ("GiB", GIB_PAGES), ("MiB", MIB_PAGES))
_TIME_UNITS = (
    ("d", NS_PER_DAY),
    ("h", NS_PER_HOUR),
    ("min", NS_PER_MIN),
    ("s", NS_PER_S),
    ("ms", NS_PER_MS),
    ("us", NS_PER_US),
)


def _exact(value: int, units: tuple[tuple[str, int], ...], smallest: str) -> str:
    for name, scale in units:
        if value and value % scale == 0:
            return f"{value // scale}{name}"
    return f"{value}{smallest}"


def pages_text(pages: int) -> str:
    """Print base pages exactly, in the largest unit that leaves a whole number."""
    text = _exact(pages, _PAGE_UNITS, "")
    return text if text[-1] == "B" else f"{pages << (PAGE_SHIFT - 10)}KiB"


def duration_text(duration_ns: int) -> str:
    """Print nanoseconds exactly, in the largest unit that leaves a whole number."""
    return _exact(duration_ns, _TIME_UNITS, "ns")


def _text(value: object, example: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f'{value!r} has no unit; write text such as "{example}"')
    return value


def _pages(value: object) -> int:
    text = _text(value, "64GiB")
    pages = parse_pages(text)
    if pages < 0:
        raise ValueError(f"{text} is negative")
    return pages


def _hugepages(value: object) -> int:
    pages = _pages(value)
    if pages % HPAGE_PMD_NR:
        raise ValueError(f"{value} is not a multiple of {HPAGE_PMD_BYTES >> 20}MiB")
    if pages == 0:
        raise ValueError(f"{value} is not more than 0")
    return pages


def _duration(value: object) -> int:
    text = _text(value, "5min")
    duration_ns = parse_duration_ns(text)
    if duration_ns <= 0:
        raise ValueError(f"{text} is not more than 0")
    return duration_ns


_SIZE_SCHEMA = WithJsonSchema({"type": "string", "examples": ["64GiB", "512MiB"]})
_TIME_SCHEMA = WithJsonSchema({"type": "string", "examples": ["5min", "1.5h"]})
Pages = Annotated[int, BeforeValidator(_pages), PlainSerializer(pages_text), _SIZE_SCHEMA]
HugePages = Annotated[int, BeforeValidator(_hugepages), PlainSerializer(pages_text), _SIZE_SCHEMA]
Duration = Annotated[int, BeforeValidator(_duration), PlainSerializer(duration_text), _TIME_SCHEMA]
Ratio = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """One table of a scenario file: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


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


class ThpSection(Section):
    """``[hosts.thp]``: the files under /sys/kernel/mm/transparent_hugepage."""

    enabled: Literal["always", "madvise", "never"] = "always"
    defrag: Literal["always", "defer", "defer+madvise", "madvise", "never"] = "madvise"
    use_zero_page: bool = True


class SlabSection(Section):
    """``[hosts.slab]``: unmovable kernel memory that comes and goes."""

    rate_pages_per_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    lifetime: Duration = NS_PER_MIN
    long_lived_ratio: Ratio = 0.2
    long_lifetime: Duration = NS_PER_DAY
    base: Pages = GIB_PAGES


class HostsSection(Section):
    """``[[hosts]]``: a group of equal hosts."""

    name: str = "host"
    count: Count = 1
    vcpus: Count = 96
    memory: HugePages = 256 * GIB_PAGES
    reserved: Pages = 8 * GIB_PAGES
    kernel: Literal["6.12", "6.1"] = "6.12"
    thp: ThpSection = ThpSection()
    slab: SlabSection = SlabSection()

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
        return self


class GuestsSection(Section):
    """``[guests]``: how VMs touch, free and reuse their memory."""

    boot: Pages = 256 * MIB_PAGES
    touched_share_mean: Annotated[float, Field(gt=0, le=1)] = 0.85
    touched_share_concentration: Positive = 8.0
    growth: Duration = 2 * NS_PER_HOUR
    reuse_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    small_release_ratio: Ratio = 0.05
    madvise_ratio: Ratio = 1.0
    overhead: Pages = 32 * MIB_PAGES


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

    policy: Literal["best-fit", "first-fit"] = "best-fit"  # the keys of fleet.pool.POLICIES
    vcpu_overcommit: Positive = 1.0
    memory_overcommit: Positive = 1.0
    reject_oversized: bool = False


class ScenarioFile(Section):
    """A whole scenario file."""

    run: RunSection = RunSection()
    hosts: Annotated[tuple[HostsSection, ...], Field(min_length=1, strict=False)]
    guests: GuestsSection = GuestsSection()
    vms: VmsSection = VmsSection()
    placement: PlacementSection = PlacementSection()


class HostGroup(NamedTuple):
    """Equal hosts with consecutive host numbers."""

    name: str
    first_host_id: int
    nr_hosts: int
    spec: HostSpec


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

    def host_specs(self) -> list[HostSpec]:
        """Return one spec a host, in host-id order."""
        return [group.spec for group in self.groups for _ in range(group.nr_hosts)]


def _host_spec(section: HostsSection) -> HostSpec:
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
    )


def _guest_spec(section: GuestsSection) -> GuestSpec:
    return GuestSpec(
        boot_pages=section.boot,
        touched_share_mean=section.touched_share_mean,
        touched_share_concentration=section.touched_share_concentration,
        growth_ns=section.growth,
        reuse_per_hour=section.reuse_per_hour,
        small_release_ratio=section.small_release_ratio,
        madvise_ratio=section.madvise_ratio,
        overhead_pages=section.overhead,
    )


def resolve(file: ScenarioFile, name: str = "scenario", origin: str = "") -> Scenario:
    """Return the numbers that a valid scenario file stands for."""
    groups = []
    first_host_id = 0
    for section in file.hosts:
        groups.append(HostGroup(section.name, first_host_id, section.count, _host_spec(section)))
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
        if key not in tables and key not in arrays:
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
