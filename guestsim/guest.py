"""A guest's Linux: a memory manager over guest-physical frames, and the processes in it.

The kernel of a guest is `hostsim.mm`, the same code as the host's, over the frames of one VM.
What it hands out is written to, and the host sees that: `Memory.touched` lists the frames until
the host has backed them.

Guests of one size, kernel and number of CPUs boot alike, so that a boot is a copy of a few KiB,
and a guest's state lies in one mapping of which only what was ever used is resident.

Source: Linux v6.1 init/main.c, mm/page_alloc.c free_area_init (struct pages of all memory are
written at boot), fs/proc/meminfo.c for the names.
Simplified: page cache is a process of small pages that nobody else maps, one unmovable page a
2 MiB of it standing for the tree nodes.
Simplified: what a boot writes, the host sees in ascending order.
Simplified: a guest has neither swap nor KSM, so that only the shrinker of underused huge pages, if
`max_ptes_none` lets it work, asks which of its pages were never written; else that is not kept.
"""

import ctypes
import functools
import itertools
import mmap
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guestsim.gpa import low_ram_pages
from guestsim.spec import GuestSpec
from hostsim.core.jit import kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, HPAGE_PUD_ORDER, MAX_PAGE_ORDER
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory, set_thp
from hostsim.mm.mm_types import NIL, P_TRACED, Z_FREE, Z_MANAGED, Z_RESERVE, Z_WMARK_HIGH, Memory
from hostsim.mm.mmap import ADVICE_NOHUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.pgtable import alloc_table
from hostsim.mm.physmem import PB_RESERVED
from hostsim.mm.rmap import KIND_KERNEL, KIND_PGTABLE
from hostsim.mm.settings import write_setting
from hostsim.mm.slab import alloc_boot_pages
from hostsim.mm.state import fill_parts, used_parts
from hostsim.mm.touched import note_touched
from hostsim.mm.tunables import T_DEFER_UNDERUSED, T_KEEP_WRITTEN

MM_DAEMONS: Final = 0  # processes that are there from boot: what runs in every system,
MM_CACHE: Final = 1  # page cache, whose windows so share a page of memory with its few,
MM_BALLOON: Final = 2  # and pages given to the balloon
FIRST_MM: Final = 3

CACHE_SHARE: Final = 5  # eighths of the boot footprint: files read while booting (assumed)
DAEMONS_SHARE: Final = 2  # eighths: processes of the system; the rest is the kernel's own
PROCESS_KERNEL_PAGES: Final = 16  # stacks (4 pages a thread) and slabs of a process
RING_SLACK_SHIFT: Final = 4  # of the ring of page cache, 1/16 is for gaps (assumed)
TRACE_ENTRIES: Final = 1 << 18
MIN_PAGES: Final = 1 << 14  # 64 MiB: less does not boot


@functools.cache
def trace_log() -> NDArray[np.int64]:
    """Return the list of frames handed out that all guests of this process share."""
    return np.zeros((TRACE_ENTRIES, 2), np.int64)


@kernel
def start_process(mem: Memory, ram_pages: int, own_pages: int, advice: int) -> int:
    """Start a process of the guest with its kernel pages and upper page tables; NIL if none."""
    mm = mm_alloc(mem, ram_pages, own_pages, advice, False, 0)
    if mm == NIL:
        return NIL
    for _ in range(PROCESS_KERNEL_PAGES):
        alloc_table(mem, mm, KIND_KERNEL)
    for _ in range(upper_tables(ram_pages + own_pages)):
        alloc_table(mem, mm, KIND_PGTABLE)
    return mm


@kernel
def upper_tables(nr_pages: int) -> int:
    """Return how many page tables above those of 2 MiB windows map so many pages."""
    gib = (nr_pages + (1 << HPAGE_PUD_ORDER) - 1) >> HPAGE_PUD_ORDER
    return 2 + gib  # the root, one of 512 GiB, and one a GiB


@kernel
def ring_pages(limit: int) -> int:
    """Return the size of the ring in which page cache of at most ``limit`` pages lies.

    It has whole windows, and room for gaps.
    """
    return -(-(limit + (limit >> RING_SLACK_SHIFT)) // HPAGE_PMD_NR) * HPAGE_PMD_NR


@kernel
def _boot(mem: Memory, nr_pages: int, boot_pages: int, balloon_pages: int) -> bool:
    """Let a kernel boot: its own memory, the files it reads, its daemons."""
    cache = boot_pages * CACHE_SHARE // 8
    daemons = boot_pages * DAEMONS_SHARE // 8
    if not alloc_boot_pages(mem, boot_pages - cache - daemons):
        return False
    start_process(mem, daemons, 0, ADVICE_NONE)
    mm_alloc(mem, 0, ring_pages(nr_pages), ADVICE_NOHUGE, False, 0)
    mm_alloc(mem, 0, 2 * balloon_pages, ADVICE_NOHUGE, False, 0)
    if touch_range(mem, MM_CACHE, 0, cache, 1, 1.0, 0, True, 0) != FAULT_OK:
        return False
    return touch_range(mem, MM_DAEMONS, 0, daemons, 1, 1.0, 0, True, 0) == FAULT_OK


@kernel
def free_room(mem: Memory) -> int:
    """Return by how many pages a process can use free memory exceeds the high watermarks.

    Lower zones keep their reserve.  Negative when every zone is below: by how much, at least.

    Source: Linux v6.1 mm/vmscan.c pgdat_balanced.
    """
    room = 0
    nearest = -(1 << 62)
    for zone in range(len(mem.zone)):
        if mem.zone[zone, Z_MANAGED] > 0:
            above = mem.zone[zone, Z_FREE] - mem.zone[zone, Z_WMARK_HIGH]
            above -= mem.zone[zone, Z_RESERVE]
            room += max(above, 0)
            nearest = max(nearest, above)
    return room if room > 0 else nearest


def rounded_pages(nr_pages: int) -> int:
    """Return the size of a VM in whole blocks of the largest order."""
    return nr_pages >> MAX_PAGE_ORDER << MAX_PAGE_ORDER


def boot_footprint(spec: GuestSpec, nr_pages: int) -> int:
    """Return what kernel, files and daemons take at boot, beside struct pages and the image."""
    return min(spec.boot_pages, nr_pages // 4)


def boot_memory(spec: GuestSpec, nr_pages: int, vcpus: int) -> Memory:
    """Return the memory of a guest that has just booted, what it touched in its log.

    Raises
    ------
    ValueError
        The VM is too small for a kernel.
    """
    if nr_pages < MIN_PAGES:
        raise ValueError(f"nr_pages {nr_pages}: a guest needs {MIN_PAGES} to boot")
    low = int(low_ram_pages(nr_pages))
    booted = new_memory(nr_pages, spec.kernel, vcpus, True, low, keep_lru=False)
    set_thp(booted, spec.thp_enabled, spec.thp_defrag, spec.use_zero_page)
    for name, value in spec.settings:
        write_setting(booted, name, value)
    booted.tunables[T_KEEP_WRITTEN] = booted.tunables[T_DEFER_UNDERUSED]
    mem = Memory(**(booted._asdict() | {"touched": trace_log()}))
    mem.pool[P_TRACED] = 1
    reserved = np.flatnonzero(unpacked(mem.pb[: nr_pages >> HPAGE_PMD_ORDER]).state == PB_RESERVED)
    for pb in reserved:
        note_touched(mem, int(pb) << HPAGE_PMD_ORDER, HPAGE_PMD_NR, 1, 0)
    balloon_pages = nr_pages if spec.balloon_ratio > 0.0 else 0  # none: the VMs have no device
    if not _boot(mem, nr_pages, boot_footprint(spec, nr_pages), balloon_pages):
        raise ValueError(f"nr_pages {nr_pages}: too little memory to boot")
    return mem


class Layout(NamedTuple):
    """Where the arrays of a guest lie in its mapping, and what stands there after boot."""

    nr_bytes: int
    table: NDArray[np.int64]  # of `ByReference`, addresses relative to the mapping
    inside: NDArray[np.bool_]  # rows of the table that lie in the mapping; others are shared
    addresses: NDArray[np.int64]  # 1 where the table holds an address in the mapping, else 0
    booted: Memory  # the first guest of its kind, never changed
    copies: tuple[tuple[int, int, int], ...]  # runs of pages: offset, source address, bytes
    gaps: tuple[tuple[int, int], ...]  # between them: offset, bytes
    touched: NDArray[np.int64]  # (runs, 2) frames that the boot wrote, ascending
    spares: "list[Guest]"  # guests of this kind that have ended: their mappings are used again


SHARED: Final = ("touched", "scratch", "tunables", "cost")
MAX_SPARES: Final = 32  # of a kind: VMs come in about as fast as they go
_GRANULE: Final = 256  # bytes compared at once when looking for what a boot wrote


def _written(mem: Memory) -> list[tuple[str, int, int]]:
    """Return the parts of a guest's own arrays that hold anything: name, first byte, bytes."""
    used = used_parts(mem)
    parts = []
    for name in Memory._fields:
        if name in SHARED:
            continue
        flat = getattr(mem, name).reshape(-1).view(np.uint8)
        flat = flat[: used[name].nbytes]
        edges = np.arange(0, len(flat), _GRANULE)
        if len(edges) == 0:
            continue
        full = np.add.reduceat(flat, edges, dtype=np.int64) > 0
        change = np.flatnonzero(np.diff(np.concatenate([[False], full, [False]])))
        for first, end in change.reshape(-1, 2) * _GRANULE:
            parts.append((name, int(first), int(min(end, len(flat)) - first)))
    return parts


def joined(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the frames of runs as runs in ascending order, as few as there can be."""
    runs = runs[np.argsort(runs[:, 0])]
    ends = np.maximum.accumulate(runs.sum(axis=1))
    first = np.flatnonzero(np.concatenate([[True], runs[1:, 0] > ends[:-1]]))
    last = np.append(first[1:] - 1, len(runs) - 1)
    return np.stack([runs[first, 0], ends[last] - runs[first, 0]], axis=1)


@functools.lru_cache(maxsize=256)
def guest_layout(spec: GuestSpec, nr_pages: int, vcpus: int) -> Layout:
    """Boot a guest once and return what every other of its kind starts from."""
    from hostsim.mm.mm_types import P_TOUCHED

    booted = boot_memory(spec, nr_pages, vcpus)
    touched = joined(booted.touched[: booted.pool[P_TOUCHED]])
    booted.pool[P_TOUCHED] = 0
    inside = np.array([name not in SHARED for name in Memory._fields])
    addresses = {name: getattr(booted, name).ctypes.data for name in Memory._fields}
    table = booted.table.copy()
    base = int(table[inside, 0].min())
    end = max(
        address + getattr(booted, name).nbytes
        for name, address in addresses.items()
        if name not in SHARED
    )
    table[inside, 0] -= base
    written = [
        (addresses[name] - base + first, nr_bytes) for name, first, nr_bytes in _written(booted)
    ]
    pages, gaps = _pages_and_gaps(written, end - base)
    copies = tuple((offset, base + offset, nr_bytes) for offset, nr_bytes in pages)
    own = np.stack([inside, np.zeros_like(inside)], axis=1).astype(np.int64)
    return Layout(end - base, table, inside, own, booted, copies, gaps, touched, [])


_Ranges = tuple[tuple[int, int], ...]


def _pages_and_gaps(written: list[tuple[int, int]], nr_bytes: int) -> tuple[_Ranges, _Ranges]:
    """Return the runs of pages that hold what was written, and what is between: offset, bytes."""
    size = mmap.PAGESIZE
    first = [offset // size for offset, _ in written]
    nr = [(offset + length - 1) // size + 1 - offset // size for offset, length in written]
    edges = np.cumsum(joined(np.array([first, nr], np.int64).T), axis=1).ravel() * size
    edges = np.concatenate([[0], np.minimum(edges, nr_bytes), [nr_bytes]])
    parts = [(int(a), int(b - a)) for a, b in itertools.pairwise(edges)]
    return tuple(parts[1::2]), tuple(part for part in parts[::2] if part[1])


class Guest:
    """The state of one guest's kernel: a mapping, and the table by which kernels find it."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
        self._mapping = mmap.mmap(-1, layout.nr_bytes, flags=flags)
        self._mapping.madvise(mmap.MADV_NOHUGEPAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))
        self.table = layout.table + self.base * layout.addresses
        self.address = int(self.table.ctypes.data)  # what kernels make the state from

    @classmethod
    def boot(cls, layout: Layout) -> "Guest":
        """Return a guest that has just booted."""
        guest = layout.spares.pop() if layout.spares else cls(layout)
        for offset, source, nr_bytes in layout.copies:
            ctypes.memmove(guest.base + offset, source, nr_bytes)
        return guest

    def end(self) -> None:
        """Give the guest's memory back; it must not be used any more.

        Its mapping is kept for another one, with the pages that a boot writes.
        """
        if len(self.layout.spares) < MAX_SPARES:
            for offset, nr_bytes in self.layout.gaps:
                self._mapping.madvise(mmap.MADV_DONTNEED, offset, nr_bytes)
            self.layout.spares.append(self)

    @property
    def mem(self) -> Memory:
        """The memory manager, as arrays."""
        arrays: dict[str, Any] = {}
        for row, (name, like) in enumerate(self.layout.booted._asdict().items()):
            if self.layout.inside[row]:
                offset = int(self.layout.table[row, 0])
                flat = np.frombuffer(self._mapping, like.dtype, like.size, offset)
                arrays[name] = flat.reshape(like.shape)
            else:
                arrays[name] = like
        return Memory(**arrays)

    def save(self) -> dict[str, NDArray[Any]]:
        """Return all that changes: views of the used parts, by name."""
        parts = used_parts(self.mem)
        return {name: part for name, part in parts.items() if name not in SHARED}

    @classmethod
    def restore(cls, layout: Layout, parts: dict[str, NDArray[Any]]) -> "Guest":
        """Return the guest whose state these are.

        Raises
        ------
        ValueError
            The state is another version's, or another kind of guest's.
        """
        missing = set(Memory._fields) - set(SHARED) - parts.keys()
        if missing:
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        guest = cls(layout)
        fill_parts(guest.mem, parts)
        return guest
