import numpy as np
from test_turns import Machine

from guestsim.behaviour import G_SLOT, OP_BEGIN, OP_FREE_SLOT, OP_TOUCH_SLOT
from guestsim.guest import upper_tables
from guestsim.pagetable import leaf_tables
from hostsim.core.units import HPAGE_PMD_NR, NO_PFN
from hostsim.mm.mm_types import MM_PGTABLES, MM_WINDOWS
from hostsim.mm.mmap import ADVICE_NOHUGE
from hostsim.mm.rmap import KIND_MASK, KIND_PGTABLE, owner_of

PAGES = 20 * HPAGE_PMD_NR


def test_every_window_in_use_has_a_table_page_of_the_process():
    machine = Machine()
    machine.do(OP_BEGIN, 0, ADVICE_NOHUGE, PAGES)
    for window in (0, 3, 4, 19):
        machine.do(OP_TOUCH_SLOT, 0, window * HPAGE_PMD_NR, 7)
    machine.do(OP_BEGIN, 1, ADVICE_NOHUGE, PAGES)
    machine.do(OP_TOUCH_SLOT, 1, 0, PAGES)
    machine.do(OP_FREE_SLOT, 1, 0, PAGES // 2)
    mem = machine.mem
    for slot, windows in ((0, {0, 3, 4, 19}), (1, set(range(20)))):
        mm = int(machine.guests[0, G_SLOT + 2 * slot])
        frames = np.zeros(mem.mm[mm, MM_PGTABLES], np.int64)
        leaf = np.zeros(mem.mm[mm, MM_WINDOWS], np.int64)
        upper = leaf_tables(mem, mm, frames, leaf)
        assert upper == upper_tables(PAGES) == 3
        assert set(np.flatnonzero(leaf != NO_PFN)) == windows
        assert len(set(frames)) == len(frames) == upper + len(windows)
        assert set(leaf[leaf != NO_PFN]) == set(frames[upper:])
        for frame in frames:
            extent = mem.ext[owner_of(mem, int(frame))]
            assert extent["owner"] == mm
            assert extent["flags"] & KIND_MASK == KIND_PGTABLE
