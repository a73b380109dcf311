"""Hits and misses at every level, over streams of a million accesses, against a NumPy cascade."""

import numpy as np
import pytest
from machines import SIZES, SKYLAKE, cpu, empty_ept, fresh, tlb

from fleet.lru_cascade import hits_by_cascade
from hostsim.core.rng import Stream, stream
from hostsim.mmu.paging import map_leaf, new_page_tables, tables_needed
from hostsim.mmu.tlb import C_ACCESSES, C_L1_HITS, C_L2_HITS, C_READS, C_WALKS, LEVEL_STRIDE
from hostsim.mmu.walker import access_pages

N = 1_000_000
PAGES = 3 << 18  # 3 GiB
CACHES = {2: (32, 4), 3: (8, 4), 4: (4, 4)}
NEHALEM = cpu(
    tlb(1, ("4K",), 64, 4),
    tlb(1, ("2M",), 32, 4),
    tlb(2, ("4K",), 512, 4),
    walk_caches=CACHES,
    sizes=SIZES[:2],
)
ICE_LAKE = cpu(
    tlb(1, ("4K",), 64, 4),
    tlb(1, ("2M",), 32, 4),
    tlb(1, ("1G",), 8, 8),
    tlb(2, ("4K", "2M"), 1024, 8),
    tlb(2, ("4K", "1G"), 1024, 8),
    walk_caches=CACHES,
)
ROME = cpu(
    tlb(1, SIZES, 64, 64),
    tlb(2, ("4K", "2M"), 2048, 16, group_ways=(8, 4)),
    walk_caches=CACHES,
)


def uniform(rng):
    return rng.integers(0, PAGES, N)


def zipf(rng):
    return (rng.zipf(1.2, N) * 7919) % PAGES


def lines(_):
    return np.arange(N) >> 6


def stride(_):
    return (np.arange(N) * 3) % PAGES


def loop(_):
    return np.arange(N) % 1280  # 5 MiB


def mixed(rng):
    hot = rng.integers(0, 2048, N) * 61 % PAGES
    return np.where(rng.random(N) < 0.7, hot, rng.integers(0, PAGES, N))


def sizes_small(page):
    return np.zeros(len(page), np.int64)


def sizes_huge(page):
    return np.ones(len(page), np.int64)


def sizes_mixed(page):
    return (page >> 9) & 1


CASES = [
    (SKYLAKE, uniform, sizes_small),
    (SKYLAKE, uniform, sizes_mixed),
    (SKYLAKE, zipf, sizes_small),
    (SKYLAKE, zipf, sizes_huge),
    (SKYLAKE, lines, sizes_small),
    (SKYLAKE, stride, sizes_mixed),
    (SKYLAKE, loop, sizes_small),
    (SKYLAKE, mixed, sizes_mixed),
    (NEHALEM, mixed, sizes_mixed),
    (ICE_LAKE, mixed, sizes_mixed),
    (ICE_LAKE, zipf, sizes_small),
    (ROME, mixed, sizes_small),
]
NAMES = ["skylake"] * 8 + ["nehalem", "ice_lake", "ice_lake", "rome"]
IDS = [f"{name}-{s.__name__}-{z.__name__}" for name, (_, s, z) in zip(NAMES, CASES, strict=True)]


@pytest.fixture(scope="module")
def space():
    cache = {}

    def get(sizes_of):
        if sizes_of not in cache:
            made = new_page_tables(tables_needed(PAGES, 4, 1), 4, 1 << 27)
            first = np.arange(0, PAGES, 512)
            for page, huge in zip(first, sizes_of(first), strict=True):
                if huge:
                    map_leaf(made, page, 2, page)
                else:
                    for small in range(page, page + 512):
                        map_leaf(made, small, 1, small)
            cache[sizes_of] = made
        return cache[sizes_of]

    return get


def tlb_of(machine, level, size):
    return [t for t in machine.tlbs if t.level == level and size in t.sizes]


def expected(machine, pages, size):
    """Return L1 hits, L2 hits and walks by the cascade, one store at a time."""
    page = pages >> (9 * size)
    key = page * 4 + size
    l1_hit = np.zeros(N, bool)
    if len({t.name for t in machine.tlbs if t.level == 1}) == 1:
        l1_hit[:] = hits_by_cascade(key, np.zeros(N, np.int64), machine.tlbs[0].ways)
    else:
        for number in range(2):
            (store,) = tlb_of(machine, 1, SIZES[number])
            mine = size == number
            sets = page[mine] % (store.entries // store.ways)
            l1_hit[mine] = hits_by_cascade(key[mine], sets, store.ways)
    at_l2 = np.flatnonzero(~l1_hit)
    # Which store and set each miss goes to; -1 if the CPU keeps its size in none.
    where = np.full(len(at_l2), -1, np.int64)
    ways = 0
    for number in range(2):
        stores = tlb_of(machine, 2, SIZES[number])
        mine = size[at_l2] == number
        if not stores:
            continue
        store = stores[0]
        sets = store.entries // store.ways
        ways = store.group_ways[0] if store.group_ways else store.ways
        spread = len(stores) * (store.ways // ways)
        # bits above the set's choose the half, or the group of ways
        where[mine] = page[at_l2][mine] % (sets * spread)
        if number == 1 and len(tlb_of(machine, 2, "4K")) == 2:
            assert spread == 1
    kept = where >= 0
    l2_hit = np.zeros(len(at_l2), bool)
    l2_hit[kept] = hits_by_cascade(key[at_l2][kept], where[kept], ways)
    return l1_hit, at_l2, l2_hit


def expected_reads(pages, size):
    """Return the reads at each level of a native walk, by one cascade a walk cache."""
    reads = {1: int((size == 0).sum())}
    part = pages >> 9
    small = np.flatnonzero(size == 0)
    pde_hit = np.zeros(len(pages), bool)
    pde_hit[small] = hits_by_cascade(part[small], part[small] % 8, 4)
    left = pages[~pde_hit]
    for level, (entries, ways) in ((3, CACHES[3]), (4, CACHES[4])):
        reads[level - 1] = len(left)
        part = left >> (9 * (level - 1))
        left = left[~hits_by_cascade(part, part % (entries // ways), ways)]
    return reads | {4: len(left)}


@pytest.mark.parametrize(("machine", "draw", "sizes_of"), CASES, ids=IDS)
def test_every_level_equals_the_cascade(machine, draw, sizes_of, space):
    pages = draw(stream(1, Stream.BENCH)).astype(np.int64)
    size = sizes_of(pages)
    mmu = fresh(machine)
    access_pages(mmu, space(sizes_of), empty_ept(), False, 1, pages, N)
    l1_hit, at_l2, l2_hit = expected(machine, pages, size)
    assert mmu.counts[C_ACCESSES] == N
    assert mmu.counts[C_L1_HITS] == l1_hit.sum()
    assert mmu.counts[C_L2_HITS] == l2_hit.sum()
    walked = at_l2[~l2_hit]
    assert mmu.counts[C_WALKS] == len(walked)
    reads = expected_reads(pages[walked], size[walked])
    counted = mmu.counts[C_READS : C_READS + LEVEL_STRIDE]
    assert {level: int(counted[level]) for level in range(1, 5)} == reads
