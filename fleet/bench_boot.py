"""A VM boots and ends: every page of its RAM faulted in on the host, and all of it given back.

The process of QEMU, its page tables, the EPT and its tables are there, as in a run: `Host.start`,
`guest_access` on all of guest RAM, `Host.stop`.  What the guest's own kernel does is left out.
"""

import time
from typing import Annotated, Final, NamedTuple

import numpy as np

from fleet.claims import Claim, Found, at_most
from fleet.validate_mm_compaction import allocate, free_random
from hostsim.core.rng import Stream, stream
from hostsim.core.units import NS_PER_HOUR, PAGE_SHIFT, parse_bytes
from hostsim.ept import guest_access
from hostsim.host import Host
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.mm_types import MM_EPT, MM_RAM_ANON, Z_END, Z_MANAGED, Z_START
from hostsim.spec import HostSpec, SlabSpec

VCPUS: Final = 8
OVERHEAD_PAGES: Final = 32 << (20 - PAGE_SHIFT)  # QEMU's own
HOST_RATIO: Final = 4  # memory of the host, of that of the VM
FILL_RATIO: Final = 0.9
RUNS: Final = 7


class Case(NamedTuple):
    """One way of backing, and what it must reach."""

    name: str
    thp: str
    fragmented: bool
    bar_ms: float


CASES: Final = (
    Case("huge pages", "always", False, 0.8),
    Case("4 KiB pages, fresh host", "never", False, 1.5),
    Case("4 KiB pages, fragmented host", "never", True, 500.0),
)


class Measured(NamedTuple):
    """What a boot and an exit took, median of some."""

    name: str
    boot_ms: float
    exit_ms: float
    total_ms: float
    ept_pages: int


def _host(pages: int, thp: str) -> Host:
    slab = SlabSpec(0.0, NS_PER_HOUR, 0.0, NS_PER_HOUR, 1024)
    return Host(HostSpec(96, pages, 0, "6.12", thp, "madvise", True, slab), 0, 0)


def _fragment(host: Host) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Fill a host's highest zone with single pages, free half at random; return those held."""
    mem = host.mem
    zone = max(z for z in range(len(mem.zone)) if mem.zone[z, Z_END] > mem.zone[z, Z_START])
    held = np.zeros(int(mem.zone[zone, Z_MANAGED] * FILL_RATIO), np.int32)
    nr = int(allocate(mem, held, 0, held.size))
    key = int(stream(0, Stream.BENCH).integers(1 << 62))
    nr = int(free_random(mem, held, nr, nr // 2, key, 0))
    return held[:nr]


def measure(case: Case, vm_pages: int, runs: int = RUNS) -> Measured:
    """Boot and end a VM some times, and validate the host with the VM there and without it.

    Raises
    ------
    InvariantError
        The host's state is inconsistent.
    ValueError
        The host is too small.
    """
    host = _host(HOST_RATIO * vm_pages, case.thp)
    held = _fragment(host) if case.fragmented else np.zeros(0, np.int32)
    times: list[tuple[float, float]] = []
    ept_pages = 0
    for vm_id in range(runs + 1):
        begin_s = time.process_time()
        mm, enough = host.start(vm_id, vm_pages, OVERHEAD_PAGES, False, VCPUS)
        if not enough or guest_access(host.mem, mm, 0, vm_pages, True) != FAULT_OK:
            raise ValueError("the host is too small")
        middle_s = time.process_time()
        if vm_id == 0 and not case.fragmented:
            check_memory(host.mem)
        row = host.mem.mm[mm]
        ept_pages = int(row[MM_EPT])
        if row[MM_RAM_ANON] != vm_pages:
            raise ValueError(f"{vm_pages - row[MM_RAM_ANON]} pages are not backed")
        again_s = time.process_time()
        host.stop(mm)
        times.append((middle_s - begin_s, time.process_time() - again_s))
    check_memory(host.mem, held.astype(np.int64))
    boot, end = (1000.0 * np.array(column) for column in zip(*times[1:], strict=True))
    total = float(np.median(boot + end))
    return Measured(case.name, float(np.median(boot)), float(np.median(end)), total, ept_pages)


def judge(case: Case, found: Measured, memory: str) -> Claim:
    """Hold a boot against its bar."""
    return at_most(f"{memory} VM, boot and exit, {case.name}", found.total_ms, case.bar_ms, "ms")


def boot(memory: Annotated[str, "Memory of the VM."] = "16GiB") -> Found:
    """Boot a VM with all of its RAM and end it, page tables and EPT included, by CPU time."""
    pages = parse_bytes(memory) >> PAGE_SHIFT
    rows = [measure(case, pages) for case in CASES]
    lines = [f"{'':<32}{'boot ms':>10}{'exit ms':>10}{'EPT pages':>11}"]
    lines += [
        f"{row.name:<32}{row.boot_ms:>10.3f}{row.exit_ms:>10.3f}{row.ept_pages:>11,}"
        for row in rows
    ]
    claims = [judge(case, row, memory) for case, row in zip(CASES, rows, strict=True)]
    return Found(claims, [row._asdict() for row in rows], lines)
