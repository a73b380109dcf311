"""What an operator watches while a run advances: where it stands, and an epoch's figures."""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import FLEET_COLUMNS
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_S, PAGE_BYTES

_HOST: Final = {column.name: index for index, column in enumerate(HOST_COLUMNS)}
_FLEET: Final = {column.name: index for index, column in enumerate(FLEET_COLUMNS)}


class Live(NamedTuple):
    """Figures as of the end of an epoch; ratios are in [0, 1], counts since the run began."""

    hosts: int
    empty_hosts: int
    vms: int  # running
    huge_coverage_ratio: float  # guest RAM on the hosts in huge pages
    fragmentation_median_ratio: float  # over hosts: free memory unusable for 2 MiB
    fragmentation_p95_ratio: float
    free_memory_ratio: float
    hosts_without_free_2m: int
    swap_used_bytes: int
    walk_ratio: float  # run time of the guests' programs in page walks
    thp_fault_alloc: int
    thp_fault_fallback: int
    pages_collapsed: int  # huge pages that khugepaged made
    stall_s: float  # accesses waited for direct compaction and reclaim
    oom_kills: int

    @property
    def thp_fallback_ratio(self) -> float:
        """Share of eligible faults that fell back to 4 KiB."""
        return _ratio(self.thp_fault_fallback, self.thp_fault_alloc + self.thp_fault_fallback)


class Progress(NamedTuple):
    """Where a run stands after an epoch."""

    epoch: int  # epochs done
    nr_epochs: int
    t_ns: int
    vm_events: int  # starts, rejects, ends and kills so far
    live: Live
    host_hours_per_core_s: float
    peak_memory_bytes: int
    recoveries: int  # workers that were lost and brought back


class SweepProgress(NamedTuple):
    """Where a sweep stands."""

    runs: int  # done
    nr_runs: int
    epochs: int  # done, of all runs
    nr_epochs: int


Watch = Callable[[Progress], None]  # called after every epoch


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


def live_figures(hosts: NDArray[np.int64], fleet: NDArray[np.int64]) -> Live:
    """Return the figures of an epoch from its rows of the tables ``hosts`` and ``fleet``."""
    t_ns = hosts[:, _HOST["t_ns"]]
    last = hosts[t_ns == t_ns.max()]
    row = fleet[-1]

    def total(name: str) -> int:
        return int(last[:, _HOST[name]].sum())

    unusable = last[:, _HOST["unusable_index_order9"]] / 1000
    running = last[:, _HOST["running_milli_vcpus"]]
    in_walks = float((running * last[:, _HOST["walk_share"]]).sum())
    return Live(
        hosts=int(row[_FLEET["nr_hosts"]]),
        empty_hosts=int(row[_FLEET["empty_hosts"]]),
        vms=int(row[_FLEET["nr_vms"]]),
        huge_coverage_ratio=_ratio(
            total("nr_anon_transparent_hugepages") * HPAGE_PMD_NR, total("nr_guest_pages")
        ),
        fragmentation_median_ratio=float(np.median(unusable)),
        fragmentation_p95_ratio=float(np.quantile(unusable, 0.95, method="nearest")),
        free_memory_ratio=_ratio(total("nr_free_pages"), total("managed_pages")),
        hosts_without_free_2m=int(row[_FLEET["hosts_no_free_2m"]]),
        swap_used_bytes=total("swap_used_pages") * PAGE_BYTES,
        walk_ratio=_ratio(in_walks, float(running.sum()) * 1e6),
        thp_fault_alloc=total("thp_fault_alloc"),
        thp_fault_fallback=total("thp_fault_fallback"),
        pages_collapsed=total("pages_collapsed"),
        stall_s=total("stall_ns") / NS_PER_S,
        oom_kills=total("oom_kill"),
    )
