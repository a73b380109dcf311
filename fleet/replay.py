"""Replaying op scripts on the simulated memory manager.

A script is a list of operations on processes, each of which stands for one VM; what comes out
has the shape of a recording of a real kernel, a JSON object a snapshot.

Simplified: a process costs the kernel a stated number of pages beside its page tables
(`PROCESS`), the figures of a small static program.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NR_PAGE_ORDERS, PAGE_SHIFT, PAGEBLOCK_ORDER
from hostsim.mm.fault import FAULT_OK, chosen, touch_range
from hostsim.mm.fork import copy_mm
from hostsim.mm.kalloc import alloc_blocks, free_blocks
from hostsim.mm.memory import buddyinfo, extfrag_index, new_memory, pagetypeinfo, unusable_index
from hostsim.mm.mm_types import (
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    MM_ADVICE,
    MM_ANON,
    MM_HUGE,
    MM_RAM_PAGES,
    NIL,
    NR_TYPES,
    P_RESUME,
    TYPE_NAMES,
    Z_FREE,
    Z_MANAGED,
    ZONE_NAMES,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.oom import select_bad_process
from hostsim.mm.pcp import decay_pcp
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.rmap import KIND_KERNEL, KIND_PGTABLE
from hostsim.mm.snapshot import ZoneState, memory_from
from hostsim.mm.tunables import T_PCP_6_12, set_tunable
from hostsim.mm.vmstat import NAMES, OOM_KILL
from hostsim.mm.zap import discard_range, exit_mm

KB_SHIFT: Final = PAGE_SHIFT - 10
MS_PER_S: Final = 1000
ADVICE: Final = {"none": ADVICE_NONE, "huge": ADVICE_HUGE, "nohuge": ADVICE_NOHUGE}
PIPE_BUFFERS: Final = 16  # PIPE_DEF_BUFFERS, include/linux/pipe_fs_i.h
NR_BLOCK_EXTENTS: Final = 1 << 16
LATER_OPS: Final = ("collapse", "pageout", "merge", "readonly", "compact", "swapon")


class Process(NamedTuple):
    """What a process of a small static program has beside the memory it is told to touch."""

    anon_pages: int = 13  # stack, heap and data written to
    file_pages: int = 150  # text and data shared with the parent, counted in Rss
    pgtable_pages: int = 5  # upper levels and the tables of text, heap and stack, but one
    kernel_pages: int = 11  # kernel stack, PGD and order-0 slabs
    slab_order: int = 2  # one slab that goes back to the buddy when the process is gone


PROCESS: Final = Process()


class Op(NamedTuple):
    """One line of a script."""

    line: int
    name: str
    words: tuple[str, ...]
    options: dict[str, str]


class Start(NamedTuple):
    """What a replay may know: the first snapshot, and when the later ones were taken."""

    first: dict[str, Any]
    t_ms: dict[str, int]


class Script(NamedTuple):
    """A parsed op script."""

    path: Path
    memory_mb: int
    ops: tuple[Op, ...]


_WORDS: Final = {  # op: how many words follow, at least and at most
    "set": (2, 2),
    "vm": (2, 3),
    "touch": (3, 3),
    "read": (3, 3),
    "discard": (3, 3),
    "interleave": (4, 4),
    "fork": (2, 2),
    "exit": (1, 1),
    "kalloc": (1, 1),
    "kfree": (0, 0),
    "wait": (1, 1),
    "snapshot": (1, 1),
    "collapse": (3, 3),
    "pageout": (3, 3),
    "merge": (3, 3),
    "readonly": (3, 3),
    "compact": (0, 0),
    "swapon": (0, 0),
}
_NUMBERS: Final = {  # op: words that are counts of pages or milliseconds
    "vm": (1,),
    "touch": (1, 2),
    "read": (1, 2),
    "discard": (1, 2),
    "interleave": (1, 2, 3),
    "kalloc": (0,),
    "wait": (0,),
}


def read_script(path: Path) -> Script:
    """Parse an op script.

    Raises
    ------
    ScenarioError
        The file cannot be read, or lines are wrong; every wrong line is named.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError([Problem(str(path), f"cannot be read: {error}")]) from error
    size = re.search(r"^#\s*memory_mb=(\d+)", text, re.MULTILINE)
    problems = []
    if size is None:
        problems.append(Problem(str(path), "no line '# memory_mb=N'", "say the machine's RAM"))
    ops = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        op, complaint = _parse_op(number, fields)
        if complaint:
            problems.append(Problem(f"{path}: line {number}", complaint))
        else:
            ops.append(op)
    if problems or size is None:
        raise ScenarioError(problems)
    return Script(path, int(size.group(1)), tuple(ops))


def _parse_op(line: int, fields: list[str]) -> tuple[Op, str]:
    """Return an op and what is wrong with it, if anything."""
    name = fields[0]
    words = tuple(f for f in fields[1:] if "=" not in f)
    options = dict(f.split("=", 1) for f in fields[1:] if "=" in f)
    op = Op(line, name, words, options)
    if name not in _WORDS:
        return op, f"unknown op {name!r}; expected one of {', '.join(_WORDS)}"
    least, most = _WORDS[name]
    if not least <= len(words) <= most:
        return op, f"{name} takes {least} to {most} words, not {len(words)}"
    for index in _NUMBERS.get(name, ()):
        if not words[index].isdigit():
            return op, f"{name}: {words[index]!r} is not a count"
    if name == "vm" and len(words) == 3 and words[2] not in ADVICE:
        return op, f"vm: {words[2]!r} is not one of {', '.join(ADVICE)}"
    for key, kind in (("step", int), ("seed", int), ("fraction", float)):
        try:
            kind(options.get(key, "1"))
        except ValueError:
            return op, f"{key}={options[key]!r} is not a number"
    if int(options.get("step", "1")) < 1:
        return op, f"step={options['step']} is not at least 1"
    return op, ""


def read_start(path: Path) -> Start:
    """Read the first snapshot of a recording, and label and time of the later ones.

    Raises
    ------
    ScenarioError
        The file cannot be read or holds no snapshot.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line[:1] == "{"]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ScenarioError([Problem(str(path), f"cannot be read: {error}")]) from error
    rows = [row for row in rows if "snapshot" in row]
    missing = {"pagetypeinfo", "vmstat", "meminfo_kb"} - set(rows[0] if rows else ())
    if missing:
        need = ", ".join(sorted(missing))
        raise ScenarioError([Problem(str(path), f"its first snapshot has no {need}")])
    return Start(rows[0], {row["snapshot"]: row["t_ms"] for row in rows})


def zones_of(pagetypeinfo_lines: list[str]) -> dict[int, ZoneState]:
    """Return free blocks and pageblocks by zone from the lines of /proc/pagetypeinfo."""
    zones: dict[int, ZoneState] = {}
    names: list[str] = []

    def zone(label: str) -> ZoneState:
        empty = ZoneState(np.zeros((NR_TYPES, NR_PAGE_ORDERS), np.int64), np.zeros(NR_TYPES, int))
        return zones.setdefault(ZONE_NAMES.index(label), empty)

    for line in pagetypeinfo_lines:
        free = re.match(r"Node\s+0, zone\s+(\w+), type\s+(\w+)\s+(.*)", line)
        if free and free.group(2) in TYPE_NAMES:
            counts = [int(cell.lstrip(">")) for cell in free.group(3).split()]
            zone(free.group(1)).free[TYPE_NAMES.index(free.group(2))] = counts
        if line.startswith("Number of blocks type"):
            names = line.split("type", 1)[1].split()
        blocks = re.match(r"Node 0, zone\s+(\w+)\s+([\d\s]+)$", line)
        if names and blocks:
            for name, value in zip(names, blocks.group(2).split(), strict=True):
                if name in TYPE_NAMES:
                    zone(blocks.group(1)).pageblocks[TYPE_NAMES.index(name)] = int(value)
    return zones


def unaccounted_pages(first: dict[str, Any]) -> int:
    """Return the used pages of a snapshot that no counter names.

    Half of them are taken to lie on per-CPU lists, the others to be the kernel's own: no file
    of /proc tells the shares.
    """
    kb = first["meminfo_kb"]
    used_kb = int(kb["MemTotal"] - kb["MemFree"])
    named = ("Slab", "KernelStack", "PageTables")
    named_kb = sum(int(kb.get(key, 0)) for key in named)
    lru = sum(int(v) for k, v in first["vmstat"].items() if re.match(r"nr_zone_(in)?active_", k))
    return max(((used_kb - named_kb) >> KB_SHIFT) - lru, 0)


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
        self.t_ms = 0
        if start is None:
            nr_pages = script.memory_mb << (20 - PAGE_SHIFT)
            self.mem = new_memory(nr_pages, kernel, nr_cpus=1, memmap=True)
            self.total_pages = int(self.mem.zone[:, Z_MANAGED].sum())
            self.base: dict[str, int] = {}
        else:
            self.total_pages = start.first["meminfo_kb"]["MemTotal"] >> KB_SHIFT
            zones = zones_of(start.first["pagetypeinfo"])
            pcp_pages = unaccounted_pages(start.first) // 2
            self.mem = memory_from(zones, self.total_pages, pcp_pages, kernel, nr_cpus=1)
            self.base = start.first["vmstat"]
            self.t_ms = start.first["t_ms"]
        self.mm_of: dict[str, int] = {}  # VM -> process, NIL once the OOM killer took it
        self.slab_of: dict[int, NDArray[np.int64]] = {}  # process -> extent of its slab
        self.pipes: list[NDArray[np.int64] | None] = []
        self.later: list[str] = []  # what the model cannot do yet

    def run(self) -> Iterator[dict[str, Any]]:
        """Run the script; yield its snapshots."""
        for op in self.script.ops:
            if op.name == "snapshot":
                yield self.snapshot(op.words[0])
            elif op.name in LATER_OPS:
                self.later.append(f"line {op.line}: {op.name}")
            else:
                _RUN[op.name](self, op)

    def snapshot(self, label: str) -> dict[str, Any]:
        """Return the state as the recorder prints it."""
        if self.start is not None and label in self.start.t_ms:
            self._pass_time(self.start.t_ms[label] - self.t_ms)
        mem = self.mem
        vmstat = {**self.base, "nr_free_pages": int(mem.zone[:, Z_FREE].sum())}
        for name, value in zip(NAMES, mem.vmstat, strict=True):
            vmstat[name] = self.base.get(name, 0) + int(value)
        vms = {}
        for name, mm in self.mm_of.items():
            vms[name] = {} if mm == NIL else self._smaps(mm)
        return {
            "snapshot": label,
            "t_ms": self.t_ms,
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
            "vms": vms,
        }

    def _smaps(self, mm: int) -> dict[str, int]:
        pages = int(self.mem.mm[mm, MM_ANON]) + PROCESS.file_pages
        huge = int(self.mem.mm[mm, MM_HUGE]) << (PAGEBLOCK_ORDER + KB_SHIFT)
        return {"Rss": pages << KB_SHIFT, "AnonHugePages": huge, "Swap": 0}

    def _pass_time(self, ms: int) -> None:
        """Let the once-a-second workers run."""
        seconds = (self.t_ms + ms) // MS_PER_S - self.t_ms // MS_PER_S
        if self.mem.tunables[T_PCP_6_12] and seconds > 0:
            decay_pcp(self.mem, seconds)
        self.t_ms += max(ms, 0)

    def _alive(self, name: str) -> int:
        """Return a VM's process, or NIL; a VM found dead is forgotten."""
        mm = self.mm_of.get(name, NIL)
        if mm == NIL:
            self.mm_of.pop(name, None)
        return mm

    def _kill(self) -> int:
        """Let the OOM killer take a process; return it."""
        mm = int(select_bad_process(self.mem))
        if mm == NIL:
            place = str(self.script.path)
            raise ScenarioError([Problem(place, "memory is too small even without a VM")])
        self.mem.vmstat[OOM_KILL] += 1
        self._end(mm)
        for name, owner in self.mm_of.items():
            if owner == mm:
                self.mm_of[name] = NIL
        return mm

    def _end(self, mm: int) -> None:
        exit_mm(self.mem, mm)
        slab = self.slab_of.pop(mm, None)
        if slab is not None:
            free_blocks(self.mem, PROCESS.slab_order, slab)

    def _spawn(self, name: str, pages: int, advice: int) -> int:
        """Start a process with the memory that any process has."""
        mem = self.mem
        mm = int(mm_alloc(mem, pages, PROCESS.anon_pages, advice, False, len(self.mm_of)))
        slab = np.zeros(1, np.int64)
        if alloc_blocks(mem, PROCESS.slab_order, MIGRATE_UNMOVABLE, 1, slab):
            self.slab_of[mm] = slab
        for _ in range(PROCESS.kernel_pages):
            alloc_table(mem, mm, KIND_KERNEL)
        for _ in range(PROCESS.pgtable_pages):
            alloc_table(mem, mm, KIND_PGTABLE)
        own = -(-pages >> PAGEBLOCK_ORDER) << PAGEBLOCK_ORDER
        self.mm_of[name] = mm
        self.access(name, own, PROCESS.anon_pages, 1, 1.0, 0, True)
        return mm

    def access(
        self, name: str, start: int, nr: int, step: int, fraction: float, seed: int, write: bool
    ) -> None:
        """Let a VM access pages, killing while memory is short and the VM lives."""
        mm = self._alive(name)
        at = start
        while mm != NIL:
            if touch_range(self.mem, mm, start, nr, step, fraction, seed, write, at) == FAULT_OK:
                return
            at = int(self.mem.pool[P_RESUME])
            if self._kill() == mm:
                self.mm_of.pop(name)
                return

    def op_set(self, op: Op) -> None:
        """Write a setting."""
        key, value = op.words
        try:
            set_tunable(self.mem.tunables, key, value)
        except ValueError as error:
            place = f"{self.script.path}: line {op.line}"
            raise ScenarioError([Problem(place, str(error))]) from error

    def op_vm(self, op: Op) -> None:
        """Start a VM."""
        advice = ADVICE[op.words[2]] if len(op.words) > 2 else ADVICE_NONE
        self._spawn(op.words[0], int(op.words[1]), advice)

    def op_touch(self, op: Op) -> None:
        """Write (``touch``) or read pages."""
        name, start, nr = op.words[0], int(op.words[1]), int(op.words[2])
        step, fraction, seed = _options(op)
        self.access(name, start, nr, step, fraction, seed, op.name == "touch")

    def op_discard(self, op: Op) -> None:
        """Drop pages: one call, or a call a page with step or fraction."""
        mm = self._alive(op.words[0])
        if mm == NIL:
            return
        start, nr = int(op.words[1]), int(op.words[2])
        step, fraction, seed = _options(op)
        if step == 1 and fraction >= 1.0:
            discard_range(self.mem, mm, start, nr)
            return
        for page in range(start, start + nr, step):
            if chosen(seed, page, fraction):
                discard_range(self.mem, mm, page, 1)

    def op_interleave(self, op: Op) -> None:
        """Let VMs touch a range in turn, a chunk each."""
        names = op.words[0].split(",")
        start, nr, chunk = (int(word) for word in op.words[1:])
        _, fraction, seed = _options(op)
        for offset in range(0, nr, chunk):
            for name in names:
                self.access(name, start + offset, chunk, 1, fraction, seed, True)

    def op_fork(self, op: Op) -> None:
        """Fork a VM."""
        parent = self._alive(op.words[0])
        if parent == NIL:
            return
        mem = self.mem
        row = mem.mm[parent]
        child = int(
            mm_alloc(
                mem,
                int(row[MM_RAM_PAGES]),
                PROCESS.anon_pages,
                int(row[MM_ADVICE]),
                False,
                len(self.mm_of),
            )
        )
        self.mm_of[op.words[1]] = child
        for _ in range(PROCESS.kernel_pages):
            alloc_table(mem, child, KIND_KERNEL)
        for _ in range(PROCESS.pgtable_pages):
            alloc_table(mem, child, KIND_PGTABLE)
        while not copy_mm(mem, parent, child):
            exit_mm(mem, child)
            if self._kill() == parent:
                break

    def op_exit(self, op: Op) -> None:
        """Kill a VM's process."""
        mm = self._alive(op.words[0])
        if mm != NIL:
            self._end(mm)
            del self.mm_of[op.words[0]]

    def op_kalloc(self, op: Op) -> None:
        """Fill pipes with kernel pages, 16 a pipe; their own slab comes on top."""
        want = int(op.words[0])
        while want > 0:
            here = min(want, PIPE_BUFFERS)
            extents = np.zeros(here, np.int64)
            if len(self.pipes) % 16 == 0:  # kmalloc-1k: 16 pipe_buffer arrays in 4 pages
                self._slab(2, MIGRATE_UNMOVABLE)
            if len(self.pipes) % 26 == 0:  # inode_cache: 26 inodes in 4 pages
                self._slab(2, MIGRATE_RECLAIMABLE)
            got = int(alloc_blocks(self.mem, 0, MIGRATE_UNMOVABLE, here, extents))
            self.pipes.append(extents[:got])
            if got < here:
                self._kill()
            want -= here

    def _slab(self, order: int, migratetype: int) -> None:
        alloc_blocks(self.mem, order, migratetype, 1, np.zeros(1, np.int64))

    def op_kfree(self, op: Op) -> None:
        """Close the chosen pipes; their slab stays with its neighbours."""
        _, fraction, seed = _options(op)
        for index, extents in enumerate(self.pipes):
            if extents is not None and chosen(seed, index, fraction):
                free_blocks(self.mem, 0, extents)
                self.pipes[index] = None

    def op_wait(self, op: Op) -> None:
        """Let time pass."""
        self._pass_time(int(op.words[0]))


def _options(op: Op) -> tuple[int, float, int]:
    """Return step, fraction and seed of an op."""
    options = op.options
    return (
        int(options.get("step", "1")),
        float(options.get("fraction", "1")),
        int(options.get("seed", "0")),
    )


_RUN: Final[dict[str, Callable[[Replay, Op], None]]] = {
    "set": Replay.op_set,
    "vm": Replay.op_vm,
    "touch": Replay.op_touch,
    "read": Replay.op_touch,
    "discard": Replay.op_discard,
    "interleave": Replay.op_interleave,
    "fork": Replay.op_fork,
    "exit": Replay.op_exit,
    "kalloc": Replay.op_kalloc,
    "kfree": Replay.op_kfree,
    "wait": Replay.op_wait,
}
