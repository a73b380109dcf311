"""Sections of a scenario that describe the guests: their kernels, and what they do."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fleet.behaviours import behaviour_names
from fleet.kernel_files import KhugepagedSection
from fleet.sections import MIB_PAGES, Count, Duration, Pages, Positive, Ratio, Section, pages_text
from guestsim.spec import NO_GUEST_KERNEL
from hostsim.core.units import (
    HPAGE_PMD_NR,
    MAX_PAGE_ORDER,
    NS_PER_HOUR,
    NS_PER_S,
    PAGEBLOCK_ORDER,
)

DEFAULT_MIX = {"build-server": 0.15, "hpc": 0.15, "idle": 0.3, "jvm": 0.2, "key-value": 0.2}


class GuestThpSection(Section):
    """``[guests.thp]``: transparent_hugepage inside the guests."""

    enabled: Literal["always", "madvise", "never"] = "always"
    """File enabled: which of a guest's memory may be huge."""
    defrag: Literal["always", "defer", "defer+madvise", "madvise", "never"] = "madvise"
    """File defrag: whether a fault in a guest compacts for a huge page."""
    use_zero_page: bool = True
    """File use_zero_page: reads of untouched memory share one huge page of zeros."""


class GuestsSection(Section):
    """``[guests]``: the kernels in the VMs, and how they touch, free and reuse memory."""

    kernel: Literal["6.12", "6.1", "none"] = "6.12"
    """Kernel profile of the guests; with none QEMU takes all of a VM's memory at its start
    (prealloc=on, as where devices are assigned), and nothing in the VM is simulated."""
    thp: GuestThpSection = GuestThpSection()
    """Files under /sys/kernel/mm/transparent_hugepage inside the guests."""
    khugepaged: KhugepagedSection = KhugepagedSection()
    """Files of khugepaged inside the guests."""
    boot: Pages = 256 * MIB_PAGES
    """Memory that a guest touches at boot; at most a quarter of the VM."""
    touched_share_mean: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Mean of the share of its memory that a VM grows to; the fleet does not know it."""
    touched_share_concentration: Positive = 8.0
    """How alike VMs are in that share: the sum of the beta distribution's parameters."""
    growth: Duration = 2 * NS_PER_HOUR
    """Time constant of the growth to that share."""
    reuse_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    """Share of its heap that a guest frees and touches again an hour; its class scales it."""
    madvise_ratio: Ratio = 1.0
    """Share of VMs whose RAM has MADV_HUGEPAGE on the host."""
    overhead: Pages = 32 * MIB_PAGES
    """QEMU's own memory, in pages of 4 KiB, touched at the start."""
    ram_offset: Pages = 0
    """Where guest RAM begins in a 2 MiB window of QEMU's address space; not 0 is misaligned."""
    free_page_reporting_ratio: Ratio = 0.0
    """Share of VMs with free page reporting."""
    free_page_reporting_order: Annotated[int, Field(ge=0, le=MAX_PAGE_ORDER)] = PAGEBLOCK_ORDER
    """Least order of the blocks that are reported."""
    free_page_reporting_delay: Duration = 2 * NS_PER_S
    """Time from one pass of reporting to the next."""
    balloon_ratio: Ratio = 0.0
    """Share of VMs with a balloon that the host may inflate."""
    balloon_below: Ratio = 0.1
    """Share of free host memory under which it does."""
    used_ratio: Ratio = 0.65  # memory used within five minutes: Weiner et al., TMO, ASPLOS 2022
    """Share of its memory that a guest uses all the time; read where hosts swap."""
    cold_reads_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1  # assumed
    """How often an hour a guest uses the rest of its memory; read where hosts swap."""
    images: Count = 4  # systems that the VMs run (assumed)
    """Different systems that the VMs run; pages of one image are alike for KSM."""
    mix: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = DEFAULT_MIX
    """Weights of the classes of guests (scenarios/guests) among the VMs."""

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
    def _devices_have_drivers(self) -> "GuestsSection":
        names = ("free_page_reporting_ratio", "balloon_ratio")
        given = [f"{name} {getattr(self, name)}" for name in names if getattr(self, name) > 0]
        if given and self.kernel == NO_GUEST_KERNEL:
            raise ValueError(
                f"{' and '.join(given)}: without a kernel in the guests (kernel {self.kernel!r})"
                " nothing gives memory back; set to 0"
            )
        return self

    @model_validator(mode="after")
    def _offset_within_a_window(self) -> "GuestsSection":
        if self.ram_offset >= HPAGE_PMD_NR:
            raise ValueError(f"ram_offset {pages_text(self.ram_offset)} is not less than 2MiB")
        return self
