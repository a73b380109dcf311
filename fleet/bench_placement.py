"""How fast hosts are chosen: the trace that fleet simulators replay, placed without memory.

The trace: VMs arrive over days (Poisson), live for a log-normal time (median 4.5 h, sigma 2, so
a few live for weeks), many small and a few large, 2, 4 or 8 GiB a vCPU, on hosts of 96 vCPUs and
384 GiB.
"""

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from fleet.pack import warm_up
from fleet.placement import Kind, Placer
from fleet.trace import Trace, make_trace
from hostsim.core.units import NS_PER_DAY, NS_PER_MS, PAGE_SHIFT

HOST_VCPUS: Final = 96
GIB_SHIFT: Final = 30 - PAGE_SHIFT
HOST_PAGES: Final = 384 << GIB_SHIFT
DAY_S: Final = 86_400
VMS_A_DAY: Final = 25_000  # on 1,000 hosts
BENCH_SEED: Final = 7  # of the trace whose placement other programs have printed
MAX_LIFE_DAYS: Final = 30
VCPUS: Final = ((1, 2, 4, 8, 16, 32), (0.25, 0.30, 0.25, 0.12, 0.06, 0.02))
GIB_A_VCPU: Final = ((2, 4, 8), (0.35, 0.45, 0.20))


class Case(NamedTuple):
    """One measurement, and what it must reach."""

    name: str
    policy: str
    nr_hosts: int
    nr_vms: int
    unit: str  # field of Measured
    bar: float
    host_sum: int | None = None  # what an independent program placed


class Measured(NamedTuple):
    """A placed trace."""

    name: str
    policy: str
    nr_hosts: int
    started: int
    rejected: int
    busiest: int  # highest host number that took a VM
    host_sum: int  # sum of the chosen host numbers
    cpu_s: float
    placements_per_s: float
    events_per_s: float  # starts, stops and rejections
    unit: str
    bar: float
    passes: bool


CASES: Final = (
    Case("placements", "best-fit", 1_000, 100_000, "placements_per_s", 20_000),
    Case("placements", "best-fit", 10_000, 1_000_000, "placements_per_s", 5_000),
    # a plain heap and scan in Python, numpy and numba each place so
    Case("churn", "first-fit", 1_000, 100_000, "events_per_s", 500_000, 19_656_369),
)


def churn_trace(nr_vms: int, nr_hosts: int = 1_000, seed: int = BENCH_SEED) -> Trace:
    """Return the trace of a number of VMs for a number of hosts.

    Times are whole milliseconds.  One generator draws all of it, in the order in which the
    published trace was drawn: the sum of its hosts holds for this trace alone.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    days = nr_vms / (VMS_A_DAY * nr_hosts / 1_000)
    arrive_s = np.sort(rng.random(nr_vms) * days * DAY_S)
    life_s = np.exp(np.log(16_200) + 2.0 * rng.standard_normal(nr_vms))
    life_s = np.clip(life_s, 30, MAX_LIFE_DAYS * DAY_S)
    vcpus = rng.choice(VCPUS[0], nr_vms, p=VCPUS[1])
    gib = vcpus * rng.choice(GIB_A_VCPU[0], nr_vms, p=GIB_A_VCPU[1])
    start_ns = np.rint(arrive_s * 1_000).astype(np.int64) * NS_PER_MS
    end_ns = start_ns + np.rint(life_s * 1_000).astype(np.int64) * NS_PER_MS
    none = np.zeros(nr_vms, np.int16)
    return make_trace(
        start_ns,
        end_ns,
        vcpus.astype(np.int32),
        gib.astype(np.int64) << GIB_SHIFT,
        none,
        np.arange(nr_vms),
        ("any",),
        int(start_ns[-1]) + 1,
    )


def measure(case: Case) -> Measured:
    """Place the trace of a case until its last VM has left."""
    trace = churn_trace(case.nr_vms, case.nr_hosts)
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
    host_sum = int(chosen.sum())
    rates = {
        "placements_per_s": (chosen.size + plan.rejected.size) / cpu_s,
        "events_per_s": (plan.kind.size + plan.rejected.size) / cpu_s,
    }
    right = case.host_sum is None or host_sum == case.host_sum
    return Measured(
        name=case.name,
        policy=case.policy,
        nr_hosts=case.nr_hosts,
        started=int(chosen.size),
        rejected=int(plan.rejected.size),
        busiest=int(chosen.max()),
        host_sum=host_sum,
        cpu_s=cpu_s,
        unit=case.unit,
        bar=case.bar,
        passes=right and rates[case.unit] >= case.bar,
        **rates,
    )


def measure_placement(cases: Sequence[Case] = CASES) -> list[Measured]:
    """Measure all cases on one core, compilation left out."""
    warm_up()
    return [measure(case) for case in cases]
