"""What page faults, clearing and copying cost on this machine, measured on memory of its own.

Anonymous memory is mapped, advised, touched and unmapped again; nothing else is changed, and no
rights are needed. A round measures everything once; what is reported is the median of the rounds,
the first left out: it meets memory that a hypervisor may not have backed yet.

The rules by which costs follow from what was measured are those of `hostsim.mm.cost`: a fault of
4 KiB is ``fault + clear_page``, one of 2 MiB ``huge_fault + 512 * clear_page`` (`huge_fault` keeps
its default, 0.3 % of it), migrating is a fault and a copy, ksmd takes as long as clearing.
Simplified: costs that no unprivileged program can see keep their defaults.
"""

import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.calibrate_kernels import chase, copy, fill, link, touch
from fleet.snapshot_text import chosen_word, parse_counters
from fleet.virtual import detect, steal_and_all_ticks
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import HPAGE_PMD_BYTES, HPAGE_PMD_NR, PAGE_BYTES, format_bytes
from hostsim.mm.cost import C_HUGE_FAULT, DEFAULT_NS, NAMES

MIN_ROUNDS: Final = 4  # the first of which does not count
MAX_ROUNDS: Final = 200
LEAST_BYTES: Final = 16 << 20
MOST_BYTES: Final = 1 << 30
ENABLED: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Figure(NamedTuple):
    """A figure over rounds, in nanoseconds."""

    median_ns: float
    p25_ns: float
    p75_ns: float
    rounds: int


@contextmanager
def memory_of_own(nr_bytes: int, advice: int) -> Iterator[tuple[mmap.mmap, NDArray[np.int64], int]]:
    """Map anonymous memory that begins on a 2 MiB boundary; unmap it at the end.

    Yields
    ------
    mapping, words, offset
        The mapping, what of it may be used, and where that begins.
    """
    mapping = mmap.mmap(-1, nr_bytes + HPAGE_PMD_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(mapping, np.uint8)
    offset = -whole.ctypes.data % HPAGE_PMD_BYTES
    words = whole[offset : offset + nr_bytes].view(np.int64)
    try:
        mapping.madvise(advice, offset, nr_bytes)
        yield mapping, words, offset
    finally:
        del whole, words  # else the mapping cannot be closed
        with suppress(BufferError):  # the caller still holds a view: its end unmaps
            mapping.close()


def _took_ns(work: Callable[..., object], *arguments: object) -> int:
    begin_ns = time.perf_counter_ns()
    work(*arguments)
    return time.perf_counter_ns() - begin_ns


def huge_bytes() -> int:
    """Return how much of this process's memory is in huge pages."""
    try:
        text = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return 0
    return parse_counters(text).get("AnonHugePages", 0) << 10


def _round_of_small_pages(nr_bytes: int, found: dict[str, list[float]]) -> None:
    pages = nr_bytes // PAGE_BYTES
    with memory_of_own(nr_bytes, mmap.MADV_NOHUGEPAGE) as (mapping, words, offset):
        small = words.view(np.uint8)
        first_ns = _took_ns(touch, small, PAGE_BYTES, pages)
        again_ns = _took_ns(touch, small, PAGE_BYTES, pages)
        found["fault_4k"].append((first_ns - again_ns) / pages)
        link(words, PAGE_BYTES // 8, pages)
        found["access_4k"].append(_took_ns(chase, words, PAGE_BYTES // 8, pages) / pages)
        zap_ns = _took_ns(mapping.madvise, mmap.MADV_DONTNEED, offset, nr_bytes)
        found["free_4k"].append(zap_ns / pages)
        del small, words


def _round_of_huge_pages(nr_bytes: int, found: dict[str, list[float]]) -> None:
    windows, pages = nr_bytes // HPAGE_PMD_BYTES, nr_bytes // PAGE_BYTES
    before = huge_bytes()
    with memory_of_own(nr_bytes, mmap.MADV_HUGEPAGE) as (mapping, words, offset):
        small = words.view(np.uint8)
        first_ns = _took_ns(touch, small, HPAGE_PMD_BYTES, windows)
        is_huge = huge_bytes() - before >= nr_bytes  # all or nothing: no mean of two kinds
        if is_huge:
            again_ns = _took_ns(touch, small, HPAGE_PMD_BYTES, windows)
            found["fault_2m"].append((first_ns - again_ns) / windows)
        fill(words, 1)
        half = len(words) // 2
        found["fill_4k"].append(_took_ns(fill, words, 0) / pages)
        found["copy_4k"].append(_took_ns(copy, words[:half], words[half:]) / (pages / 2))
        if is_huge:
            link(words, PAGE_BYTES // 8, pages)
            found["access_2m"].append(_took_ns(chase, words, PAGE_BYTES // 8, pages) / pages)
            found["split"].append(_took_ns(_split_all, mapping, offset, windows) / windows)
        del small, words


def _split_all(mapping: mmap.mmap, offset: int, windows: int) -> None:
    """Give back one page of every huge page, which splits its PMD."""
    for window in range(windows):
        mapping.madvise(mmap.MADV_DONTNEED, offset + window * HPAGE_PMD_BYTES, PAGE_BYTES)


def measure(seconds: float, nr_bytes: int) -> dict[str, Figure]:
    """Measure rounds until the time is over, a few at least; figures are per page or window.

    No more than ``nr_bytes`` are in use at any time.
    """
    names = ("fault_4k", "free_4k", "fault_2m", "fill_4k", "copy_4k", "split")
    found: dict[str, list[float]] = {name: [] for name in (*names, "access_4k", "access_2m")}
    _round_of_small_pages(LEAST_BYTES, {name: [] for name in found})  # compiles
    _round_of_huge_pages(LEAST_BYTES, {name: [] for name in found})
    end_s = time.monotonic() + seconds
    rounds = 0
    while rounds < MAX_ROUNDS and (rounds < MIN_ROUNDS or time.monotonic() < end_s):
        _round_of_small_pages(nr_bytes, found)
        _round_of_huge_pages(nr_bytes, found)
        rounds += 1
    return {name: _figure(values) for name, values in found.items() if len(values) > 1}


def _figure(values: list[float]) -> Figure:
    kept = [max(value, 0.0) for value in values[1:]]
    low, high = np.quantile(kept, [0.25, 0.75])
    return Figure(statistics.median(kept), float(low), float(high), len(kept))


def derive(measured: dict[str, Figure]) -> dict[str, int]:
    """Return costs in nanoseconds that follow from what was measured, by the module's rules."""
    ns = {name: figure.median_ns for name, figure in measured.items()}
    if "fault_2m" in ns:
        clear_ns = (ns["fault_2m"] - DEFAULT_NS[C_HUGE_FAULT]) / HPAGE_PMD_NR
    else:
        clear_ns = ns["fill_4k"]
    fault_ns = ns["fault_4k"] - clear_ns
    costs = {
        "fault": fault_ns,
        "clear_page": clear_ns,
        "copy_page": ns["copy_4k"],
        "migrate_page": max(fault_ns, 0.0) + ns["copy_4k"],
        "free_page": ns["free_4k"],
        "ksm_page": clear_ns,
    }
    if "split" in ns:
        costs["split"] = ns["split"]
    return {name: max(round(costs[name]), 1) for name in NAMES if name in costs}


def calibrate(seconds: float, nr_bytes: int) -> dict[str, Any]:
    """Measure this machine; return the content of a file of costs.

    Raises
    ------
    ScenarioError
        The memory is out of its bounds, or not there.
    """
    _check_memory(nr_bytes)
    machine, (steal, ticks) = detect(), steal_and_all_ticks()
    measured = measure(seconds, nr_bytes)
    steal_now, ticks_now = steal_and_all_ticks()
    steal_ratio = (steal_now - steal) / max(ticks_now - ticks, 1)
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "memory_bytes": nr_bytes,
        "seconds": seconds,
        "machine": machine._asdict(),
        "steal_ratio": round(steal_ratio, 4),
        "costs": derive(measured),
        "measured": {name: figure._asdict() for name, figure in measured.items()},
        "notes": list(_notes(measured, machine.virtual, machine.evidence, steal_ratio)),
    }


def _check_memory(nr_bytes: int) -> None:
    place = f"--memory {format_bytes(nr_bytes)}"
    if not LEAST_BYTES <= nr_bytes <= MOST_BYTES or nr_bytes % HPAGE_PMD_BYTES:
        rule = f"is not {format_bytes(LEAST_BYTES)} to {format_bytes(MOST_BYTES)} in steps of 2 MiB"
        raise ScenarioError([Problem(place, rule)])
    if nr_bytes & (nr_bytes - 1):
        raise ScenarioError([Problem(place, "is no power of two")])
    try:
        known = parse_counters(Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        return
    available = known.get("MemAvailable", 0) << 10
    if known and nr_bytes > available // 2:
        message = f"is more than half of what is available, {format_bytes(available)}"
        raise ScenarioError([Problem(place, message)])


def _notes(
    measured: dict[str, Figure], virtual: bool, evidence: str, steal_ratio: float
) -> Iterator[str]:
    """Yield what spoils the figures."""
    if virtual:
        yield (
            f"this is a virtual machine ({evidence}): where the hypervisor has not backed memory,"
            " fault costs hold its EPT violations and its own faults; every access walks two"
            " page tables; ept_violation cannot be measured here and keeps its default"
        )
    if steal_ratio > 0.01:
        yield f"the hypervisor took {steal_ratio:.1%} of the CPU time meanwhile: repeat it"
    if "fault_2m" not in measured:
        try:
            enabled = chosen_word(ENABLED.read_text(encoding="utf-8"))
        except OSError:
            enabled = "unknown"
        yield (
            f"no huge pages were to be had (enabled is {enabled}): clear_page is that of a program"
            " filling memory, split keeps its default"
        )
    wide = [
        name
        for name, figure in measured.items()
        if figure.p75_ns - figure.p25_ns > 0.3 * max(figure.median_ns, 1.0)
    ]
    if wide:
        yield f"the middle half of the rounds spreads over 30 % for {', '.join(wide)}: repeat it"
