"""How programs are mapped: from counters where leaves map all of a guest, else page by page."""

import numpy as np
import pytest
from guests import BUSY, GUESTS

from fleet.mmu_state import look_at_process, look_at_program, on_leaves_alone
from fleet.node import START, Commands, Node
from guestsim.behaviour import G_MM, G_PROGRAM, G_SLOT, G_TABLES_HOST, NR_SLOTS
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN
from hostsim.mm.mm_types import MM_EPT_2M, MM_HUGETLB, MM_SWAP, NIL, P_ZERO_USERS
from hostsim.spec import HostSpec, SlabSpec

GIB = 1 << 18
SLAB = SlabSpec(100.0, NS_PER_MIN, 0.2, NS_PER_HOUR, 4096)
COLUMNS = slice(G_PROGRAM, G_TABLES_HOST + 1)
NR_VMS = 12


def node_with(offset, reporting):
    """Return a node with guests of mixed kinds that have started."""
    guests = GUESTS._replace(
        madvise_ratio=0.7,
        ram_offset_pages=offset,
        reporting_ratio=reporting,
        behaviours=(
            BUSY._replace(weight=0.5),
            BUSY._replace(name="still", weight=0.5, jobs_per_hour=0.0, restart_ns=0),
        ),
    )
    spec = HostSpec(8, 24 * GIB, 0, "6.12", "madvise", "madvise", True, SLAB)
    node = Node(spec, guests, 0, 1, 5 * NS_PER_MIN, NS_PER_HOUR)
    vms = np.arange(NR_VMS)
    start = vms * NS_PER_MIN, np.full(NR_VMS, START, np.int8), vms, np.full(NR_VMS, 2, np.int32)
    commands = Commands(*start, np.full(NR_VMS, GIB), np.zeros(NR_VMS, np.int64))
    node.advance(commands, 0, NS_PER_HOUR)
    return node


def nothing_to_do():
    none = np.zeros(0, np.int64)
    return Commands(none, none.astype(np.int8), none, none.astype(np.int32), none, none)


def page_by_page(node, row):
    guests = node.guests.copy()
    guests[row, COLUMNS] = 0
    for mm in guests[row, G_SLOT : G_SLOT + 2 * NR_SLOTS : 2]:
        if mm != NIL:
            look_at_process(node.host.mem, guests, row, node.states[row].mem, int(mm), node.offset)
    return guests[row, COLUMNS].tolist()


@pytest.mark.parametrize("reporting", [0.0, 1.0])
def test_counters_say_what_the_pages_say(reporting):
    """In every hour of every guest, of those that leaves map alone and of the others."""
    node = node_with(0, reporting)
    seen = set()
    for hour in range(1, 6):
        node.advance(nothing_to_do(), hour * NS_PER_HOUR, (hour + 1) * NS_PER_HOUR)
        for row in node.row_of.values():
            alone = on_leaves_alone(node.host.mem, int(node.guests[row, G_MM]))
            seen.add(bool(alone))
            node.guests[row, COLUMNS] = -1
            look_at_program(node.host.mem, node.guests, row, node.offset, True)
            assert node.guests[row, COLUMNS].tolist() == page_by_page(node, row)
            assert node.guests[row, G_PROGRAM] > 0
    assert seen == {False, True}


def test_where_ram_begins_within_a_huge_page_every_page_is_looked_at():
    node = node_with(100, 0.0)
    for row in node.row_of.values():
        assert not on_leaves_alone(node.host.mem, int(node.guests[row, G_MM]))
        assert node.guests[row, COLUMNS].tolist() == page_by_page(node, row)


def test_counters_are_not_asked_where_they_may_leave_something_out():
    """Swap, hugetlb files, the huge zero page, a leaf too few; or in the middle of a touch."""
    node = node_with(0, 0.0)
    mem = node.host.mem
    row = next(r for r in node.row_of.values() if on_leaves_alone(mem, int(node.guests[r, G_MM])))
    mm = int(node.guests[row, G_MM])
    for array, field in ((mem.mm[mm], MM_SWAP), (mem.mm[mm], MM_HUGETLB), (mem.pool, P_ZERO_USERS)):
        array[field] += 1
        assert not on_leaves_alone(mem, mm)
        array[field] -= 1
    mem.mm[mm, MM_EPT_2M] -= 1
    assert not on_leaves_alone(mem, mm)
    mem.mm[mm, MM_EPT_2M] += 1
    assert on_leaves_alone(mem, mm)
    first = int(np.flatnonzero(mem.ept[mem.mm[mm, 1] :])[0]) + int(mem.mm[mm, 1])
    kept, mem.ept[first:] = mem.ept[first:].copy(), 0
    look_at_program(mem, node.guests, row, 0, False)
    assert node.guests[row, COLUMNS].tolist() == page_by_page(node, row)
    mem.ept[first:] = kept
