"""Op scripts and the starts of recordings: reading them, and saying what is wrong with them."""

import json
import re
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import NR_PAGE_ORDERS, PAGE_SHIFT
from hostsim.mm.layout import ZoneState
from hostsim.mm.mm_types import NR_TYPES, TYPE_NAMES, ZONE_NAMES
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, ADVICE_NONE

KB_SHIFT: Final = PAGE_SHIFT - 10
ADVICE: Final = {"none": ADVICE_NONE, "huge": ADVICE_HUGE, "nohuge": ADVICE_NOHUGE}


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
    "collapse": (1, 2),
    "pageout": (1, 2),
    "merge": (1, 2),
    "readonly": (1, 2),
}
RANGE_OPS: Final = ("touch", "read", "discard", "collapse", "pageout", "merge", "readonly")


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
    vms: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        op, complaint = _parse_op(number, fields)
        complaint = complaint or _check_vms(op, vms)
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


def _check_vms(op: Op, vms: dict[str, int]) -> str:
    """Return what is wrong with the VMs that an op names, if anything.

    Parameters
    ----------
    vms
        Pages of each VM that runs at this line; modified.
    """
    name = op.words[0] if op.words else ""
    if op.name == "vm":
        if name in vms:
            return f"vm: there is a VM {name!r} already"
        vms[name] = int(op.words[1])
    elif op.name == "interleave":
        start, nr, chunk = (int(word) for word in op.words[1:])
        if chunk < 1:
            return f"interleave: {chunk} is not a chunk of at least 1 page"
        end = start + -(-nr // chunk) * chunk
        complaints = (_outside(op, vm, end, vms) for vm in name.split(","))
        return next((complaint for complaint in complaints if complaint), "")
    elif op.name in RANGE_OPS:
        return _outside(op, name, int(op.words[1]) + int(op.words[2]), vms)
    elif op.name in ("fork", "exit"):
        if name not in vms:
            return _unknown_vm(op, name, vms)
        if op.name == "exit":
            del vms[name]
        elif op.words[1] in vms:
            return f"fork: there is a VM {op.words[1]!r} already"
        else:
            vms[op.words[1]] = vms[name]
    return ""


def _unknown_vm(op: Op, name: str, vms: dict[str, int]) -> str:
    """Return the complaint about a VM that does not run."""
    known = ", ".join(vms) if vms else "none"
    return f"{op.name}: no VM {name!r} runs here; there are: {known}"


def _outside(op: Op, name: str, end: int, vms: dict[str, int]) -> str:
    """Return what is wrong with a range of a VM's pages that ends before ``end``."""
    if name not in vms:
        return _unknown_vm(op, name, vms)
    if end > vms[name]:
        return f"{op.name}: page {end - 1} is outside of {name!r}, which has {vms[name]} pages"
    return ""


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
