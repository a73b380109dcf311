"""Streams of accesses: pure functions, inside their regions, as popular as the classes say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.hardware import builtin_names, validated
from fleet.profiles import WorkloadFile, build_workload, load_workload
from guestsim.workload import (
    ANY_STEP,
    Component,
    Law,
    Workload,
    compile_workload,
    draw_pages,
    page_classes,
    zipf_share,
)
from hostsim.core.errors import ScenarioError

SMALL = 64 << 20


def draw(workload, nr, start=0, key=7):
    pages = np.empty(nr, np.int64)
    draw_pages(*compile_workload(workload), key, start, pages)
    return pages


def workload(*components, pages=1000, steps=1):
    return Workload("test", pages, steps, components, 1.0, 1.0, 1.0, 1.0, False)


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(0, 5000), st.integers(1, 300), st.sampled_from(["jvm", "xsbench", "redis"]))
def test_an_access_is_a_pure_function_of_its_number(start, nr, name):
    made = load_workload(name, SMALL)
    assert np.array_equal(draw(made, nr, start), draw(made, start + nr)[start:])
    assert not np.array_equal(draw(made, 300), draw(made, 300, key=8))


@pytest.mark.parametrize("name", builtin_names("workloads"))
def test_every_profile_stays_in_its_footprint_and_its_popularity_sums_to_one(name):
    made = load_workload(name, SMALL)
    pages = draw(made, 200_000)
    assert pages.min() >= 0
    assert pages.max() < made.pages
    classes = page_classes(made)
    assert sum(c.objects * c.rate for c in classes) == pytest.approx(1.0)
    assert load_workload(name).pages << 12 >= 256 << 20


def test_uniform_reaches_every_page_alike():
    counts = np.bincount(draw(workload(Component(Law.UNIFORM, 1.0, 0, 1000, ANY_STEP)), 10**6))
    assert len(counts) == 1000
    assert 800 < counts.min() < counts.max() < 1200  # six standard deviations: 190


def test_zipf_gives_ranks_their_share_and_scatters_them():
    component = Component(Law.ZIPF, 1.0, 0, 1000, ANY_STEP, 1, 0.9)
    pages = draw(workload(component), 10**6)
    counts = np.sort(np.bincount(pages, minlength=1000))[::-1]
    for rank in (1, 10, 100):
        share = zipf_share(0.9, 1000, rank)
        assert counts[:rank].sum() / 10**6 == pytest.approx(share, rel=0.02)
    hottest = np.argsort(np.bincount(pages, minlength=1000))[::-1][:8]
    assert np.abs(np.diff(np.sort(hottest))).min() > 8  # no two in one line of entries


KEYS = workload(
    Component(Law.ZIPF, 1.0, 100, 16000, 0, 1, 0.99),
    Component(Law.UNIFORM, 1.0, 0, 16200, 1),
    pages=16200,
    steps=2,
)


@pytest.mark.parametrize("name", ["keys", "btree"])
def test_classes_say_how_popular_pages_are(name):
    """The share of accesses on the hottest pages, counted and by the classes."""
    made = KEYS if name == "keys" else load_workload(name, SMALL)
    counts = np.sort(np.bincount(draw(made, 10**6), minlength=made.pages))[::-1]
    rate = np.zeros(made.pages)
    placed = {}  # of each region, objects placed so far
    for c in page_classes(made):
        first, size = c.region
        start = placed.get((c.region, c.rank < 0), 0)
        nr = min(int(c.objects), size - start)
        rate[first + start : first + start + nr] += c.rate * c.objects / nr
        placed[c.region, c.rank < 0] = start + nr
    rate = np.sort(rate)[::-1]
    for top in (made.pages // 100, made.pages // 10):
        assert counts[:top].sum() / 10**6 == pytest.approx(rate[:top].sum(), abs=0.02)


def test_steps_of_a_tree_follow_one_key_down():
    made = load_workload("btree", SMALL)
    pages = draw(made, 5 * 1000).reshape(1000, 5)
    sizes = [c.pages for c in made.components]
    firsts = [c.first for c in made.components]
    assert sum(sizes) >= made.pages - 5
    assert len(set(pages[:, 0])) == sizes[0]
    share = (pages - firsts) / sizes
    assert np.all(np.abs(share[:, 3] - share[:, 4]) <= 1.0 / sizes[3])


def test_sequential_moves_by_its_stride_and_share():
    line = Component(Law.SEQUENTIAL, 1.0, 10, 20, ANY_STEP, stride_bytes=64)
    pages = draw(workload(line), 64 * 25)
    assert np.array_equal(pages, 10 + np.repeat(np.arange(25), 64) % 20)
    half = workload(line._replace(stride_bytes=4096), Component(Law.UNIFORM, 1.0, 0, 5, ANY_STEP))
    seen = draw(half, 10**5)
    steps = np.diff(seen[seen >= 10])
    assert steps.min() >= -19
    assert np.mean(steps % 20) == pytest.approx(1.0, rel=0.02)


def test_a_phase_keeps_to_its_window():
    component = Component(Law.PHASE, 1.0, 0, 1000, ANY_STEP, window_pages=50, window_accesses=500)
    pages = draw(workload(component), 5000).reshape(10, 500)
    assert np.all(np.ptp(pages, axis=1) < 50)
    assert len({int(row.min()) for row in pages}) > 5


def test_weights_of_one_step_are_kept():
    made = workload(
        Component(Law.UNIFORM, 3.0, 0, 10, ANY_STEP), Component(Law.UNIFORM, 1.0, 500, 10, ANY_STEP)
    )
    assert (draw(made, 10**5) < 10).mean() == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (workload(Component(Law.UNIFORM, 1.0, 0, 10, 1), steps=2), "step 0: no component"),
        (workload(Component(Law.UNIFORM, 1.0, 995, 10, ANY_STEP)), "outside of 1000 pages"),
        (workload(Component(Law.UNIFORM, 1.0, 0, 0, ANY_STEP)), "empty region"),
    ],
)
def test_impossible_workloads_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        compile_workload(made)


BASE = {
    "title": "t",
    "source": "s",
    "footprint": "1GiB",
    "instructions": 1,
    "cycles": 1,
    "overlap": 1,
    "component": [{"law": "uniform"}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"footprint": "1GB"}, "footprint"),
        ({"overlap": 0.5}, "overlap"),
        ({"component": [{"law": "random"}]}, r"component\[0\].law"),
        ({"component": [{"law": "uniform", "size": "2"}]}, r"component\[0\].size"),
        ({"component": [{"law": "uniform", "size": 1.5}]}, "neither a share"),
        ({"component": [{"law": "uniform", "step": 3}]}, "step 0: no component"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_profile_is_named(change, message):
    with pytest.raises(ScenarioError, match=message):
        build_workload("mine", validated(WorkloadFile, "mine", {**BASE, **change}), None)
