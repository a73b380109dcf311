"""Checks of the fleet's demand and of what hosts share, against published figures.

Rows 15 and 16: the steady state and the heavy tail of Azure V1, of months that are drawn anew.
Row 28: what ksmd merges of mixed VMs, and of VMs of one image.
Row 20: what free page reporting saves and costs in a VM that compiles.
"""

from collections.abc import Callable, Iterator
from typing import Final

from fleet.churn import generate_azure_v1
from fleet.claims import Claim
from fleet.trace_stats import trace_stats
from fleet.trace_targets import compare
from fleet.validate_ksm import XP_VMS, homogeneous, mixed
from fleet.validate_reporting import reporting
from hostsim.core.units import NS_PER_DAY

DAYS: Final = 30
SEEDS: Final = (1, 2)
ROWS: Final = {
    "concurrent_vms": 15,
    "concurrent_vms_band": 15,
    "little_ratio": 15,
    "vm_hours_above_24h": 16,
    "vm_hours_up_to_1h": 16,
}  # of targets.md, section 6


def steady_state() -> Iterator[Claim]:
    """Yield concurrency, band, Little's law and the heavy tail of generated months."""
    stats = [trace_stats(generate_azure_v1(seed, DAYS * NS_PER_DAY)) for seed in SEEDS]
    for verdict in compare(stats):
        target = verdict.target
        if target.key in ROWS:
            yield Claim(
                f"{target.label}, month of Azure V1, mean of {len(SEEDS)} seeds",
                f"{target.low:g} to {target.high:g}, published {target.expected:g}",
                target.source,
                "-" if verdict.mean is None else f"{verdict.mean:.4g}",
                verdict.passes is True,
            )


def ksm_mixed() -> Iterator[Claim]:
    """Yield what ksmd shares of mixed VMs: how much without zeros, and how much within a VM."""
    found = mixed()
    source = "Barker et al., An Empirical Study of Memory Sharing in VMs, USENIX ATC 2012"
    yield Claim(
        "KSM, mixed VMs: pages saved of guest memory, zeros left out",
        "0.05 to 0.15, published < 0.15",
        source,
        f"{found.saved_ratio:.3f}",
        0.05 <= found.saved_ratio <= 0.15,
    )
    yield Claim(
        "KSM, mixed VMs: of these, saved within a VM",
        "at least 0.8, published > 0.9",
        source,
        f"{found.self_ratio:.3f}",
        found.self_ratio >= 0.8,
    )


def ksm_homogeneous() -> Iterator[Claim]:
    """Yield how far memory is oversold with VMs of one image, and whether that goes well."""
    found = homogeneous()
    source = "52 Windows XP VMs of 1 GB on 16 GB: Red Hat, in kernelnewbies.org Linux 2.6.32"
    yield Claim(
        f"KSM, {XP_VMS} VMs of one image: memory promised, of all the host has",
        "at least 3, published 52 GB on 16 GB",
        source,
        f"{found.overcommit:.2f} (touched, of host memory in use: {found.ratio:.2f})",
        min(found.overcommit, found.ratio) >= 3.0,
    )
    yield Claim(
        f"KSM, {XP_VMS} VMs of one image: VMs that run, and OOM kills",
        f"{XP_VMS}, 0",
        source,
        f"{found.vms}, {found.oom_kills}",
        (found.vms, found.oom_kills) == (XP_VMS, 0),
    )


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    "steady state and heavy tail": steady_state,
    "KSM of mixed VMs": ksm_mixed,
    "KSM of VMs of one image": ksm_homogeneous,
    "free page reporting": reporting,
}
