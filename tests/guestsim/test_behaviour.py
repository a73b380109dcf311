import numpy as np
import pytest
from guests import BUSY, GIB, GUESTS, drawn

from guestsim.behaviour import (
    G_CACHE,
    G_HEAP,
    G_LAST_NS,
    NR_O_FIELDS,
    O_KIND,
    O_NR,
    O_START,
    OP_BEGIN,
    OP_DROP,
    OP_READ,
    OP_TOUCH_SLOT,
    OPS_PER_GUEST,
    behaviour_table,
    decide,
)
from guestsim.guest import MM_CACHE, boot_memory
from guestsim.pagecache import drop_cache
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN
from hostsim.mm.mm_types import MM_ANON

TICK_NS = 5 * NS_PER_MIN


def decided(guest, mem, tick, spec=GUESTS):
    guests = guest.reshape(1, -1)
    ops = np.zeros((OPS_PER_GUEST, NR_O_FIELDS), np.int64)
    nr = decide(guests, 0, mem, behaviour_table(spec), ops, 0, tick, TICK_NS, tick * TICK_NS, 0)
    return ops[:nr]


@pytest.fixture(scope="module")
def mem():
    return boot_memory(GUESTS, GIB, 2)


def test_at_first_the_main_process_begins(mem):
    guest, _ = drawn(3)
    ops = decided(guest, mem, 0)
    assert ops[0, O_KIND] == OP_BEGIN
    assert ops[0, O_NR] == guest[G_HEAP]


def test_a_standing_vm_begins_with_what_it_has_grown_to(mem):
    guest, _ = drawn(3)
    guest[G_LAST_NS] = 12 * TICK_NS
    ops = decided(guest, mem, 12)
    touched = ops[ops[:, O_KIND] == OP_TOUCH_SLOT][:, O_NR].sum()
    assert touched == int(guest[G_HEAP] * (1 - np.exp(-1.0)))


def test_a_cache_drops_what_it_has_and_stays_within_its_limit(mem):
    for vm in range(8):
        guest, _ = drawn(vm)
        have = begun = int(mem.mm[MM_CACHE, MM_ANON])
        for tick in range(1, 60):
            mem.mm[MM_CACHE, MM_ANON] = have
            for op in decided(guest, mem, tick):
                assert op[O_NR] > 0
                assert op[O_START] >= 0
                if op[O_KIND] == OP_READ:
                    have += op[O_NR]
                if op[O_KIND] == OP_DROP:
                    have -= op[O_NR]
                    assert have >= 0
            assert have <= guest[G_CACHE]
        mem.mm[MM_CACHE, MM_ANON] = begun


def read_by(ops):
    return int(ops[ops[:, O_KIND] == OP_READ][:, O_NR].sum())


def test_page_cache_of_a_standing_vm_has_grown_with_its_age(mem):
    guest, _ = drawn(5)
    guest[G_LAST_NS] = 12 * TICK_NS
    ops = decided(guest, mem, 12)
    room = float(guest[G_CACHE] - mem.mm[MM_CACHE, MM_ANON])
    assert read_by(ops) == int(room * (1 - np.exp(-1.0)))
    assert guest[G_LAST_NS] == NS_PER_HOUR


def test_page_cache_that_gave_way_comes_back_at_the_rate_at_which_it_grew():
    calm = GUESTS._replace(
        behaviours=(
            BUSY._replace(cache_reads_per_hour=0.0, cache_drops_per_hour=0.0, jobs_per_hour=0.0),
        )
    )
    guest, _ = drawn(5)
    guest[G_LAST_NS] = 12 * TICK_NS
    mem = boot_memory(GUESTS, GIB, 2)
    drop_cache(mem, guest[None], 0, int(guest[G_CACHE]))
    grown = int(float(guest[G_CACHE]) * (1 - np.exp(-1.0 / 12)))
    assert read_by(decided(guest, mem, 13, calm)) == grown
