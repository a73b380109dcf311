"""What Azure's public trace of 2017 shows, and how near a trace comes to it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fleet.trace_stats import BATCH_QUANTILES, LIFETIME_HOURS

ARRIVALS = "V1, 1,870,433 arrivals"  # AzurePublicDataset V1 by Bergsma et al., SOSP 2021
LIFETIMES = "V1, 669,435 arrivals, Kaplan-Meier"
VM_HOURS = "V1, 104,371,713 VM-hours"
CORE_HOURS = "V1, 237,815,105 core-hours"
V2_BAND = "V2, live VMs over the month"

# % of VMs with lifetime <= t, at LIFETIME_HOURS
LIFETIME_PERCENT = (12.6, 34.2, 55.9, 65.5, 73.5, 79.0, 84.3, 88.0, 94.0, 96.0, 96.8, 97.1)
FLAVOUR_PERCENT = {
    "1c-1.75GiB": 47.70,
    "2c-3.5GiB": 24.85,
    "4c-7GiB": 10.88,
    "8c-14GiB": 10.56,
    "8c-56GiB": 3.85,
    "1c-0.75GiB": 2.06,
}
HOUR_PERCENT = {
    "1c-1.75GiB": 72.0,
    "2c-3.5GiB": 66.0,
    "4c-7GiB": 63.0,
    "8c-14GiB": 49.0,
    "8c-56GiB": 7.0,
}
BATCH_SIZES = (2, 7, 13, 46, 259)  # at BATCH_QUANTILES


class Target(NamedTuple):
    """One published figure: what is measured, its value and the range that passes."""

    key: str  # of trace_stats
    label: str
    expected: float
    low: float
    high: float
    source: str


class Verdict(NamedTuple):
    """One target beside what traces show."""

    target: Target
    measured: tuple[float | None, ...]  # one per trace
    mean: float | None
    passes: bool | None  # of the mean; None: not measurable on these traces
    nr_pass: int  # traces that pass on their own


def _near(key: str, label: str, value: float, off: float, source: str) -> Target:
    """Return a target that passes within an absolute distance."""
    return Target(key, label, value, value - off, value + off, source)


def targets(scale: float = 1.0) -> Iterator[Target]:
    """Yield the published figures; arrival rate and concurrency are scaled."""
    rate, running = 216.6 * scale, 144_977 * scale
    for name, percent in FLAVOUR_PERCENT.items():
        yield _near(f"flavour_share_{name}", f"share {name}", percent / 100, 0.005, ARRIVALS)
    for hours, percent in zip(LIFETIME_HOURS, LIFETIME_PERCENT, strict=True):
        text = f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.0f} h"
        key = f"lifetime_cdf_{hours:.4g}h"
        yield _near(key, f"lifetime <= {text}", percent / 100, 0.015, LIFETIMES)
    yield Target("lifetime_ks", "lifetime KS distance", 0.0, 0.0, 0.02, LIFETIMES)
    for name, percent in HOUR_PERCENT.items():
        label = f"lifetime <= 1 h, {name}"
        yield _near(f"lifetime_cdf_1h_{name}", label, percent / 100, 0.015, LIFETIMES)
    yield _near("vms_per_5min", "VMs / 5 min", rate, 0.02 * rate, ARRIVALS)
    yield Target("vms_var_over_mean", "VMs / 5 min, var / mean", 81.6, 60, 105, ARRIVALS)
    yield Target("batches_var_over_mean", "batches / 5 min, var / mean", 5.9, 4.7, 7.1, ARRIVALS)
    yield Target("batch_acf_24h", "batches / h, ACF(24 h)", 0.83, 0.7, 0.9, ARRIVALS)
    yield Target(
        "batch_hour_peak_over_trough", "batches, peak / trough hour", 2.3, 2.0, 2.6, ARRIVALS
    )
    yield _near("batch_single_vm_ratio", "batches of one VM", 0.57, 0.57 * 0.15, ARRIVALS)
    for quantile, size in zip(BATCH_QUANTILES, BATCH_SIZES, strict=True):
        key = f"batch_size_p{quantile:g}"
        yield _near(key, f"batch size, {quantile:g} %", size, 0.15 * size, ARRIVALS)
    yield _near("batch_single_flavour_ratio", "batches of one flavour", 0.92, 0.02, ARRIVALS)
    yield _near("batch_same_end_ratio", "next VM of batch ends alike", 0.81, 0.03, ARRIVALS)
    yield _near("concurrent_vms", "VMs at once", running, 0.03 * running, VM_HOURS)
    yield Target("concurrent_vms_band", "VMs at once, (max - min) / mean", 0.046, 0, 0.05, V2_BAND)
    yield Target("little_ratio", "VMs at once / (rate x lifetime)", 1.0, 0.99, 1.01, "Little's law")
    yield _near("vcpus_per_vm_hour", "vCPUs per VM-hour", 2.28, 0.03 * 2.28, CORE_HOURS)
    yield Target("vm_hours_above_24h", "VM-hours of VMs > 24 h", 0.96, 0.94, 0.98, VM_HOURS)
    yield Target("vm_hours_up_to_1h", "VM-hours of VMs <= 1 h", 0.004, 0, 0.01, VM_HOURS)


def compare(stats: Sequence[dict[str, Any]], scale: float = 1.0) -> list[Verdict]:
    """Hold the statistics of one or more traces against the published figures.

    Where there are several traces (seeds), the verdict is on their mean.
    """
    verdicts = []
    for target in targets(scale):
        measured = tuple(one.get(target.key) for one in stats)
        known = [value for value in measured if value is not None]
        mean = sum(known) / len(known) if known else None
        nr_pass = sum(target.low <= value <= target.high for value in known)
        passes = None if mean is None else target.low <= mean <= target.high
        verdicts.append(Verdict(target, measured, mean, passes, nr_pass))
    return verdicts
