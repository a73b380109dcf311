import numpy as np
import pytest
from guests import GUESTS
from hypothesis import given
from hypothesis import strategies as st

from guestsim.guest import SHARED, Guest, boot_memory, guest_layout, joined, rounded_pages
from hostsim.core.units import HPAGE_PMD_ORDER
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import (
    N_LRU_END,
    N_LRU_FIRST,
    P_TOUCHED,
    PCP_COUNT,
    Z_END,
    Z_FREE,
    Z_MANAGED,
    Memory,
)
from hostsim.mm.state import used_parts

GIB = 1 << 18


def written(mem, runs):
    """Return a mask of the frames that runs name."""
    mask = np.zeros(len(mem.pb) << HPAGE_PMD_ORDER, bool)
    for first, nr in runs:
        mask[first : first + nr] = True
    return mask


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
@pytest.mark.parametrize("pages", [GIB // 4, GIB, 4 * GIB])
def test_a_boot_is_consistent_and_writes_what_it_uses(kernel, pages):
    mem = boot_memory(GUESTS._replace(kernel=kernel), pages, 2)
    check_memory(mem)
    free = int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())
    reserved = pages - int(mem.zone[:, Z_MANAGED].sum())
    mask = written(mem, mem.touched[: mem.pool[P_TOUCHED]])
    assert mask.sum() == pages - free
    assert reserved >= pages // 64  # struct pages: 64 B a frame


def test_the_dma32_zone_ends_at_the_hole():
    assert list(boot_memory(GUESTS, 4 * GIB, 2).zone[:, Z_END]) == [4096, 2 * GIB, 4 * GIB]


def test_a_copied_boot_is_the_boot():
    layout = guest_layout(GUESTS, GIB, 2)
    booted, copied = used_parts(boot_memory(GUESTS, GIB, 2)), used_parts(Guest.boot(layout).mem)
    booted["pool"][P_TOUCHED] = 0
    for name in Memory._fields:
        if name not in ("touched", "scratch"):
            assert (booted[name] == copied[name]).all(), name


def test_a_guest_in_the_mapping_of_one_that_ended_is_as_booted():
    layout = guest_layout(GUESTS, GIB, 2)
    used = Guest.boot(layout)
    for array in used.mem:
        if array.ctypes.data in used.table[layout.inside, 0]:
            array.reshape(-1).view(np.uint8)[:] = 0xA5  # all it could have written
    used.end()
    again, new = Guest.boot(layout), Guest.boot(layout)
    assert again is used
    assert new is not used
    for field, array in zip(Memory._fields, again.mem, strict=True):
        if field not in SHARED:
            assert (array == getattr(new.mem, field)).all(), field


def test_a_restored_guest_has_the_same_state():
    guest = Guest.boot(guest_layout(GUESTS, GIB, 2))
    again = Guest.restore(guest.layout, guest.save())
    check_memory(again.mem)
    for name, part in used_parts(guest.mem).items():
        assert (part == used_parts(again.mem)[name]).all(), name


def test_a_restored_guest_finds_its_lru_lists_anew():
    """The queues that reclaim had found are not part of a state."""
    guest = Guest.boot(guest_layout(GUESTS, GIB, 2))
    guest.mem.node[0, [N_LRU_FIRST, N_LRU_END]] = 3, 9
    again = Guest.restore(guest.layout, guest.save())
    assert again.mem.node[0, [N_LRU_FIRST, N_LRU_END]].tolist() == [0, 0]


def test_too_small_a_vm_does_not_boot():
    with pytest.raises(ValueError, match="needs 16384 to boot"):
        boot_memory(GUESTS, 8192, 1)


def test_sizes_are_rounded_down_to_whole_blocks():
    assert rounded_pages(GIB + 1023) == GIB


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=20))
def test_joined_runs_hold_the_same_frames_and_do_not_touch(runs):
    joint = joined(np.array(runs, np.int64))
    assert {f for first, nr in joint for f in range(first, first + nr)} == {
        f for first, nr in runs for f in range(first, first + nr)
    }
    assert all(joint[1:, 0] > joint[:-1].sum(axis=1))
