"""Settings files of a host's kernel as sections of a scenario."""

from typing import Any, Literal

from pydantic import Field

from fleet.sections import Section
from hostsim.mm.tunables import NUMBERS


class ThpSection(Section):
    """``[hosts.thp]``: the files under /sys/kernel/mm/transparent_hugepage."""

    enabled: Literal["always", "madvise", "never"] = "always"
    defrag: Literal["always", "defer", "defer+madvise", "madvise", "never"] = "madvise"
    use_zero_page: bool = True
    policy: Literal["linux", "reservation", "utilisation"] = "linux"


def _file(name: str) -> Any:
    """Return the field of a settings file: the kernel's default and range."""
    _, default, least, most = NUMBERS[name]
    return Field(default, ge=least, le=most)


class KhugepagedSection(Section):
    """``[hosts.khugepaged]``, ``[guests.khugepaged]``: the daemon's files, and what wakes it.

    ``wakeup = "event"`` also ends its sleep when huge pages become free, which no kernel does.
    """

    wakeup: Literal["timer", "event"] = "timer"
    defrag: int = _file("khugepaged/defrag")
    pages_to_scan: int = _file("khugepaged/pages_to_scan")
    scan_sleep_millisecs: int = _file("khugepaged/scan_sleep_millisecs")
    alloc_sleep_millisecs: int = _file("khugepaged/alloc_sleep_millisecs")
    max_ptes_none: int = _file("khugepaged/max_ptes_none")
    max_ptes_swap: int = _file("khugepaged/max_ptes_swap")
    max_ptes_shared: int = _file("khugepaged/max_ptes_shared")


class VmSection(Section):
    """``[hosts.vm]``: files under /proc/sys/vm."""

    swappiness: int = _file("swappiness")
    page_cluster: int = _file("page-cluster")
    watermark_boost_factor: int = _file("watermark_boost_factor")
    extfrag_threshold: int = _file("extfrag_threshold")
    compaction_proactiveness: int = _file("compaction_proactiveness")
    compact_unevictable_allowed: int = _file("compact_unevictable_allowed")


class KsmSection(Section):
    """``[hosts.ksm]``: the files under /sys/kernel/mm/ksm.

    With ``run = 1`` QEMU makes all guest RAM mergeable (its mem-merge, on by default).
    """

    run: Literal[0, 1] = 0
    pages_to_scan: int = _file("ksm/pages_to_scan")
    sleep_millisecs: int = _file("ksm/sleep_millisecs")
    max_page_sharing: int = _file("ksm/max_page_sharing")
    use_zero_pages: int = _file("ksm/use_zero_pages")


def settings_of(
    thp: ThpSection, khugepaged: KhugepagedSection, vm: VmSection, ksm: KsmSection
) -> tuple[tuple[str, str], ...]:
    """Return the settings files that a host is booted with, and what is written to them."""
    own: list[tuple[str, str]] = [("thp_policy", thp.policy)]
    own += [(f"khugepaged/{name}", str(value)) for name, value in khugepaged]
    own += [(name.replace("page_cluster", "page-cluster"), str(value)) for name, value in vm]
    own += [(f"ksm/{name}", str(value)) for name, value in ksm]
    return tuple(own)
