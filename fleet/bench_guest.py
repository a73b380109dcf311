"""What a guest costs: bytes of resident state, and time of its faults with those of its host."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fleet.claims import Found
from fleet.loading import load
from fleet.node import START, Commands, Node
from fleet.store import reported
from guestsim.behaviour import G_CACHE, G_MM, G_RING, OP_BEGIN, OP_READ, OP_TOUCH_SLOT
from guestsim.guest import MM_CACHE, Guest, ring_pages
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_MIN, PAGE_BYTES, PAGE_SHIFT
from hostsim.mm.mm_types import MM_ANON
from hostsim.mm.mmap import ADVICE_NONE

GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
SIZES_GIB: Final = (1, 2, 4, 8, 16, 64)
SLOT: Final = 6  # of a process that no behaviour has begun
_PRESENT: Final = np.uint64(1 << 63)
_PFN: Final = np.uint64((1 << 55) - 1)


def resident_bytes(guest: Guest) -> int:
    """Return how much memory of its own a guest's state has: the shared zero page is none."""
    page_map = Path("/proc/self/pagemap")
    first, nr = guest.base // PAGE_BYTES, -(-guest.layout.nr_bytes // PAGE_BYTES)
    with reported(page_map, "read"), page_map.open("rb") as file:
        file.seek(8 * first)
        words = np.frombuffer(file.read(8 * nr), np.uint64)
    frames = words[words & _PRESENT != 0] & _PFN
    known, counts = np.unique(frames, return_counts=True)
    zero = known[counts > 1]  # a private page has a frame of its own
    return int((~np.isin(frames, zero)).sum()) * PAGE_BYTES


def _timed(work: Callable[[], None]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _started(gib: int) -> Node:
    """Return a host with one VM that has just booted."""
    scenario = load("smoke", [f"hosts.memory={2 * gib + 8}GiB", "guests.touched_share_mean=1.0"])
    spec = scenario.host_specs()[0]
    node = Node(spec, scenario.guests, 0, 1, scenario.tick_ns, scenario.vm_rows_ns)
    one: dict[str, NDArray[Any]] = {
        "t_ns": np.zeros(1, np.int64),
        "kind": np.full(1, START, np.int8),
        "vm_id": np.zeros(1, np.int64),
        "vcpus": np.full(1, 4, np.int32),
        "memory_pages": np.full(1, gib * GIB_PAGES, np.int64),
        "age_ns": np.zeros(1, np.int64),
    }
    node.advance(Commands(**one), 0, 5 * NS_PER_MIN)
    return node


def _read(node: Node, pages: int) -> None:
    """Let the VM read so many pages into its page cache, whatever is its limit."""
    limit = int(node.states[0].mem.mm[MM_CACHE, MM_ANON]) + pages
    node.guests[0, [G_CACHE, G_RING]] = limit, ring_pages(limit)
    node.apply(0, [(0, OP_READ, 0, 0, pages)])


def measure_guest() -> dict[str, Any]:
    """Return what guests cost.

    Returns
    -------
    dict
        ``sizes`` (GiB, KiB after boot, KiB when all memory is touched) and nanoseconds of a huge
        fault on the host alone and in guest and host, and of a 4 KiB page of page cache.
    """
    _started(1)  # compiled and warm
    rows = []
    for gib in SIZES_GIB:
        node = _started(gib)
        booted = resident_bytes(node.states[0])
        free = gib * GIB_PAGES * 3 // 8
        node.apply(0, [(0, OP_BEGIN, SLOT, ADVICE_NONE, free)])
        node.apply(0, [(0, OP_TOUCH_SLOT, SLOT, 0, free)])
        _read(node, free)
        full = resident_bytes(node.states[0])
        rows.append({"gib": gib, "booted_kib": booted / 1024, "grown_kib": full / 1024})
    return {"sizes": rows, **_measure_faults()}


def guest() -> Found:
    """Print what a guest costs: bytes of resident state by size, and time of its faults."""
    found = measure_guest()
    lines = [f"{'VM GiB':>8}{'booted KiB':>12}{'3/4 in use KiB':>16}{'KiB a GiB':>11}"]
    lines += [
        f"{row['gib']:>8}{row['booted_kib']:>12.0f}{row['grown_kib']:>16.0f}"
        f"{row['grown_kib'] / row['gib']:>11.1f}"
        for row in found["sizes"]
    ]
    lines += [
        f"  huge fault, host alone       {found['host_huge_fault_ns']:8.0f} ns",
        f"  huge fault, guest and host   {found['guest_and_host_huge_fault_ns']:8.0f} ns",
        f"  page cache, 4 KiB, both      {found['guest_and_host_cache_page_ns']:8.1f} ns",
    ]
    return Found((), found, lines)


def _apply(node: Node, ops: NDArray[np.int64]) -> None:
    node.host.apply(ops, len(ops))


def _measure_faults() -> dict[str, float]:
    node = _started(32)
    huge = 8 * GIB_PAGES
    both = _timed(
        lambda: node.apply(
            0,
            [(0, OP_BEGIN, SLOT, ADVICE_NONE, huge), (0, OP_TOUCH_SLOT, SLOT, 0, huge)],
        )
    )
    cache = _timed(lambda: _read(node, huge))
    bare = _started(32)
    touch = np.array([[bare.guests[0, G_MM], 0, 16 * GIB_PAGES, huge]], np.int64)
    _apply(bare, touch[:0])  # compiled
    host = _timed(lambda: _apply(bare, touch))
    windows = huge // HPAGE_PMD_NR
    return {
        "host_huge_fault_ns": host * 1e9 / windows,
        "guest_and_host_huge_fault_ns": both * 1e9 / windows,
        "guest_and_host_cache_page_ns": cache * 1e9 / huge,
    }
