"""What Ray costs: its own processes, what shards cost in workers, and waiting at barriers.

All of it is CPU time, which other programs on the machine do not change.  A shard waits while the
slowest one computes, and while the driver places VMs between two epochs; the rest of the driver's
work is done while shards compute.
"""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, NamedTuple

import numpy as np

from fleet.actors import RayBackend
from fleet.bench_runs import measured_run
from fleet.claims import Claim, Found, at_most
from fleet.loading import load
from fleet.scenario import Scenario
from fleet.scheduler import Options
from fleet.shard import InlineBackend, Step, Tables
from fleet.usage import cpu_of_process, cpu_of_tree
from fleet.warmup import warm_up
from hostsim.core import jit_options

OWN_BAR: Final = 0.05
SHARD_BAR: Final = 1.1
IDLE_BAR: Final = 0.1
WORKERS: Final = 2


class Measured(NamedTuple):
    """What one run took behind its first quarter of epochs, in CPU seconds."""

    shards_s: float
    slowest_s: float  # sum over epochs of the slowest shard
    between_s: float  # the driver between two epochs
    own_s: float  # processes of Ray itself
    all_s: float
    samples_s: float  # of the whole run, samples of translation

    @property
    def idle_ratio(self) -> float:
        """How much of the time of epochs a worker waits on average."""
        advance_s = self.slowest_s + self.between_s
        return 1.0 - self.shards_s / WORKERS / advance_s


class _Timer:
    """Notes what an epoch took in each shard, and what the driver did since the last."""

    def __init__(self) -> None:
        self.epochs: list[list[float]] = []
        self.between_s: list[float] = []
        self.whole: list[tuple[float, float]] = []  # all processes, Ray's own
        self._collected_s = time.thread_time()

    def submitted(self) -> None:
        self.between_s.append(time.thread_time() - self._collected_s)

    def collected(self, shards_s: list[float], all_s: float, own_s: float) -> None:
        self.epochs.append(shards_s)
        self.whole.append((all_s, own_s))
        self._collected_s = time.thread_time()

    def measured(self, samples_s: float, begin_ratio: float = 0.25) -> Measured:
        first = max(1, int(len(self.epochs) * begin_ratio))
        shards = np.array(self.epochs)[first:]
        (all0_s, own0_s), (all1_s, own1_s) = self.whole[first - 1], self.whole[-1]
        return Measured(
            float(shards.sum()),
            float(shards.max(axis=1).sum()),
            float(sum(self.between_s[first:])),
            own1_s - own0_s,
            all1_s - all0_s,
            samples_s,
        )


class _Inline(InlineBackend):
    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self.timer = _Timer()
        self._took_s = 0.0

    def submit(self, steps: list[Step]) -> None:
        self.timer.submitted()
        begin_s = time.process_time()
        super().submit(steps)
        self._took_s = time.process_time() - begin_s

    def collect(self) -> list[Tables]:
        rows = super().collect()
        self.timer.collected([self._took_s], time.process_time(), 0.0)
        return rows


class _Ray(RayBackend):
    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, WORKERS)
        self.timer = _Timer()
        self._before = self._workers()

    def _workers(self) -> list[float]:
        return [cpu_of_process(pid) for pid in self.pids()]

    def submit(self, steps: list[Step]) -> None:
        self.timer.submitted()
        super().submit(steps)

    def collect(self) -> list[Tables]:
        rows = super().collect()
        now, all_s = self._workers(), cpu_of_tree()
        took = [b - a for a, b in zip(self._before, now, strict=True)]
        self._before = now
        self.timer.collected(took, all_s, all_s - sum(now) - time.process_time())
        return rows


def measure(scenario: Scenario, make: Callable[[Scenario], Any]) -> Measured:
    """Run a scenario on a backend that keeps time."""
    kept: list[Any] = []

    def made(scenario: Scenario) -> Any:
        kept.append(make(scenario))
        return kept[0]

    found = measured_run(scenario, Options(checkpoint_epochs=0), make_backend=made)
    timer: _Timer = kept[0].timer
    return timer.measured(float(found.record["execution"]["mmu"]["cpu_s"]))


def judge(inline: Sequence[Measured], ray: Sequence[Measured]) -> list[Claim]:
    """Hold medians over runs by turns against their bars."""
    own = float(np.median([run.own_s / run.all_s for run in ray]))
    pairs = zip(inline, ray, strict=True)
    ratio = float(np.median([with_ray.shards_s / alone.shards_s for alone, with_ray in pairs]))
    idle = float(np.median([run.idle_ratio for run in ray]))
    return [
        at_most("Ray's own processes, of a run's CPU time behind its beginning", own, OWN_BAR),
        at_most(f"CPU time of shards, {WORKERS} workers over inline", ratio, SHARD_BAR),
        at_most("waiting at barriers, of the time of epochs", idle, IDLE_BAR),
    ]


def ray(
    hosts: Annotated[int, "Hosts of the churn scenario."] = 40,
    hours: Annotated[int, "Simulated hours."] = 8,
    pairs: Annotated[int, "Runs inline and on two workers, by turns."] = 5,
) -> Found:
    r"""Run the churn scenario inline and on two workers by turns; print what Ray adds.

    \b
    Example:
      fleet bench ray --hosts 10 --hours 4 --pairs 1
    """
    scale = float(load("churn").document["vms"]["scale"]) / load("churn").nr_hosts * hosts
    fixed = [f"hosts.count={hosts}", f"run.duration={hours}h", f"vms.scale={scale:.6f}"]
    warm_up()
    jit_options.processes = 0  # a process with Ray's threads must not fork
    found: dict[str, list[Measured]] = {"inline": [], "ray": []}
    for pair in range(pairs):
        scenario = load("churn", [*fixed, f"run.seed={pair}"])  # samples of a seed are remembered
        found["inline"].append(measure(scenario, _Inline))
        found["ray"].append(measure(scenario, _Ray))
    lines = [
        f"{'':<8}{'shards':>9}{'slowest':>9}{'driver':>9}{'Ray':>9}{'all':>9}{'samples':>9}  CPU s"
    ]
    lines += [
        f"{name:<8}" + "".join(f"{value:>9.2f}" for value in run)
        for name, runs in found.items()
        for run in runs
    ]
    details = {name: [run._asdict() for run in runs] for name, runs in found.items()}
    return Found(judge(found["inline"], found["ray"]), details, lines)
