import numpy as np
import pytest
from guests import GUESTS
from pagemap import page_frames

from guestsim.balloon import BALLOON_PAGES, deflate, inflate
from guestsim.behaviour import (
    G_BALLOON,
    G_CACHE,
    G_HEAD,
    G_KILLS,
    G_RING,
    G_SLOT,
    NR_G_FIELDS,
    NR_SLOTS,
    O_NR,
    OP_BEGIN,
    OP_DROP,
    OP_EXIT,
    OP_FREE_SLOT,
    OP_READ,
    OP_TOUCH_SLOT,
)
from guestsim.guest import MM_BALLOON, MM_CACHE, boot_memory, free_room, ring_pages
from guestsim.turns import guest_turn, make_room
from hostsim.core.units import HPAGE_PMD_NR, NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import MM_ANON, NIL, P_TOUCHED, PCP_COUNT, Z_FREE, Z_MANAGED
from hostsim.mm.mmap import ADVICE_NONE
from hostsim.mm.vmstat import NR_ANON_PAGES, NR_KERNEL, NR_PAGETABLE, THP_DEFERRED_SPLIT_PAGE

PAGES = 1 << 16  # 256 MiB


class Machine:
    """A guest without a host: what it writes is forgotten after each operation."""

    def __init__(self, kernel="6.12"):
        self.mem = boot_memory(
            GUESTS._replace(kernel=kernel, boot_pages=4096, balloon_ratio=1.0), PAGES, 2
        )
        self.guests = np.zeros((1, NR_G_FIELDS), np.int64)
        self.guests[0, G_SLOT : G_SLOT + 2 * NR_SLOTS : 2] = NIL
        self.guests[0, [G_CACHE, G_RING]] = PAGES, ring_pages(PAGES)
        self.guests[0, G_HEAD] = self.mem.mm[MM_CACHE, MM_ANON]
        self.mem.pool[P_TOUCHED] = 0

    def do(self, kind, where=0, start=0, nr=1):
        ops = np.array([[0, kind, where, start, nr]], np.int64)
        while ops[0, O_NR] > 0:
            guest_turn(self.mem, self.guests, 0, ops, 0)
            self.mem.pool[P_TOUCHED] = 0

    def read(self, nr):
        self.do(OP_READ, nr=nr)

    def used(self):
        zone = self.mem.zone
        return int((zone[:, Z_MANAGED] - zone[:, Z_FREE] - zone[:, PCP_COUNT]).sum())


@pytest.fixture(params=["6.1", "6.12"])
def machine(request):
    return Machine(request.param)


def test_frames_are_conserved_over_a_random_life(machine):
    rng = np.random.Generator(np.random.PCG64(7))
    begun = machine.used()
    for _ in range(60):
        slot = int(rng.integers(NR_SLOTS))
        if machine.guests[0, G_SLOT + 2 * slot] == NIL:
            machine.do(OP_BEGIN, slot, ADVICE_NONE, int(rng.integers(4000, 6000)))
        elif rng.random() < 0.3:
            machine.do(OP_EXIT, slot)
        elif rng.random() < 0.7:
            machine.do(OP_TOUCH_SLOT, slot, int(rng.integers(512)), int(rng.integers(1, 3000)))
        else:
            machine.do(OP_FREE_SLOT, slot, int(rng.integers(512)), int(rng.integers(1, 2000)))
        machine.read(int(rng.integers(1, 500)))
        check_memory(machine.mem)
        stat = machine.mem.vmstat
        listed = stat[NR_ANON_PAGES] + stat[NR_KERNEL] + stat[NR_PAGETABLE]
        partly_mapped = HPAGE_PMD_NR * stat[THP_DEFERRED_SPLIT_PAGE]
        assert listed <= machine.used() <= listed + partly_mapped
    for slot in range(NR_SLOTS):
        machine.do(OP_EXIT, slot)
    head = int(machine.guests[0, G_HEAD])
    machine.do(OP_DROP, nr=head)
    assert machine.mem.mm[MM_CACHE, MM_ANON] == 0
    assert machine.used() <= begun + -(-head // HPAGE_PMD_NR)  # tables of the cache


def test_cache_gives_way_before_the_balloon_and_the_balloon_before_a_process(machine):
    mem, guests = machine.mem, machine.guests
    machine.do(OP_BEGIN, 0, ADVICE_NONE, 1000)
    machine.do(OP_TOUCH_SLOT, 0, 0, 1000)
    inflate(mem, guests, 0, 100)

    def now():
        return int(mem.mm[MM_CACHE, MM_ANON]), int(guests[0, G_BALLOON]), int(guests[0, G_KILLS])

    order = []
    before = now()
    while make_room(mem, guests, 0):
        order.append([a != b for a, b in zip(before, now(), strict=True)].index(True))
        before = now()
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}
    assert guests[0, G_SLOT] == NIL
    assert mem.mm[MM_CACHE, MM_ANON] == 0
    check_memory(mem)


def test_pages_read_while_memory_is_short_are_dropped_like_any_others(machine):
    machine.do(OP_BEGIN, 0, ADVICE_NONE, PAGES)
    machine.do(OP_TOUCH_SLOT, 0, 0, int(free_room(machine.mem)) - 2000)
    had = int(machine.mem.mm[MM_CACHE, MM_ANON])
    machine.read(5000)
    assert machine.mem.mm[MM_CACHE, MM_ANON] < had + 5000
    machine.do(OP_DROP, nr=PAGES)
    assert machine.mem.mm[MM_CACHE, MM_ANON] == 0
    assert machine.guests[0, G_KILLS] == 0


def test_a_process_larger_than_memory_is_killed_and_the_guest_lives_on(machine):
    machine.do(OP_BEGIN, 0, ADVICE_NONE, 2 * PAGES)
    machine.do(OP_TOUCH_SLOT, 0, 0, 2 * PAGES)
    assert machine.guests[0, G_KILLS] == 1
    machine.read(100)
    check_memory(machine.mem)


def test_a_batch_of_the_balloon_names_its_frames_and_no_others(machine):
    mem, guests = machine.mem, machine.guests
    named = []
    for _ in range(5):
        assert inflate(mem, guests, 0, 1000) == BALLOON_PAGES
        for first, nr in mem.touched[: mem.pool[P_TOUCHED]]:
            named += range(first, first + nr)
        mem.pool[P_TOUCHED] = 0
    assert len(named) == len(set(named)) == mem.mm[MM_BALLOON, MM_ANON] == 5 * BALLOON_PAGES
    frames = page_frames(mem, MM_BALLOON)
    assert set(named) == set(frames[frames != NO_PFN].tolist())
    check_memory(mem)
    assert deflate(mem, guests, 0, 10_000) == 5 * BALLOON_PAGES
    assert mem.mm[MM_BALLOON, MM_ANON] == 0


def test_the_balloon_leaves_the_guest_its_watermarks(machine):
    while inflate(machine.mem, machine.guests, 0, 1000) > 0:
        machine.mem.pool[P_TOUCHED] = 0
    assert machine.guests[0, G_KILLS] == 0
    assert machine.guests[0, G_BALLOON] > PAGES // 2
