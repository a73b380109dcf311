"""Reading a running host: /proc, /sys and the processes of its VMs, as far as permitted.

Nothing is written and nothing is changed.  What could not be read is listed, with the reason
and with what it costs.
"""

import re
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from fleet.snapshot_file import HostSnapshot, NumaNode, Unread, VmProcess, Zone
from fleet.snapshot_text import (
    chosen_word,
    differing_cells,
    parse_counters,
    parse_pagetypeinfo,
    parse_zoneinfo,
)
from hostsim.core.errors import Problem, ScenarioError

ATTEMPTS: Final = 20  # to read files that are of one moment
PAUSE_S: Final = 0.05  # between two attempts
QEMU: Final = re.compile(r"qemu-system-|qemu-kvm|kvm$|qemu$")
KVM_STATS: Final = ("pages_4k", "pages_2m", "pages_1g", "nx_lpage_splits", "pf_taken")
VM_FILES: Final = (
    "swappiness",
    "page-cluster",
    "watermark_boost_factor",
    "watermark_scale_factor",
    "min_free_kbytes",
    "extfrag_threshold",
    "compaction_proactiveness",
    "compact_unevictable_allowed",
    "overcommit_memory",
)
_SIZE: Final = {"": 20, "m": 20, "k": 10, "g": 30, "t": 40, "b": 0}


class _Host:
    """The files of a host below a folder; keeps what could not be read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.unread: list[Unread] = []

    def text(self, path: str, cost: str = "") -> str:
        """Return a file's text; without it, note what that costs and return nothing."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            if cost:
                self.miss(f"/{path}", error, cost)
            return ""

    def miss(self, what: str, error: OSError, cost: str) -> None:
        """Note something that could not be read."""
        why = error.strerror or "cannot be read"
        if isinstance(error, PermissionError):
            why += "; only root may read it"
        self.unread.append(Unread(what=what, why=why, cost=cost))

    def folder(self, path: str) -> list[Path]:
        """Return what is in a folder, in order; nothing if it cannot be looked at."""
        try:
            return sorted((self.root / path).iterdir())
        except OSError:
            return []

    def numbers(self, folder: str, names: Iterable[str] = ()) -> dict[str, int]:
        """Return the files of a folder that hold one number."""
        chosen = names or [path.name for path in self.folder(folder)]
        found = {}
        for name in chosen:
            text = self.text(f"{folder}/{name}").strip()
            if re.fullmatch(r"-?\d+", text):
                found[name] = int(text)
        return found


class _Free(NamedTuple):
    """How free memory is divided, read together."""

    buddyinfo: tuple[str, ...]
    pagetypeinfo: tuple[str, ...]
    zones: tuple[Zone, ...]
    consistent: bool


def capture(
    root: str | Path = "/", pids: Sequence[int] = (), with_name: bool = False
) -> HostSnapshot:
    """Read a host.

    Parameters
    ----------
    root
        Folder that holds its ``proc`` and ``sys``.
    pids
        Processes that are VMs, beside those whose name says so.
    with_name
        Whether the host's name is kept.

    Raises
    ------
    ScenarioError
        There is no /proc of Linux, or a process does not exist.
    """
    host = _Host(Path(root))
    free = _read_free(host)
    if not free.buddyinfo:
        place = str(host.root / "proc/buddyinfo")
        message = "cannot be read, and without it there is no state of memory to keep"
        raise ScenarioError([Problem(place, message, "run it on Linux, or name --root")])
    cpuinfo = host.text("proc/cpuinfo", "CPU model and number of CPUs are unknown")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    thp_root = "sys/kernel/mm/transparent_hugepage"
    host.text(f"{thp_root}/enabled", "THP settings are unknown")
    thp = {p.name: chosen_word(host.text(f"{thp_root}/{p.name}")) for p in host.folder(thp_root)}
    extfrag = "sys/kernel/debug/extfrag"
    uptime = host.text("proc/uptime").split()
    return HostSnapshot(
        captured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        hostname=(host.text("proc/sys/kernel/hostname").strip() or None) if with_name else None,
        kernel_release=host.text("proc/sys/kernel/osrelease").strip() or "unknown",
        cpu_model=model[1].strip() if model else "unknown",
        nr_cpus=max(len(re.findall(r"^processor\s*:", cpuinfo, re.MULTILINE)), 1),
        virtualised=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE)),
        uptime_s=float(uptime[0]) if uptime else 0.0,
        consistent=free.consistent,
        nodes=_nodes(host),
        zones=free.zones,
        buddyinfo=free.buddyinfo,
        pagetypeinfo=free.pagetypeinfo,
        vmstat=parse_counters(host.text("proc/vmstat", "no counters: rates cannot be shown")),
        meminfo_kb=parse_counters(host.text("proc/meminfo", "what memory is used for is unknown")),
        thp={name: value for name, value in thp.items() if value},
        khugepaged=host.numbers(f"{thp_root}/khugepaged"),
        hugetlb=_hugetlb(host),
        ksm=host.numbers("sys/kernel/mm/ksm"),
        vm=host.numbers("proc/sys/vm", VM_FILES),
        unusable_index=_lines(host.text(f"{extfrag}/unusable_index", _NOT_NEEDED)),
        extfrag_index=_lines(host.text(f"{extfrag}/extfrag_index", _NOT_NEEDED)),
        kvm=_kvm(host),
        processes=_processes(host, pids),
        unread=tuple(host.unread),
    )


_NOT_NEEDED: Final = "nothing: the same is computed from buddyinfo"


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())


def _read_free(host: _Host) -> _Free:
    """Read buddyinfo, pagetypeinfo and zoneinfo until they are of one moment.

    They are if buddyinfo is the same before and after, and equal to the sums over types.  On an
    idle host that is the first time.
    """
    host.text(
        "proc/pagetypeinfo", "free memory by migratetype is unknown: a stated rule divides it"
    )
    host.text("proc/zoneinfo", "watermarks and per-CPU pages are computed, not read")
    best: _Free | None = None
    fewest = 1 << 62
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(PAUSE_S)
        before = _lines(host.text("proc/buddyinfo"))
        types = tuple(host.text("proc/pagetypeinfo").splitlines())
        zones = tuple(map(Zone.of, parse_zoneinfo(host.text("proc/zoneinfo"))))
        after = _lines(host.text("proc/buddyinfo"))
        differing = sum(a != b for a, b in zip(before, after, strict=False))
        if types:
            differing += differing_cells(after, parse_pagetypeinfo(types))
        if differing < fewest:
            best, fewest = _Free(after, types, zones, differing == 0), differing
        if not before or differing == 0:
            break
    assert best is not None
    return best


def _nodes(host: _Host) -> tuple[NumaNode, ...]:
    found = []
    for path in host.folder("sys/devices/system/node"):
        match = re.fullmatch(r"node(\d+)", path.name)
        if match is None:
            continue
        folder = f"sys/devices/system/node/{path.name}"
        memory = re.search(r"MemTotal:\s+(\d+) kB", host.text(f"{folder}/meminfo"))
        cpus = _list_length(host.text(f"{folder}/cpulist"))
        found.append(
            NumaNode(node=int(match[1]), cpus=cpus, memory_kb=int(memory[1]) if memory else 0)
        )
    return tuple(sorted(found, key=lambda node: node.node))


def _list_length(text: str) -> int:
    """Return how many numbers a list such as "0-3,8" names."""
    total = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            total += int(last or first) - int(first) + 1
    return total


def _hugetlb(host: _Host) -> dict[str, int]:
    found = {}
    for path in host.folder("sys/kernel/mm/hugepages"):
        folder = f"sys/kernel/mm/hugepages/{path.name}"
        for name, value in host.numbers(folder, ("nr_hugepages", "free_hugepages")).items():
            found[f"{path.name.removeprefix('hugepages-')}/{name}"] = value
    return found


def _kvm(host: _Host) -> dict[str, int]:
    """Return the sums over all VMs that KVM keeps in debugfs."""
    found = host.numbers("sys/kernel/debug/kvm", KVM_STATS)
    if not found:
        try:
            list((host.root / "sys/kernel/debug/kvm").iterdir())
            why = "the counters are not there"
        except OSError as error:
            why = error.strerror or "cannot be read"
        cost = "page sizes of the EPT are unknown"
        host.unread.append(Unread(what="/sys/kernel/debug/kvm", why=why, cost=cost))
    return found


def _processes(host: _Host, pids: Sequence[int]) -> tuple[VmProcess, ...]:
    """Return the VMs' processes, largest first."""
    found, hidden = [], 0
    numbers = {int(path.name) for path in host.folder("proc") if path.name.isdigit()}
    for pid in pids:
        if pid not in numbers:
            raise ScenarioError([Problem(f"--pid {pid}", "no such process is to be seen")])
    for pid in sorted(numbers):
        comm = host.text(f"proc/{pid}/comm").strip()
        if pid not in pids and not QEMU.match(comm):
            continue
        process = _process(host, pid, comm)
        hidden += process.anon_huge_kb is None
        found.append(process)
    if hidden:
        host.unread.append(
            Unread(
                what=f"smaps_rollup of {hidden} VMs",
                why="Permission denied; only root and their user may read it",
                cost="their huge-page coverage is unknown",
            )
        )
    return tuple(sorted(found, key=lambda process: -process.rss_kb))


def _process(host: _Host, pid: int, comm: str) -> VmProcess:
    text = host.text(f"proc/{pid}/smaps_rollup") or host.text(f"proc/{pid}/smaps")
    known = parse_counters(text)
    status = parse_counters(host.text(f"proc/{pid}/status"))
    words = host.text(f"proc/{pid}/cmdline").split("\0")
    return VmProcess(
        comm=comm or "unknown",
        rss_kb=known.get("Rss", status.get("VmRSS", 0)),
        anon_huge_kb=known.get("AnonHugePages") if known else None,
        swap_kb=known.get("Swap", status.get("VmSwap")),
        memory_mib=memory_of(words),
        vcpus=vcpus_of(words),
    )


def _option(words: Sequence[str], name: str) -> dict[str, str]:
    """Return what an option of QEMU says, the word without a key under "".

    An option that is not there says nothing.
    """
    if name not in words[:-1]:
        return {}
    found = {}
    for part in words[list(words).index(name) + 1].split(","):
        key, equals, value = part.partition("=")
        found[key if equals else ""] = value if equals else part
    return found


def memory_of(words: Sequence[str]) -> int | None:
    """Return the MiB that a QEMU command line gives its VM (-m), or None."""
    option = _option(words, "-m")
    match = re.fullmatch(r"(\d+)([bkmgt]?)", (option.get("size") or option.get("", "")).lower())
    if match is None:
        return None
    return int(match[1]) << _SIZE[match[2]] >> 20


def vcpus_of(words: Sequence[str]) -> int | None:
    """Return the vCPUs that a QEMU command line gives its VM (-smp), or None."""
    option = _option(words, "-smp")
    count = option.get("cpus") or option.get("", "")
    if count.isdigit():
        return int(count)
    parts = [option[key] for key in ("sockets", "dies", "cores", "threads") if key in option]
    if not parts or not all(part.isdigit() for part in parts):
        return None
    total = 1
    for part in parts:
        total *= int(part)
    return total
