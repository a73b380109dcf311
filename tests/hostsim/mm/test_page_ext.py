"""Records of pageblocks, found by a hash: against a dictionary, and what the validator notices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim.core.errors import InvariantError
from hostsim.mm.check import check_memory
from hostsim.mm.check_page_ext import check_page_ext
from hostsim.mm.contig import count_unmovable
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import NIL, P_PAGE_EXT_USED, P_PAGEBLOCKS, P_UNMOVABLE_BLOCKS
from hostsim.mm.page_ext import all_of, lookup_page_ext
from hostsim.mm.split import is_queued, queue_huge, undo_deferred

GIB = 1 << 18
NR_PAGEBLOCKS = 512

steps = st.lists(
    st.tuples(st.sampled_from(["more", "fewer", "queue", "off"]), st.integers(0, 40)), max_size=60
)


@given(steps)
@settings(max_examples=100, deadline=None)
def test_records_are_those_of_a_dictionary(operations):
    """Many pageblocks of three of 32 hashes."""
    mem = new_memory(GIB, "6.12", 1)
    assert mem.page_ext_bucket.size == 32
    unmovable: dict[int, int] = {}
    queued: list[int] = []
    for kind, which in operations:
        pb = which % 3 + which // 3 * 32
        if kind == "more":
            count_unmovable(mem, pb << 9, 3)
            unmovable[pb] = unmovable.get(pb, 0) + 3
        elif kind == "fewer" and unmovable.get(pb, 0) > 0:
            count_unmovable(mem, pb << 9, -3)
            unmovable[pb] -= 3
        elif kind == "queue":
            queue_huge(mem, pb)
            queued += [pb] if pb not in queued else []
        elif kind == "off":
            undo_deferred(mem, pb)
            queued = [other for other in queued if other != pb]
        check_page_ext(mem)
    found = all_of(mem, "unmovable", NR_PAGEBLOCKS)
    assert {int(pb): int(found[pb]) for pb in np.flatnonzero(found)} == {
        pb: nr for pb, nr in unmovable.items() if nr
    }
    assert [pb for pb in range(NR_PAGEBLOCKS) if is_queued(mem, pb)] == sorted(queued)
    assert mem.pool[P_UNMOVABLE_BLOCKS] == sum(nr > 0 for nr in unmovable.values())
    live = {pb for pb in range(NR_PAGEBLOCKS) if lookup_page_ext(mem, pb) != NIL}
    assert live == {pb for pb, nr in unmovable.items() if nr} | set(queued)


def test_a_record_that_is_no_longer_needed_is_used_again():
    mem = new_memory(GIB, "6.12", 1)
    for pb in range(100):
        count_unmovable(mem, pb << 9, 1)
        count_unmovable(mem, pb << 9, -1)
    assert mem.pool[P_PAGE_EXT_USED] == 1
    assert mem.pool[P_PAGEBLOCKS] == NR_PAGEBLOCKS


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pb", 8, "record of another hash"),
        ("chain", 1, "records of a hash"),
        ("unmovable", 0, "says nothing"),
    ],
)
def test_validator_notices_a_damaged_record(field, value, message):
    mem = new_memory(GIB, "6.12", 1)
    count_unmovable(mem, 7 << 9, 1)
    mem.page_ext[field][0] = value
    with pytest.raises(InvariantError, match=message):
        check_memory(mem)
