"""How fast hosts are chosen: the trace of `fleet.bench_workload`, placed without memory."""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fleet.bench_workload import HOST_PAGES, HOST_VCPUS, MAX_LIFE_DAYS, churn_trace, first_vms
from fleet.claims import Claim, Found, at_least, same
from fleet.pack import warm_up
from fleet.placement import Placer
from fleet.plan import Kind
from hostsim.core.units import NS_PER_DAY


class Case(NamedTuple):
    """One measurement, and what it must reach."""

    policy: str
    nr_hosts: int
    nr_vms: int  # the first of the trace
    drawn_vms: int  # of the trace
    unit: str  # field of Measured
    bar: float
    host_sum: int | None = None  # what an independent program placed


class Measured(NamedTuple):
    """A placed trace."""

    policy: str
    nr_hosts: int
    started: int
    rejected: int
    busiest: int  # highest host number that took a VM
    host_sum: int  # sum of the chosen host numbers
    cpu_s: float
    placements_per_s: float
    events_per_s: float  # starts, stops and rejections


CASES: Final = (
    Case("best-fit", 1_000, 100_000, 100_000, "placements_per_s", 20_000),
    Case("best-fit", 10_000, 1_000_000, 1_000_000, "placements_per_s", 5_000),
)
FIRST_FIT: Final = (
    # a plain heap and scan in Python, numpy and numba each place so
    Case("first-fit", 1_000, 10_000, 100_000, "events_per_s", 500_000, 791_467),
    Case("first-fit", 1_000, 30_000, 100_000, "events_per_s", 500_000, 3_909_797),
    Case("first-fit", 1_000, 100_000, 100_000, "events_per_s", 500_000, 19_656_369),
)


def measure(case: Case) -> Measured:
    """Place the trace of a case until its last VM has left."""
    trace = first_vms(churn_trace(case.drawn_vms, case.nr_hosts), case.nr_vms)
    placer = Placer(
        trace,
        np.full(case.nr_hosts, HOST_VCPUS, np.int32),
        np.full(case.nr_hosts, HOST_PAGES, np.int64),
        case.policy,
    )
    begin_s = time.process_time()
    plan = placer.epoch(0, trace.span_ns + MAX_LIFE_DAYS * NS_PER_DAY)
    cpu_s = time.process_time() - begin_s
    chosen = plan.host_id[plan.kind == Kind.START]
    return Measured(
        policy=case.policy,
        nr_hosts=case.nr_hosts,
        started=int(chosen.size),
        rejected=int(plan.rejected.size),
        busiest=int(chosen.max()),
        host_sum=int(chosen.sum()),
        cpu_s=cpu_s,
        placements_per_s=(chosen.size + plan.rejected.size) / cpu_s,
        events_per_s=(plan.kind.size + plan.rejected.size) / cpu_s,
    )


def judge(case: Case, found: Measured) -> list[Claim]:
    """Hold a placed trace against the bar of its case, and against what others placed."""
    name = f"{case.policy}, {case.nr_hosts:,} hosts, {case.nr_vms:,} VMs"
    what = "arrivals and departures" if case.unit == "events_per_s" else "placements"
    rate = at_least(f"{name}: {what}", getattr(found, case.unit), case.bar, "/s")
    claims = [rate._replace(cpu_s=found.cpu_s)]
    if case.host_sum is not None:
        source = "a heap and a scan in Python, numpy and numba"
        claims.append(same(f"{name}: sum of host numbers", found.host_sum, case.host_sum, source))
    return claims


def placed(cases: Sequence[Case]) -> Found:
    """Measure cases on one core by CPU time, compilation left out."""
    warm_up()
    rows = [measure(case) for case in cases]
    lines = [
        f"{'policy':<12}{'hosts':>8}{'VMs':>11}{'rejected':>10}{'sum of hosts':>15}"
        f"{'placements/s':>14}{'events/s':>12}"
    ]
    lines += [
        f"{row.policy:<12}{row.nr_hosts:>8,}{row.started:>11,}{row.rejected:>10,}"
        f"{row.host_sum:>15,}{row.placements_per_s:>14,.0f}{row.events_per_s:>12,.0f}"
        for row in rows
    ]
    claims = [c for case, row in zip(cases, rows, strict=True) for c in judge(case, row)]
    return Found(claims, [row._asdict() for row in rows], lines)


def placement() -> Found:
    """Print how many VMs a second are placed on 1,000 and 10,000 hosts, by CPU time."""
    return placed(CASES)
