"""Live migration: rounds, what is sent, and how it lands."""

import math

import numpy as np
import pytest
from guests import BUSY, GUESTS
from test_node import EVENT, GIB, HOST, START, STOP, VM, events, new_node, run

from fleet.check_backing import mark_backed
from fleet.migration import (
    DEVICE_STATE_NS,
    MAX_ROUNDS,
    Course,
    dirtied,
    dirty_runs,
    full_runs,
    listed,
    migrate,
)
from fleet.scenario import MigrationTerms
from guestsim.behaviour import G_CLASS, G_MM, G_STATE
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.stats import MIGRATION_COLUMNS, REASON_NAMES
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR, NS_PER_MS, NS_PER_S
from hostsim.ept import guest_access
from hostsim.mm.fault import FAULT_OK
from hostsim.mm.mm_types import MM_EPT_2M, MM_EPT_FLAGS, MM_HUGE, MM_RAM_ANON
from hostsim.mm.mmu_notifier import EPT_DIRTY_LOG

MOVED = {c.name: i for i, c in enumerate(MIGRATION_COLUMNS)}
ADVISED = GUESTS._replace(madvise_ratio=1.0)
DRAIN = REASON_NAMES.index("maintenance")
FAST = MigrationTerms(1e6, 300 * NS_PER_MS, auto_converge=True, postcopy=False)
POSTCOPY = FAST._replace(postcopy=True)


def test_working_set_saturates():
    # D t << H: all writes hit new pages; D t >> H: the whole working set
    assert dirtied(1e6, 1000, NS_PER_S) == pytest.approx(1000, rel=1e-3)
    assert dirtied(1000, 1e6, NS_PER_S) == 1000
    assert dirtied(0, 1e6, NS_PER_S) == dirtied(1e6, 0, NS_PER_S) == 0


def test_idle_guest_moves_in_one_round():
    assert migrate(1_000_000, 0, 0, FAST) == Course(
        rounds=1,
        sent_pages=1_000_000,
        left_pages=0,
        throttle=0,
        total_ns=NS_PER_S + DEVICE_STATE_NS,
        downtime_ns=DEVICE_STATE_NS,
    )


@pytest.mark.parametrize(("left", "rounds"), [(299_000, 1), (301_000, 2)])
def test_vm_stops_when_the_rest_fits_the_allowed_downtime(left, rounds):
    # A million pages a second and 0.3 s: 300,000 pages may be left.  With a huge working set the
    # rest after the first second is the rate; after the second round rate * round time.
    course = migrate(1_000_000, 1e12, left, FAST)
    assert course.rounds == rounds
    assert course.downtime_ns <= DEVICE_STATE_NS + 300 * NS_PER_MS


def test_rounds_shrink_by_the_ratio_of_dirtying_and_sending():
    # Without saturation round n + 1 is r times round n, r = dirty rate / speed (Clark et al.,
    # NSDI'05, section 3): 1 + r + r^2 + ... until the rest is below 0.3 s.
    r, pages = 0.4, 10_000_000
    course = migrate(pages, 1e15, r * 1e6, FAST)
    expected = math.ceil(math.log(300_000 / pages) / math.log(r))
    assert course.rounds == expected
    assert course.sent_pages == pytest.approx(pages * (1 - r ** (expected + 1)) / (1 - r), rel=1e-3)
    assert course.throttle == 0  # less than half of what was sent is dirty again


def test_guest_that_outruns_the_network_is_slowed_down_until_it_fits():
    course = migrate(10_000_000, 5_000_000, 4e6, FAST)
    assert 20 <= course.throttle <= 99
    assert course.downtime_ns <= DEVICE_STATE_NS + 300 * NS_PER_MS
    stubborn = migrate(10_000_000, 5_000_000, 4e6, FAST._replace(auto_converge=False))
    assert stubborn.rounds == MAX_ROUNDS
    assert stubborn.downtime_ns > 10 * course.downtime_ns


def test_postcopy_stands_still_for_the_devices_alone():
    course = migrate(10_000_000, 5_000_000, 4e6, POSTCOPY)
    assert (course.rounds, course.downtime_ns) == (1, DEVICE_STATE_NS)
    assert course.left_pages == dirtied(5_000_000, 4e6, 10 * NS_PER_S)


def loaded_node(guests=ADVISED):
    """Return a node with two VMs that have run for two hours."""
    node = new_node(8, guests=guests)
    run(node, (0, START, 3, 2), (0, START, 4, 1), hours=2)
    return node


def empty_node(guests=ADVISED):
    """Return another node, without VMs."""
    return new_node(8, host_id=1, guests=guests)


def arrived(node, first=2):
    """Let an hour pass; return its rows."""
    return run(node, first=first)


def move(source, target, terms=FAST, vm_id=3):
    (emigrant,) = source.emigrate(2 * NS_PER_HOUR, [(vm_id, DRAIN)], terms)
    target.immigrate(2 * NS_PER_HOUR, [emigrant], terms)
    source.check()
    target.check()
    return emigrant


def test_full_runs_are_what_is_backed():
    node = loaded_node()
    guest = node.guests[node.row_of[3]]
    runs = listed(full_runs, node.host.mem, int(guest[G_MM]))
    backed = np.zeros(2 * GIB, np.uint8)
    mark_backed(node.host.mem, int(guest[G_MM]), 0, backed)
    sent = np.zeros_like(backed)
    for first, nr in runs:
        sent[first : first + nr] = 1
    # pages of huge pages that nobody wrote are zero, and not sent
    assert not (sent & ~backed).any()
    assert runs[:, 1].sum() == sent.sum()
    assert (np.diff(runs[:, 0]) > runs[:-1, 1]).all()  # ascending, joined


def test_pages_of_a_huge_page_that_nobody_wrote_are_not_sent():
    host = empty_node().host
    mm, _ = host.start(7, 4 * HPAGE_PMD_NR, 0, True)
    for page, nr in ((3, 2), (9, 1), (HPAGE_PMD_NR, HPAGE_PMD_NR)):
        assert guest_access(host.mem, mm, page, nr, True) == FAULT_OK
    assert host.mem.mm[mm, MM_HUGE] == 2
    runs = listed(full_runs, host.mem, mm)
    assert runs.tolist() == [[3, 2], [9, 1], [HPAGE_PMD_NR, HPAGE_PMD_NR]]


def test_dirty_runs_are_the_share_of_the_pages_sent():
    full = np.array([[0, 40_000], [100_000, 60_000]])
    runs = listed(dirty_runs, full, 0.25, 99)
    nr = runs[:, 1].sum()
    assert abs(nr - 25_000) < 4 * math.sqrt(100_000 * 0.25 * 0.75)  # four standard errors
    assert runs[:, 0].max() + 1 < 160_000
    assert not ((runs[:, 0] >= 40_000) & (runs[:, 0] < 100_000)).any()
    assert len(listed(dirty_runs, full, 0.0, 99)) == 0


def test_guest_is_the_same_on_both_sides():
    source, target = loaded_node(), empty_node()
    row = source.row_of[3]
    before = source.guests[row].copy()
    state = {name: part.copy() for name, part in source.states[row].save().items()}
    move(source, target)
    row = target.row_of[3]
    after = target.guests[row].copy()
    for column in (G_MM, G_STATE):
        before[column] = after[column] = 0
    assert (before == after).all()
    for name, part in target.states[row].save().items():
        assert (part == state[name]).all(), name


def test_source_gets_its_memory_back_and_the_move_is_on_record():
    source, target = loaded_node(), empty_node()
    host = source.host.mem
    rss = int(host.mm[source.guests[source.row_of[3]][G_MM], MM_RAM_ANON])
    emigrant = move(source, target)
    left, came = arrived(source), arrived(target)
    assert events(left)[0] == ("migrate", 3)
    assert REASON_NAMES[left.events[0, EVENT["reason"]]] == "maintenance"
    assert left.hosts[-1, HOST["vm_ends"]] == came.hosts[-1, HOST["vm_starts"]] == 1
    assert left.hosts[0, HOST["nr_vms"]] == came.hosts[0, HOST["nr_vms"]] == 1
    (row,) = came.migrations
    assert row[MOVED["t_ns"]] == 2 * NS_PER_HOUR
    assert (row[MOVED["host_id"]], row[MOVED["source_host_id"]]) == (1, 0)
    assert row[MOVED["rss_before_pages"]] == rss
    assert row[MOVED["rss_pages"]] >= emigrant.runs[:, 1].sum()
    assert row[MOVED["huge_pages"]] > 0


def test_vm_goes_on_and_ends_where_it_came_to():
    source, target = loaded_node(), empty_node()
    move(source, target)
    rows = run(target, (130, STOP, 3, 2), hours=1, first=2)
    assert events(rows) == [("end", 3)]
    assert rows.hosts[-1, HOST["nr_anon_pages"]] == 0
    assert rows.hosts[-1, HOST["nr_ept_pages"]] == 0


def test_dirty_logging_splits_the_ept_at_the_source_only():
    source, target = loaded_node(), empty_node()
    guest = source.guests[source.row_of[3]]
    assert source.host.mem.mm[guest[G_MM], MM_EPT_2M] > 0  # leaves of 2 MiB
    move(source, target)
    mm = target.guests[target.row_of[3]][G_MM]
    assert target.host.mem.mm[mm, MM_EPT_FLAGS] & EPT_DIRTY_LOG == 0
    assert target.host.mem.mm[mm, MM_EPT_2M] == target.host.mem.mm[mm, MM_HUGE]


def busy_guests():
    """Return guests that keep writing all that they have."""
    busy = BUSY._replace(hot_ratio=1.0, dirty_pages_per_s=2e5)
    return ADVISED._replace(behaviours=(busy,))


def test_postcopy_lands_in_small_pages_and_khugepaged_repairs():
    source, target = loaded_node(guests=busy_guests()), empty_node(busy_guests())
    slow = POSTCOPY._replace(pages_per_s=1e5)
    emigrant = move(source, target, slow)
    rows = arrived(target)
    (row,) = rows.migrations
    assert emigrant.course.left_pages > 0
    assert row[MOVED["huge_pages"]] * 10 < row[MOVED["huge_before_pages"]]
    huge = rows.hosts[:, HOST["nr_anon_transparent_hugepages"]]
    assert (np.diff(huge) >= 0).all()
    # at most 8 windows a pass and 10 s (4096 pages_to_scan): 240 in five minutes
    assert 0 < np.diff(huge).max() <= 240 + 8
    target.check()


def test_moves_of_one_host_go_one_after_the_other():
    source = loaded_node()
    first, second = source.emigrate(2 * NS_PER_HOUR, [(3, DRAIN), (4, DRAIN)], FAST)
    assert first.begin_ns == 0
    assert second.begin_ns == first.course.total_ns
    source.check()


def test_destination_without_memory_kills_the_largest():
    source, target = loaded_node(), new_node(2, host_id=1)
    run(target, (0, START, 9, 1), hours=2)
    (emigrant,) = source.emigrate(2 * NS_PER_HOUR, [(3, DRAIN)], FAST)
    target.immigrate(2 * NS_PER_HOUR, [emigrant], FAST)
    target.check()
    rows = arrived(target)
    kills = [event for event in events(rows) if event[0] == "kill"]
    assert len(kills) >= 1
    assert len(rows.migrations) == (("kill", 3) not in kills)


def test_reboot_kills_what_runs_and_counters_go_on():
    node = loaded_node()
    before = arrived(node)
    from fleet.node import REBOOT

    after = run(node, (180, REBOOT, 0, 0), first=3)
    assert events(after) == [("kill", 3), ("kill", 4)]
    assert {REASON_NAMES[row[EVENT["reason"]]] for row in after.events} == {"failure"}
    assert after.vms[:, VM["ended"]].tolist() == [1, 1]
    for column in HOST_COLUMNS:
        if column.kind == "counter":
            at = HOST[column.name]
            assert after.hosts[0, at] >= before.hosts[-1, at], column.name
    assert after.hosts[0, HOST["nr_anon_pages"]] == 0
    node.check()


def test_class_of_a_guest_names_its_dirty_rate():
    node = loaded_node(guests=busy_guests())
    assert node.guests[node.row_of[3]][G_CLASS] == 0
    (emigrant,) = node.emigrate(2 * NS_PER_HOUR, [(3, DRAIN)], FAST._replace(pages_per_s=1e5))
    assert emigrant.course.left_pages > 0
    assert HPAGE_PMD_NR * emigrant.huge_pages <= emigrant.rss_pages
