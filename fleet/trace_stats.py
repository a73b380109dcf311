"""Statistics of a trace, and their comparison with Azure's public trace of 2017."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.azure_v1 import azure_v1
from fleet.churn import BIN_NS, BINS_PER_HOUR
from fleet.trace import I64, NEVER, Trace
from hostsim.core.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_S, PAGE_BYTES

F64 = NDArray[np.float64]

LIFETIME_HOURS = (1 / 12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0, 48.0, 96.0, 144.0)
BATCH_QUANTILES = (75.0, 90.0, 95.0, 99.0, 99.9)
ARRIVAL_QUANTILES = (1, 5, 25, 50, 75, 95, 99)
MIN_ACF_DAYS = 3


class Batches(NamedTuple):
    """Batches of new arrivals, in order of batch number."""

    start_ns: I64
    size_vms: I64
    is_single: NDArray[np.bool_]  # all VMs have one flavour
    of_vm: I64  # batch of each new VM


def kaplan_meier(lifetime_ns: I64, is_censored: NDArray[np.bool_], at_ns: F64) -> F64:
    """Return P(lifetime <= t) at times `at_ns`, by the product-limit estimator.

    A censored VM was seen for its lifetime and went on.  Source: Kaplan and Meier, JASA 53
    (1958).
    """
    if lifetime_ns.size == 0:
        return np.full(at_ns.size, np.nan)
    order = np.lexsort((is_censored, lifetime_ns))
    at_risk = np.arange(order.size, 0, -1)
    survival = np.cumprod(1 - (~is_censored[order]) / at_risk)
    seen = np.searchsorted(lifetime_ns[order], at_ns, "right")
    cdf: F64 = 1 - np.r_[1.0, survival][seen]
    return cdf


def batches_of(trace: Trace, new: I64) -> Batches:
    """Group the new arrivals (rows `new`) by batch."""
    _, of_vm, size_vms = np.unique(trace.batch_id[new], return_inverse=True, return_counts=True)
    order = np.argsort(of_vm, kind="stable")
    first = np.cumsum(size_vms) - size_vms
    if not size_vms.size:
        return Batches(size_vms, size_vms, size_vms > 0, of_vm)
    flavour = trace.flavour[new][order]
    low, high = np.minimum.reduceat(flavour, first), np.maximum.reduceat(flavour, first)
    return Batches(trace.start_ns[new][order[first]], size_vms, low == high, of_vm)


def autocorrelation(series: F64, lag: int) -> float:
    """Return the autocorrelation of a series at a lag (the biased estimator)."""
    centred = series - series.mean()
    return float((centred[lag:] @ centred[:-lag]) / (centred @ centred))


def _per_step(start_ns: I64, step_ns: int, span_ns: int) -> F64:
    """Count starts in steps of equal length; a broken last step is left out."""
    nr_steps = span_ns // step_ns
    steps = start_ns // step_ns
    return np.bincount(steps[steps < nr_steps], minlength=nr_steps).astype(np.float64)


def _arrival_stats(trace: Trace, new: I64, batches: Batches) -> dict[str, Any]:
    """Return rates, rhythm and batches of the new arrivals."""
    vms = _per_step(trace.start_ns[new], BIN_NS, trace.span_ns)
    per_bin = _per_step(batches.start_ns, BIN_NS, trace.span_ns)
    per_hour = _per_step(batches.start_ns, NS_PER_HOUR, trace.span_ns)
    days = per_hour.size // 24
    stats: dict[str, Any] = {
        "vms_per_5min": vms.mean(),
        "vms_var_over_mean": vms.var() / vms.mean(),
        "vms_per_5min_quantiles": dict(
            zip(map(str, ARRIVAL_QUANTILES), np.percentile(vms, ARRIVAL_QUANTILES), strict=True)
        ),
        "vms_per_5min_max": vms.max(),
        "batches_per_5min": per_bin.mean(),
        "batches_var_over_mean": per_bin.var() / per_bin.mean(),
        "batch_size_mean": batches.size_vms.mean(),
        "batch_single_vm_ratio": (batches.size_vms == 1).mean(),
        "batch_single_flavour_ratio": batches.is_single.mean(),
    }
    for quantile in BATCH_QUANTILES:
        stats[f"batch_size_p{quantile:g}"] = np.percentile(batches.size_vms, quantile)
    enough = days >= MIN_ACF_DAYS
    stats["batch_acf_24h"] = autocorrelation(per_hour, 24) if enough else None
    by_hour = per_hour[: days * 24].reshape(days, 24).mean(axis=0) if days else np.zeros(24)
    stats["batch_hour_peak_over_trough"] = by_hour.max() / by_hour.min() if by_hour.min() else None
    return stats


def _lifetime_stats(trace: Trace, new: I64, batches: Batches) -> dict[str, Any]:
    """Return the lifetimes of the new arrivals, over all and by flavour."""
    is_censored = trace.end_ns[new] == NEVER
    end_ns = np.where(is_censored, trace.span_ns, trace.end_ns[new])
    lifetime_ns = np.maximum(end_ns - trace.start_ns[new], 1)
    at_ns = np.array(LIFETIME_HOURS) * NS_PER_HOUR
    cdf = kaplan_meier(lifetime_ns, is_censored, at_ns)
    stats: dict[str, Any] = {
        f"lifetime_cdf_{hours:.4g}h": share
        for hours, share in zip(LIFETIME_HOURS, cdf, strict=True)
    }
    model = azure_v1()
    edges_ns = model.edge_s[1:] * NS_PER_S
    measured = kaplan_meier(lifetime_ns, is_censored, edges_ns)
    stats["lifetime_ks"] = np.abs(measured - model.lifetime_cdf).max()
    flavour = trace.flavour[new]
    for index, name in enumerate(trace.flavours):
        mine = flavour == index
        hour = kaplan_meier(lifetime_ns[mine], is_censored[mine], at_ns[3:4])[0]
        stats[f"lifetime_cdf_1h_{name}"] = hour if mine.any() else None
    pairs = batches.of_vm[1:] == batches.of_vm[:-1]
    pairs &= ~(is_censored[1:] | is_censored[:-1])
    bins = np.searchsorted(edges_ns, lifetime_ns)
    near = np.abs(bins[1:] - bins[:-1])[pairs] <= 1
    stats["batch_same_end_ratio"] = near.mean() if near.size else None
    stats["mean_lifetime_h"] = None if is_censored.any() else lifetime_ns.mean() / NS_PER_HOUR
    return stats


def _load_stats(trace: Trace) -> dict[str, Any]:
    """Return what runs at once, and who holds the VM-hours inside the span."""
    span_ns = trace.span_ns
    end_ns = np.minimum(trace.end_ns, span_ns)
    hours = np.maximum(end_ns - np.maximum(trace.start_ns, 0), 0) / NS_PER_HOUR
    lifetime_ns = np.where(trace.end_ns == NEVER, span_ns, trace.end_ns) - trace.start_ns
    grid_ns = np.arange(0, span_ns, BIN_NS)
    started = np.searchsorted(trace.start_ns, grid_ns, "right")
    running = started - np.searchsorted(np.sort(trace.end_ns), grid_ns, "right")
    mean = hours.sum() / (span_ns / NS_PER_HOUR)
    total = hours.sum()
    return {
        "vm_hours": total,
        "core_hours": hours @ trace.vcpus,
        "vcpus_per_vm_hour": hours @ trace.vcpus / total,
        "concurrent_vms": mean,
        "concurrent_vms_min": running.min(),
        "concurrent_vms_max": running.max(),
        "concurrent_vms_band": (running.max() - running.min()) / mean,
        "vm_hours_above_24h": hours[lifetime_ns > NS_PER_DAY].sum() / total,
        "vm_hours_up_to_1h": hours[lifetime_ns <= NS_PER_HOUR].sum() / total,
    }


def trace_stats(trace: Trace) -> dict[str, Any]:
    """Return the statistics of a trace under stable names, numbers only.

    New arrivals are VMs that start at time 0 or later; lifetimes are theirs, by Kaplan-Meier
    where some are still there at the end.  Shares are ratios.  A statistic that the trace
    cannot give is None.

    Raises
    ------
    ValueError
        The trace has no new arrivals in its span.
    """
    new = np.flatnonzero((trace.start_ns >= 0) & (trace.start_ns < trace.span_ns))
    if not new.size or trace.span_ns < BIN_NS:
        raise ValueError(f"{new.size} new arrivals in {trace.span_ns} ns: no statistics")
    batches = batches_of(trace, new)
    stats: dict[str, Any] = {
        "vms": trace.nr_vms,
        "standing_vms": int((trace.start_ns < 0).sum()),
        "new_vms": int(new.size),
        "batches": int(batches.size_vms.size),
        "days": trace.span_ns / NS_PER_DAY,
        "vcpus_per_new_vm": trace.vcpus[new].mean(),
        "gib_per_new_vm": trace.memory_pages[new].mean() * PAGE_BYTES / 2**30,
    }
    shares = np.bincount(trace.flavour[new], minlength=len(trace.flavours)) / new.size
    for name, share in zip(trace.flavours, shares, strict=True):
        stats[f"flavour_share_{name}"] = share
    stats |= _arrival_stats(trace, new, batches)
    stats |= _lifetime_stats(trace, new, batches)
    stats |= _load_stats(trace)
    lifetime_h = stats["mean_lifetime_h"]
    rate_per_h = stats["vms_per_5min"] * BINS_PER_HOUR
    stats["little_ratio"] = (
        stats["concurrent_vms"] / (rate_per_h * lifetime_h) if lifetime_h else None
    )
    return {name: _plain(value) for name, value in stats.items()}


def _plain(value: Any) -> Any:
    """Turn NumPy numbers into Python's, NaN into None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and np.isnan(value):
        return None
    return value
