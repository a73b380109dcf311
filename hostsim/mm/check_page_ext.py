"""Validator of the records of `hostsim.mm.page_ext`: each found by its pageblock, none empty."""

import numpy as np

from hostsim.mm.check_free import agree, chain, forbid
from hostsim.mm.mm_types import (
    NIL,
    P_PAGE_EXT_FREE,
    P_PAGE_EXT_USED,
    P_PAGEBLOCKS,
    P_SPLIT_FIRST,
    Memory,
)


def check_page_ext(mem: Memory) -> None:
    """Check the hash, that a pageblock has one record at most, and that each says something."""
    used = int(mem.pool[P_PAGE_EXT_USED])
    records = mem.page_ext[:used]
    after = (records["chain"].astype(np.int64) - 1).tolist()
    buckets = mem.page_ext_bucket.size
    listed: list[int] = []
    for bucket in np.flatnonzero(mem.page_ext_bucket).tolist():
        mine = chain("records of a hash", after, int(mem.page_ext_bucket[bucket]) - 1, used)
        pb = records["pb"][mine]
        forbid("record of another hash", pb & (buckets - 1) != bucket, pageblock=pb)
        listed += mine
    free = chain("free records of pageblocks", after, int(mem.pool[P_PAGE_EXT_FREE]) - 1, used)
    found = np.sort(np.array(listed + free, np.int64))
    agree("records of pageblocks", found=found, used=np.arange(used))
    forbid("pageblock of an unused record", records["pb"][free] != NIL, record=free)
    live = records[listed]
    pb = np.sort(live["pb"].astype(np.int64))
    forbid("pageblock beyond memory", (pb < 0) | (pb >= mem.pool[P_PAGEBLOCKS]), pageblock=pb)
    forbid("second record of a pageblock", pb[1:] == pb[:-1], pageblock=pb[1:])
    empty = (live["unmovable"] == 0) & (live["written"] == 0) & (live["prev"] == 0)
    empty &= live["pb"] != mem.pool[P_SPLIT_FIRST] - 1
    forbid("record of a pageblock that says nothing", empty, pageblock=live["pb"])
