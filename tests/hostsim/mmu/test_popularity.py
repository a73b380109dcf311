"""Popularity: lines taken together are what each is alone."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from hostsim.mmu.brent import NR_ROOT_FIELDS
from hostsim.mmu.cost import _kept, _stay
from hostsim.mmu.popularity import Classes, Lines, Popularity, Units

rates = st.floats(1e-12, 1e-3)


@st.composite
def popularities(draw):
    nr = draw(st.integers(1, 12))
    regions = draw(st.lists(st.integers(0, 2), min_size=nr, max_size=nr))
    first = np.array(regions, float) * 1e7
    pages = np.array([(1e3, 1e5, 1e6)[region] for region in regions])
    objects = np.array(draw(st.lists(st.floats(1.0, 1e6), min_size=nr, max_size=nr)))
    rate = np.array(draw(st.lists(rates, min_size=nr, max_size=nr)))
    run = np.array(draw(st.lists(st.sampled_from([1.0, 8.0, 512.0]), min_size=nr, max_size=nr)))
    return Popularity(Classes(first, pages, objects, np.ones(nr), rate, run))


def lines_of(of, weights, pages, times):
    present = np.full(weights.shape, 0.75)
    row = np.where(of.cyclic, np.maximum(pages * of.classes.run / 8.0, 1.0), 1.0)
    return Lines(Units(of, weights, present), pages, row, np.where(times > 0.0, 512.0, 0.0), times)


@given(popularities(), st.data(), st.sampled_from([0.01, 50.0, 1e6, 1e13, np.inf]))
def test_rows_of_lines_are_what_each_is_alone(of, data, time):
    """To the last bit, so that it does not matter what is computed together."""
    nr = data.draw(st.integers(1, 5))
    weights = (
        of.classes.rate * np.array(data.draw(st.lists(rates, min_size=nr, max_size=nr)))[:, None]
    )
    pages = 8.0 * 512.0 ** np.arange(nr)[:, None]
    times = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 30.0, 1e5]), min_size=nr, max_size=nr))
    )
    together = lines_of(of, weights, pages, times[:, None])
    for i in range(nr):
        alone = lines_of(of, weights[i], float(pages[i, 0]), times[i])
        for name in ("objects", "nr", "turns"):
            assert getattr(together, name)[i].tolist() == getattr(alone, name).tolist()
        assert together.read_again(time)[i].tolist() == alone.read_again(time).tolist()


@given(popularities(), st.floats(1e-3, 1e9))
def test_a_line_stays_until_as_many_others_were_read_as_the_cache_holds(of, target):
    data = of.data_lines(1)
    arrays = [part[None] for part in (data.units.weight, data.turns, data.objects, data.nr)]
    arrays += [of.share, of.group, of.cyclic, np.empty(of.nr_groups)]
    found = _stay(*arrays, np.empty(NR_ROOT_FIELDS), 10.0, target)
    low, high = (_kept(*arrays, 10.0**power) for power in (-3.0, 18.0))
    if high <= target:
        assert found == np.inf
    elif low >= target:
        assert found == 10.0**-3.0
    else:
        power = brentq(lambda power: _kept(*arrays, 10.0**power) - target, -3.0, 18.0)
        assert found == 10.0**power
