"""How many translations a second: the kernel of every MMU simulation, beside its C++ twin.

The timed kernel is `access_pages`, over the page tables of a simulated guest and its EPT.  The
twin, `bench_mmu.cpp`, does the same to the same tables and pages; it is compiled by ``g++ -O2``
for the benchmark alone.
"""

import os
import shutil
import subprocess
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.claims import Claim, Found, at_least, same
from fleet.hardware import load_cpu
from fleet.mmu import VPID, Setup, Space, build_space, memory_for
from fleet.profiles import load_workload
from hostsim.core.rng import Stream, stream
from hostsim.mmu.cpus import new_mmu
from hostsim.mmu.paging import R_ROOT
from hostsim.mmu.tlb import C_ACCESSES, C_L1_HITS, C_L2_HITS, C_READS, C_WALKS
from hostsim.mmu.walker import access_pages

CPU: Final = "cascade-lake"  # the one that the twin has
FOOTPRINT_BYTES: Final = 3 << 30
ACCESSES: Final = 1 << 22
LINES_PER_PAGE: Final = 64
RUNS: Final = 7
LEVELS: Final = 4
NAMES: Final = ("accesses", "l1_hits", "l2_hits", "walks", "references")


class Case(NamedTuple):
    """One stream over one pair of page tables, and its bars."""

    stream: str
    guest_thp: str
    host_thp: str
    least_rate: float  # accesses a second; 0: none
    least_ratio: float  # of the twin's rate; 0: none


CASES: Final = (
    Case("uniform", "never", "never", 25e6, 0.8),
    Case("uniform", "never", "always", 0.0, 0.8),
    Case("uniform", "always", "always", 0.0, 0.8),
    Case("zipf", "never", "never", 25e6, 0.8),
    Case("sequential", "never", "never", 500e6, 0.0),
)


def draw(name: str, pages: int, seed: int = 1) -> NDArray[np.int64]:
    """Return the pages of a stream."""
    rng = stream(seed, Stream.BENCH)
    if name == "uniform":
        anywhere: NDArray[np.int64] = rng.integers(0, pages, ACCESSES)
        return anywhere
    if name == "zipf":
        below = np.cumsum(np.arange(1, pages + 1, dtype=np.float64) ** -0.99)
        ranks = np.searchsorted(below, rng.random(ACCESSES) * below[-1])
        chosen: NDArray[np.int64] = rng.permutation(pages)[ranks]
        return chosen
    lines: NDArray[np.int64] = np.arange(ACCESSES, dtype=np.int64)
    return lines // LINES_PER_PAGE % pages


def _measure_kernel(space: Space, pages: NDArray[np.int64]) -> tuple[list[int], list[float]]:
    """Return what was counted, and accesses a second of every run."""
    rates = []
    for _ in range(RUNS):
        mmu = new_mmu(load_cpu(CPU))
        begin = time.process_time()
        access_pages(mmu, space.guest, space.ept, True, VPID, pages, len(pages))
        rates.append(len(pages) / (time.process_time() - begin))
    counts = mmu.counts
    counted = [counts[c] for c in (C_ACCESSES, C_L1_HITS, C_L2_HITS, C_WALKS)]
    return [*map(int, counted), int(counts[C_READS:].sum())], rates


def _compile_twin(folder: Path) -> Path | None:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    source = files("fleet").joinpath("bench_mmu.cpp").read_text(encoding="utf-8")
    (folder / "bench_mmu.cpp").write_text(source)
    program = folder / "bench_mmu"
    subprocess.run(
        [compiler, "-O2", "-std=c++17", "bench_mmu.cpp", "-o", str(program)],
        cwd=folder,
        check=True,
    )
    return program


def _measure_twin(
    program: Path, space: Space, pages: NDArray[np.int64]
) -> tuple[list[int], list[float]]:
    folder = program.parent
    space.guest.entry.tofile(folder / "guest.entry")
    space.guest.frame.tofile(folder / "guest.frame")
    space.ept.entry.tofile(folder / "ept.entry")
    roots = [space.guest.root[R_ROOT], space.ept.root[R_ROOT]]
    np.array(roots, np.int64).tofile(folder / "roots")
    pages.tofile(folder / "pages")
    done = subprocess.run(
        [str(program), str(folder), str(RUNS)], capture_output=True, text=True, check=True
    )
    first, *rates = done.stdout.splitlines()
    return [int(word) for word in first.split()], [float(rate) for rate in rates]


def measure_mmu() -> list[dict[str, Any]]:
    """Return rates and counts of every case, ours and the twin's."""
    workload = load_workload("gups", FOOTPRINT_BYTES)
    rows = []
    spaces: dict[tuple[str, str], Space] = {}
    with tempfile.TemporaryDirectory() as name:
        twin = _compile_twin(Path(name))
        for case in CASES:
            key = case.guest_thp, case.host_thp
            if key not in spaces:
                spaces[key] = build_space(workload, Setup(True, *key, LEVELS, memory_for(workload)))
            pages = draw(case.stream, workload.pages)
            counted, rates = _measure_kernel(spaces[key], pages)
            row: dict[str, Any] = {
                **case._asdict(),
                "counted": dict(zip(NAMES, counted, strict=True)),
                "rate": float(np.median(rates)),
                "fastest": max(rates),
            }
            if twin is not None:
                same, twin_rates = _measure_twin(twin, spaces[key], pages)
                row["twin_counted"] = dict(zip(NAMES, same, strict=True))
                row["twin_rate"] = float(np.median(twin_rates))
                row["ratio"] = row["rate"] / row["twin_rate"]
            rows.append(row)
    return rows


def judge(row: dict[str, Any]) -> list[Claim]:
    """Hold a case against its bars: rate, ratio to the twin, and the same counts."""
    tables = f"guest THP {row['guest_thp']}, host THP {row['host_thp']}"
    name = f"{row['stream']}, {tables}"
    claims = []
    if row["least_rate"]:
        claims.append(at_least(f"{name}: accesses", row["rate"], row["least_rate"], "/s"))
    if "ratio" in row:
        if row["least_ratio"]:
            claims.append(at_least(f"{name}: rate over C++", row["ratio"], row["least_ratio"]))
        alike = row["counted"] == row["twin_counted"]
        claims.append(same(f"{name}: counts as C++", alike, True, ""))
    return claims


def mmu() -> Found:
    """Time TLBs and nested walks over 3 GiB, beside a C++ twin that must count the same.

    CPU time; the twin is compiled with g++ (or $CXX) and left out if there is none.
    """
    rows = measure_mmu()
    lines = []
    for row in rows:
        lines.append(f"{row['stream']}, guest THP {row['guest_thp']}, host THP {row['host_thp']}")
        counts = "  ".join(f"{name} {count:,}" for name, count in row["counted"].items())
        lines.append(f"  kernel {row['rate'] / 1e6:8.1f} M/s  {counts}")
        if "ratio" in row:
            counts = "  ".join(f"{n} {count:,}" for n, count in row["twin_counted"].items())
            lines.append(f"  C++    {row['twin_rate'] / 1e6:8.1f} M/s  {counts}")
        else:
            lines.append("  no C++ compiler: not compared")
    return Found([claim for row in rows for claim in judge(row)], rows, lines)
