"""Measurements that back the claims about memory and growth.

The budget is what ARCHITECTURE.md allows each mechanism; the truth is what the state of the
hosts uses at the end of a run.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fleet.scenario import Scenario
from fleet.scheduler import Options, run
from fleet.shard import InlineBackend
from hostsim.core.stats import TABLES
from hostsim.core.units import PAGE_SHIFT
from hostsim.mm.slab import BLOCK_DTYPE, S_USED
from hostsim.mm.state import used_parts

KIB: Final = 1024.0
GIB_SHIFT: Final = 30 - PAGE_SHIFT
ALLOCATOR_BUDGET_KIB: Final = 8.0  # a simulated GiB, bitmaps, free lists and per-CPU lists


class Part(NamedTuple):
    """One mechanism's share of a host's state."""

    name: str
    arrays: tuple[str, ...]
    budget_kib: float  # a simulated GiB
    allocator: bool


PARTS: Final = (
    Part("pageblocks, orders 9 and 10", ("pb", "nr_free", "zone"), 5.1, True),
    Part("partial pageblocks", ("rec",), 2.7, True),
    Part("per-CPU lists", ("run",), 0.2, True),
    Part("extents of small pages", ("ext",), 12.0, False),
    Part("windows of address spaces", ("windows", "mm"), 2.5, False),
    Part("slab blocks", ("slab",), 1.5, False),
)


class _Keep:
    """Keeps the backend of a run, whose hosts are looked at when the run is over."""

    backend: InlineBackend

    def __call__(self, scenario: Scenario) -> InlineBackend:
        self.backend = InlineBackend(scenario)
        return self.backend


def measure_memory(scenario: Scenario) -> dict[str, Any]:
    """Run a scenario in this process and count the bytes that its hosts' state uses.

    Returns
    -------
    dict
        ``parts`` (name, budget and KiB used a simulated GiB: mean, largest host) and
        ``allocator`` (the sum over the allocator's parts: mean, largest).
    """
    keep = _Keep()
    with tempfile.TemporaryDirectory() as folder:
        run(scenario, Path(folder) / "run", Options(inline=True, checkpoint_epochs=0), None, keep)
    used = [_bytes_by_array(node.host) for node in keep.backend.shard.nodes]
    gib = [node.host.spec.memory_pages / (1 << GIB_SHIFT) for node in keep.backend.shard.nodes]

    def per_gib(arrays: Sequence[str]) -> list[float]:
        return [
            sum(host[name] for name in arrays) / KIB / size
            for host, size in zip(used, gib, strict=True)
        ]

    rows = []
    for part in PARTS:
        values = per_gib(part.arrays)
        rows.append(
            {
                "part": part.name,
                "budget_kib": part.budget_kib,
                "mean_kib": sum(values) / len(values),
                "largest_kib": max(values),
            }
        )
    allocator = per_gib([name for part in PARTS if part.allocator for name in part.arrays])
    return {
        "scenario": scenario.name,
        "hosts": len(used),
        "parts": rows,
        "allocator": {
            "budget_kib": ALLOCATOR_BUDGET_KIB,
            "mean_kib": sum(allocator) / len(allocator),
            "largest_kib": max(allocator),
        },
    }


def _bytes_by_array(host: Any) -> dict[str, int]:
    sizes = {name: part.nbytes for name, part in used_parts(host.mem).items()}
    return sizes | {"slab": int(host.slab.state[S_USED]) * BLOCK_DTYPE.itemsize}


VARIANTS: Final = {
    "--inline": Options(inline=True),
    "--inline, a second run": Options(inline=True),
    "--workers 1": Options(workers=1),
    "--workers 2": Options(workers=2),
    "--workers 4": Options(workers=4),
    "--hosts-per-actor 1": Options(hosts_per_actor=1),
}


def digest_tables(run_dir: Path) -> dict[str, str]:
    """Return a SHA-256 over names and bytes of the parts of each table of a run."""
    digests = {}
    for table in TABLES:
        digest = hashlib.sha256()
        for part in sorted((run_dir / table).rglob("*.parquet")):
            digest.update(part.name.encode())
            digest.update(part.read_bytes())
        digests[table] = digest.hexdigest()
    return digests


def measure_determinism(scenario: Scenario) -> dict[str, dict[str, str]]:
    """Run a scenario in every way and return the digests of its tables by way."""
    found = {}
    for name, options in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            run(scenario, Path(folder) / "run", options)
            found[name] = digest_tables(Path(folder) / "run")
    return found


def measure_growth(scenarios: Sequence[Scenario], options: Options) -> list[dict[str, Any]]:
    """Run scenarios of growing size and return what a host costs in each.

    Returns
    -------
    list of dict
        ``hosts``, ``wall_s``, ``cpu_s``, ``cpu_ms_per_host_hour``, ``peak_mib_per_host`` (all
        processes).
    """
    rows = []
    for scenario in scenarios:
        with tempfile.TemporaryDirectory() as folder:
            record = run(scenario, Path(folder) / "run", options)
        cost = record["execution"]
        rows.append(
            {
                "hosts": scenario.nr_hosts,
                "wall_s": cost["wall_s"],
                "cpu_s": cost["cpu_s"],
                "cpu_ms_per_host_hour": 1000.0 * cost["cpu_s"] / cost["host_hours"],
                "peak_mib_per_host": cost["peak_memory_bytes"] / KIB**2 / scenario.nr_hosts,
            }
        )
    return rows
