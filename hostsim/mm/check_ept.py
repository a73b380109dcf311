"""The validator of EPTs: no leaf without the host mapping that it was made from.

Source: the invariants that KVM keeps by its notifiers (Linux v6.1 arch/x86/kvm/mmu/tdp_mmu.c).
"""

import numpy as np
from numpy.typing import NDArray

from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER
from hostsim.mm.check_free import Ints, agree, chain, forbid
from hostsim.mm.mm_types import (
    MM_BASE,
    MM_EPT,
    MM_EPT_2M,
    MM_EPT_4K,
    MM_EPT_FLAGS,
    MM_EPT_TABLES,
    MM_HAS_EPT,
    MM_LIVE,
    MM_NX_FIRST,
    MM_NX_SPLITS,
    MM_RAM_PAGES,
    MM_WINDOWS,
    NIL,
    P_EPT_BITS_FREE,
    P_EPT_BITS_USED,
    P_EPT_FREE,
    P_EPT_USED,
    P_WORDS_USED,
    P_ZERO_PB,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_HUGETLB, W_TABLE, W_TAG, W_ZERO
from hostsim.mm.mmu_notifier import (
    E_DIRECTORY,
    E_FULL,
    E_LEAF,
    E_NONE,
    E_SHIFT,
    E_TABLE,
    E_TAG,
    EPT_DIRTY_LOG,
    EPT_MISALIGNED,
    EPT_PC_SLOTS,
    LEAF_BITS,
    SUM_MASK,
)
from hostsim.mm.rmap import EXT_DESCENDING
from hostsim.mm.vmstat import NR_EPT_LEAVES_2M, NR_EPT_LEAVES_4K, NR_NX_LPAGE_SPLITS

NO_FRAME = -1


def _host_frames(mem: Memory, word: int, window: int) -> Ints:
    """Return the frame of each page of a window as the host maps it, NO_FRAME if it does not."""
    frames = np.full(HPAGE_PMD_NR, NO_FRAME, np.int64)
    if word == W_ZERO or word & W_TAG in (W_HUGE, W_HUGETLB):
        pb = int(mem.pool[P_ZERO_PB]) - 1 if word == W_ZERO else word >> 2
        return (pb << HPAGE_PMD_ORDER) + np.arange(HPAGE_PMD_NR)
    x = (word >> 2) - 1 if word & W_TAG == W_TABLE else NIL
    for _ in range(HPAGE_PMD_NR + 1):
        if x == NIL:
            break
        extent = mem.ext[x]
        nr, first = int(extent["nr"]), int(extent["vpn"]) - (window << HPAGE_PMD_ORDER)
        run = int(extent["pfn"]) + np.arange(nr)
        frames[first : first + nr] = run[::-1] if extent["flags"] & EXT_DESCENDING else run
        x = int(extent["next"])
    return frames


def leaf_bits(mem: Memory, mm: int, window: int) -> NDArray[np.bool_]:
    """Return which of its 512 leaves a window's table has."""
    at = int(mem.mm[mm, MM_BASE]) + window
    if mem.ept[at] & E_TAG == E_FULL:
        return np.ones(HPAGE_PMD_NR, np.bool_)
    table = int(mem.ept_child[at])
    row = int(mem.ept_table["bits"][table]) - 1
    if row == NIL:
        return np.full(HPAGE_PMD_NR, mem.ept_table["nr"][table] != 0)
    words = mem.ept_bits["bits"][row]
    return np.unpackbits(words.view(np.uint8), bitorder="little").astype(np.bool_)


def _check_bits(mem: Memory, tables: list[int]) -> None:
    """Check that the tables that have leaves in part, and no others, have rows of bits."""
    used = int(mem.pool[P_EPT_BITS_USED])
    nr, rows = mem.ept_table["nr"][tables], mem.ept_table["bits"][tables].astype(np.int64) - 1
    part = (nr != 0) & (nr != HPAGE_PMD_NR)
    forbid("EPT table in part whose bits are not kept", part & (rows == NIL), nr=nr)
    forbid("EPT table whose bits are kept for nothing", ~part & (rows != NIL), nr=nr)
    free = (mem.ept_bits["bits"][:used, 0].astype(np.int64) - 1).tolist()
    unused = chain("free rows of EPT bits", free, int(mem.pool[P_EPT_BITS_FREE]) - 1, used)
    found = np.sort(np.concatenate([rows[rows != NIL], np.array(unused, np.int64)]))
    agree("rows of EPT bits", found=found, used=np.arange(used))


def _check_record(mem: Memory, table: int, mm: int, window: int) -> None:
    record = mem.ept_table[table]
    agree("process of an EPT table", table=record["mm"], word=mm)
    agree("window of an EPT table", table=record["window"], word=window)
    full = record["nr"] == HPAGE_PMD_NR and record["nx_next"] == NIL
    forbid("record of an EPT table that has all leaves", [full], mm=[mm], window=[window])


def _check_table(mem: Memory, mm: int, window: int, host: int) -> int:
    """Compare a table's leaves with the host's mapping; return how many there are."""
    at = int(mem.mm[mm, MM_BASE]) + window
    bits = leaf_bits(mem, mm, window)
    nr = int(bits.sum())
    total = int(mem.ept_child[at])
    if mem.ept[at] & E_TAG == E_TABLE:
        _check_record(mem, total, mm, window)
        record = mem.ept_table[total]
        agree(f"leaves of EPT table {total}", counter=record["nr"], bits=nr)
        total = int(record["frames"])
    frames = _host_frames(mem, host, window)
    page = (window << HPAGE_PMD_ORDER) + np.arange(HPAGE_PMD_NR)
    absent = bits & (frames == NO_FRAME)
    forbid("EPT leaf of a page that the host does not map", absent, mm=page * 0 + mm, page=page)
    expected = int(((np.arange(HPAGE_PMD_NR)[bits] + 1) * (frames[bits] + 1)).sum()) & SUM_MASK
    agree(f"frames of the EPT leaves of process {mm}, window {window}", leaves=total, host=expected)
    return nr


def check_ept(mem: Memory) -> None:
    """Check every EPT entry against the host's mapping, and the counts of them."""
    outside = np.ones(int(mem.pool[P_WORDS_USED]), np.bool_)
    tables: list[int] = []
    large, small, splits = 0, 0, 0
    for mm in np.flatnonzero(mem.mm[:, MM_LIVE]).tolist():
        row = mem.mm[mm]
        base, nr = int(row[MM_BASE]), int(row[MM_WINDOWS])
        outside[base : base + nr] = False
        ept = mem.ept[base : base + nr].astype(np.int64)
        windows = np.arange(nr)
        if not row[MM_HAS_EPT] or not row[MM_EPT]:
            forbid("EPT entry of a process without EPT", ept != 0, window=windows, word=ept)
            continue
        host = mem.windows[base : base + nr].astype(np.int64)
        leaf = ept & E_TAG == E_LEAF
        frame = np.where(host == W_ZERO, mem.pool[P_ZERO_PB] - 1, host >> 2)
        mapped = np.isin(host & W_TAG, (W_HUGE, W_HUGETLB)) | (host == W_ZERO)
        stale = leaf & (~mapped | (frame & LEAF_BITS != ept >> E_SHIFT))
        forbid("2 MiB EPT leaf without its host PMD", stale, mm=windows * 0 + mm, window=windows)
        flags = int(row[MM_EPT_FLAGS])
        barred = leaf & (flags & (EPT_MISALIGNED | EPT_DIRTY_LOG) != 0)
        barred |= leaf & (windows == 0) & (flags & EPT_PC_SLOTS != 0)
        barred |= leaf & ((windows + 1) << HPAGE_PMD_ORDER > row[MM_RAM_PAGES])
        forbid("2 MiB EPT leaf where none may be", barred, mm=windows * 0 + mm, window=windows)
        agree(f"2 MiB leaves of process {mm}", counter=row[MM_EPT_2M], found=int(leaf.sum()))
        child = mem.ept_child[base : base + nr]
        table = ept & E_TAG >= E_TABLE
        forbid("what belongs to a table where none is", ~table & (child != 0), window=windows)
        at = np.flatnonzero(table)
        found = sum(_check_table(mem, mm, window, int(host[window])) for window in at.tolist())
        mine = child[ept & E_TAG == E_TABLE].tolist()
        agree(f"4 KiB leaves of process {mm}", counter=row[MM_EPT_4K], found=found)
        agree(f"EPT tables of process {mm}", counter=row[MM_EPT_TABLES], found=len(at))
        directories = int((ept & E_DIRECTORY != 0).sum())
        need = len(at) + directories
        forbid("EPT tables without pages", [row[MM_EPT] < need], pages=[row[MM_EPT]], need=[need])
        after = (mem.ept_table["nx_next"][: int(mem.pool[P_EPT_USED])] - 1).tolist()
        by_fetch = chain("tables made by fetches", after, int(row[MM_NX_FIRST]) - 1, len(mine))
        agree(f"nx_lpage_splits of process {mm}", counter=row[MM_NX_SPLITS], listed=len(by_fetch))
        large, small, splits = large + int(leaf.sum()), small + found, splits + len(by_fetch)
        tables += mine
    words = mem.ept[: outside.size]
    forbid("EPT byte of no process", outside & (words != E_NONE), word=words)
    child = mem.ept_child[: outside.size]
    forbid("EPT table of no process", outside & (child != 0), child=child)
    for name, index, recomputed in (
        ("nr_ept_leaves_2m", NR_EPT_LEAVES_2M, large),
        ("nr_ept_leaves_4k", NR_EPT_LEAVES_4K, small),
        ("nr_nx_lpage_splits", NR_NX_LPAGE_SPLITS, splits),
    ):
        agree(name, vmstat=mem.vmstat[index], recomputed=recomputed)
    used = int(mem.pool[P_EPT_USED])
    free = (mem.ept_table["nr"][:used].astype(np.int64) - 1).tolist()
    unused = chain("free EPT tables", free, int(mem.pool[P_EPT_FREE]) - 1, used)
    agree("EPT tables", found=np.sort(np.array(tables + unused, np.int64)), used=np.arange(used))
    _check_bits(mem, tables)
