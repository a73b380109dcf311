"""Memory in use becomes a VM's: frames stay where they are, counts and owners follow."""

import numpy as np
import pytest

from hostsim.host import adopt_vm, own_first_page, start_qemu
from hostsim.mm.adopt import adopt, begin_adoption
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_UNMOVABLE,
    MM_ANON,
    MM_HUGE,
    MM_NODE,
    MM_PGTABLES,
    NR_TYPES,
    P_PAGEBLOCKS,
)
from hostsim.mm.mmap import ADVICE_HUGE, mm_alloc
from hostsim.mm.pb_packed import unpacked
from hostsim.mm.rmap import KIND_BOOT
from hostsim.mm.snapshot import memory_of_host
from hostsim.mm.state_spec import StateSpec, VmSpec, ZoneSpec
from hostsim.mm.vmstat import NR_KERNEL
from hostsim.mm.zap import exit_mm


def zone(row, unmovable, movable, keep_full=0, **free):
    counts = np.zeros((NR_TYPES, 11), int)
    for name, number in free.items():
        of_type = MIGRATE_UNMOVABLE if name[0] == "U" else MIGRATE_MOVABLE
        counts[of_type, int(name[1:])] = number
    pages = (unmovable + movable) * 512
    rows = tuple(tuple(row) for row in counts.tolist())
    return ZoneSpec(row, rows, (unmovable, movable, 0, 0), pages, 0, (), keep_full)


def host_of(*zones, nr_nodes=1):
    return memory_of_host(StateSpec(nr_nodes, zones), "6.12", 4, 1)


def boot_pages(mem):
    extents = mem.ext[mem.ext["nr"] > 0]
    return int(extents["nr"][extents["flags"] == KIND_BOOT].sum())


def test_frames_change_their_owner_and_nothing_becomes_free():
    mem = host_of(zone(2, 4, 60, U0=3, M0=20, M3=5, M10=4))
    free, boot, kernel = mem.nr_free.copy(), boot_pages(mem), int(mem.vmstat[NR_KERNEL])
    mm = int(mm_alloc(mem, 40 * 512, 600, ADVICE_HUGE, True, 7))
    begin_adoption(mem)
    assert adopt(mem, mm, 40 * 512, 600, 0) == 600
    assert adopt(mem, mm, 0, 10_000, 5 * 512) == 10_000
    assert mem.mm[mm, MM_HUGE] == 5
    assert mem.mm[mm, MM_ANON] == 10_600
    tables = 5 + 15 + 2  # windows of 10,000 pages, five of them huge, and of QEMU's own 600
    assert mem.mm[mm, MM_PGTABLES] == tables
    assert (mem.nr_free == free).all()
    assert boot - boot_pages(mem) == 10_600 + tables
    assert kernel - int(mem.vmstat[NR_KERNEL]) == tables
    check_memory(mem)


def test_what_was_adopted_becomes_free_when_the_vm_ends():
    mem = host_of(zone(2, 4, 60, M10=4))
    mm = int(mm_alloc(mem, 40 * 512, 0, ADVICE_HUGE, True, 7))
    begin_adoption(mem)
    assert adopt(mem, mm, 0, 6000, 10 * 512) == 6000
    before = boot_pages(mem)
    exit_mm(mem, mm)
    assert boot_pages(mem) == before
    check_memory(mem)


def test_small_pages_come_from_partly_used_pageblocks_first():
    mem = host_of(zone(2, 1, 8, keep_full=5, M0=3, M10=0))
    mm = int(mm_alloc(mem, 8 * 512, 0, ADVICE_HUGE, True, 7))
    begin_adoption(mem)
    assert adopt(mem, mm, 0, 3 * 511, 0) == 3 * 511
    movable = range(1, 9)
    full = [pb for pb in movable if unpacked(mem.pb[pb]).state == 6]
    assert len(full) == 5
    assert all(int(mem.ext[mem.pb["a"][pb]]["nr"]) == 512 for pb in full)


@pytest.mark.parametrize(("asked", "huge", "given"), [(5000, 5000, 4 * 512), (4 * 512, 0, 4 * 512)])
def test_no_more_than_there_is(asked, huge, given):
    mem = host_of(zone(2, 1, 4))
    mm = int(mm_alloc(mem, 20 * 512, 0, ADVICE_HUGE, True, 7))
    begin_adoption(mem)
    assert adopt(mem, mm, 0, asked, huge) == given
    assert mem.mm[mm, MM_ANON] == given


def test_pages_of_the_vms_own_node_go_first():
    zones = [zone(0, 0, 8), zone(2, 2, 64, M10=8), zone(3, 2, 70, M10=8)]
    mem = host_of(*zones, nr_nodes=2)
    mm, enough = start_qemu(mem, 30 * 512, 512, True, 7, 2)
    assert enough
    nid = int(mem.mm[mm, MM_NODE])
    adopt_vm(mem, mm, VmSpec(2, 30 * 512, 20 * 512, 10 * 512), 512)
    assert mem.mm[mm, MM_ANON] == 20 * 512
    own = mem.ext[(mem.ext["owner"] == mm) & (mem.ext["flags"] & 15 == 0) & (mem.ext["nr"] > 0)]
    node_pages = int(mem.pool[P_PAGEBLOCKS]) * 512 // 2
    assert set((own["pfn"] // node_pages).tolist()) == {nid}
    check_memory(mem)


def test_qemus_own_memory_is_behind_guest_ram():
    mem = host_of(zone(2, 2, 64, M10=8))
    mm, _ = start_qemu(mem, 30 * 512 - 100, 512, True, 7, 2)
    adopt_vm(mem, mm, VmSpec(2, 30 * 512 - 100, 600, 0), 512)
    own = mem.ext[(mem.ext["owner"] == mm) & (mem.ext["flags"] & 15 == 0) & (mem.ext["nr"] > 0)]
    behind = own["vpn"] >= own_first_page(30 * 512 - 100)
    assert own["nr"][behind].sum() == 512
    assert own["nr"][~behind].sum() == 88
