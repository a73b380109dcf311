"""What a run costs: wall time, CPU time and memory of all its processes."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fleet.mmu_figures import SampleUsage
from fleet.usage import usage_of_tree
from hostsim.core.units import NS_PER_HOUR

RemoteUsage = Callable[[], list[tuple[float, int]]]  # CPU seconds and memory, elsewhere
MEASURE_EVERY_S = 2.0  # wall time between two looks at the memory of all processes, at least
MEASURE_SHARE = 0.003  # of the wall time, at most, goes into them


@dataclass
class Costs:
    """What the run has cost so far, over all processes."""

    start_s: float = field(default_factory=time.perf_counter)
    first_rows_s: float = 0.0  # from the beginning of this process to the rows of an epoch
    advance_s: float = 0.0  # wall time between the first submit and the last collect
    barrier_cpu_s: float = 0.0  # of the driver, while no shard computes; no checkpoints
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    base_cpu_s: float = field(default_factory=lambda: usage_of_tree().cpu_s)
    next_look_s: float = 0.0
    simulated_ns: int = 0  # by this attempt
    looked_at_ns: int = 0  # of it, when CPU time and memory were last noted

    def look(self, remote_usage: RemoteUsage, force: bool = False) -> None:
        """Note CPU time and memory, at most once in a while unless forced."""
        now_s = time.perf_counter()
        if not force and now_s < self.next_look_s:
            return
        here, elsewhere = usage_of_tree(), remote_usage()
        memory_bytes = here.memory_bytes + sum(memory for _, memory in elsewhere)
        self.cpu_s = here.cpu_s - self.base_cpu_s + sum(cpu_s for cpu_s, _ in elsewhere)
        self.peak_memory_bytes = max(self.peak_memory_bytes, memory_bytes)
        self.looked_at_ns = self.simulated_ns
        took_s = time.perf_counter() - now_s  # the kernel walks all page tables
        self.next_look_s = now_s + max(MEASURE_EVERY_S, took_s / MEASURE_SHARE)

    def host_hours_per_core_s(self, nr_hosts: int) -> float:
        """Return the speed as of the last look."""
        return nr_hosts * self.looked_at_ns / NS_PER_HOUR / self.cpu_s if self.cpu_s else 0.0


def cost_record(costs: Costs, nr_hosts: int) -> dict[str, float]:
    """Return what ``run.json`` says of the cost of a run."""
    host_hours = nr_hosts * costs.simulated_ns / NS_PER_HOUR
    return {
        "wall_s": round(time.perf_counter() - costs.start_s, 3),
        "first_rows_wall_s": round(costs.first_rows_s, 3),
        "advance_wall_s": round(costs.advance_s, 3),
        "barrier_cpu_s": round(costs.barrier_cpu_s, 3),
        "cpu_s": round(costs.cpu_s, 2),
        "peak_memory_bytes": costs.peak_memory_bytes,
        "host_hours": host_hours,
    }


def sampling_record(parts: list[SampleUsage]) -> dict[str, float]:
    """Return what ``run.json`` says of the cost of samples of translation."""
    samples, known, cpu_s = (sum(column) for column in zip(*parts, strict=True))
    return {"samples": samples, "memo_hits": known, "cpu_s": round(cpu_s, 2)}
