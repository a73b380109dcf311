"""What a run costs: CPU time and memory of this process and all it started, from /proc.

A look at memory makes the kernel walk the page tables of a process, 13 ms a GiB in small pages.
`fleet.costs.Costs.look` looks so seldom that this takes three thousandths of a run's wall time at
most; VmRSS would be free, but counts what processes share once for each.
"""

import functools
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """CPU time so far and memory now."""

    cpu_s: float
    memory_bytes: int  # proportional set size: shared pages count once over all processes


def process_tree(root: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat:
                children.setdefault(int(stat[1]), []).append(int(entry.name))
    tree = [root]
    for pid in tree:
        tree += children.get(pid, [])
    return tree


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on, none if the process has gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def age_s() -> float:
    """Return how long ago this process began, in wall time."""
    began_s = (start_ticks(os.getpid()) or 0) / _TICKS_PER_S
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_s


@functools.cache
def machine() -> str:
    """Return what names this machine, this boot of it and this space of process numbers."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink(PROC / 'self/ns/pid')}"


def start_ticks(pid: int) -> int | None:
    """Return when a process began, in clock ticks since boot; None if it has ended."""
    stat = _stat(pid)
    return int(stat[19]) if stat and stat[0] not in "ZX" else None


def _memory_bytes(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cpu_of_process(pid: int) -> float:
    """Return the CPU time of a process."""
    stat = _stat(pid)
    return sum(map(int, stat[11:15])) / _TICKS_PER_S if stat else 0.0


def usage_of_process(pid: int) -> Usage:
    """Return what one process uses, its ended children's CPU time included."""
    return Usage(cpu_of_process(pid), _memory_bytes(pid))


def cpu_of_tree() -> float:
    """Return the CPU time of this process and everything it started; memory is slow to look at."""
    return sum(map(cpu_of_process, process_tree(os.getpid())))


def usage_of_tree(root: int | None = None) -> Usage:
    """Return what this process (or another) and everything it started use."""
    parts = [usage_of_process(pid) for pid in process_tree(root or os.getpid())]
    return Usage(sum(part.cpu_s for part in parts), sum(part.memory_bytes for part in parts))


@dataclass
class Cost:
    """What a block took."""

    cpu_s: float = 0.0  # of this process and of children that ended
    memory_bytes: int = 0  # largest resident set of one process so far


def _rusage() -> tuple[float, int]:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(r.ru_utime + r.ru_stime for r in both), max(r.ru_maxrss for r in both) * 1024


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure what a block takes; the result is filled in at its end."""
    cost = Cost()
    before_s, _ = _rusage()
    yield cost
    cpu_s, cost.memory_bytes = _rusage()
    cost.cpu_s = cpu_s - before_s
