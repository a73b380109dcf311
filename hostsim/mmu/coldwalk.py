"""One walk with nothing cached, or with chosen levels found in walk caches."""

from typing import NamedTuple

from hostsim.mmu.cpus import cold_mmu
from hostsim.mmu.paging import INDEX_BITS, PAGE_SIZES, PageTables, map_leaf, new_page_tables
from hostsim.mmu.tlb import READ_GUEST, S_FORCE_GUEST, S_FORCE_HOST, S_LOGGED, Mmu
from hostsim.mmu.walker import LOG_CLASS_SHIFT, LOG_LEVEL_SHIFT, translate

PAGE = 0x1234567 << INDEX_BITS  # some page; its index differs at every level
TABLE_FRAME = 1 << 8  # guest frames of the guest's tables
DATA_FRAME = 1 << (2 * INDEX_BITS)  # guest frame of the page: aligned to 1 GiB
LEVEL_NAMES = ("", "PTE", "PDE", "PDPTE", "PML4E", "PML5E")


class Step(NamedTuple):
    """What a walk reads for one guest table, or for the page at the end."""

    what: str  # name of the guest entry, or "page"
    ept_levels: tuple[int, ...]  # levels of the EPT entries read to find it
    guest_reads: int  # 1, or 0 for the page


def cold_tables(
    guest_size: str, host_size: str | None, guest_levels: int, host_levels: int
) -> tuple[PageTables, PageTables]:
    """Return tables that map one page, and an EPT that maps it and those tables."""
    guest = new_page_tables(guest_levels, guest_levels, TABLE_FRAME)
    map_leaf(guest, PAGE, PAGE_SIZES.index(guest_size) + 1, DATA_FRAME)
    ept = new_page_tables(4 * host_levels, host_levels, TABLE_FRAME)
    if host_size is not None:
        level = PAGE_SIZES.index(host_size) + 1
        inside = (1 << ((level - 1) * INDEX_BITS)) - 1
        in_page = PAGE & ((1 << (PAGE_SIZES.index(guest_size) * INDEX_BITS)) - 1)
        for gfn in (*(int(f) for f in guest.frame), DATA_FRAME + in_page):
            map_leaf(ept, gfn, level, (DATA_FRAME << 1) + (gfn & ~inside))
    return guest, ept


def cold_walk(
    guest_size: str,
    host_size: str | None,
    guest_levels: int = 4,
    host_levels: int = 4,
    guest_found: int = 0,
    host_found: int = 0,
) -> list[Step]:
    """Walk once and return what was read, in order.

    Parameters
    ----------
    guest_size, host_size
        "4K", "2M" or "1G"; no host size for a native walk.
    guest_found, host_found
        Levels that the walk need not read: those found in the paging-structure caches, for
        the guest's walk and for every walk of the EPT.

    Raises
    ------
    ValueError
        As many levels are found as there are in the guest's walk, or more than in the EPT's.
    """
    guest_reads = guest_levels - PAGE_SIZES.index(guest_size) - guest_found
    if guest_reads < 1:
        raise ValueError(f"a walk of a {guest_size} page has no {guest_found} levels to find")
    mmu = cold_mmu()
    guest, ept = cold_tables(guest_size, host_size, guest_levels, host_levels)
    if guest_found:
        mmu.state[S_FORCE_GUEST] = guest_reads
    if host_size is None:
        translate(mmu, guest, ept, False, PAGE, 1)
        return steps_of(mmu, False)
    host_reads = host_levels - PAGE_SIZES.index(host_size) - host_found
    if host_reads < 0:
        raise ValueError(f"a walk to a {host_size} page has no {host_found} levels to find")
    if host_found:
        mmu.state[S_FORCE_HOST] = host_reads + 1
    translate(mmu, guest, ept, True, PAGE, 1)
    return steps_of(mmu, True)


def steps_of(mmu: Mmu, nested: bool) -> list[Step]:
    """Return the reads of the last walk, one step a guest table."""
    steps = []
    levels: list[int] = []
    for read in mmu.log[: int(mmu.state[S_LOGGED])]:
        level = int(read >> LOG_LEVEL_SHIFT) & 15
        if read >> LOG_CLASS_SHIFT == READ_GUEST:
            steps.append(Step(LEVEL_NAMES[level], tuple(levels), 1))
            levels = []
        else:
            levels.append(level)
    if nested:
        steps.append(Step("page", tuple(levels), 0))
    return steps


def nr_references(steps: list[Step]) -> int:
    """Return how many memory references a walk made."""
    return sum(len(step.ept_levels) + step.guest_reads for step in steps)
