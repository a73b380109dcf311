import numpy as np
import pytest
from guests import BUSY, GUESTS

from fleet.node import START, STOP, Commands, Node
from fleet.state import pack, unpack
from guestsim.behaviour import G_MM, G_PAGES
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import EVENT_COLUMNS, EVENT_NAMES
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN
from hostsim.core.vm_columns import VM_COLUMNS
from hostsim.mm.mm_types import MM_BASE, MM_RAM_PAGES, P_ZERO_PB
from hostsim.mm.mmu_notifier import E_LEAF, E_TAG
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.physmem import PB_HUGE
from hostsim.spec import HostSpec, SlabSpec

GIB = 1 << 18  # pages
TICK_NS = 5 * NS_PER_MIN
SLAB = SlabSpec(2.0, NS_PER_MIN, 0.2, NS_PER_HOUR, 4096)
HOST = {c.name: i for i, c in enumerate(HOST_COLUMNS)}
EVENT = {c.name: i for i, c in enumerate(EVENT_COLUMNS)}
VM = {c.name: i for i, c in enumerate(VM_COLUMNS)}


def new_node(gib=8, kernel="6.12", guests=GUESTS, host_id=0, seed=1, nodes=1):
    spec = HostSpec(8, gib * GIB, 0, kernel, "madvise", "madvise", True, SLAB, nr_nodes=nodes)
    return Node(spec, guests, host_id, seed, TICK_NS, NS_PER_HOUR)


def commands(*rows):
    """Make commands of (minutes, kind, vm, GiB[, hours already run])."""
    full = [(*row, 0)[:5] for row in rows]
    column = list(zip(*full, strict=True)) if full else [()] * 5
    return Commands(
        np.array(column[0], np.int64) * NS_PER_MIN,
        np.array(column[1], np.int8),
        np.array(column[2], np.int64),
        np.ones(len(full), np.int32),
        np.array(column[3], np.int64) * GIB,
        np.array(column[4], np.int64) * NS_PER_HOUR,
    )


def run(node, *rows, hours=1, first=0):
    return node.advance(commands(*rows), first * NS_PER_HOUR, (first + hours) * NS_PER_HOUR)


def events(rows):
    return [(EVENT_NAMES[row[EVENT["event"]]], int(row[EVENT["vm_id"]])) for row in rows.events]


def test_events_keep_their_time_and_order():
    node = new_node()
    rows = run(node, (3, START, 5, 1), (3, START, 6, 1), (17, STOP, 5, 1))
    assert events(rows) == [("start", 5), ("start", 6), ("end", 5)]
    assert list(rows.events[:, EVENT["t_ns"]] // NS_PER_MIN) == [3, 3, 17]
    node.check()


def test_a_row_of_hosts_for_every_tick():
    rows = run(new_node(), (0, START, 0, 1))
    assert list(rows.hosts[:, HOST["t_ns"]]) == [TICK_NS * (i + 1) for i in range(12)]
    assert set(rows.hosts[:, HOST["nr_vms"]]) == {1}


def test_a_row_of_vms_each_hour_and_one_at_the_end():
    node = new_node()
    rows = run(node, (0, START, 0, 1), (90, STOP, 0, 1), hours=2)
    assert [(int(r[VM["t_ns"]] // NS_PER_MIN), int(r[VM["ended"]])) for r in rows.vms] == [
        (60, 0),
        (90, 1),
    ]


def test_memory_comes_back_when_vms_end():
    node = new_node()
    rows = run(node, (1, START, 0, 2), (2, START, 1, 2), (40, STOP, 0, 2), (41, STOP, 1, 2))
    last = rows.hosts[-1]
    assert last[HOST["nr_anon_pages"]] == 0
    assert last[HOST["nr_page_table_pages"]] == 0
    assert last[HOST["nr_ept_pages"]] == 0
    assert last[HOST["managed_pages"]] == (
        last[HOST["nr_free_pages"]] + last[HOST["nr_pcp_pages"]] + last[HOST["nr_kernel_pages"]]
    )


def test_out_of_memory_kills_the_largest_vm_and_the_rest_live_on():
    greedy = GUESTS._replace(touched_share_mean=1.0, growth_ns=NS_PER_MIN)
    node = new_node(gib=4, guests=greedy)
    rows = run(node, (1, START, 0, 1), (2, START, 1, 3), (30, START, 2, 1))
    assert ("kill", 1) in events(rows)
    assert rows.hosts[-1][HOST["oom_kill"]] == 1
    assert rows.hosts[-1][HOST["nr_vms"]] == 2
    node.check()


def test_stop_of_a_killed_vm_is_passed_over():
    greedy = GUESTS._replace(touched_share_mean=1.0, growth_ns=NS_PER_MIN)
    node = new_node(gib=4, guests=greedy)
    rows = run(node, (1, START, 0, 1), (2, START, 1, 3), (50, STOP, 1, 3))
    assert events(rows).count(("end", 1)) + events(rows).count(("kill", 1)) == 1


def test_standing_vm_begins_with_what_it_has_touched():
    fresh = run(new_node(), (0, START, 0, 2)).hosts[0][HOST["nr_guest_pages"]]
    standing = run(new_node(), (0, START, 0, 2, 9)).hosts[0][HOST["nr_guest_pages"]]
    assert standing > 2 * fresh


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_same_seed_gives_the_same_rows(kernel):
    first, second = (
        run(new_node(kernel=kernel), (0, START, 0, 2), (9, START, 1, 1)) for _ in range(2)
    )
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_hosts_and_seeds_differ_only_in_what_is_theirs():
    base = run(new_node(), (0, START, 0, 2)).hosts
    other_host = run(new_node(host_id=1), (0, START, 0, 2)).hosts
    assert (base[:, HOST["nr_guest_pages"]] == other_host[:, HOST["nr_guest_pages"]]).all()
    other_seed = run(new_node(seed=2), (0, START, 0, 2)).hosts
    assert (base[:, HOST["nr_guest_pages"]] != other_seed[:, HOST["nr_guest_pages"]]).any()


def test_a_restored_node_goes_on_as_if_nothing_had_been():
    node, again = new_node(), new_node()
    run(node, (0, START, 0, 2), (5, START, 1, 1))
    state = pack(node.save())
    assert len(state) < 1 << 20
    run(again, (0, START, 7, 3), (9, START, 8, 1))  # what was there before does not matter
    again.restore(unpack(state))
    again.check()
    assert pack(again.save()) == state
    rows = [run(n, (70, STOP, 0, 2), first=1) for n in (node, again)]
    assert all((a == b).all() for a, b in zip(*rows, strict=True))
    assert pack(again.save()) == pack(node.save())


def test_state_of_another_host_or_version_is_refused():
    node = new_node()
    run(node, (0, START, 0, 2))
    state = node.save()
    smaller = new_node(gib=4)
    with pytest.raises(ValueError, match=r"does not fit|of a machine of"):
        smaller.restore(state)
    for odd, why in (
        ({"guests": state["guests"][:, 1:]}, "no table of guests"),
        ({"rows": state["rows"] + 1}, "rows: are not those of the guests"),
        ({"host.mem.pool": state["host.mem.pool"][:-1]}, "pool: .* entries, its counter says"),
        ({"host.mem.zone": state["host.mem.zone"].astype("i4")}, "zone: int32 .* does not fit"),
        ({"host.mem.ext": state["host.mem.ext"][:-1]}, "ext: .* entries, its counter says"),
        ({"host.mem.heap": state["rows"]}, "missing or unknown: heap"),
        ({"host.slab.blocks": state["host.slab.blocks"][1:]}, "slab.blocks"),
        ({"guest.5.pool": state["rows"]}, "guest.5: not a guest of this host"),
    ):
        with pytest.raises(ValueError, match=why):
            new_node().restore(state | odd)
    del state["guest.0.pool"]
    with pytest.raises(ValueError, match="missing: pool"):
        new_node().restore(state)


def test_counters_are_monotone():
    rows = run(new_node(), (0, START, 0, 2), (30, STOP, 0, 2), hours=3).hosts
    for i, column in enumerate(HOST_COLUMNS):
        if column.kind == "counter":
            assert (np.diff(rows[:, i]) >= 0).all(), column.name


def test_eligible_faults_are_huge_or_fall_back():
    advised = GUESTS._replace(madvise_ratio=1.0, reporting_ratio=0.0)
    last = run(new_node(guests=advised), (0, START, 0, 2)).hosts[-1]
    windows = -(-last[HOST["nr_guest_pages"]] // 512)
    assert last[HOST["thp_fault_alloc"]] + last[HOST["thp_fault_fallback"]] == windows


def last_vm(rows):
    return dict(zip(VM, rows.vms[-1], strict=True))


def test_effective_coverage_is_at_most_that_of_each_side():
    advised = GUESTS._replace(madvise_ratio=1.0)
    vm = last_vm(run(new_node(guests=advised), (0, START, 0, 2, 5)))
    assert 0 < vm["effective_huge_pages"] <= min(vm["guest_huge_pages"], vm["huge_pages"])


def effective_one_by_one(node, row):
    """Count the guest's huge pages under 2 MiB leaves window by window."""
    host, guest = node.host.mem, node.states[row].mem
    mm = host.mm[node.guests[row, G_MM]]
    leaf = host.ept[mm[MM_BASE] :][: mm[MM_RAM_PAGES] >> 9] & E_TAG == E_LEAF
    huge = unpacked(guest.pb[: int(node.guests[row, G_PAGES]) >> 9]).state == PB_HUGE
    huge[guest.pool[P_ZERO_PB] - 1 : guest.pool[P_ZERO_PB]] = False
    return int((leaf[: len(huge)] & huge).sum()), int(huge.sum())


@pytest.mark.parametrize("gib", [8, 5])  # on the small host pages are swapped for small ones
@pytest.mark.parametrize("madvised", [1.0, 0.5])
def test_effective_coverage_is_what_counting_finds(gib, madvised):
    node = new_node(gib, guests=GUESTS._replace(madvise_ratio=madvised))
    rows = run(node, *((2 * i, START, i, 1, i) for i in range(4)), hours=3)
    for row in rows.vms[rows.vms[:, VM["t_ns"]] == 3 * NS_PER_HOUR]:
        found = row[[VM["effective_huge_pages"], VM["guest_huge_pages"]]]
        assert tuple(found) == effective_one_by_one(node, node.row_of[row[VM["vm_id"]]])


def test_guest_ram_that_is_not_aligned_on_the_host_has_no_effective_huge_page():
    shifted = GUESTS._replace(madvise_ratio=1.0, ram_offset_pages=256)
    node = new_node(guests=shifted)
    vm = last_vm(run(node, (0, START, 0, 2, 5)))
    assert vm["effective_huge_pages"] == 0
    assert min(vm["guest_huge_pages"], vm["huge_pages"]) > 100
    node.check()


def test_reporting_gives_back_what_the_guest_freed():
    calm = GUESTS._replace(reuse_per_hour=0.0, behaviours=(BUSY._replace(jobs_per_hour=30.0),))
    rss = []
    for ratio in (0.0, 1.0):
        node = new_node(guests=calm._replace(reporting_ratio=ratio))
        rows = run(node, (0, START, 0, 2, 1), hours=3)
        node.check()
        vm = last_vm(rows)
        rss.append(vm["rss_pages"])
        assert (vm["reported_pages"] > 0) == (ratio > 0)
    assert rss[1] < rss[0]


def test_a_host_short_of_memory_inflates_balloons_and_gives_back_when_it_has_room():
    calm = GUESTS._replace(
        reuse_per_hour=0.0,
        balloon_ratio=1.0,
        balloon_below=0.25,
        reporting_ratio=0.0,
        behaviours=(BUSY._replace(jobs_per_hour=0.0, restart_ns=0),),
    )
    node = new_node(gib=6, guests=calm)
    rows = run(node, (0, START, 0, 4, 99), (0, START, 1, 3, 99), (180, STOP, 1, 3), hours=6)
    node.check()
    ballooned = rows.hosts[:, HOST["balloon_pages"]]
    free = rows.hosts[:, HOST["nr_free_pages"]] / rows.hosts[:, HOST["managed_pages"]]
    assert ballooned.max() > 10_000
    assert free[30] == pytest.approx(0.25, abs=0.02)
    assert ballooned[-1] < ballooned.max() // 2


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_every_frame_that_a_guest_uses_is_backed_through_a_life_with_kills(kernel):
    greedy = GUESTS._replace(touched_share_mean=1.0, growth_ns=NS_PER_MIN, reporting_ratio=1.0)
    node = new_node(gib=4, kernel=kernel, guests=greedy._replace(kernel=kernel))
    run(node, (1, START, 0, 1), (2, START, 1, 1), (30, START, 2, 1, 1))
    node.check()
    rows = run(node, (70, START, 3, 2), (80, START, 4, 1, 3), (110, STOP, 2, 1), first=1)
    node.check()
    assert "kill" in {name for name, _ in events(rows)}


def test_a_main_process_that_begins_anew_leaves_nothing_behind():
    restarting = GUESTS._replace(behaviours=(BUSY._replace(restart_ns=NS_PER_HOUR),))
    node = new_node(guests=restarting)
    for hour in range(5):
        rows = run(node, *([(0, START, 0, 2)] if hour == 0 else []), hours=1, first=hour)
        node.check()
    assert rows.vms[-1, VM["guest_oom_kill"]] == 0


def test_vms_of_a_host_with_two_nodes_have_homes_and_spill_over():
    """Three VMs of 6 GiB on two nodes of 8: those that share one do not both fit."""
    node = new_node(gib=16, nodes=2)
    rows = run(node, *((0, START, vm, 6, 20) for vm in range(3)))
    node.check()
    last = rows.vms[-3:]
    assert last[:, VM["home_node"]].tolist() == [0, 1, 0]
    remote = last[:, VM["remote_pages"]]
    assert remote[0] + remote[2] > 0 == remote[1]
    assert last[[0, 2], VM["remote_ept_pages"]].sum() > 0 == last[1, VM["remote_ept_pages"]]
    # No page is remote that its own node had room for, and both nodes together had room for all
    free = rows.hosts[-1, HOST["nr_free_pages"]], rows.hosts[-1, HOST["nr_free_fullest_node"]]
    assert free[1] < GIB // 8 < free[0]
    misses = rows.hosts[:, HOST["numa_miss"]]
    assert misses[-1] > 0
    assert (np.diff(misses) >= 0).all()
    assert rows.hosts[-1, HOST["oom_kill"]] == 0


def test_a_restored_node_with_two_nodes_goes_on_as_if_nothing_had_been():
    starts = [(0, START, vm, 6, 20) for vm in range(3)]
    whole, first, second = (new_node(gib=16, nodes=2) for _ in range(3))
    for node in (whole, first):
        run(node, *starts)
    second.restore(unpack(pack(first.save())))
    more = [(60, STOP, 1, 6), (70, START, 7, 2), (80, START, 8, 3)]
    expected, found = (run(node, *more, first=1) for node in (whole, second))
    for a, b in zip(expected, found, strict=True):
        assert (a == b).all()
    second.check()
