"""Replaying op scripts on the simulated memory manager.

A script is a list of operations on processes, each of which stands for one VM; what comes out
has the shape of a recording of a real kernel, a JSON object a snapshot.  The operations:
`fleet.replay_ops` and its neighbours.

Simplified: a process costs the kernel a stated number of pages beside its page tables
(`PROCESS`), the figures of a small static program.
"""

import copy
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.replay_ops import LATER_OPS, OPS
from fleet.replay_pipes import Pipes, end_files
from fleet.replay_script import KB_SHIFT, Op, Script, Start, unaccounted_pages, zones_of
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NS_PER_MS, PAGE_SHIFT, PAGEBLOCK_ORDER
from hostsim.mm.daemons import access_range, run_daemons, settle, start_vmstat_worker
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.kalloc import alloc_blocks, free_blocks
from hostsim.mm.memory import buddyinfo, extfrag_index, new_memory, pagetypeinfo, unusable_index
from hostsim.mm.mm_slot import hold_mm
from hostsim.mm.mm_types import (
    MIGRATE_UNMOVABLE,
    MM_ANON,
    MM_HUGE,
    MM_KHUGEPAGED,
    MM_SWAP,
    NIL,
    P_COST_NS,
    P_DAEMON_NS,
    P_DAEMON_SCALE,
    P_NOW_NS,
    P_RESUME,
    P_SETTLED_NS,
    P_TIME_SCALE,
    TIME_SCALE_ONE,
    Z_FREE,
    Z_MANAGED,
)
from hostsim.mm.mmap import mm_alloc
from hostsim.mm.oom import select_bad_process
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.rmap import KIND_KERNEL, KIND_PGTABLE
from hostsim.mm.snapshot import memory_from
from hostsim.mm.state import restore_parts, used_parts
from hostsim.mm.vmstat import NAMES, OOM_KILL
from hostsim.mm.zap import exit_mm

# What the recorder itself costs, in the terms of hostsim.mm.cost: medians of the recordings
SNAPSHOT_NS: Final = 2_000_000  # printing a snapshot on a serial console
VM_NS: Final = 2_500_000  # starting a process
REQUEST_NS: Final = 15_000  # a request to a process and its answer, two context switches
# A recorded machine's time for one nanosecond of cost, median of the recordings' intervals, and
# the cost at which what was seen counts as much: a busy interval says little of the next one.
USUAL_PACE: Final = 9
USUAL_NS: Final = 100_000_000


class Process(NamedTuple):
    """What a process of a small static program has beside the memory it is told to touch."""

    anon_pages: int = 13  # stack, heap and data written to
    file_pages: int = 150  # text and data shared with the parent, counted in Rss
    pgtable_pages: int = 5  # upper levels and the tables of text, heap and stack, but one
    kernel_pages: int = 13  # kernel stack, buffers of its two control pipes, slabs
    pgd_order: int = 1  # PGD_ALLOCATION_ORDER with CONFIG_PAGE_TABLE_ISOLATION


PROCESS: Final = Process()


class Replay:
    """One machine on which a script runs.

    Parameters
    ----------
    script
        What to run.
    kernel
        Profile name.
    start
        The state to start from; without it, a machine with all memory free.
    """

    def __init__(self, script: Script, kernel: str, start: Start | None = None) -> None:
        self.script, self.start = script, start
        if start is None:
            nr_pages = script.memory_mb << (20 - PAGE_SHIFT)
            self.mem = new_memory(nr_pages, kernel, nr_cpus=1, memmap=True)
            self.total_pages = int(self.mem.zone[:, Z_MANAGED].sum())
            self.base: dict[str, int] = {}
            self.t_ms_of: dict[str, int] = {}
        else:
            self.total_pages = start.first["meminfo_kb"]["MemTotal"] >> KB_SHIFT
            zones = zones_of(start.first["pagetypeinfo"])
            pcp_pages = unaccounted_pages(start.first) // 2
            self.mem = memory_from(zones, self.total_pages, pcp_pages, kernel, nr_cpus=1)
            self.base = start.first["vmstat"]
            self.mem.pool[P_NOW_NS] = start.first["t_ms"] * NS_PER_MS
            self.t_ms_of = start.t_ms
        start_vmstat_worker(self.mem)
        self.mm_of: dict[str, int] = {}  # VM -> process, NIL once the OOM killer took it
        self.pgd_of: dict[int, NDArray[np.int64]] = {}  # process -> extent of its PGD
        # time and model cost of all intervals so far, and of one before them at the usual pace
        self.paced_ns = np.array([USUAL_PACE * USUAL_NS, USUAL_NS])
        self.pipes = Pipes()
        self.later: list[str] = []  # what the model cannot do yet

    def run(self) -> Iterator[dict[str, Any]]:
        """Run the script; yield its snapshots."""
        interval: list[Op] = []
        for op in self.script.ops:
            if op.name == "snapshot":
                self._run_interval(interval, self.t_ms_of.get(op.words[0]))
                yield self.snapshot(op.words[0])
                self.charge(SNAPSHOT_NS)
                interval = []
            else:
                interval.append(op)
        self._run_interval(interval, None)

    def _run_interval(self, ops: list[Op], end_ms: int | None) -> None:
        """Run the ops up to a snapshot so that they end at its time, if that is known."""
        mem = self.mem
        if end_ms is None:
            self._run_ops(ops)
            return
        end_ns = end_ms * NS_PER_MS
        waits_ns = sum(int(op.words[0]) for op in ops if op.name == "wait") * NS_PER_MS
        rest_ns = max(end_ns - int(mem.pool[P_NOW_NS]) - waits_ns, 0)
        cost_ns = self._trial_cost_ns(ops)
        mem.pool[P_TIME_SCALE] = rest_ns * TIME_SCALE_ONE // max(cost_ns, 1)
        self.paced_ns += np.array([rest_ns, cost_ns])
        paced_ns, priced_ns = (int(ns) for ns in self.paced_ns)
        mem.pool[P_DAEMON_SCALE] = paced_ns * TIME_SCALE_ONE // max(priced_ns, 1)
        self._run_ops(ops)
        run_daemons(mem, end_ns)
        mem.pool[P_NOW_NS] = end_ns

    def _trial_cost_ns(self, ops: list[Op]) -> int:
        """Return what ops would cost, from a run on a copy of the machine."""
        trial = self._copy()
        trial._run_ops(ops)
        before, after = self.mem.pool, trial.mem.pool
        by_daemons_ns = int(after[P_DAEMON_NS] - before[P_DAEMON_NS])
        return int(after[P_COST_NS] - before[P_SETTLED_NS]) - by_daemons_ns

    def charge(self, ns: int) -> None:
        """Let something that is no memory operation take its time."""
        self.mem.pool[P_COST_NS] += ns

    def _copy(self) -> "Replay":
        """Return a machine in the same state."""
        other = copy.copy(self)
        other.mem = restore_parts(used_parts(self.mem), self.mem)
        for name, value in vars(self).items():
            if isinstance(value, Pipes):
                setattr(other, name, value.copy())
            elif isinstance(value, dict | list):
                setattr(other, name, copy.copy(value))
        return other

    def _run_ops(self, ops: list[Op]) -> None:
        """Run ops one after the other; time passes as they cost it."""
        settle(self.mem)
        for op in ops:
            if op.name in LATER_OPS:
                self.later.append(f"line {op.line}: {op.name}")
            else:
                OPS[op.name](self, op)
                settle(self.mem)

    def snapshot(self, label: str) -> dict[str, Any]:
        """Return the state as the recorder prints it."""
        mem = self.mem
        vmstat = {**self.base, "nr_free_pages": int(mem.zone[:, Z_FREE].sum())}
        for name, value in zip(NAMES, mem.vmstat, strict=True):
            vmstat[name] = self.base.get(name, 0) + int(value)
        vms = {}
        for name, mm in self.mm_of.items():
            vms[name] = {} if mm == NIL else self._smaps(mm)
        return {
            "snapshot": label,
            "t_ms": int(mem.pool[P_NOW_NS]) // NS_PER_MS,
            "vmstat": vmstat,
            "meminfo_kb": {
                "MemTotal": self.total_pages << KB_SHIFT,
                "MemFree": vmstat["nr_free_pages"] << KB_SHIFT,
                "AnonPages": vmstat["nr_anon_pages"] << KB_SHIFT,
                "AnonHugePages": vmstat["nr_anon_transparent_hugepages"]
                << (PAGEBLOCK_ORDER + KB_SHIFT),
                "PageTables": vmstat["nr_page_table_pages"] << KB_SHIFT,
            },
            "buddyinfo": buddyinfo(mem),
            "pagetypeinfo": pagetypeinfo(mem),
            "unusable_index": unusable_index(mem),
            "extfrag_index": extfrag_index(mem),
            "pages_collapsed": [str(vmstat["pages_collapsed"])],
            "full_scans": [str(vmstat["full_scans"])],
            "vms": vms,
        }

    def _smaps(self, mm: int) -> dict[str, int]:
        pages = int(self.mem.mm[mm, MM_ANON]) + PROCESS.file_pages
        swap = int(self.mem.mm[mm, MM_SWAP])
        huge = int(self.mem.mm[mm, MM_HUGE]) << (PAGEBLOCK_ORDER + KB_SHIFT)
        return {"Rss": pages << KB_SHIFT, "AnonHugePages": huge, "Swap": swap << KB_SHIFT}

    def alive(self, name: str) -> int:
        """Return a VM's process, or NIL; a VM found dead is forgotten."""
        mm = self.mm_of.get(name, NIL)
        if mm == NIL:
            self.mm_of.pop(name, None)
        return mm

    def kill(self) -> int:
        """Let the OOM killer take a process; return it."""
        mm = int(select_bad_process(self.mem))
        if mm == NIL:
            place = str(self.script.path)
            raise ScenarioError([Problem(place, "memory is too small even without a VM")])
        self.mem.vmstat[OOM_KILL] += 1
        self.end(mm)
        for name, owner in self.mm_of.items():
            if owner == mm:
                self.mm_of[name] = NIL
        return mm

    def end(self, mm: int) -> None:
        """End a process."""
        place = int(self.mem.mm[mm, MM_KHUGEPAGED])
        exit_mm(self.mem, mm)
        end_files(self, mm)
        pgd = self.pgd_of.pop(mm, None)
        if pgd is not None and not hold_mm(self.mem, place, int(pgd[0])):
            free_blocks(self.mem, PROCESS.pgd_order, pgd)

    def new_process(self, name: str, pages: int, advice: int, parent: int = NIL) -> int:
        """Start a process with the kernel's pages for it, as a VM; NIL is the recorder's child."""
        mem = self.mem
        self.charge(VM_NS)
        pgd = np.zeros(1, np.int64)
        nr_pgds = alloc_blocks(mem, PROCESS.pgd_order, MIGRATE_UNMOVABLE, 1, pgd)
        mm = int(mm_alloc(mem, pages, PROCESS.anon_pages, advice, False, len(self.mm_of)))
        for _ in range(PROCESS.kernel_pages):
            alloc_table(mem, mm, KIND_KERNEL)
        for _ in range(PROCESS.pgtable_pages):
            alloc_table(mem, mm, KIND_PGTABLE)
        self.mm_of[name] = mm
        self.pipes.inherit(mm, parent)
        if nr_pgds:
            self.pgd_of[mm] = pgd
        return mm

    def spawn(self, name: str, pages: int, advice: int) -> None:
        """Start a VM with the memory that any process has."""
        self.new_process(name, pages, advice)
        own = -(-pages >> PAGEBLOCK_ORDER) << PAGEBLOCK_ORDER
        self.access(name, own, PROCESS.anon_pages, 1, 1.0, 0, True)

    def access(
        self, name: str, start: int, nr: int, step: int, fraction: float, seed: int, write: bool
    ) -> None:
        """Let a VM access pages, killing while memory is short and the VM lives."""
        mm = self.alive(name)
        at = start
        self.charge(REQUEST_NS)
        while mm != NIL:
            if access_range(self.mem, mm, start, nr, step, fraction, seed, write, at) == FAULT_OK:
                return
            at = int(self.mem.pool[P_RESUME])
            if self.kill() == mm:
                self.mm_of.pop(name)
                return
