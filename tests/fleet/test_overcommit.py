"""Swap and KSM on hosts that promise more memory than they have."""

import numpy as np
import pytest
from guests import BUSY, GUESTS
from test_node import GIB, HOST, SLAB, TICK_NS, events, run

from fleet.loading import build
from fleet.migration import DEVICE_STATE_NS
from fleet.node import START, STOP, Node
from fleet.scenario import MigrationTerms
from fleet.state import pack, unpack
from guestsim.behaviour import G_MM
from hostsim.core.errors import ScenarioError
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN, NS_PER_MS, NS_PER_S
from hostsim.mm.mm_types import MM_ALIKE, MM_CONTENT, MM_IMAGE, MM_MERGEABLE, MM_SWAP, P_COST_NS
from hostsim.mm.vmstat import PSWPIN
from hostsim.spec import HostSpec

GREEDY = GUESTS._replace(
    touched_share_mean=1.0, growth_ns=NS_PER_MIN, used_ratio=0.5, cold_reads_per_hour=0.1
)
STARTS = ((1, START, 0, 1), (2, START, 1, 3), (30, START, 2, 1))  # five GiB on a host of four
SMALL = ((1, START, 0, 1), (2, START, 1, 1), (30, START, 2, 1))
TERMS = MigrationTerms(1e6, 300 * NS_PER_MS, auto_converge=True, postcopy=False)
KSM = (("ksm/run", "1"), ("ksm/sleep_millisecs", "200"))  # 500 pages a second


def new_node(swap_gib=0, settings=(), guests=GREEDY, gib=4):
    spec = HostSpec(8, gib * GIB, 0, "6.12", "madvise", "madvise", True, SLAB, settings)
    spec = spec._replace(swap_pages=swap_gib * GIB)
    return Node(spec, guests, 0, 1, TICK_NS, NS_PER_HOUR)


def last(rows, name):
    return int(rows.hosts[-1][HOST[name]])


def test_a_host_with_swap_swaps_where_one_without_kills():
    without, swaps = new_node(), new_node(swap_gib=4)
    killed, kept = run(without, *STARTS), run(swaps, *STARTS)
    assert last(killed, "oom_kill") == 1
    assert last(killed, "pswpout") == last(killed, "swap_used_pages") == 0
    assert last(kept, "oom_kill") == 0
    assert last(kept, "nr_vms") == 3
    assert last(kept, "swap_used_pages") > 0
    assert last(kept, "pswpout") >= last(kept, "swap_used_pages")
    swaps.check()


def test_the_oom_killer_comes_when_swap_is_full():
    node = new_node(swap_gib=1)
    rows = run(node, *STARTS, (31, START, 3, 3))
    assert "kill" in [event for event, _ in events(rows)]
    node.check()


def test_pages_come_back_when_guests_use_them():
    """Hot memory that was swapped out is read again in the next tick; cold memory stays out."""
    used = run(new_node(swap_gib=4, guests=GREEDY._replace(used_ratio=1.0)), *STARTS, hours=2)
    idle = GREEDY._replace(used_ratio=0.0, cold_reads_per_hour=0.0)
    left = run(new_node(swap_gib=4, guests=idle), *STARTS, hours=2)
    assert last(used, "pswpin") > 4 * last(left, "pswpin")


def test_swapped_pages_are_read_at_the_source_and_the_first_round_waits():
    idle = GREEDY._replace(used_ratio=0.0, cold_reads_per_hour=0.0)
    node = new_node(swap_gib=4, guests=idle)
    run(node, *STARTS)
    mem = node.host.mem
    vm_id = max(node.row_of, key=lambda vm: mem.mm[node.guests[node.row_of[vm], G_MM], MM_SWAP])
    swapped = int(mem.mm[node.guests[node.row_of[vm_id], G_MM], MM_SWAP])
    before = int(mem.vmstat[PSWPIN])
    cost, zeros = int(mem.pool[P_COST_NS]), int(np.count_nonzero(mem.swap_zero))
    (emigrant,) = node.emigrate(NS_PER_HOUR, [(vm_id, 0)], TERMS)
    read = int(mem.vmstat[PSWPIN]) - before
    assert swapped > 1000 < read
    assert read >= swapped - zeros  # pages of zeros need no read since 6.12
    sent_ns = emigrant.course.sent_pages * NS_PER_S / TERMS.pages_per_s
    waited_ns = emigrant.course.total_ns - sent_ns - DEVICE_STATE_NS
    assert 0 < waited_ns <= int(mem.pool[P_COST_NS]) - cost
    node.check()


def test_swap_ends_with_its_vms():
    node = new_node(swap_gib=4)
    rows = run(node, *STARTS, *((50, STOP, vm, gib) for vm, gib in ((0, 1), (1, 3), (2, 1))))
    assert last(rows, "nr_vms") == last(rows, "swap_used_pages") == 0
    node.check()


def test_ksm_makes_guest_ram_mergeable_and_gives_it_contents():
    alike = BUSY._replace(zero_ratio=0.1, alike_ratio=0.3, image_ratio=0.2)
    node = new_node(settings=KSM, guests=GREEDY._replace(behaviours=(alike,)))
    rows = run(node, *SMALL)
    of = node.host.mem.mm[node.guests[:3, G_MM]]
    assert of[:, MM_MERGEABLE].tolist() == [1, 1, 1]
    assert len(set(of[:, MM_CONTENT].tolist())) == 3
    assert set(of[:, MM_IMAGE].tolist()) == {1}
    assert (of[:, MM_ALIKE] > 0).all()
    assert last(rows, "ksm_pages_sharing") > last(rows, "ksm_pages_shared") > 0
    node.check()


def test_without_ksm_no_area_and_no_content():
    node = new_node(gib=8)
    rows = run(node, *STARTS)
    assert not node.host.mem.mm[:, [MM_CONTENT, MM_ALIKE, MM_IMAGE, MM_MERGEABLE]].any()
    assert last(rows, "ksm_pages_shared") == 0


def test_a_restored_node_swaps_and_merges_on_as_if_nothing_had_been():
    alike = BUSY._replace(alike_ratio=0.3, image_ratio=0.2)
    guests = GREEDY._replace(behaviours=(alike,))
    node = new_node(swap_gib=4, settings=KSM, guests=guests, gib=2)
    run(node, *SMALL)
    again = new_node(swap_gib=4, settings=KSM, guests=guests, gib=2)
    again.restore(unpack(pack(node.save())))
    on, after = (run(n, first=1) for n in (node, again))
    for name in on._fields:
        assert np.array_equal(getattr(on, name), getattr(after, name)), name
    assert last(on, "pswpout") > 0
    assert last(on, "ksm_pages_sharing") > 0
    again.check()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"swap": {"size": "65GiB"}}, "swap.size 65GiB is more than 64GiB"),
        ({"swap": {"size": "-1GiB"}}, "negative"),
        ({"ksm": {"run": 2}}, "run"),
        ({"ksm": {"pages_to_scan": -1}}, "pages_to_scan"),
    ],
)
def test_settings_that_no_host_takes_are_errors(section, message):
    host = {"memory": "16GiB", "reserved": "2GiB", "slab": {"base": "1GiB"}} | section
    with pytest.raises(ScenarioError, match=message):
        build({"hosts": [host]}, "x", "x.toml")
