"""VMs whose memory QEMU takes at the start, and in which nothing is simulated."""

import pytest
from guests import GUESTS
from test_node import EVENT, HOST, SLAB, TICK_NS, VM, events, new_node, run

from fleet.migration import Emigrant
from fleet.node import START, STOP, Node
from fleet.scenario import MigrationTerms
from fleet.state import pack, unpack
from fleet.vm_rows import reach_all
from guestsim.behaviour import G_MM
from guestsim.spec import NO_GUEST_KERNEL
from hostsim.core.stats import REASON_NAMES
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR, NS_PER_MIN
from hostsim.mm.mm_types import MM_EPT_2M, MM_EPT_4K, MM_HUGE
from hostsim.mm.mmu_notifier import invalidate_range
from hostsim.spec import HostSpec, SlabSpec

GIB = 1 << 18
BARE = GUESTS._replace(kernel=NO_GUEST_KERNEL, reporting_ratio=0.0, madvise_ratio=1.0)
FAST = MigrationTerms(1e6, 300 * NS_PER_MIN, False, False)
DRAIN = REASON_NAMES.index("maintenance")


@pytest.mark.parametrize("madvise_ratio", [0.0, 1.0])
def test_all_of_a_vms_memory_is_there_from_the_start(madvise_ratio):
    node = new_node(guests=BARE._replace(madvise_ratio=madvise_ratio))
    rows = run(node, (0, START, 0, 2), (0, START, 1, 1, 9))
    assert rows.hosts[0][HOST["nr_guest_pages"]] == 3 * GIB
    assert list(rows.vms[:, VM["rss_pages"]]) == [2 * GIB, GIB]
    assert list(rows.vms[:, VM["huge_pages"]] * HPAGE_PMD_NR) == [
        madvise_ratio * 2 * GIB,
        madvise_ratio * GIB,
    ]
    for name in ("guest_used_pages", "guest_huge_pages", "effective_huge_pages"):
        assert not rows.vms[:, VM[name]].any()
    assert not node.states
    node.check()


def test_all_of_it_comes_back_at_the_end():
    node = new_node(guests=BARE)
    rows = run(node, (1, START, 0, 2), (2, START, 1, 2), (40, STOP, 0, 2), (41, STOP, 1, 2))
    last = rows.hosts[-1]
    assert last[HOST["nr_anon_pages"]] == last[HOST["nr_ept_pages"]] == 0
    assert last[HOST["managed_pages"]] == (
        last[HOST["nr_free_pages"]] + last[HOST["nr_pcp_pages"]] + last[HOST["nr_kernel_pages"]]
    )
    node.check()


def test_a_restored_node_goes_on_as_if_nothing_had_been():
    node, again = new_node(guests=BARE), new_node(guests=BARE)
    run(node, (0, START, 0, 2), (5, START, 1, 1))
    again.restore(unpack(pack(node.save())))
    again.check()
    rows = [run(n, (70, STOP, 0, 2), first=1) for n in (node, again)]
    assert all((a == b).all() for a, b in zip(*rows, strict=True))


def test_state_of_a_guests_kernel_is_refused():
    node = new_node()
    run(node, (0, START, 0, 2))
    with pytest.raises(ValueError, match="where none is simulated"):
        new_node(guests=BARE).restore(node.save())


def test_a_vm_moves_with_all_of_its_memory():
    source, target = new_node(guests=BARE), new_node(guests=BARE, host_id=1)
    run(source, (0, START, 3, 2))
    (emigrant,) = source.emigrate(NS_PER_HOUR, [(3, DRAIN)], FAST)
    assert isinstance(emigrant, Emigrant)
    target.immigrate(NS_PER_HOUR, [emigrant], FAST)
    source.check()
    target.check()
    rows = run(target, (90, STOP, 3, 2), first=1)
    assert rows.hosts[0][HOST["nr_guest_pages"]] == 2 * GIB
    assert events(rows) == [("end", 3)]
    assert rows.hosts[-1][HOST["nr_anon_pages"]] == 0


@pytest.mark.parametrize("swap_gib", [0, 1, 4])
def test_a_host_that_promised_more_swaps_what_is_cold_or_kills(swap_gib):
    spec = HostSpec(
        8, 4 * GIB, 0, "6.12", "madvise", "madvise", True, SLAB, swap_pages=swap_gib * GIB
    )
    guests = BARE._replace(used_ratio=0.3, cold_reads_per_hour=0.5)
    node = Node(spec, guests, 0, 1, TICK_NS, NS_PER_HOUR)
    rows = run(node, (0, START, 0, 2), (1, START, 1, 2), (2, START, 2, 1), hours=2)
    node.check()
    last = rows.hosts[-1]
    killed = [vm for event, vm in events(rows) if event == "kill"]
    if swap_gib == 4:
        assert not killed
        assert last[HOST["pswpout"]] > 0
        assert last[HOST["pswpin"]] > 0
        assert last[HOST["nr_vms"]] == 3
    elif swap_gib == 0:
        assert killed
    assert len(rows.events) == 3 + len(killed)
    assert (rows.events[:, EVENT["host_id"]] == 0).all()


def test_memory_that_runs_out_while_guests_use_what_they_have_kills_the_largest():
    slab = SlabSpec(20.0, NS_PER_MIN, 1.0, 1000 * NS_PER_HOUR, 4096)  # the kernel takes the rest
    spec = HostSpec(8, 4 * GIB, 0, "6.12", "madvise", "madvise", True, slab, swap_pages=GIB // 4)
    guests = BARE._replace(used_ratio=0.3, cold_reads_per_hour=3.0)
    node = Node(spec, guests, 0, 1, TICK_NS, NS_PER_HOUR)
    rows = run(node, (0, START, 0, 1), (1, START, 1, 1), (2, START, 2, 2))
    node.check()
    assert events(rows)[3:] == [("kill", 2)]
    assert rows.events[3, EVENT["t_ns"]] == 15 * NS_PER_MIN  # a tick, no start
    assert rows.hosts[-1][HOST["nr_vms"]] == 2


def test_leaves_that_were_lost_come_back_when_rows_are_due():
    node = new_node(guests=BARE)
    run(node, (0, START, 0, 1))
    host, row = node.host.mem, node.row_of[0]
    mm = int(node.guests[row, G_MM])
    huge = int(host.mm[mm, MM_HUGE])
    assert host.mm[mm, MM_EPT_2M] == huge - 1  # memory slots end inside the first 2 MiB
    assert host.mm[mm, MM_EPT_4K] == HPAGE_PMD_NR
    for window in (0, 7):
        first = window * HPAGE_PMD_NR
        assert invalidate_range(host, mm, window, first, first + HPAGE_PMD_NR)
        assert host.mm[mm, MM_EPT_2M] + host.mm[mm, MM_EPT_4K] // HPAGE_PMD_NR == huge - 1
        reach_all(host, node.guests, row)
        assert host.mm[mm, MM_EPT_2M] == huge - 1
        assert host.mm[mm, MM_EPT_4K] == HPAGE_PMD_NR
    node.check()
