"""What a pageblock packs into one word, against columns of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostsim.mm.compact_control import (
    clear_pageblock_skip,
    get_pageblock_skip,
    set_pageblock_skip,
)
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import NIL, NR_TYPES
from hostsim.mm.pb_packed import MAX_B, pb_b, repack, set_pb_b, unpacked
from hostsim.mm.physmem import (
    get_pageblock_migratetype,
    list_type,
    pageblock_state,
    set_pageblock_migratetype,
    set_state,
)
from hostsim.mm.state import MAX_SWAP_SLOTS, carve_memory, max_swap_slots

MEM = new_memory(1 << 14, "6.12", 1)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("b"), st.integers(NIL, MAX_B)),
        st.tuples(st.just("state"), st.integers(0, 10), st.integers(0, NR_TYPES - 1)),
        st.tuples(st.just("label"), st.integers(0, NR_TYPES - 1)),
        st.tuples(st.just("skip"), st.booleans()),
        st.tuples(st.just("repack"), st.integers(0, 127), st.integers(NIL, MAX_B)),
    ),
    max_size=20,
)


@given(steps=STEPS, pb=st.integers(8, 12))
def test_columns_do_not_disturb_each_other(steps, pb):
    columns = unpacked(MEM.pb[pb])
    now = {name: int(getattr(columns, name)) for name in columns._fields}
    for step, *values in steps:
        if step == "b":
            set_pb_b(MEM, pb, *values)
            now["b"] = values[0]
        elif step == "state":
            set_state(MEM, pb, *values)
            now |= {"state": values[0], "list_type": values[1]}
        elif step == "label":
            set_pageblock_migratetype(MEM, pb, *values)
            now["label"] = values[0]
        elif step == "skip":
            (set_pageblock_skip if values[0] else clear_pageblock_skip)(MEM, pb)
            now["skip"] = int(values[0])
        else:
            repack(MEM.pb, [pb], flags=values[0], b=[values[1]])
            now |= {"b": values[1], "state": values[0] & 15, "list_type": (values[0] >> 4 & 3) ^ 1}
        columns = unpacked(MEM.pb[pb])
        assert now | {"flags": 0} == {n: int(getattr(columns, n)) for n in now} | {"flags": 0}
        assert pb_b(MEM, pb) == now["b"]
        assert pageblock_state(MEM, pb) == now["state"]
        assert list_type(MEM, pb) == now["list_type"]
        assert get_pageblock_migratetype(MEM, pb) == now["label"]
        assert get_pageblock_skip(MEM, pb) == bool(now["skip"])


def test_a_machine_whose_pageblocks_have_no_number_is_refused():
    with pytest.raises(ValueError, match="nr_pages 2147483648: at most 21474"):
        carve_memory(1 << 31, 1, 1)


def test_a_swap_area_is_no_larger_than_its_clusters_have_numbers():
    assert max_swap_slots(1 << 26) == 1 << 28
    assert max_swap_slots(1 << 30) == MAX_SWAP_SLOTS
