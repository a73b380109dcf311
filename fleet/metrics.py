"""A run's figures as metrics of Ray, which exports them to Prometheus with the prefix ``ray_``.

Every node's metrics agent serves them at the node's ``--metrics-export-port``; there is an agent
where ``ray[default]`` is installed (deploy/README.md). Metrics never change or end a run.
"""

import logging
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ray.util.metrics import Counter, Gauge

from fleet.live import Progress
from hostsim.core.units import NS_PER_S

_LOG = logging.getLogger(__name__)
TAGS: Final = ("run", "seed")


class Metric(NamedTuple):
    """One metric; its name ends with its unit where it has one."""

    name: str
    doc: str
    value: Callable[[Progress], float]
    counter: bool = False  # exported with the suffix _total

    @property
    def exported(self) -> str:
        """Its name as Prometheus sees it."""
        return f"ray_{self.name}" + ("_total" if self.counter else "")


METRICS: Final = (
    Metric("hugefleet_simulated_seconds", "Simulated time.", lambda p: p.t_ns / NS_PER_S),
    Metric("hugefleet_epochs_done", "Epochs done.", lambda p: p.epoch),
    Metric("hugefleet_epochs_planned", "Epochs of the whole run.", lambda p: p.nr_epochs),
    Metric("hugefleet_hosts", "Hosts.", lambda p: p.live.hosts),
    Metric("hugefleet_empty_hosts", "Hosts without a VM.", lambda p: p.live.empty_hosts),
    Metric("hugefleet_vms", "VMs running.", lambda p: p.live.vms),
    Metric(
        "hugefleet_huge_coverage_ratio",
        "Guest RAM on the hosts in huge pages, share.",
        lambda p: p.live.huge_coverage_ratio,
    ),
    Metric(
        "hugefleet_thp_fallback_ratio",
        "Eligible faults that fell back to 4 KiB since the run began, share.",
        lambda p: p.live.thp_fallback_ratio,
    ),
    Metric(
        "hugefleet_fragmentation_median_ratio",
        "Free memory unusable for 2 MiB, median over hosts.",
        lambda p: p.live.fragmentation_median_ratio,
    ),
    Metric(
        "hugefleet_fragmentation_p95_ratio",
        "Free memory unusable for 2 MiB, 95th percentile over hosts.",
        lambda p: p.live.fragmentation_p95_ratio,
    ),
    Metric(
        "hugefleet_free_memory_ratio",
        "Free memory, share of all hosts' memory.",
        lambda p: p.live.free_memory_ratio,
    ),
    Metric(
        "hugefleet_hosts_without_free_2m",
        "Hosts without a free block of 2 MiB.",
        lambda p: p.live.hosts_without_free_2m,
    ),
    Metric("hugefleet_swap_used_bytes", "Swap in use.", lambda p: p.live.swap_used_bytes),
    Metric(
        "hugefleet_walk_ratio",
        "Run time of the guests' programs in page walks, share.",
        lambda p: p.live.walk_ratio,
    ),
    Metric(
        "hugefleet_host_hours_per_core_second",
        "Speed: simulated host-hours a second of CPU time.",
        lambda p: p.host_hours_per_core_s,
    ),
    Metric(
        "hugefleet_peak_memory_bytes",
        "Most memory of all processes so far.",
        lambda p: p.peak_memory_bytes,
    ),
    Metric("hugefleet_vm_events", "VM events.", lambda p: p.vm_events, counter=True),
    Metric(
        "hugefleet_pages_collapsed",
        "Huge pages that khugepaged made.",
        lambda p: p.live.pages_collapsed,
        counter=True,
    ),
    Metric(
        "hugefleet_stall_seconds",
        "Simulated time that accesses waited for direct compaction and reclaim.",
        lambda p: p.live.stall_s,
        counter=True,
    ),
    Metric(
        "hugefleet_oom_kills",
        "VMs killed because memory ran out.",
        lambda p: p.live.oom_kills,
        counter=True,
    ),
    Metric(
        "hugefleet_recoveries",
        "Workers that were lost and brought back.",
        lambda p: p.recoveries,
        counter=True,
    ),
)


class Exporter:
    """Sets the metrics of one run after every epoch; a failure ends the export, not the run."""

    def __init__(self, run: str, seed: int) -> None:
        self._tags = dict(zip(TAGS, (run, str(seed)), strict=True))
        self._counted = dict.fromkeys((m.name for m in METRICS if m.counter), 0.0)
        self._own: dict[str, Any] | None = None

    def __call__(self, progress: Progress) -> None:
        """Set all metrics to the figures of an epoch."""
        if self._own == {}:
            return
        try:
            self._set(progress)
        except Exception as error:  # ray raises whatever its agent met
            _LOG.warning("metrics are exported no more: %s", error)
            self._own = {}

    def _set(self, progress: Progress) -> None:
        if self._own is None:
            kinds = ((m, Counter if m.counter else Gauge) for m in METRICS)
            self._own = {m.name: kind(m.name, m.doc, TAGS) for m, kind in kinds}
        for metric in METRICS:
            value = float(metric.value(progress))
            if not metric.counter:
                self._own[metric.name].set(value, self._tags)
            elif value > self._counted[metric.name]:
                self._own[metric.name].inc(value - self._counted[metric.name], self._tags)
                self._counted[metric.name] = value
