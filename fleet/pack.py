"""Packing a trace into a pool of equal hosts, without simulating their memory."""

import time
from typing import NamedTuple

import numpy as np

from fleet.placement import DEFAULT_TUNING, Placer, Tuning, check_overcommit
from fleet.plan import EpochPlan, Kind
from fleet.pool import LARGER_THAN_ANY_HOST
from fleet.trace import Trace
from hostsim.core.units import NS_PER_HOUR, NS_PER_S


class PackResult(NamedTuple):
    """What packing a trace gave."""

    policy: str
    nr_hosts: int  # of the pool
    started: int
    rejected: int
    larger_than_any_host: int  # of the rejected
    host_hours: float  # time integral of the hosts with at least one VM
    bound_host_hours: float  # core-hours or page-hours over a host's, the larger
    over_bound_ratio: float  # host_hours / bound_host_hours - 1
    peak_hosts: int  # most hosts with at least one VM at once
    empty_ratio: float  # share of the pool's host-hours without a VM
    host_sum: int  # sum of the chosen host numbers: equal for equal placements
    events: int  # starts, stops and rejections
    wall_s: float
    placements_per_s: float
    events_per_s: float


def pack_trace(
    trace: Trace,
    policy: str,
    host_vcpus: int,
    host_pages: int,
    nr_hosts: int | None = None,
    vcpu_overcommit: float = 1.0,
    memory_overcommit: float = 1.0,
    tuning: Tuning = DEFAULT_TUNING,
) -> PackResult:
    """Place a whole trace in one epoch from time 0 to its span.

    No host tells anything of its memory: policies that read gauges place as best fit does.  VMs
    still there at the end hold their host until the span's end.

    Parameters
    ----------
    nr_hosts : int, optional
        Size of the pool; by default as many hosts as the policy asks for (the pool doubles and
        the trace is placed again until every VM that fits an empty host finds one).

    Raises
    ------
    ValueError
        As `Placer`.
    """
    check_overcommit(vcpu_overcommit, memory_overcommit)
    pool_hosts = nr_hosts or _first_guess(
        trace, host_vcpus * vcpu_overcommit, host_pages * memory_overcommit
    )
    while True:
        placer = Placer(
            trace,
            np.full(pool_hosts, host_vcpus, np.int32),
            np.full(pool_hosts, host_pages, np.int64),
            policy,
            vcpu_overcommit,
            memory_overcommit,
            tuning,
        )
        started = time.perf_counter()
        plan = placer.epoch(0, trace.span_ns)
        wall_s = time.perf_counter() - started
        if nr_hosts or (plan.reject_reason == LARGER_THAN_ANY_HOST).all():
            break
        pool_hosts *= 2
    bound = _bound_host_hours(
        trace, plan, host_vcpus * vcpu_overcommit, host_pages * memory_overcommit
    )
    return _result(trace, plan, policy, pool_hosts, bound, wall_s)


def _first_guess(trace: Trace, host_vcpus: float, host_pages: float) -> int:
    """Return a pool size that holds the demand at its peak with a quarter to spare."""
    ends_ns = np.minimum(trace.end_ns, trace.span_ns)
    order = np.argsort(np.concatenate([ends_ns, trace.start_ns]), kind="stable")
    peaks = []
    for sizes, capacity in ((trace.vcpus, host_vcpus), (trace.memory_pages, host_pages)):
        change = np.concatenate([-sizes.astype(np.int64), sizes.astype(np.int64)])
        peaks.append(np.cumsum(change[order]).max(initial=0) / capacity)
    return int(1.25 * max(peaks)) + 8


def _bound_host_hours(trace: Trace, plan: EpochPlan, host_vcpus: float, host_pages: float) -> float:
    """Return the host-hours of perfectly full hosts that run the started VMs."""
    vms = plan.vm[plan.kind == Kind.START]
    lived_ns = np.minimum(trace.end_ns[vms], trace.span_ns) - np.maximum(trace.start_ns[vms], 0)
    hours = lived_ns / NS_PER_HOUR
    return float(
        max(hours @ trace.vcpus[vms] / host_vcpus, hours @ trace.memory_pages[vms] / host_pages)
    )


def busy_hosts(plan: EpochPlan, span_ns: int) -> tuple[float, int]:
    """Return the host-hours with at least one VM, and the most such hosts at once."""
    change = np.where(plan.kind == Kind.START, 1, -1)
    running = np.cumsum(change)
    first = np.r_[True, plan.host_id[1:] != plan.host_id[:-1]] if plan.vm.size else running > 0
    before = running - change
    offset = before[first][np.cumsum(first) - 1]  # VMs counted on hosts before this one
    running, before = running - offset, before - offset
    fills = plan.t_ns[(before == 0) & (change > 0)]
    drains = plan.t_ns[(running == 0) & (change < 0)]
    still = fills.size - drains.size
    # integers: a sum of thousands of months in nanoseconds fits a Python int only
    busy_ns = int(sum(drains.tolist())) - int(sum(fills.tolist())) + still * span_ns
    order = np.argsort(np.concatenate([drains, fills]), kind="stable")
    steps = np.concatenate([np.full(drains.size, -1), np.ones(fills.size, np.int64)])[order]
    return busy_ns / NS_PER_HOUR, int(np.cumsum(steps).max(initial=0))


def _result(
    trace: Trace, plan: EpochPlan, policy: str, nr_hosts: int, bound: float, wall_s: float
) -> PackResult:
    """Collect the figures of a packed trace."""
    host_hours, peak_hosts = busy_hosts(plan, trace.span_ns)
    is_start = plan.kind == Kind.START
    started = int(is_start.sum())
    events = plan.kind.size + plan.rejected.size
    return PackResult(
        policy=policy,
        nr_hosts=nr_hosts,
        started=started,
        rejected=int(plan.rejected.size),
        larger_than_any_host=int((plan.reject_reason == LARGER_THAN_ANY_HOST).sum()),
        host_hours=host_hours,
        bound_host_hours=bound,
        over_bound_ratio=host_hours / bound - 1 if bound else 0.0,
        peak_hosts=peak_hosts,
        empty_ratio=1 - host_hours * NS_PER_HOUR / (nr_hosts * trace.span_ns),
        host_sum=int(plan.host_id[is_start].sum()),
        events=events,
        wall_s=wall_s,
        placements_per_s=(started + plan.rejected.size) / wall_s,
        events_per_s=events / wall_s,
    )


def warm_up() -> None:
    """Compile the placement kernels, so that measured rates leave that out."""
    none = np.zeros(0, np.int64)
    empty = Trace(
        none, none, none, none.astype(np.int32), none, none.astype(np.int16), none, (), NS_PER_S
    )
    Placer(empty, np.ones(1, np.int32), np.ones(1, np.int64), "first-fit").epoch(0, 1)
