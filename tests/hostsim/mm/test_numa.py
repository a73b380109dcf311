"""NUMA nodes: zones, watermarks, who serves a request, and what is counted by node.

Expected values are worked out by hand from the kernel's formulas, or come from the model of
build_zonelists in tests/reference/zonelists.py.
"""

import numpy as np
import pytest
from reference.zonelists import node_orders, zonelist

from hostsim.core.units import NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.collapse import SCAN_ALLOC_HUGE_PAGE_FAIL, SCAN_SUCCEED, collapse_window
from hostsim.mm.compact_score import fragmentation_score_node
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.filemap import page_cache_fill
from hostsim.mm.hugetlb import hugetlb_mmap, reserve_at_boot, set_nr_hugepages
from hostsim.mm.kcompactd import kcompactd_of
from hostsim.mm.memory import buddyinfo, new_memory, pagetypeinfo
from hostsim.mm.mm_types import (
    D_WAKE,
    HUGETLB_2M,
    MIGRATE_MOVABLE,
    MM_HUGE,
    N_LRU_ANON,
    N_LRU_FILE,
    N_PAGEOUTRUN,
    P_NODE,
    PCP_COUNT,
    Z_END,
    Z_FREE,
    Z_MANAGED,
    Z_PCP_HIGH_MIN,
    Z_RESERVE,
    Z_START,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
    ZONE_NAMES,
    ZONE_NORMAL,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NONE, mm_alloc
from hostsim.mm.numa import (
    next_zone,
    numa_maps,
    numa_pages,
    numastat,
    run_on_node_of,
    set_home_node,
)
from hostsim.mm.page_alloc import free_pages
from hostsim.mm.pcp import drain_zone_pages
from hostsim.mm.physmem import first_zone, pfn_to_nid, zone_idx, zone_of, zone_to_nid
from hostsim.mm.reclaim import run_kswapd, try_to_free_pages
from hostsim.mm.slowpath import GFP_DIRECT, GFP_THISNODE, alloc_pages, alloc_pages_gfp
from hostsim.mm.state import restore_parts, used_parts
from hostsim.mm.tunables import set_tunable
from hostsim.mm.vmstat import PGALLOC, PGSTEAL_KSWAPD
from hostsim.mm.zap import discard_range, exit_mm

WINDOW = 512
GIB = 1 << 18
MIB = 1 << 8


def machine(nodes=2, mib=128, kernel="6.12", cpus=None, **files):
    mem = new_memory(mib * MIB, kernel, cpus or nodes, nr_nodes=nodes, dma32_end=32 * MIB)
    set_tunable(mem.tunables, "enabled", "never")
    for name, value in files.items():
        set_tunable(mem.tunables, name, value)
    return mem


def process(mem, node, windows=8, advice=ADVICE_NONE, nodes=1):
    mm = int(mm_alloc(mem, windows * WINDOW, 0, advice, False, 0))
    set_home_node(mem, mm, node, nodes)
    return mm


def touch(mem, mm, start, nr, step=1):
    assert touch_range(mem, mm, start, nr, step, 1.0, 0, True, start) == FAULT_OK


def pages_of(mem, mm):
    pages = np.zeros(4 * len(mem.node), np.int64)
    numa_pages(mem, mm, pages)
    return pages.reshape(-1, 4)


def take(mem, node, nr, order=0):
    """Take pages as a CPU of a node would; their nodes, in order."""
    mem.pool[P_NODE] = node
    found = []
    while len(found) < nr:
        pfn, taken, step = alloc_pages(mem, order, MIGRATE_MOVABLE, nr - len(found))
        assert pfn != NO_PFN
        found += [int(pfn_to_nid(mem, int(pfn + i * step))) for i in range(taken)]
    return found


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_zones_are_those_of_a_pc_on_node_0_and_one_normal_zone_on_every_other(nodes):
    mem = new_memory(64 * GIB, "6.12", 4, nr_nodes=nodes)
    here = 64 * GIB // nodes
    assert mem.zone[:, Z_START].tolist()[:3] == [0, 1 << 12, 1 << 20]
    assert mem.zone[:, Z_END].tolist() == [1 << 12, 1 << 20] + [
        (nid + 1) * here for nid in range(nodes)
    ]
    check_memory(mem)
    for nid in range(nodes):
        for pfn in (nid * here, (nid + 1) * here - 1):
            assert pfn_to_nid(mem, pfn) == zone_to_nid(zone_of(mem, pfn)) == nid


@pytest.mark.parametrize("nodes", [1, 2, 3, 4])
def test_zonelists_are_those_that_linux_builds(nodes):
    mem = new_memory(12 * 1024 * nodes, "6.12", 4, nr_nodes=nodes)
    for local in range(nodes):
        zone, order = ZONE_NORMAL + local, []
        for _ in range(len(mem.zone)):
            order.append((int(zone_to_nid(zone)), ZONE_NAMES[zone_idx(zone)]))
            zone = next_zone(mem, zone)
        assert order == zonelist(nodes, local)
        assert zone == ZONE_NORMAL + local  # and round again


def test_watermarks_of_all_zones_share_min_free_and_reserves_stay_within_a_node():
    # 2 x 32 GiB: DMA 4096, DMA32 1044480, Normal 7340032 and 8388608 pages. khugepaged asks for
    # 512 * (4 zones * 2 + 4 * 9) = 22528 pages, below 5 % of memory: min_free_kbytes 90112.
    # Without it: int_sqrt(16 * 67108864) = 32768 KiB. setup_per_zone_wmarks gives each zone its
    # share of 22528; the gap is a quarter of it or 1/1000 of the zone.
    mem = new_memory(64 * GIB, "6.12", 4, nr_nodes=2)
    managed = [4096, 1044480, 7340032, 8388608]
    assert mem.zone[:, Z_MANAGED].tolist() == managed
    assert mem.zone[:, Z_WMARK_MIN].tolist() == [22528 * m // (64 * GIB) for m in managed]
    gap = [max(22528 * m // (64 * GIB) // 4, m // 1000) for m in managed]
    assert (mem.zone[:, Z_WMARK_LOW] - mem.zone[:, Z_WMARK_MIN]).tolist() == gap
    # sysctl_lowmem_reserve_ratio 256: what a request for Normal may not take of lower zones
    assert mem.zone[:, Z_RESERVE].tolist() == [(1044480 + 7340032) // 256, 7340032 // 256, 0, 0]


def test_per_cpu_lists_of_a_zone_are_those_of_its_nodes_cpus():
    one, two = (new_memory(64 * GIB, "6.12", 256, nr_nodes=nodes) for nodes in (1, 2))
    assert one.zone[ZONE_NORMAL, Z_PCP_HIGH_MIN] == 4 * 63 * 256  # batch 63
    assert two.zone[ZONE_NORMAL, Z_PCP_HIGH_MIN] == 4 * 63 * 128


def test_struct_pages_of_a_node_lie_on_it():
    mem = new_memory(64 * GIB, "6.12", 4, memmap=True, nr_nodes=2)
    present = mem.zone[:, Z_END] - mem.zone[:, Z_START]
    taken = present - mem.zone[:, Z_MANAGED]
    struct_pages = 32 * GIB * 64 // 4096
    assert taken.tolist() == [0, 0, struct_pages + 8192, struct_pages]  # 32 MiB kernel image
    check_memory(mem)


@pytest.mark.parametrize(("nodes", "node"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 3)])
def test_requests_go_to_the_own_node_and_then_round_the_others(nodes, node):
    mem = machine(nodes, 16 * nodes)
    total = sum(int(mem.zone[z, Z_FREE]) for z in range(len(mem.zone)))
    found = take(mem, node, total * 3 // 4)
    firsts = list(dict.fromkeys(found))
    expected = node_orders(nodes)[node]
    assert firsts == expected[: len(firsts)]
    assert len(firsts) > 1


def test_numastat_counts_hits_misses_and_foreign_requests():
    mem = machine()
    room = int(mem.zone[3, Z_FREE] - mem.zone[3, Z_WMARK_LOW])
    found = take(mem, 1, room + 5000)
    local, remote = found.count(1), found.count(0)
    assert local > 0 < remote
    assert local >= room - 2048  # what per-CPU lists of 6.12 hold on to
    stat = [numastat(mem, nid) for nid in (0, 1)]
    assert stat[1] == {
        "numa_hit": local,
        "numa_miss": 0,
        "numa_foreign": remote,
        "local_node": local,
        "other_node": 0,
    }
    assert stat[0] == {
        "numa_hit": 0,
        "numa_miss": remote,
        "numa_foreign": 0,
        "local_node": 0,
        "other_node": remote,
    }
    assert mem.vmstat[PGALLOC : PGALLOC + 3].sum() == local + remote


def test_a_block_of_four_pages_is_one_request():
    mem = machine()
    assert take(mem, 1, 10, order=2) == [1] * 10
    assert numastat(mem, 1)["numa_hit"] == 10


def test_a_run_of_huge_faults_counts_what_single_faults_count():
    runs, single = (machine(mib=128, enabled="always") for _ in range(2))
    for mem in (runs, single):
        process(mem, 1, 12)
    touch(single, 0, 0, 12 * WINDOW, step=WINDOW)  # a page a window: no run
    touch(runs, 0, 0, 12 * WINDOW)
    assert runs.mm[0, MM_HUGE] == single.mm[0, MM_HUGE] == 12
    assert numastat(runs, 1) == numastat(single, 1)
    assert numastat(runs, 1)["numa_hit"] == 24  # a huge page and a page table each
    assert pages_of(runs, 0).tolist() == [[0, 0, 0, 0], [12 * WINDOW, 0, 12, 0]]
    check_memory(runs)


def fill_node(mem, node, leave):
    """Take a node's memory but for some pages by a process of small pages; return it."""
    mm = process(mem, node, int(mem.zone[ZONE_NORMAL + node, Z_MANAGED]) // WINDOW + 8)
    zone = ZONE_NORMAL + node
    done = 0
    while mem.zone[zone, Z_FREE] + mem.zone[zone, PCP_COUNT] > leave:
        if numastat(mem, node)["numa_foreign"]:
            break
        touch(mem, mm, done, 64)
        done += 64
    return mm


def break_up_node(mem, node):
    """Leave much of a node free, but no huge page that a request could have."""
    mm = fill_node(mem, node, int(mem.zone[ZONE_NORMAL + node, Z_WMARK_HIGH]) + 4096)
    for window in range(int(mem.zone[ZONE_NORMAL + node, Z_MANAGED]) // WINDOW):
        discard_range(mem, mm, window * WINDOW, WINDOW // 2)
    mem.pool[P_NODE] = node
    while whole_blocks(mem, node):
        if alloc_pages_gfp(mem, 9, MIGRATE_MOVABLE, 1, GFP_THISNODE)[0] == NO_PFN:
            break  # the lowest zones keep theirs
    return mm


def whole_blocks(mem, node):
    """Free blocks of huge pages of a node, those on per-CPU lists put back."""
    zones = range(first_zone(node), ZONE_NORMAL + node + 1)
    for zone in zones:
        drain_zone_pages(mem, zone)
    return sum(int(mem.nr_free[zone, :, 9:].sum()) for zone in zones)


@pytest.mark.parametrize(
    ("advice", "defrag", "where"),
    [(ADVICE_NONE, "madvise", "small"), (ADVICE_HUGE, "madvise", "huge"),
     (ADVICE_HUGE, "never", "small")],
)  # fmt: skip
def test_a_huge_fault_takes_a_remote_page_only_if_it_may_wait(advice, defrag, where):
    """kernel.md 3: the first attempt is for the local node, only __GFP_DIRECT_RECLAIM gets another.

    Compaction is made to have nothing to do by deferral: the node's own attempt fails.
    """
    mem = machine(mib=256)
    break_up_node(mem, 1)
    set_tunable(mem.tunables, "enabled", "always")
    set_tunable(mem.tunables, "defrag", defrag)
    set_tunable(mem.tunables, "extfrag_threshold", "1000")  # no compaction for want of blocks
    mm = process(mem, 1, 1, advice)
    touch(mem, mm, 0, WINDOW)
    if where == "huge":
        assert mem.mm[mm, MM_HUGE] == 1
        assert pages_of(mem, mm)[0].tolist()[:2] == [WINDOW, WINDOW]
        assert numa_maps(mem, mm) == "N0=512"
    else:
        assert mem.mm[mm, MM_HUGE] == 0
        assert numa_maps(mem, mm) == "N1=512"


def small_window(mem, on_node_0, on_node_1):
    """A window of small pages, so many on each node."""
    mm = process(mem, 0, 1)
    touch(mem, mm, 0, on_node_0)
    set_home_node(mem, mm, 1, 1)
    touch(mem, mm, on_node_0, on_node_1)
    assert pages_of(mem, mm)[:, 0].tolist() == [on_node_0, on_node_1]
    return mm


@pytest.mark.parametrize(("first", "target"), [(300, 0), (212, 1), (256, 0)])
def test_khugepaged_takes_the_node_of_most_pages_and_the_first_of_equals(first, target):
    mem = machine()
    mm = small_window(mem, first, WINDOW - first)
    set_tunable(mem.tunables, "enabled", "always")
    mem.pool[P_NODE] = 1
    assert collapse_window(mem, mm, 0, GFP_DIRECT, True) == SCAN_SUCCEED
    assert pages_of(mem, mm)[target, 0] == WINDOW
    assert mem.pool[P_NODE] == 1
    check_memory(mem)


@pytest.mark.parametrize(("first", "found"), [(300, False), (256, True)])
def test_khugepaged_falls_back_only_to_nodes_with_as_many_pages(first, found):
    """Linux e031ff96b334, mm: khugepaged: allow page allocation fallback to eligible nodes."""
    mem = machine(mib=256)
    mm = small_window(mem, first, WINDOW - first)
    break_up_node(mem, 0)
    set_tunable(mem.tunables, "enabled", "always")
    result = collapse_window(mem, mm, 0, 0, True)
    assert result == (SCAN_SUCCEED if found else SCAN_ALLOC_HUGE_PAGE_FAIL)
    if found:
        assert pages_of(mem, mm)[1, 0] == WINDOW


def test_kswapd_of_a_node_takes_only_its_own_pages():
    mem = machine(mib=256)
    mem.pool[P_NODE] = 0
    page_cache_fill(mem, 2000, False)
    mem.pool[P_NODE] = 1
    page_cache_fill(mem, 3000, False)
    assert mem.node[:, N_LRU_FILE].tolist() == [2000, 3000]
    mem.zone[3, Z_WMARK_HIGH] = mem.zone[3, Z_FREE] + 1000
    run_kswapd(mem, 1, 0)
    assert mem.node[0, N_LRU_FILE] == 2000
    assert mem.node[1, N_LRU_FILE] == 3000 - mem.vmstat[PGSTEAL_KSWAPD] < 3000
    assert mem.node[:, N_PAGEOUTRUN].tolist() == [0, 1]
    check_memory(mem)


def test_direct_reclaim_takes_pages_of_the_nodes_that_may_serve():
    mem = machine(mib=256)
    for node in (0, 1):
        mem.pool[P_NODE] = node
        page_cache_fill(mem, 4000, False)
    mem.pool[P_NODE] = 1
    assert try_to_free_pages(mem, 0, 0b01) > 0
    assert mem.node[1, N_LRU_FILE] == 4000 > mem.node[0, N_LRU_FILE]
    try_to_free_pages(mem, 0, 0b11)
    assert mem.node[1, N_LRU_FILE] < 4000
    check_memory(mem)


def test_a_full_node_wakes_its_own_kswapd_and_the_other_nodes_serve():
    mem = machine(mib=256)
    mem.pool[P_NODE] = 0
    page_cache_fill(mem, 1000, False)
    fill_node(mem, 1, int(mem.zone[3, Z_WMARK_LOW]))
    mm = process(mem, 1, 8)
    touch(mem, mm, 0, 8 * WINDOW)
    assert pages_of(mem, mm)[0, 0] > 0
    assert mem.node[0, N_LRU_FILE] == 1000
    check_memory(mem)


def test_kcompactd_of_a_fragmented_node_wakes_and_not_the_others():
    mem = machine(mib=256)
    break_up_node(mem, 1)
    assert fragmentation_score_node(mem, 1) > fragmentation_score_node(mem, 0)
    from hostsim.mm.kcompactd import arm_kcompactd

    arm_kcompactd(mem)
    assert mem.daemon[kcompactd_of(1), D_WAKE] > 0 == mem.daemon[kcompactd_of(0), D_WAKE]


def test_a_process_on_two_nodes_uses_windows_from_each_in_turn():
    mem = machine(4, 256, enabled="always")
    mm = process(mem, 3, 6, nodes=2)  # nodes 3 and 0
    touch(mem, mm, 0, 6 * WINDOW)
    assert pages_of(mem, mm).tolist() == [
        [3 * WINDOW, 0, 3, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [3 * WINDOW, 0, 3, 0],
    ]
    run_on_node_of(mem, mm, 1)
    assert mem.pool[P_NODE] == 0


def test_hugetlb_pages_come_from_the_nodes_in_turn_and_serve_their_own_node_first():
    mem = machine(mib=256)
    assert set_nr_hugepages(mem, 8) == 8
    mms = [process(mem, node, 3) for node in (0, 1)]
    for mm in mms:
        assert hugetlb_mmap(mem, mm, HUGETLB_2M, True)
        touch(mem, mm, 0, 3 * WINDOW)
        check_memory(mem)
    assert [pages_of(mem, mm)[:, 0].tolist() for mm in mms] == [[3 * WINDOW, 0], [0, 3 * WINDOW]]
    more = process(mem, 1, 2)
    assert hugetlb_mmap(mem, more, HUGETLB_2M, True)
    touch(mem, more, 0, 2 * WINDOW)  # one of each node is left
    assert pages_of(mem, more)[:, 0].tolist() == [WINDOW, WINDOW]
    for mm in (*mms, more):
        exit_mm(mem, mm)
    check_memory(mem)
    set_nr_hugepages(mem, 0)
    check_memory(mem)


def test_gigantic_pages_are_taken_from_the_nodes_in_turn_at_boot():
    mem = new_memory(16 * GIB, "6.12", 4, nr_nodes=2)
    free = [mem.zone[z, Z_FREE].copy() for z in (ZONE_NORMAL, ZONE_NORMAL + 1)]
    assert reserve_at_boot(mem, 5) == 5
    assert free[0] - mem.zone[ZONE_NORMAL, Z_FREE] == 3 * GIB
    assert free[1] - mem.zone[ZONE_NORMAL + 1, Z_FREE] == 2 * GIB
    check_memory(mem)


def test_proc_files_name_the_nodes():
    mem = new_memory(16 * GIB, "6.12", 4, nr_nodes=2)
    places = [line.split(",")[0] + "," + line.split(",")[1][:14] for line in buddyinfo(mem)]
    assert places == [
        "Node 0, zone      DMA",
        "Node 0, zone    DMA32",
        "Node 0, zone   Normal",
        "Node 1, zone   Normal",
    ]
    lines = pagetypeinfo(mem)
    assert sum(line.startswith("Node    1, zone   Normal, type") for line in lines) == 5
    assert lines[-1].split() == ["Node", "1,", "zone", "Normal", "0", "4096", "0", "0", "0"]


def test_pages_are_counted_on_the_lists_of_their_node_until_they_are_freed():
    mem = machine(mib=256)
    mm = small_window(mem, 100, 412)
    assert mem.node[:, N_LRU_ANON].tolist() == [100, 412]
    discard_range(mem, mm, 50, 100)
    assert mem.node[:, N_LRU_ANON].tolist() == [50, 362]
    exit_mm(mem, mm)
    assert mem.node[:, N_LRU_ANON].tolist() == [0, 0]


def test_a_state_of_two_nodes_survives_its_used_parts():
    mem = machine(mib=256)
    small_window(mem, 100, 412)
    other = restore_parts(used_parts(mem), mem)
    check_memory(other)
    assert (other.zone == mem.zone).all()
    assert take(other, 1, 100) == take(mem, 1, 100)


@pytest.mark.parametrize(
    ("pages", "nodes", "match"),
    [(1024, 0, "nr_nodes 0"), (8192, 5, "nr_nodes 5"), (3072, 2, "multiple of 2048")],
)
def test_a_memory_that_cannot_be_divided_is_refused(pages, nodes, match):
    with pytest.raises(ValueError, match=match):
        new_memory(pages, "6.12", 4, nr_nodes=nodes)


def test_freed_pages_go_back_to_their_node():
    mem = machine(mib=256)
    mem.pool[P_NODE] = 1
    free = mem.zone[:, Z_FREE] + mem.zone[:, PCP_COUNT]
    pfn, taken, step = alloc_pages(mem, 0, MIGRATE_MOVABLE, 64)
    mem.pool[P_NODE] = 0
    free_pages(mem, pfn, taken, step)
    assert (mem.zone[:, Z_FREE] + mem.zone[:, PCP_COUNT] == free).all()
    check_memory(mem)
