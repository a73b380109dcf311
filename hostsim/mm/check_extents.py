"""The extents of small pages: their pool, and the lists of the pageblocks that they lie in."""

from typing import NamedTuple

import numpy as np

from hostsim.core.units import PAGEBLOCK_NR_PAGES, PAGEBLOCK_ORDER
from hostsim.mm.check_free import LISTED_STATES, Ints, Scan, agree, chain, forbid, span_all, walk
from hostsim.mm.mm_types import (
    MM_BASE,
    MM_LIVE,
    MM_WINDOWS,
    NIL,
    P_EXT_FREE,
    P_EXT_LIVE,
    P_EXT_USED,
    P_PAGEBLOCKS,
    Memory,
)
from hostsim.mm.mmap import W_TABLE
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import PB_FULL, PB_PARTIAL
from hostsim.mm.rmap import (
    EXT_DESCENDING,
    FOLDED,
    KIND_ANON,
    KIND_EPT,
    KIND_FILE,
    KIND_MASK,
    KIND_PGTABLE,
    KIND_SWAP,
)


class Extents(NamedTuple):
    """All live extents, in columns."""

    at: Ints  # extent
    pfn: Ints
    vpn: Ints
    nr: Ints
    owner: Ints
    flags: Ints
    kind: Ints


def unfolded(mem: Memory) -> Memory:
    """Check what is folded, and return a state in which nothing is: itself or a copy."""
    live = np.flatnonzero(mem.mm[:, MM_LIVE])
    base, nr = mem.mm[live, MM_BASE], mem.mm[live, MM_WINDOWS]
    at = span_all(base, nr)
    folded = mem.windows[at] < 0
    word = mem.windows[at[folded]].astype(np.int64)
    pb, downward = np.divmod(-(word >> 2) - 1, 2)
    mm, window = np.repeat(live, nr)[folded], (at - np.repeat(base, nr))[folded]
    state = unpacked(mem.pb[: int(mem.pool[P_PAGEBLOCKS])]).state
    marked = np.flatnonzero((state == PB_FULL) & (mem.pb["a"][: state.size] < NIL))
    agree("pageblocks that are folded", windows=np.sort(pb), marked=marked)
    agree("process of a folded pageblock", pageblock=FOLDED - mem.pb["a"][pb], window=mm)
    agree("window of a folded pageblock", pageblock=unpacked(mem.pb[pb]).b, window=window)
    if pb.size == 0:
        return mem
    forbid("folded on a machine that keeps stamps", [len(mem.lru) != 0], windows=[pb.size])
    used = int(mem.pool[P_EXT_USED])
    x = np.arange(used, used + pb.size)
    ext = np.concatenate([mem.ext[:used], np.zeros(pb.size, mem.ext.dtype)])
    ext["pfn"][x], ext["vpn"][x] = pb << PAGEBLOCK_ORDER, window << PAGEBLOCK_ORDER
    ext["nr"][x], ext["owner"][x] = PAGEBLOCK_NR_PAGES, mm
    ext["flags"][x] = downward * EXT_DESCENDING
    ext["next"][x] = ext["next_b"][x] = ext["prev_b"][x] = NIL
    pageblocks, windows, pool = mem.pb.copy(), mem.windows.copy(), mem.pool.copy()
    pageblocks["a"][pb] = x
    windows[at[folded]] = ((x + 1) << 2) | W_TABLE
    pool[P_EXT_USED] += pb.size
    pool[P_EXT_LIVE] += pb.size
    parts = {"ext": ext, "pb": pageblocks, "windows": windows, "pool": pool}
    return Memory(**(mem._asdict() | parts))


def check_extents(mem: Memory, s: Scan) -> Extents:
    """Check the lists of extents of the pageblocks, and the pool."""
    pageblock = np.flatnonzero(np.isin(s.state, LISTED_STATES))
    heads = mem.pb["a"][pageblock].astype(np.int64)
    heads[s.state[pageblock] == PB_PARTIAL] = mem.rec["ext"][s.record]
    used = int(mem.pool[P_EXT_USED])
    at, which, before = walk("extents of pageblocks", mem.ext["next_b"][:used], heads, used)
    agree("back links of extents in a pageblock", stored=mem.ext["prev_b"][at], walked=before)
    swapped = np.flatnonzero(
        (mem.ext["nr"][:used] > 0) & (mem.ext["flags"][:used] & KIND_MASK == KIND_SWAP)
    )
    unused = chain(
        "free extents", mem.ext["next"][:used].tolist(), int(mem.pool[P_EXT_FREE]) - 1, used
    )
    agree(
        "extents in use and in the pool",
        found=np.sort(np.concatenate([at, swapped, np.array(unused, np.int64)])),
        expected=np.arange(used),
    )
    agree("extents live", counter=mem.pool[P_EXT_LIVE], listed=at.size + swapped.size)
    columns = mem.ext[at]
    pfn, nr, flags, owner = (columns[f].astype(np.int64) for f in ("pfn", "nr", "flags", "owner"))
    agree("pageblock of extents", extent=pfn >> PAGEBLOCK_ORDER, list=pageblock[which])
    forbid(
        "extent leaves its pageblock",
        (nr < 1) | ((pfn + nr - 1) >> PAGEBLOCK_ORDER != pfn >> PAGEBLOCK_ORDER),
        extent=at,
        pfn=pfn,
        pages=nr,
    )
    kind = flags & KIND_MASK
    forbid("unknown kind of extent", kind > KIND_FILE, extent=at, flags=flags)
    live = mem.mm[:, MM_LIVE] != 0
    orphan = (owner != NIL) & ~live[owner]
    forbid("extent of a process that is gone", orphan, extent=at, pfn=pfn, mm=owner)
    forbid("swap entry on a pageblock's list", kind == KIND_SWAP, extent=at, pfn=pfn)
    homeless = (owner == NIL) & np.isin(kind, (KIND_ANON, KIND_PGTABLE, KIND_EPT))
    forbid("process memory without a process", homeless, extent=at, pfn=pfn, flags=flags)
    return Extents(at, pfn, columns["vpn"].astype(np.int64), nr, owner, flags, kind)


def with_swap_entries(mem: Memory, x: Extents) -> Extents:
    """Return the extents and the swapped-out ones, which are on windows' lists only."""
    used = int(mem.pool[P_EXT_USED])
    flags = mem.ext["flags"][:used]
    at = np.flatnonzero((mem.ext["nr"][:used] > 0) & (flags & KIND_MASK == KIND_SWAP))
    columns = mem.ext[at]
    swap = (at, *(columns[f].astype(np.int64) for f in ("pfn", "vpn", "nr", "owner", "flags")))
    kind = np.full(at.size, KIND_SWAP)
    return Extents(*(np.concatenate(pair) for pair in zip(x, (*swap, kind), strict=True)))
