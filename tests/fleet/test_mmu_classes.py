"""Classes around a state: the kernel against the plain rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.mmu_classes import State, all_huge, classes_around, figures

from fleet import mmu_classes
from fleet.mmu_classes import (
    ALL_HUGE,
    ALL_LOCAL,
    AS_IT_IS,
    MOST_AROUND,
    NATIVE,
    NR_CLASSES,
    class_of,
)
from fleet.mmu_figures import Sampler
from guestsim.behaviour import NR_FIGURES
from hostsim.mm.mm_types import NIL

CPU = "ice-lake-sp"
GIB = 1 << 18
ACCESSES = 8_000


@st.composite
def states(draw):
    """Return a state whose shares are those of sets: both is within guest and host."""
    pages = draw(st.one_of(st.integers(1, 2000), st.integers(1, 600 * GIB)))
    guest, host = (draw(st.integers(0, pages)) for _ in range(2))
    both = draw(st.integers(max(guest + host - pages, 0), min(guest, host)))
    tables = draw(st.integers(0, 5000))
    huge = draw(st.integers(0, tables))
    remote, ept = (draw(st.one_of(st.just(0), st.integers(0, 64))) for _ in range(2))
    return State(CPU, "jvm", pages, guest, host, both, tables, huge, remote, ept)


def all_classes(state):
    """Return the classes whose samples a state's figures are made of."""
    local = state._replace(remote=0, remote_ept=0)
    ways = classes_around(state), classes_around(all_huge(state)), classes_around(local)
    native = classes_around(state, native=True)
    return {key for way in (*ways, native) for key, _ in way}


def kernel_classes(state, view):
    number, weight = np.zeros(MOST_AROUND, np.int64), np.zeros(MOST_AROUND)
    nr = mmu_classes.classes_around(state.columns()[0], view, number, weight)
    assert nr <= MOST_AROUND
    assert (number[:nr] < NR_CLASSES).all()
    classes = [class_of(state.cpu, state.workload, n) for n in number[:nr].tolist()]
    return dict(zip(classes, weight[:nr].tolist(), strict=True))


@settings(deadline=None)
@given(states())
def test_the_kernel_finds_the_classes_of_the_plain_rule(state):
    views = {
        AS_IT_IS: classes_around(state),
        ALL_HUGE: classes_around(all_huge(state)),
        NATIVE: classes_around(state, native=True),
        ALL_LOCAL: classes_around(state._replace(remote=0, remote_ept=0)),
    }
    for view, expected in views.items():
        assert kernel_classes(state, view) == pytest.approx(dict(expected), rel=1e-12)


@pytest.mark.parametrize("workload", ["idle", "memcached"])
def test_many_states_at_once_have_the_figures_of_the_plain_rule(workload):
    """To one in the last place: the order of a sum differs."""
    rng = np.random.Generator(np.random.PCG64(3))
    found = []
    for _ in range(4):
        pages = int(rng.integers(600, 3 * GIB))
        guest, host = (int(rng.integers(0, pages + 1)) for _ in range(2))
        both = int(rng.integers(max(guest + host - pages, 0), min(guest, host) + 1))
        remote = tuple(int(x) for x in rng.integers(0, 65, 2))
        found.append(State(CPU, workload, pages, guest, host, both, 300, 100, *remote))
    sampler = Sampler(1, ACCESSES)
    program = np.full(4, sampler.program(CPU, workload))
    rows = sampler.figures(program, np.concatenate([s.columns() for s in found]))
    for state, row in zip(found, rows, strict=True):
        assert row == pytest.approx(figures(state, 1, ACCESSES), abs=1)


def test_programs_that_come_later_take_nothing_from_those_that_are_known():
    """What is known moves when there is room for more, and a guest without a program has none."""
    found = [State(CPU, name, GIB, 0, 0, 0, 300, 0) for name in ("idle", "memcached", "jvm")]
    alone = []
    for state in found:
        sampler = Sampler(1, ACCESSES)
        program = np.array([sampler.program(CPU, state.workload)])
        alone += sampler.figures(program, state.columns()).tolist()
    sampler = Sampler(1, ACCESSES)
    for nr in range(1, 4):
        programs = np.array([sampler.program(CPU, state.workload) for state in found[:nr]] + [NIL])
        states = np.concatenate([state.columns() for state in (*found[:nr], found[0])])
        rows = sampler.figures(programs, states).tolist()
        assert rows == [*alone[:nr], [0] * NR_FIGURES]
    assert sampler.usage().samples == sum(len(all_classes(state)) for state in found)
    assert sampler.usage().hits == 0 + 1 + 2
