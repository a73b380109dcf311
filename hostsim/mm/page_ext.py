"""What few pageblocks have beside their state: records found by a hash of their number.

A pageblock has a record while any of it is true: it holds unmovable pages (`hostsim.mm.contig`),
it is a huge page some of whose pages were never written (`hostsim.mm.content`), or it stands on
the deferred split queue (`hostsim.mm.split`).

Source: the role of Linux mm/page_ext.c (lookup_page_ext) and of the fields that a huge page keeps
in its tail pages; the representation is our own.
"""

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import hot_kernel, inline_kernel, kernel
from hostsim.mm.mm_types import (
    NIL,
    P_PAGE_EXT_FREE,
    P_PAGE_EXT_USED,
    P_SPLIT_FIRST,
    Memory,
)


@hot_kernel
def lookup_page_ext(mem: Memory, pb: int) -> int:
    """Return the record of a pageblock, or NIL."""
    at = int(mem.page_ext_bucket[pb & (mem.page_ext_bucket.size - 1)]) - 1
    while at != NIL and mem.page_ext[at].pb != pb:
        at = int(mem.page_ext[at].chain) - 1
    return at


@hot_kernel
def need_page_ext(mem: Memory, pb: int) -> int:
    """Return the record of a pageblock, made if need be."""
    at = lookup_page_ext(mem, pb)
    if at != NIL:
        return at
    at = mem.pool[P_PAGE_EXT_FREE] - 1
    if at != NIL:
        mem.pool[P_PAGE_EXT_FREE] = int(mem.page_ext[at].chain)
    else:
        at = mem.pool[P_PAGE_EXT_USED]
        mem.pool[P_PAGE_EXT_USED] += 1
    bucket = pb & (mem.page_ext_bucket.size - 1)
    mem.page_ext[at].pb = pb
    mem.page_ext[at].chain = mem.page_ext_bucket[bucket]
    mem.page_ext[at].written = 0
    mem.page_ext[at].next = 0
    mem.page_ext[at].prev = 0
    mem.page_ext[at].unmovable = 0
    mem.page_ext_bucket[bucket] = at + 1
    return at


@inline_kernel
def is_queued_ext(mem: Memory, at: int) -> bool:
    """Tell whether the pageblock of a record is on the deferred split queue."""
    return mem.page_ext[at].prev != 0 or mem.pool[P_SPLIT_FIRST] == mem.page_ext[at].pb + 1


@kernel
def put_page_ext(mem: Memory, at: int) -> None:
    """Forget a record in which nothing is left."""
    if mem.page_ext[at].unmovable != 0 or mem.page_ext[at].written != 0 or is_queued_ext(mem, at):
        return
    bucket = int(mem.page_ext[at].pb) & (mem.page_ext_bucket.size - 1)
    before = NIL
    other = int(mem.page_ext_bucket[bucket]) - 1
    while other != at:
        before = other
        other = int(mem.page_ext[other].chain) - 1
    if before == NIL:
        mem.page_ext_bucket[bucket] = mem.page_ext[at].chain
    else:
        mem.page_ext[before].chain = mem.page_ext[at].chain
    mem.page_ext[at].pb = NIL
    mem.page_ext[at].chain = mem.pool[P_PAGE_EXT_FREE]
    mem.pool[P_PAGE_EXT_FREE] = at + 1


def all_of(mem: Memory, field: str, nr_pageblocks: int) -> NDArray[np.int64]:
    """Return a field of the records by pageblock, zero where there is none."""
    found = np.zeros(nr_pageblocks, np.int64)
    live = mem.page_ext[: mem.pool[P_PAGE_EXT_USED]]
    live = live[live["pb"] != NIL]
    found[live["pb"]] = live[field]
    return found
