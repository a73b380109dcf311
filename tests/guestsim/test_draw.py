import numpy as np
import pytest
from guests import BUSY, GIB, GUESTS, drawn

from guestsim.behaviour import G_CACHE, G_HEAP, behaviour_table
from guestsim.draw import draw_class
from guestsim.guest import boot_footprint


def test_a_vm_draws_the_same_wherever_it_runs():
    assert (drawn(17)[0] == drawn(17)[0]).all()
    assert (drawn(17)[0] != drawn(18)[0]).any()


def test_hidden_share_has_the_mean_of_the_scenario():
    pages = 64 * GIB
    boot = boot_footprint(GUESTS, pages)
    shares = []
    for vm in range(2000):
        guest, _ = drawn(vm, pages)
        beyond = guest[G_HEAP] + guest[G_CACHE] - boot * 5 // 8
        shares.append((beyond + boot + pages // 64) / pages)
    # Beta(8, 2): standard deviation 0.12, so 4 standard errors of 2,000 draws are 0.011
    assert np.mean(shares) == pytest.approx(0.8, abs=0.011)


def test_share_of_advised_vms_is_the_scenarios():
    advised = [drawn(vm)[1] for vm in range(2000)]
    assert np.mean(advised) == pytest.approx(0.5, abs=0.045)  # 4 standard errors


def test_classes_come_by_weight():
    spec = GUESTS._replace(behaviours=(BUSY, BUSY._replace(weight=3.0)))
    table = behaviour_table(spec)
    assert [draw_class(table, x) for x in (0.01, 0.249, 0.251, 0.99)] == [0, 0, 1, 1]
