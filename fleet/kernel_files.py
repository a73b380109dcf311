"""Settings files of a host's kernel as sections of a scenario."""

from typing import Any, Literal

from pydantic import Field

from fleet.sections import Section
from hostsim.mm.tunables import NUMBERS


class ThpSection(Section):
    """``[hosts.thp]``: the files under /sys/kernel/mm/transparent_hugepage."""

    enabled: Literal["always", "madvise", "never"] = "always"
    """File enabled: which memory may be huge; madvise: that of VMs with MADV_HUGEPAGE."""
    defrag: Literal["always", "defer", "defer+madvise", "madvise", "never"] = "madvise"
    """File defrag: whether a fault compacts and reclaims for a huge page, or wakes daemons."""
    use_zero_page: bool = True
    """File use_zero_page: reads of untouched memory share one huge page of zeros."""
    policy: Literal["linux", "reservation", "utilisation"] = "linux"
    """Which windows become huge, and when: Linux's rule, FreeBSD's or Ingens's."""


def _file(name: str) -> Any:
    """Return the field of a settings file: the kernel's default and range."""
    _, default, least, most = NUMBERS[name]
    return Field(default, ge=least, le=most)


class KhugepagedSection(Section):
    """``[hosts.khugepaged]``, ``[guests.khugepaged]``: the daemon's files, and what wakes it.

    ``wakeup = "event"`` also ends its sleep when huge pages become free, which no kernel does.
    """

    wakeup: Literal["timer", "event"] = "timer"
    """What ends its sleep: the timer, or also huge pages that become free."""
    defrag: int = _file("khugepaged/defrag")
    """1: it compacts for the huge pages that it needs."""
    pages_to_scan: int = _file("khugepaged/pages_to_scan")
    """Pages that it looks at before it sleeps."""
    scan_sleep_millisecs: int = _file("khugepaged/scan_sleep_millisecs")
    """How long it sleeps then, ms."""
    alloc_sleep_millisecs: int = _file("khugepaged/alloc_sleep_millisecs")
    """How long it sleeps when there was no huge page, ms."""
    max_ptes_none: int = _file("khugepaged/max_ptes_none")
    """Pages of a window that may be missing and are then filled with zeros."""
    max_ptes_swap: int = _file("khugepaged/max_ptes_swap")
    """Pages of a window that may be in swap and are then read."""
    max_ptes_shared: int = _file("khugepaged/max_ptes_shared")
    """Pages of a window that may be shared and are then copied."""


class VmSection(Section):
    """``[hosts.vm]``: files under /proc/sys/vm."""

    swappiness: int = _file("swappiness")
    """How much cheaper it is to swap than to drop page cache, 0 to 200."""
    page_cluster: int = _file("page-cluster")
    """Logarithm of the pages read from swap at once."""
    watermark_boost_factor: int = _file("watermark_boost_factor")
    """How far watermarks rise after types were mixed, 1/10000 of the high one."""
    extfrag_threshold: int = _file("extfrag_threshold")
    """Fragmentation index, 1/1000, up to which compaction is not tried."""
    compaction_proactiveness: int = _file("compaction_proactiveness")
    """How eagerly kcompactd compacts without being asked, 0 to 100."""
    compact_unevictable_allowed: int = _file("compact_unevictable_allowed")
    """1: compaction moves mlocked pages, too."""


class KsmSection(Section):
    """``[hosts.ksm]``: the files under /sys/kernel/mm/ksm.

    With ``run = 1`` QEMU makes all guest RAM mergeable (its mem-merge, on by default).
    """

    run: Literal[0, 1] = 0
    """1: ksmd runs."""
    pages_to_scan: int = _file("ksm/pages_to_scan")
    """Pages that ksmd looks at before it sleeps."""
    sleep_millisecs: int = _file("ksm/sleep_millisecs")
    """How long it sleeps then, ms."""
    max_page_sharing: int = _file("ksm/max_page_sharing")
    """Pages that may share one frame."""
    use_zero_pages: int = _file("ksm/use_zero_pages")
    """1: pages of zeros are merged with the kernel's page of zeros."""


def settings_of(
    thp: ThpSection, khugepaged: KhugepagedSection, vm: VmSection, ksm: KsmSection
) -> tuple[tuple[str, str], ...]:
    """Return the settings files that a host is booted with, and what is written to them."""
    own: list[tuple[str, str]] = [("thp_policy", thp.policy)]
    own += [(f"khugepaged/{name}", str(value)) for name, value in khugepaged]
    own += [(name.replace("page_cluster", "page-cluster"), str(value)) for name, value in vm]
    own += [(f"ksm/{name}", str(value)) for name, value in ksm]
    return tuple(own)
