"""Address spaces: windows, the extents on their lists, huge mappings, and processes' counters."""

from typing import Any, NamedTuple

import numpy as np

from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGEBLOCK_ORDER
from hostsim.mm.check_extents import Extents, with_swap_entries
from hostsim.mm.check_free import Ints, Scan, agree, forbid, span_all, walk
from hostsim.mm.mm_types import (
    MM_ANON,
    MM_BASE,
    MM_EPT,
    MM_HAS_EPT,
    MM_HUGE,
    MM_KERNEL,
    MM_LIVE,
    MM_PGTABLES,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    MM_SWAP,
    MM_WINDOWS,
    NIL,
    P_EXT_USED,
    P_MM_USED,
    P_WORDS_USED,
    P_ZERO_PB,
    P_ZERO_USERS,
    Memory,
)
from hostsim.mm.mmap import W_HUGE, W_HUGETLB, W_NONE, W_TABLE, W_TAG, W_ZERO
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import PB_COMPOUND, PB_HUGE
from hostsim.mm.rmap import EXT_DESCENDING, EXT_PMD, KIND_ANON, KIND_EPT, KIND_PGTABLE, KIND_SWAP
from hostsim.mm.vmstat import NR_GUEST_PAGES


def _processes(mem: Memory) -> Ints:
    """Return the live processes; check that their window words lie apart."""
    mms = np.flatnonzero(mem.mm[:, MM_LIVE])
    forbid("process behind the last one", mms >= mem.pool[P_MM_USED], mm=mms)
    base, nr = mem.mm[mms, MM_BASE], mem.mm[mms, MM_WINDOWS]
    words = np.sort(span_all(base, nr))
    forbid("window word of two processes", words[1:] == words[:-1], word=words[1:])
    outside = np.ones(mem.windows.size, np.bool_)
    outside[words] = False
    stale = outside & (mem.windows != W_NONE)
    forbid("window word of no process", stale, word=np.arange(outside.size), value=mem.windows)
    forbid("words behind the pool's end", words >= mem.pool[P_WORDS_USED], word=words)
    return mms


class _Windows(NamedTuple):
    """The 2 MiB windows of all live processes, in columns."""

    mm: Ints
    window: Ints
    word: Ints
    tag: Ints
    value: Ints


def _check_words(mem: Memory, mms: Ints) -> _Windows:
    """Return the windows of live processes; check their words."""
    rows = mem.mm[mms]
    mm = np.repeat(mms, rows[:, MM_WINDOWS])
    window = span_all(np.zeros(mms.size, np.int64), rows[:, MM_WINDOWS])
    word = mem.windows[np.repeat(rows[:, MM_BASE], rows[:, MM_WINDOWS]) + window].astype(np.int64)
    tag, value = word & W_TAG, word >> 2
    odd = ~np.isin(tag, (W_HUGE, W_TABLE, W_HUGETLB)) & ~np.isin(word, (W_NONE, W_ZERO))
    forbid("unknown window word", odd, mm=mm, window=window, word=word)
    forbid(
        "huge zero page mapped that does not exist",
        (word == W_ZERO) & (mem.pool[P_ZERO_PB] == 0),
        mm=mm,
        window=window,
    )
    mapped_zero = int((word == W_ZERO).sum())
    agree("users of the huge zero page", pool=mem.pool[P_ZERO_USERS], windows=mapped_zero)
    return _Windows(mm, window, word, tag, value)


def check_address_spaces(mem: Memory, s: Scan, x: Extents) -> None:
    """Windows, their extents, huge mappings, kernel pages and the counters of processes."""
    mms = _processes(mem)
    w = _check_words(mem, mms)
    _check_huge(mem, s, x, np.flatnonzero(w.tag == W_HUGE), w)
    x = with_swap_entries(mem, x)
    used = int(mem.pool[P_EXT_USED])
    column = np.full(used, NIL)
    column[x.at] = np.arange(x.at.size)
    in_windows, home = _check_window_extents(mem, x, column, w)
    of_kernel, process = _check_kernel_pages(mem, x, column, mms)
    listed = np.sort(x.at[np.concatenate([in_windows, of_kernel])])
    forbid("extent on two owners' lists", listed[1:] == listed[:-1], extent=listed[1:])
    pmd = x.flags & EXT_PMD != 0
    expected = np.sort(x.at[(x.owner != NIL) & ~pmd])
    agree("extents on owners' lists", listed=listed, live=expected)

    def per_kind(kind: int) -> Ints:
        pages = np.where(x.kind[of_kernel] == kind, x.nr[of_kernel], 0)
        return np.bincount(process, weights=pages, minlength=mms.size).astype(np.int64)

    rows = mem.mm[mms]
    agree("page-table pages of process", counter=rows[:, MM_PGTABLES], found=per_kind(KIND_PGTABLE))
    agree("EPT pages of process", counter=rows[:, MM_EPT], found=per_kind(KIND_EPT))
    _check_counters(mem, x, in_windows, home, w, mms)


def _check_window_extents(mem: Memory, x: Extents, column: Ints, w: _Windows) -> tuple[Ints, Ints]:
    """Check the lists of windows; return the columns of their extents, and each one's window."""
    table = np.flatnonzero(w.tag == W_TABLE)
    used = column.size
    at, which, before = walk("extents of windows", mem.ext["next"][:used], w.value[table] - 1, used)
    forbid(
        "window leads to a free extent", column[at] == NIL, extent=at, window=w.window[table][which]
    )
    i = column[at]
    home = table[which]
    agree("owner of a window's extents", extent=x.owner[i], window=w.mm[home])
    agree("window of a window's extents", extent=x.vpn[i] >> HPAGE_PMD_ORDER, window=w.window[home])
    last = (x.vpn[i] + x.nr[i] - 1) >> HPAGE_PMD_ORDER
    agree("window of their last pages", extent=last, window=w.window[home])
    follows = before != NIL
    b = column[before[follows]]
    forbid(
        "extents of a window out of order",
        x.vpn[b] + x.nr[b] > x.vpn[i[follows]],
        mm=x.owner[b],
        vpn=x.vpn[b],
        pages=x.nr[b],
        next_vpn=x.vpn[i[follows]],
    )
    wrong = ~np.isin(x.kind[i], (KIND_ANON, KIND_SWAP)) | (x.flags[i] & EXT_PMD != 0)
    forbid("not a small anonymous page in a window", wrong, extent=at, flags=x.flags[i])
    return i, home


def _check_kernel_pages(mem: Memory, x: Extents, column: Ints, mms: Ints) -> tuple[Ints, Ints]:
    """Check processes' lists of kernel pages; return their columns, and each one's process."""
    used = column.size
    heads = mem.mm[mms, MM_KERNEL] - 1
    at, which, _ = walk("kernel pages", mem.ext["next"][:used], heads, used)
    forbid("process leads to a free extent", column[at] == NIL, extent=at)
    k = column[at]
    agree("owner of a process's kernel pages", extent=x.owner[k], process=mms[which])
    forbid("anonymous memory among kernel pages", x.kind[k] == KIND_ANON, extent=at)
    return k, which


def _check_counters(mem: Memory, x: Extents, i: Ints, home: Ints, w: _Windows, mms: Ints) -> None:
    """Compare the counters of processes with the pages that their windows hold."""
    here = np.where(x.kind[i] == KIND_ANON, x.nr[i], 0)
    small = np.bincount(home, weights=here, minlength=w.word.size).astype(np.int64)
    out = np.bincount(home, weights=x.nr[i] - here, minlength=w.word.size).astype(np.int64)
    resident = small + np.where(w.tag == W_HUGE, HPAGE_PMD_NR, 0)
    in_ram = w.window << HPAGE_PMD_ORDER < mem.mm[w.mm, MM_RAM_PAGES]
    rows = mem.mm[mms]

    def per_mm(weights: Any) -> Ints:
        return np.bincount(w.mm, weights=weights, minlength=mem.mm.shape[0]).astype(np.int64)[mms]

    for name, field, pages in (
        ("resident pages", MM_ANON, per_mm(resident)),
        ("resident pages of guest RAM", MM_RAM_ANON, per_mm(np.where(in_ram, resident, 0))),
        ("windows mapped huge", MM_HUGE, per_mm(w.tag == W_HUGE)),
        ("pages swapped out", MM_SWAP, per_mm(out)),
    ):
        agree(f"{name} of process", counter=rows[:, field], recomputed=pages)
    mapped = per_mm((w.word != W_NONE) & (w.tag != W_HUGETLB))
    tables = rows[:, MM_PGTABLES]
    forbid("windows without a page table", tables < mapped, mm=mms, tables=tables, windows=mapped)
    guests = rows[rows[:, MM_HAS_EPT] != 0, MM_RAM_ANON].sum()
    agree("nr_guest_pages", vmstat=mem.vmstat[NR_GUEST_PAGES], processes=guests)


def _check_huge(mem: Memory, s: Scan, x: Extents, huge: Ints, w: _Windows) -> None:
    """Pageblocks mapped by PMDs against the windows that map them, both ways."""
    pmd = x.flags & EXT_PMD != 0
    whole = (x.nr == HPAGE_PMD_NR) & (x.vpn % HPAGE_PMD_NR == 0) & (x.flags & EXT_DESCENDING == 0)
    forbid("PMD extent that is no huge page", pmd & ~whole, extent=x.at, pfn=x.pfn, pages=x.nr)
    forbid(
        "PMD extent outside of a compound page",
        pmd & (s.state[x.pfn >> PAGEBLOCK_ORDER] != PB_COMPOUND),
        extent=x.at,
        pfn=x.pfn,
    )
    alone = np.flatnonzero(s.state == PB_HUGE)
    if mem.pool[P_ZERO_PB]:
        zero = int(mem.pool[P_ZERO_PB]) - 1
        agree("state of the huge zero page", found=s.state[zero], expected=PB_HUGE)
        alone = alone[alone != zero]
    by_pageblock = np.concatenate(
        [
            np.stack([alone, mem.pb["a"][alone], unpacked(mem.pb[alone]).b]),
            np.stack([x.pfn, x.owner, x.vpn])[:, pmd] >> np.array([[9], [0], [9]]),
        ],
        axis=1,
    )
    by_window = np.stack([w.value[huge], w.mm[huge], w.window[huge]])
    for name, i in (("pageblocks", 0), ("processes", 1), ("windows", 2)):
        agree(
            f"{name} of huge mappings",
            by_pageblock=by_pageblock[i][np.lexsort(by_pageblock)],
            by_window=by_window[i][np.lexsort(by_window)],
        )
