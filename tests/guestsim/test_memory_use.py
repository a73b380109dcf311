import numpy as np
import pytest

from guestsim.memory_use import (
    BALLOON_PAGES,
    G_BOOT,
    G_FREED_NR,
    G_GROWN,
    G_KEY,
    G_MM,
    G_PEAK,
    G_RUNS,
    G_START_NS,
    G_VM,
    NR_G_FIELDS,
    NR_OP_FIELDS,
    OP_DISCARD,
    OP_KIND,
    OP_NR,
    OP_START,
    OP_TOUCH,
    OPS_PER_GUEST,
    draw_guest,
    guests_key,
    guests_tick,
    pages_wanted,
)
from guestsim.spec import GuestSpec
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_HOUR

KEY = guests_key(1)
SPEC = GuestSpec(1000, 0.8, 10.0, NS_PER_HOUR, 0.05, 0.1, 0.5, 0)


def one_guest(grown=1 << 18, peak=1 << 18, boot=1000):
    guests = np.full((4, NR_G_FIELDS), -1, np.int64)
    guests[1, [G_VM, G_MM, G_START_NS, G_FREED_NR, G_RUNS]] = 7, 3, 0, 0, 0
    guests[1, [G_BOOT, G_PEAK, G_GROWN, G_KEY]] = boot, peak, grown, 12345
    return guests, np.zeros((4 * OPS_PER_GUEST, NR_OP_FIELDS), np.int64)


def tick(guests, ops, number, now_ns=NS_PER_HOUR, reuse=0.0, small=0.0):
    nr = guests_tick(guests, ops, number, now_ns, NS_PER_HOUR, reuse, small)
    return ops[:nr].copy()


def test_a_vm_draws_the_same_wherever_it_runs():
    assert draw_guest(SPEC, KEY, 17, 1 << 20) == draw_guest(SPEC, KEY, 17, 1 << 20)
    assert draw_guest(SPEC, KEY, 17, 1 << 20) != draw_guest(SPEC, KEY, 18, 1 << 20)


def test_hidden_share_has_the_mean_of_the_scenario():
    shares = [draw_guest(SPEC, KEY, vm, 1 << 20)[1] / (1 << 20) for vm in range(2000)]
    # Beta(8, 2): standard deviation 0.12, so 4 standard errors of 2,000 draws are 0.011
    assert np.mean(shares) == pytest.approx(0.8, abs=0.011)


def test_share_of_advised_vms_is_the_scenarios():
    advised = [draw_guest(SPEC, KEY, vm, 1 << 20)[2] for vm in range(2000)]
    assert np.mean(advised) == pytest.approx(0.5, abs=0.045)  # 4 standard errors


@pytest.mark.parametrize("pages", [10, 1000, 1001, 1 << 20])
def test_boot_and_peak_stay_within_the_size(pages):
    boot, peak, _, _ = draw_guest(SPEC, KEY, 5, pages)
    assert 0 < boot <= peak <= pages


def test_growth_is_exponential_in_the_age():
    guests, _ = one_guest(peak=1000 + 100_000)
    wanted = pages_wanted(guests, 1, NS_PER_HOUR, NS_PER_HOUR)
    assert wanted == 1000 + int(100_000 * (1 - np.exp(-1.0)))
    assert pages_wanted(guests, 1, 0, NS_PER_HOUR) == 1000


def test_growing_guest_touches_what_it_has_not_touched_yet():
    guests, ops = one_guest(grown=1000, peak=5000)
    (op,) = tick(guests, ops, 1)
    assert list(op) == [3, OP_TOUCH, 1000, guests[1, G_GROWN] - 1000]


def test_released_windows_are_whole_and_come_back_a_tick_later():
    guests, ops = one_guest()
    released = tick(guests, ops, 1, now_ns=100 * NS_PER_HOUR, reuse=0.1)
    (discard,) = released[released[:, OP_KIND] == OP_DISCARD]
    assert discard[OP_START] % HPAGE_PMD_NR == 0
    assert discard[OP_NR] % HPAGE_PMD_NR == 0
    again = tick(guests, ops, 2, now_ns=100 * NS_PER_HOUR)
    assert [op[OP_START] for op in again if op[OP_KIND] == OP_TOUCH] == [discard[OP_START]]


def test_small_runs_are_balloon_batches_and_come_back_a_tick_later():
    guests, ops = one_guest()
    released = tick(guests, ops, 1, now_ns=100 * NS_PER_HOUR, reuse=0.05, small=1.0)
    runs = released[released[:, OP_KIND] == OP_DISCARD]
    assert len(runs) > 0
    assert set(runs[:, OP_NR]) == {BALLOON_PAGES}
    again = tick(guests, ops, 2, now_ns=100 * NS_PER_HOUR)
    assert sorted(again[:, OP_START]) == sorted(runs[:, OP_START])


def test_a_guest_never_reaches_beyond_what_it_has_touched():
    guests, ops = one_guest(grown=4096, peak=1 << 18)
    for number in range(50):
        for op in tick(guests, ops, number, number * NS_PER_HOUR // 12, 0.2, 0.5):
            assert op[OP_START] >= 0
            assert op[OP_START] + op[OP_NR] <= guests[1, G_GROWN]


def test_free_rows_do_nothing():
    guests, ops = one_guest()
    guests[1, G_VM] = -1
    assert len(tick(guests, ops, 1, reuse=0.5)) == 0
