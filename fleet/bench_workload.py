"""The trace that fleet simulators replay.

VMs arrive over days (Poisson), live for a log-normal time (median 4.5 h, sigma 2, so a few live
for weeks), many small and a few large, 2, 4 or 8 GiB a vCPU, on hosts of 96 vCPUs and 384 GiB.
"""

from typing import Any, Final

import numpy as np

from fleet.trace import Trace, make_trace
from hostsim.core.units import NS_PER_MS, PAGE_SHIFT

HOST_VCPUS: Final = 96
GIB_SHIFT: Final = 30 - PAGE_SHIFT
HOST_PAGES: Final = 384 << GIB_SHIFT
DAY_S: Final = 86_400
VMS_A_DAY: Final = 25_000  # on 1,000 hosts
BENCH_SEED: Final = 7  # of the trace whose placement other programs have printed
MAX_LIFE_DAYS: Final = 30
VCPUS: Final = ((1, 2, 4, 8, 16, 32), (0.25, 0.30, 0.25, 0.12, 0.06, 0.02))
GIB_A_VCPU: Final = ((2, 4, 8), (0.35, 0.45, 0.20))


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


def first_vms(trace: Trace, nr_vms: int) -> Trace:
    """Return a trace of the VMs that arrive first."""
    fields: dict[str, Any] = trace._asdict()
    cut: dict[str, Any] = {
        name: f[:nr_vms] for name, f in fields.items() if isinstance(f, np.ndarray)
    }
    return trace._replace(**cut, span_ns=int(cut["start_ns"][-1]) + 1)
