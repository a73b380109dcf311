"""What translation costs a guest, simulated over the page tables that it and its host really have.

No rule, no classes, no memory: every leaf of the guest's programs and of the VM's EPT.
"""

from typing import NamedTuple

import numpy as np

from fleet.mmu import VPID, Space, cost_of, outcome, popularity_of
from fleet.mmu_sample import figures_of
from fleet.profiles import load_workload
from guestsim.behaviour import G_MM, G_PAGES, G_SLOT, NR_SLOTS
from guestsim.workload import compile_workload, draw_pages
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SHIFT
from hostsim.mm.mm_types import MM_WINDOWS, NIL
from hostsim.mmu.cpus import new_mmu
from hostsim.mmu.paging import look_up, new_page_tables, tables_needed
from hostsim.mmu.tlb import forget_counts
from hostsim.mmu.walker import access_pages
from hostsim.translation import huge_windows, map_guest, page_tables_of

PARTS = 8


class Tables(NamedTuple):
    """The page tables of one guest's main process, and what is under them."""

    guest: object
    ept: object
    present: np.ndarray  # its pages, in order


def actual_tables(node, row):
    """Return the tables of a guest whose only process is the main one."""
    mem, guest = node.states[row].mem, node.guests[row]
    processes = [int(guest[G_SLOT + 2 * slot]) for slot in range(NR_SLOTS)]
    assert [mm for mm in processes if mm != NIL] == processes[:1]
    mm = processes[0]
    tables = page_tables_of(mem, mm, 4)
    pages = int(guest[G_PAGES])
    ept = new_page_tables(2 + tables_needed(pages, 4, 1), 4, 0)
    assert map_guest(node.host.mem, int(guest[G_MM]), ept)
    windows = int(mem.mm[mm, MM_WINDOWS])
    present = [page for page in range(windows << HPAGE_PMD_ORDER) if look_up(tables, page)[1] > 0]
    return Tables(tables, ept, np.array(present, np.int64))


def exact(tables, workload_name, cpu, accesses, seed, nested=True):
    """Return `NR_S_FIGURES` figures of a program that runs over actual tables."""
    nr = len(tables.present)
    workload = load_workload(workload_name, nr << PAGE_SHIFT)
    program = compile_workload(workload)
    mmu = new_mmu(cpu)
    counts = np.zeros((PARTS, len(mmu.counts)), np.int64)
    drawn = np.empty(accesses // 2 + accesses, np.int64)
    draw_pages(*program, seed, 0, drawn)
    pages = tables.present[drawn]
    access_pages(mmu, tables.guest, tables.ept, nested, VPID, pages, accesses // 2)
    for part, own in zip(counts, np.split(pages[accesses // 2 :], PARTS), strict=True):
        forget_counts(mmu)
        access_pages(mmu, tables.guest, tables.ept, nested, VPID, own, len(own))
        part[:] = mmu.counts
    windows = np.zeros(-(-int(tables.present[-1] + 1) // HPAGE_PMD_NR), bool)
    huge_windows(tables.guest, tables.ept, nested, windows)
    where = (np.arange(-(-nr // HPAGE_PMD_NR)) * HPAGE_PMD_NR).clip(0, nr - 1)
    huge = windows[tables.present[where] >> HPAGE_PMD_ORDER]  # of the program's windows
    space = Space(tables.guest, tables.ept, nested, nr, huge, huge, int(tables.guest.root[2]))
    cost = cost_of(popularity_of(workload), cpu, space, counts)
    return figures_of(outcome(workload, cpu, counts, cost, far=False), cpu, workload.steps)
