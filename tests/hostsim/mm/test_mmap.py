"""Where the windows of processes lie."""

from hypothesis import given, settings
from hypothesis import strategies as st

from hostsim.core.units import HPAGE_PMD_NR
from hostsim.mm.check import check_memory
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_types import MM_ANON, MM_BASE, MM_WINDOWS, NIL, P_WORDS_USED
from hostsim.mm.mmap import ADVICE_NOHUGE, mm_alloc
from hostsim.mm.zap import exit_mm


def words(mem, mm):
    first = int(mem.mm[mm, MM_BASE])
    return range(first, first + int(mem.mm[mm, MM_WINDOWS]))


@given(
    st.lists(st.one_of(st.sampled_from([1, 7, 900, 9000, 20000]), st.integers(-9, -1)), max_size=40)
)
@settings(max_examples=60, deadline=None)
def test_no_two_processes_share_a_word_and_all_keep_their_memory(steps):
    """A positive step starts a process of so many windows, a negative one ends one."""
    mem = new_memory(1 << 16, "6.12", 1)
    live = []
    for step in steps:
        if step > 0:
            mm = int(mm_alloc(mem, step * HPAGE_PMD_NR, 0, ADVICE_NOHUGE, False, 0))
            room = mem.windows.size - sum(len(words(mem, other)) for other in live)
            assert (mm == NIL) == (step > room)
            if mm != NIL:
                live.append(mm)
                page = (step - 1) * HPAGE_PMD_NR
                assert touch_range(mem, mm, page, 3, 1, 1.0, 0, True, page) == FAULT_OK
        elif live:
            exit_mm(mem, live.pop(step % len(live)))
        taken = [word for mm in live for word in words(mem, mm)]
        assert len(taken) == len(set(taken))
        assert mem.pool[P_WORDS_USED] == max(taken, default=-1) + 1
        assert all(mem.mm[mm, MM_ANON] == 3 for mm in live)
    check_memory(mem)


def test_a_gap_is_used_again():
    mem = new_memory(1 << 16, "6.12", 1)
    first, _, _ = (
        int(mm_alloc(mem, 100 * HPAGE_PMD_NR, 0, ADVICE_NOHUGE, False, 0)) for _ in range(3)
    )
    used = mem.pool[P_WORDS_USED]
    exit_mm(mem, first)
    assert mm_alloc(mem, 90 * HPAGE_PMD_NR, 0, ADVICE_NOHUGE, False, 0) == first
    assert mem.mm[first, MM_BASE] == 0
    assert mem.pool[P_WORDS_USED] == used
