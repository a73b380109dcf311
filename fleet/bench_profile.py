"""Where the CPU time of a run goes, by mechanism: ``perf`` with the names of compiled kernels.

A kernel's time is its own, not that of what it calls: an allocation inside a page fault is the
allocator's.  Hosts and guests run the same kernels and are one here.  perf (Linux) samples the
run; it knows no Python functions, so Python and NumPy are one row, but for samples of address
translation, whose time the run itself records.
"""

import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from fleet.claims import Found
from fleet.loading import load
from fleet.scenario import Scenario, to_toml
from fleet.usage import measured
from hostsim.core.errors import WorkerError

SAMPLES_PER_S: Final = 499
LARGEST_KERNEL_BYTES: Final = 1 << 20
MECHANISMS: Final = (
    # the first pattern that a kernel's name begins with
    ("page faults", "hostsim.mm.(fault|huge_run|fork|gup|cow_huge|split|turn|filemap)"),
    ("allocator", "hostsim.mm.(buddy|pcp|page_alloc|physmem|pageblock|slowpath|watermark|contig)"),
    ("mappings and page tables", "hostsim.mm.(rmap|mmap|pgtable|vma|layout|touched|content|numa)"),
    ("freeing", "hostsim.mm.(zap|unmap|madvise|oom)"),
    ("EPT", "hostsim.(ept|mm.mmu_notifier)"),
    ("compaction", "hostsim.mm.(compact|kcompactd|migrate)"),
    ("khugepaged", "hostsim.mm.(khugepaged|collapse|mm_slot|promotion|policy)"),
    ("reclaim and swap", "hostsim.mm.(reclaim|shrink|swap|lru)"),
    ("KSM", "hostsim.mm.ksm"),
    ("slab, other kernel memory", "hostsim.mm.(slab|kalloc)"),
    ("samples of translation, kernels", "(hostsim.mmu|fleet.mmu|guestsim.(workload|pagetable))"),
    ("ticks, turns, behaviour of guests", "(guestsim|fleet|hostsim)"),
)
OTHER: Final = {
    "kernel.kallsyms": "Linux: first touch of memory, files",
    "libllvmlite": "loading kernels",
    "arrow": "results",
    "parquet": "results",
}


class Part(NamedTuple):
    """One mechanism's share."""

    name: str
    ratio: float
    cpu_s: float


def write_map() -> None:
    """Write where the compiled kernels lie, as perf looks for it."""
    from numba.core.dispatcher import Dispatcher

    gc.unfreeze()
    places: dict[int, str] = {}
    for found in gc.get_objects():
        if not isinstance(found, Dispatcher):
            continue
        name = f"{found.py_func.__module__}.{found.py_func.__name__}"
        compiled: Any
        for compiled in found.overloads.values():
            names = compiled.fndesc.llvm_func_name, compiled.fndesc.llvm_cpython_wrapper_name
            for symbol in names:
                places[compiled.library.get_pointer_to_function(symbol)] = name
    places.pop(0, None)
    order = sorted(places)
    ends = [*order[1:], order[-1] + LARGEST_KERNEL_BYTES] if order else []
    with Path(f"/tmp/perf-{os.getpid()}.map").open("w", encoding="ascii") as file:
        for begin, end in zip(order, ends, strict=True):
            size = min(end - begin, LARGEST_KERNEL_BYTES)
            file.write(f"{begin:x} {size:x} {places[begin]}\n")


def mechanism(symbol: str, library: str) -> str:
    """Return to what a sample belongs."""
    for name, pattern in MECHANISMS:
        if re.match(pattern + r"[\w.]*\.", symbol):
            return name
    return next((name for part, name in OTHER.items() if part in library), "Python and NumPy")


def count(script: Iterable[str]) -> Counter[str]:
    """Count the samples of ``perf script -F ip,sym,dso`` by mechanism."""
    found: Counter[str] = Counter()
    for line in script:
        match = re.match(r"\s*[0-9a-f]+ (.*) \((.*)\)$", line)
        if match:
            found[mechanism(match[1], match[2])] += 1
    return found


def _run_perf(*arguments: str) -> str:
    done = subprocess.run(["perf", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerError(f"perf {arguments[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def measure(scenario: Scenario) -> tuple[list[Part], float]:
    """Run a scenario in a process of its own under perf; return shares, and CPU seconds of it.

    Raises
    ------
    WorkerError
        There is no perf, or it may not sample, or the run failed.
    """
    if shutil.which("perf") is None:
        raise WorkerError("the command perf (linux-perf) is missing")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "scenario.toml").write_text(to_toml(scenario.document), encoding="utf-8")
        data = str(folder / "perf.data")
        run = [sys.executable, "-m", "fleet.bench_profile", str(folder)]
        with measured() as cost:
            _run_perf("record", "-q", "-F", str(SAMPLES_PER_S), "-o", data, *run)
        script = _run_perf("script", "-i", data, "-F", "ip,sym,dso")
        for path in folder.glob("*.pid"):
            Path(f"/tmp/perf-{path.stem}.map").unlink(missing_ok=True)
        sampled_s = float((folder / "sampled_s").read_text())
    found = count(script.splitlines())
    total = sum(found.values())
    kernels = found["samples of translation, kernels"]
    moved = round(sampled_s / cost.cpu_s * total) - kernels
    found["samples of translation, Python"] = min(max(moved, 0), found["Python and NumPy"])
    found["Python and NumPy"] -= found["samples of translation, Python"]
    parts = [
        Part(name, nr / total, cost.cpu_s * nr / total) for name, nr in found.most_common() if nr
    ]
    return parts, cost.cpu_s


def profiled(folder: Path) -> None:
    """Run the scenario of a folder in this process; leave what perf and `measure` read."""
    from fleet.scheduler import Options, run

    scenario = load(str(folder / "scenario.toml"))
    record: dict[str, Any] = run(
        scenario, folder / "run", Options(inline=True, checkpoint_epochs=0)
    )
    (folder / "sampled_s").write_text(str(record["execution"]["mmu"]["cpu_s"]))
    (folder / f"{os.getpid()}.pid").touch()
    write_map()


def profile(
    scenario: Annotated[str, "Scenario to run."] = "churn",
    /,
    set_: Annotated[list[str] | None, "PATH=VALUE, any field of the scenario."] = None,
) -> Found:
    r"""Run a scenario under perf and print the share of CPU time of each mechanism.

    Start-up is in it, some seconds: a long run tells more. Needs the command perf.

    \b
    Example:
      fleet bench profile churn --set hosts.count=20 --set vms.scale=0.0063
    """
    parts, cpu_s = measure(load(scenario, set_ or []))
    lines = [f"{cpu_s:.1f} CPU-s, one process"]
    lines += [f"  {part.name:<40}{part.ratio:>7.1%}{part.cpu_s:>9.2f} s" for part in parts]
    return Found((), [part._asdict() for part in parts], lines)


if __name__ == "__main__":
    profiled(Path(sys.argv[1]))
