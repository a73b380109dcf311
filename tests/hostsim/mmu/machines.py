"""Small machines and page tables for the tests of translation."""

from hostsim.core.jit import kernel
from hostsim.mmu.cpus import CacheSpec, Cpu, LatencySpec, TlbSpec, WalkCacheSpec, new_mmu
from hostsim.mmu.paging import map_leaf, new_page_tables
from hostsim.mmu.tlb import (
    G_FIRST,
    G_KIND,
    G_SETS_MASK,
    G_STRIDE,
    G_WAYS,
    NARROW,
    NR_STORES,
    TAG_SIZE_MASK,
    TAG_SIZE_SHIFT,
    TAG_VPID_SHIFT,
    WIDE,
    fill,
    second_level_hit,
)

NO_LATENCY = LatencySpec(0, 0, 0, 0, 0, 0, 0)
NO_CACHE = CacheSpec(0, 0, 0, 1)
SIZES = ("4K", "2M", "1G")


def tlb(level, sizes, entries, ways, group_ways=(), holds_tables=False):
    return TlbSpec("+".join(sizes), level, sizes, entries, ways, group_ways, holds_tables, "")


def cpu(*tlbs, walk_caches=None, sizes=SIZES, nested=(0, 0)):
    caches = walk_caches or {}
    spec = WalkCacheSpec(
        {level: entries for level, (entries, _) in caches.items()},
        {level: ways for level, (_, ways) in caches.items()},
        *nested,
    )
    return Cpu("test", "", (4, 5), sizes, tlbs, (), spec, 1, NO_LATENCY, NO_CACHE)


SKYLAKE = cpu(
    tlb(1, ("4K",), 64, 4),
    tlb(1, ("2M",), 32, 4),
    tlb(1, ("1G",), 4, 4),
    tlb(2, ("4K", "2M"), 1536, 12),
    tlb(2, ("1G",), 16, 4),
    walk_caches={2: (32, 4), 3: (8, 4), 4: (4, 4), 5: (2, 2)},
    nested=(16, 4),
)
TINY = cpu(
    tlb(1, ("4K",), 4, 2),
    tlb(1, ("2M",), 2, 2),
    tlb(1, ("1G",), 1, 1),
    tlb(2, ("4K", "2M"), 16, 4),
    walk_caches={2: (4, 2), 3: (2, 2), 4: (2, 2), 5: (1, 1)},
    nested=(4, 2),
)
ZEN = cpu(
    tlb(1, SIZES, 8, 8),
    tlb(2, ("4K", "2M"), 64, 8, group_ways=(4, 2), holds_tables=True),
    walk_caches={3: (2, 2), 4: (2, 2), 5: (1, 1)},
    nested=(4, 2),
)
HALVES = cpu(
    tlb(1, ("4K",), 4, 2),
    tlb(1, ("2M",), 2, 2),
    tlb(1, ("1G",), 1, 1),
    tlb(2, ("4K", "2M"), 16, 4),
    tlb(2, ("4K", "1G"), 16, 4),
    walk_caches={2: (4, 2), 3: (2, 2), 4: (2, 2), 5: (1, 1)},
    nested=(4, 2),
)
FOURS = cpu(  # one set a store, of whole vectors of ways
    *(tlb(1, (size,), 4, 4) for size in SIZES),
    tlb(2, ("4K", "2M"), 12, 12),
    tlb(2, ("1G",), 8, 8),
    walk_caches={2: (4, 4), 3: (4, 4), 4: (4, 4), 5: (4, 4)},
    nested=(4, 4),
)
ODD = cpu(  # ways that fill no vector, as many as an order names, and more
    tlb(1, ("4K",), 17, 17),
    tlb(1, ("2M",), 3, 3),
    tlb(1, ("1G",), 5, 5),
    tlb(2, ("4K", "2M"), 32, 16),
    tlb(2, ("1G",), 7, 7),
    walk_caches={2: (12, 6), 3: (18, 18), 4: (1, 1), 5: (9, 9)},
    nested=(26, 13),
)
MACHINES = {"tiny": TINY, "zen": ZEN, "halves": HALVES, "fours": FOURS, "odd": ODD}


def tables(leaves, levels=4, first_frame=1, room=64):
    """Map (page, size, frame) triples."""
    made = new_page_tables(room, levels, first_frame)
    for page, size, frame in leaves:
        assert map_leaf(made, page, size + 1, frame)
    return made


def plain(leaves, made, levels=4):
    """Return the same as dicts, as `tests/reference/tlb.PlainMmu` wants them."""
    found = {"root": int(made.frame[0])}
    number = 1
    for page, size, frame in leaves:
        for level in range(levels, size + 1, -1):
            key = level, page >> 9 * (level - 1)
            if key not in found:
                found[key] = "table", int(made.frame[number])
                number += 1
        found[size + 1, page >> 9 * size] = "leaf", frame
    return found


def empty_ept():
    return new_page_tables(1, 4, 0)


def fresh(machine):
    mmu = new_mmu(machine)
    assert all(mmu.tag[at] == -1 for at in all_entries(mmu))
    return mmu


def entries(mmu, store):
    """Return the places of a store's entries, the orders of its sets left out."""
    geometry = mmu.geometry[store]
    first, stride, ways = (int(geometry[c]) for c in (G_FIRST, G_STRIDE, G_WAYS))
    sets = int(geometry[G_SETS_MASK]) + 1
    ordered = int(geometry[G_KIND] in (NARROW, WIDE))
    rows = (first + number * stride + ordered for number in range(sets))
    return {at for row in rows for at in range(row, row + ways)}


def all_entries(mmu):
    return set().union(*(entries(mmu, store) for store in range(NR_STORES)))


# Steps that kernels merge into themselves are no entry points: these stand in for their callers.


@kernel
def call_fill(mmu, vpn, size, vpid, frame):
    fill(mmu, vpn, size, vpid, frame)


@kernel
def call_second_level_hit(mmu, vpn, vpid):
    return second_level_hit(mmu, vpn, vpid)


def tag_of(page, size, vpid):
    return page | size << TAG_SIZE_SHIFT | vpid << TAG_VPID_SHIFT


def entry_bits(tag):
    return 9 * (int(tag) >> TAG_SIZE_SHIFT & TAG_SIZE_MASK)
