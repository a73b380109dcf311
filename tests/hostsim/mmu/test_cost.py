"""What walks cost: the queueing network, popularity, and caches against full simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import SKYLAKE, empty_ept, fresh

from guestsim.workload import (
    ANY_STEP,
    Component,
    Law,
    Workload,
    compile_workload,
    draw_pages,
    page_classes,
)
from hostsim.mmu.caches import NR_PLACES, new_caches, read_line, read_pages
from hostsim.mmu.cost import (
    Remote,
    miss_rates,
    misses_of,
    operations_per_cycle,
    walk_cost,
    walk_share,
)
from hostsim.mmu.cpus import CacheSpec, LatencySpec
from hostsim.mmu.paging import map_leaf, new_page_tables, tables_needed
from hostsim.mmu.popularity import Classes, Popularity
from hostsim.mmu.tlb import C_ACCESSES, C_FILLS, C_READS, C_WALKS, LEVEL_STRIDE, NR_COUNTERS

LATENCY = LatencySpec(4, 14, 75, 261, 9, 0, 400)
CPU = SKYLAKE._replace(latency=LATENCY, cache=CacheSpec(1 << 13, 1 << 15, 1 << 19, 1))
cycles = st.floats(1.0, 1000.0)


@given(cycles, cycles, st.integers(1, 4))
def test_one_operation_at_a_time_takes_the_sum(own, walk, walkers):
    assert 1.0 / operations_per_cycle(own, walk, walkers, 1.0) == pytest.approx(own + walk)


@given(cycles, cycles, st.integers(1, 6))
def test_with_a_walker_for_each_there_is_no_waiting(own, walk, overlap):
    rate = operations_per_cycle(own, walk, 8, float(overlap))
    assert rate == pytest.approx(overlap / (own + walk))


@given(cycles, cycles, st.integers(1, 4), st.floats(1.0, 12.0))
def test_walkers_limit_the_rate(own, walk, walkers, overlap):
    share = walk_share(own, walk, walkers, overlap)
    assert share <= walkers + 1e-9
    assert operations_per_cycle(own, walk, walkers, overlap) <= overlap / (own + walk) + 1e-12
    more = operations_per_cycle(own, walk, walkers, overlap + 0.5)
    assert more >= operations_per_cycle(own, walk, walkers, overlap) - 1e-12


def test_two_customers_of_one_walker_by_hand():
    """Machine repairman: own 3, walk 1, two operations, one walker."""
    # states 0, 1, 2 at the walker with weights 1, 2/3, 2/9: utilisation 8/17
    assert operations_per_cycle(3.0, 1.0, 1, 2.0) == pytest.approx(8 / 17)


def as_classes(workload):
    found = page_classes(workload)
    rows = [(*c.region, c.objects, c.objects_per_page, c.rate, c.run) for c in found]
    return Classes(*(np.array(column, float) for column in zip(*rows, strict=True)))


def cost_of_walks(cpu, classes, counts, coverage, *rest):
    of = Popularity(classes)
    return walk_cost(cpu, of, counts, misses_of(of, counts, coverage), *rest)


def all_small(classes):
    return np.stack([np.ones(len(classes.rate)), *np.zeros((2, len(classes.rate)))])


def program(*components, pages=1 << 14, steps=1):
    return Workload("test", pages, steps, components, 1.0, 1.0, 1.0, 1.0, False)


UNIFORM = program(Component(Law.UNIFORM, 1.0, 0, 1 << 14, ANY_STEP))
HOT = program(
    Component(Law.UNIFORM, 0.5, 0, 1 << 11, ANY_STEP),
    Component(Law.UNIFORM, 0.5, 0, 1 << 14, ANY_STEP),
)
ZIPF = program(Component(Law.ZIPF, 1.0, 0, 1 << 14, ANY_STEP, 4, 0.9))
STRIDE = program(Component(Law.SEQUENTIAL, 1.0, 0, 1 << 14, ANY_STEP, stride_bytes=4096))
LINES = program(Component(Law.SEQUENTIAL, 1.0, 0, 1 << 14, ANY_STEP, stride_bytes=64))
TREE = program(
    *(
        Component(Law.CHILD, 1.0, first, pages, step)
        for step, (first, pages) in enumerate([(0, 4), (4, 256), (260, 16000)])
    ),
    steps=3,
)
PROGRAMS = {
    "uniform": UNIFORM,
    "hot": HOT,
    "zipf": ZIPF,
    "stride": STRIDE,
    "lines": LINES,
    "tree": TREE,
}


def test_popular_objects_cause_fewer_walks_each_than_their_share():
    classes = as_classes(ZIPF)
    walks = np.array([0.5, 0.0, 0.0])
    rates, times, _ = miss_rates(Popularity(classes), walks, all_small(classes))
    missed = rates[0]
    assert (missed * classes.objects).sum() == pytest.approx(0.5)
    passed = missed / classes.rate
    assert np.all(np.diff(passed) >= -1e-12)
    assert passed[0] < 0.01
    assert passed[-1] > 0.5
    assert times[0] > 0.0
    assert times[1] == times[2] == 0.0


@pytest.fixture(scope="module")
def spaces():
    guest = new_page_tables(tables_needed(1 << 14, 4, 1), 4, 100)
    ept = new_page_tables(tables_needed(1 << 16, 4, 1), 4, 100)
    for page in range(1 << 14):
        map_leaf(guest, page, 1, (1 << 15) + page)
    for gfn in [*range(100, 200), *range(1 << 15, (1 << 15) + (1 << 14))]:
        map_leaf(ept, gfn, 1, gfn)
    return guest, ept


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_analytic_model_finds_lines_where_simulated_caches_do(name, nested, spaces):
    """Cycles of a walk within 6 %, at 1/1000 of the size of real caches and footprints."""
    workload = PROGRAMS[name]
    guest, ept = spaces
    if not nested:
        ept = empty_ept()
    mmu, caches = fresh(CPU), new_caches(CPU)
    tables = compile_workload(workload)
    nr = 400_000
    pages = np.empty(nr, np.int64)
    for part in range(2):
        mmu.counts[:] = 0
        caches.found[:] = 0
        draw_pages(*tables, 1, part * nr, pages)
        read_pages(mmu, caches, guest, ept, nested, 1, pages, 5, part * nr)
    latency = np.array(LATENCY[:4])
    full = caches.found.reshape(-1, LEVEL_STRIDE, NR_PLACES)
    assert full.sum() > 0
    simulated = (full * latency).sum() / mmu.counts[C_WALKS]
    coverage = all_small(as_classes(workload))
    cost = cost_of_walks(CPU, as_classes(workload), mmu.counts, coverage, 512.0)
    assert cost.reads.sum() * nr == pytest.approx(full.sum())
    assert cost.walk_cycles == pytest.approx(simulated, rel=0.06)
    assert np.allclose(cost.found[cost.reads > 0].sum(axis=1), 1.0)
    extra = LATENCY.remote_cycles - LATENCY.dram_cycles
    for remote, kinds in ((Remote(memory=True), [0]), (Remote(ept=True), [1, 2])):
        far = cost_of_walks(CPU, as_classes(workload), mmu.counts, coverage, 512.0, remote)
        farther = simulated + full[kinds, :, -1].sum() * extra / mmu.counts[C_WALKS]
        assert far.walk_cycles == pytest.approx(farther, rel=0.06)


def test_what_is_remote_costs_the_difference_for_every_line_from_memory(spaces):
    guest, ept = spaces
    mmu, caches = fresh(CPU), new_caches(CPU)
    pages = np.empty(100_000, np.int64)
    draw_pages(*compile_workload(UNIFORM), 1, 0, pages)
    read_pages(mmu, caches, guest, ept, True, 1, pages, 5, 0)
    classes = as_classes(UNIFORM)

    def cost(**remote):
        return cost_of_walks(CPU, classes, mmu.counts, all_small(classes), 512.0, Remote(**remote))

    near = cost()
    from_memory = near.reads * near.found[..., -1] / near.walks
    extra = LATENCY.remote_cycles - LATENCY.dram_cycles
    memory = from_memory[0].sum() * extra
    in_ept = from_memory[1:].sum() * extra
    assert memory > 0 < in_ept
    for found, more in (
        (cost(memory=True), memory),
        (cost(ept=True), in_ept),
        (cost(memory=True, ept=True), memory + in_ept),
    ):
        assert found.walk_cycles == pytest.approx(near.walk_cycles + more)


@pytest.mark.parametrize(("name", "least", "most"), [("UNIFORM", 0.95, 1.0), ("LINES", 0.0, 0.0)])
def test_data_waits_for_memory_where_it_is_read_at_random(name, least, most, spaces):
    """64 MiB of data and 512 KiB of cache; what is read from end to end is prefetched."""
    workload = {"UNIFORM": UNIFORM, "LINES": LINES}[name]
    guest, _ = spaces
    mmu, caches = fresh(CPU), new_caches(CPU)
    pages = np.empty(100_000, np.int64)
    draw_pages(*compile_workload(workload), 1, 0, pages)
    read_pages(mmu, caches, guest, empty_ept(), False, 1, pages, 5, 0)
    classes = as_classes(workload)
    found = cost_of_walks(CPU, classes, mmu.counts, all_small(classes), 512.0).data_dram
    assert least <= found <= most


def test_a_line_is_found_in_the_smallest_cache_that_still_holds_it():
    caches = new_caches(CPU._replace(cache=CacheSpec(1 << 10, 1 << 12, 1 << 14, 1)))
    assert [read_line(caches, line) for line in (1, 1, 2, 1)] == [3, 0, 3, 0]
    for line in range(100, 116):
        read_line(caches, line)
    assert read_line(caches, 1) == 1
    for line in range(200, 400):
        read_line(caches, line)
    assert read_line(caches, 1) in (2, 3)
    for line in range(1000, 3000):
        read_line(caches, line)
    assert read_line(caches, 1) == 3


def test_a_walk_that_never_happens_costs_nothing(spaces):
    counts = fresh(CPU).counts.copy()
    counts[0] = 100
    cost = cost_of_walks(CPU, as_classes(UNIFORM), counts, all_small(as_classes(UNIFORM)), 512.0)
    assert cost.walks == cost.walk_cycles == cost.ept_ratio == 0.0


def test_walks_where_no_class_is_mapped_so_cost_the_first_cache():
    """A few walks for small pages though the classes say that all is huge."""
    classes = Classes(*(np.array([value]) for value in (0.0, 1e4, 1e4, 1.0, 1e-4, 1.0)))
    counts = np.zeros(NR_COUNTERS, np.int64)
    counts[C_ACCESSES], counts[C_WALKS], counts[C_FILLS] = 10_000, 5, 5
    counts[C_READS + 1] = 5  # of class 0, level 1
    cost = cost_of_walks(CPU, classes, counts, np.array([[0.0], [1.0], [0.0]]), 512.0)
    assert cost.walk_cycles == LATENCY.l1_cycles + LATENCY.walk_cycles
    assert cost.ept_ratio == 0.0
