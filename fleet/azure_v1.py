"""Tables of Azure's public trace of 2017, as the generator of ``fleet.churn`` needs them.

Statistics: AzurePublicDataset V1, CC-BY 4.0 (Cortez et al., SOSP 2017), in the form of
huaweicloud/trace_generation_rnn (Bergsma et al., SOSP 2021); the data are in
scenarios/azure_v1.json.
"""

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.trace import I16, I64
from hostsim.core.units import PAGE_BYTES

F64 = NDArray[np.float64]

GB_PAGES = (1 << 30) // PAGE_BYTES  # 1 GB of the trace counts as 1 GiB
MIN_LIFETIME_S = 300.0  # the dataset's notebooks floor lifetimes at one bin
RECONCILE = 0.4  # how far the flavours' lifetime tables are bent to the table of all arrivals


class SizeClass(NamedTuple):
    """What batches of one range of sizes ask for; shares are of VMs."""

    min_vms: int
    mixed_ratio: float  # share of batches with two flavours (the trace: or more)
    single_cdf: F64  # (flavours,) of batches with one flavour
    pair_cdf: F64  # (pairs,)
    pair: I16  # (pairs, 2) flavours
    first_ratio: F64  # (pairs,) share of the pair's first flavour


class AzureV1(NamedTuple):
    """Tables of the generator; lifetimes in seconds, last lifetime bin open."""

    names: tuple[str, ...]
    vcpus: NDArray[np.int32]  # (flavours,)
    memory_pages: I64  # (flavours,)
    share_ratio: F64  # (flavours,) of arrivals
    hour_factor: F64  # (24,) mean 1
    batches_per_hour: float
    size_vms: I64  # (sizes,)
    size_cdf: F64  # (sizes,)
    classes: tuple[SizeClass, ...]
    edge_s: F64  # (bins,) lower edges of the lifetime bins, each other's upper ones
    lifetime_pmf: F64  # (flavours, bins)
    lifetime_cdf: F64  # (bins - 1,) published table of all arrivals at edge_s[1:]
    tail_s: F64  # (flavours,) mean of what exceeds the last edge, exponential
    mean_lifetime_s: F64  # (flavours,)
    concurrent_vms: float


def _bend(pmf: F64, share_ratio: F64, target: F64) -> F64:
    """Bend the flavours' lifetime tables towards the table of all arrivals.

    The tables by flavour come from nine days, the flavour shares from thirty: their mixture
    misses the table of all arrivals by up to 1.7 percentage points.  Raking (iterative
    proportional fitting) finds the nearest tables that mix to it; the result goes RECONCILE of
    the way there, so that both published tables are met within one point.
    """
    joint = pmf * share_ratio[:, None]
    for _ in range(50):
        joint *= target / joint.sum(axis=0)
        joint *= (share_ratio / joint.sum(axis=1))[:, None]
    raked = joint / share_ratio[:, None]
    bent: F64 = (1 - RECONCILE) * pmf + RECONCILE * raked
    return bent


def _pmf(cdf: list[float]) -> F64:
    """Return the masses of the lifetime bins; lifetimes of 0 and one bin are one mass."""
    return np.diff(np.r_[0.0, cdf[1:], 1.0])


def _close_balance(
    body_s: F64, tail_ratio: F64, vcpus: NDArray[np.int32], vm_s: float, vcpu_s: float
) -> F64:
    """Return the mean of each flavour's open lifetime bin, about 68 days.

    Nobody saw those lifetimes end.  With means that fall as a power of the flavour's vCPUs, the
    trace's VM-hours and core-hours per arrival fix the two unknowns.

    Parameters
    ----------
    body_s : array
        Lifetime below the open bin times share of arrivals, by flavour.
    tail_ratio : array
        Share of arrivals that reach the open bin, by flavour.
    vcpus : array
        vCPUs by flavour.
    vm_s, vcpu_s : float
        VM-seconds and vCPU-seconds per arrival.
    """
    low, high = 0.0, 4.0  # the exponent
    for _ in range(60):
        middle = (low + high) / 2
        weight = vcpus.astype(np.float64) ** -middle
        tail_s: F64 = (vm_s - body_s.sum()) / (tail_ratio @ weight) * weight
        if (body_s + tail_ratio * tail_s) @ vcpus > vcpu_s:
            low = middle
        else:
            high = middle
    return tail_s


def _size_classes(rows: list[dict[str, object]], number: dict[str, int]) -> tuple[SizeClass, ...]:
    """Read the tables of flavours by batch size."""
    classes = []
    for row in rows:
        single = np.zeros(len(number))
        for name, share in row["single"].items():  # type: ignore[attr-defined]
            single[number[name]] = share
        pairs = list(row["pairs"]) or [[*list(number)[:2], 1.0, 0.5]]  # type: ignore[call-overload]
        classes.append(
            SizeClass(
                int(row["min_vms"]),  # type: ignore[call-overload]
                float(row["mixed_ratio"]),  # type: ignore[arg-type]
                np.cumsum(single / single.sum()),
                np.cumsum([weight for _, _, weight, _ in pairs]),
                np.array([[number[a], number[b]] for a, b, _, _ in pairs], np.int16),
                np.array([first for _, _, _, first in pairs]),
            )
        )
    return tuple(classes)


@cache
def azure_v1() -> AzureV1:
    """Read the tables and close the balances of VM-hours and core-hours."""
    data = json.loads(files("scenarios").joinpath("azure_v1.json").read_text("utf-8"))
    names = tuple(row[0] for row in data["flavours"])
    number = {name: index for index, name in enumerate(names)}
    share_ratio = np.array([row[3] for row in data["flavours"]])
    share_ratio /= share_ratio.sum()
    tables = {name: _pmf(cdf) for name, cdf in data["lifetime_cdf_by_flavour"].items()}
    pmf = np.array([tables[data["like"].get(name, name)] for name in names])
    pmf = _bend(pmf, share_ratio, _pmf(data["lifetime_cdf"]))
    edge_s = np.array([MIN_LIFETIME_S, *data["upper_s"][1:]], float)
    middle_s = (edge_s[:-1] + edge_s[1:]) / 2
    body_s = pmf[:, :-1] @ middle_s + pmf[:, -1] * edge_s[-1]
    size_vms, batches = np.array(data["batch_sizes"]).T
    vms_per_s = data["batches_per_hour"] / 3600 * np.average(size_vms, weights=batches)
    vcpus = np.array([row[1] for row in data["flavours"]], np.int32)
    tail_s = _close_balance(
        share_ratio * body_s,
        share_ratio * pmf[:, -1],
        vcpus,
        data["concurrent_vms"] / vms_per_s,
        data["concurrent_vcpus"] / vms_per_s,
    )
    hour_factor = np.array(data["hour_factor"])
    return AzureV1(
        names,
        vcpus,
        np.array([round(row[2] * GB_PAGES) for row in data["flavours"]], np.int64),
        share_ratio,
        hour_factor / hour_factor.mean(),
        data["batches_per_hour"],
        size_vms.astype(np.int64),
        np.cumsum(batches / batches.sum()),
        _size_classes(data["size_classes"], number),
        edge_s,
        pmf,
        np.array(data["lifetime_cdf"][1:]),
        tail_s,
        body_s + pmf[:, -1] * tail_s,
        data["concurrent_vms"],
    )
