import numpy as np
import pytest
from guests import BUSY, GIB, GUESTS, drawn

from guestsim.behaviour import (
    G_CACHE,
    G_HEAD,
    G_HEAP,
    G_LAST_NS,
    G_TAIL,
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
from guestsim.guest import boot_memory
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN

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


def test_pages_that_were_read_are_dropped_and_the_cache_stays_within_its_limit(mem):
    for vm in range(8):
        guest, _ = drawn(vm)
        for tick in range(1, 60):
            for op in decided(guest, mem, tick):
                assert op[O_NR] > 0
                assert op[O_START] >= 0
                if op[O_KIND] == OP_READ:
                    assert op[O_START] + op[O_NR] == guest[G_HEAD]
                if op[O_KIND] == OP_DROP:
                    assert op[O_START] + op[O_NR] <= guest[G_TAIL]
            assert 0 <= guest[G_HEAD] - guest[G_TAIL] <= guest[G_CACHE]


def test_page_cache_of_a_standing_vm_has_grown_with_its_age(mem):
    guest, _ = drawn(5)
    before = int(guest[G_HEAD])
    guest[G_LAST_NS] = 12 * TICK_NS
    decided(guest, mem, 12)
    grown = int(float(guest[G_CACHE] - before) * (1 - np.exp(-1.0)))
    assert guest[G_HEAD] - before == grown
    assert guest[G_LAST_NS] == NS_PER_HOUR


def test_page_cache_that_gave_way_comes_back_at_the_rate_at_which_it_grew(mem):
    calm = GUESTS._replace(
        behaviours=(
            BUSY._replace(cache_reads_per_hour=0.0, cache_drops_per_hour=0.0, jobs_per_hour=0.0),
        )
    )
    guest, _ = drawn(5)
    guest[[G_TAIL, G_LAST_NS]] = guest[G_HEAD], 12 * TICK_NS
    decided(guest, mem, 13, calm)
    have = int(guest[G_HEAD] - guest[G_TAIL])
    assert have == int(float(guest[G_CACHE]) * (1 - np.exp(-1.0 / 12)))
