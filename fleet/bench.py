"""Measurements that back the claims about memory and determinism.

The budget is what ARCHITECTURE.md allows each mechanism; the truth is what the state of the
hosts uses at the end of a run.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from fleet.claims import Found, at_most, same
from fleet.loading import load
from fleet.scenario import Scenario
from fleet.scheduler import Options, run
from fleet.shard import InlineBackend
from hostsim.core.stats import TABLES
from hostsim.core.units import PAGE_SHIFT
from hostsim.mm.slab import BLOCK_DTYPE, S_USED
from hostsim.mm.state import used_parts

KIB: Final = 1024.0
BUDGET: Final = "ARCHITECTURE.md"
GIB_SHIFT: Final = 30 - PAGE_SHIFT
ALLOCATOR_BUDGET_KIB: Final = 7.0  # a simulated GiB, bitmaps, free lists and per-CPU lists


class Part(NamedTuple):
    """One mechanism's share of a host's state."""

    name: str
    arrays: tuple[str, ...]
    budget_kib: float  # a simulated GiB
    allocator: bool


PARTS: Final = (
    Part("pageblocks, orders 9 and 10", ("pb", "nr_free", "zone"), 4.1, True),
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


def memory(
    scenario: Annotated[str, "Scenario to run first."] = "churn",
    /,
    set_: Annotated[list[str] | None, "PATH=VALUE, any field of the scenario."] = None,
) -> Found:
    r"""Run a scenario in this process and print the bytes of state per simulated GiB.

    \b
    Examples:
      fleet bench memory
      fleet bench memory churn --set run.duration=2h
    """
    found = measure_memory(load(scenario, set_ or []))
    total = {"part": "allocator (first three)", **found["allocator"]}
    lines = [f"{found['scenario']}, {found['hosts']} hosts: KiB of state a simulated GiB"]
    lines.append(f"  {'':<32}{'budget':>8}{'mean':>8}{'largest':>9}")
    lines += [
        f"  {row['part']:<32}{row['budget_kib']:>8.1f}{row['mean_kib']:>8.2f}"
        f"{row['largest_kib']:>9.2f}"
        for row in (*found["parts"], total)
    ]
    claims = [
        at_most(f"allocator's state {which}", total[key], total["budget_kib"], "KiB/GiB", BUDGET)
        for which, key in (("over the fleet", "mean_kib"), ("on the largest host", "largest_kib"))
    ]
    return Found(claims, found, lines)


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


def determinism(
    scenario: Annotated[str, "Scenario to run."] = "smoke",
    /,
    hosts: Annotated[int, "Hosts, one Ray actor each in one run."] = 8,
    set_: Annotated[list[str] | None, "PATH=VALUE, any field of the scenario."] = None,
) -> Found:
    r"""Run a scenario inline, on 1, 2 and 4 workers and on an actor a host; compare all bytes.

    \b
    Example:
      fleet bench determinism smoke --set run.duration=1h
    """
    found = measure_determinism(load(scenario, [f"hosts.count={hosts}", *(set_ or [])]))
    lines = [
        f"  {name:<24}" + "  ".join(f"{table} {digest[:12]}" for table, digest in digests.items())
        for name, digests in found.items()
    ]
    first = next(iter(found.values()))
    alike = sum(digests == first for digests in found.values())
    claim = same(f"runs with the bytes of {next(iter(found))}", alike, len(found), "")
    return Found([claim], found, lines)
