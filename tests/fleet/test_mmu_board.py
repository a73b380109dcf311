"""Samples that workers share: the same bits, whole or not there at all, each simulated once."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from fleet import scheduler
from fleet.actors import RayBackend
from fleet.loading import load
from fleet.mmu_board import make_board, open_board
from fleet.mmu_classes import NR_CLASSES, NR_STATE
from fleet.mmu_figures import Sampler
from fleet.mmu_sample import NR_S_FIGURES
from fleet.scheduler import Options

CPU = "ice-lake-sp"
PROGRAMS = ((CPU, "jvm"), (CPU, "memcached"), ("haswell", "jvm"))
ACCESSES = 8_000


@contextmanager
def board():
    """Where the board of a run of these programs is."""
    file, place = make_board(load("smoke"))
    with file:
        place = place._replace(programs=PROGRAMS, seed=1, accesses=ACCESSES)
        file.truncate(place.nr_bytes)
        yield place


classes = st.tuples(st.sampled_from(PROGRAMS), st.integers(0, NR_CLASSES - 1))
samples = st.binary(min_size=8 * NR_S_FIGURES, max_size=8 * NR_S_FIGURES).map(np.frombuffer)


@given(st.dictionaries(classes, samples, max_size=8), st.lists(classes, max_size=8))
@settings(max_examples=50)
def test_what_one_worker_wrote_another_finds_bit_by_bit_and_nothing_else(written, others):
    with board() as place:
        one, two = open_board(place, 0.0), open_board(place, 0.5)
        for key, sample in written.items():
            one.put(*key, sample)
        for key in [*written, *others]:
            found = two.find(*key)
            assert (found is None) == (key not in written)
            assert found is None or found.tobytes() == written[key].tobytes()


@pytest.mark.parametrize("byte", range(8 * NR_S_FIGURES))
def test_a_sample_that_is_half_written_is_not_there(byte):
    with board() as place:
        worker = open_board(place, 0.0)
        worker.put(PROGRAMS[1], 7, np.arange(1.0, 1.0 + NR_S_FIGURES))
        worker._records[1, 7]["sample"].view(np.uint8)[byte] ^= 255
        assert worker.find(PROGRAMS[1], 7) is None


def test_a_program_of_no_host_has_no_place():
    with board() as place:
        worker = open_board(place, 0.0)
        worker.put(("haswell", "idle"), 7, np.ones(NR_S_FIGURES))
        assert worker.find(("haswell", "idle"), 7) is None
        assert not worker._records["checksum"].any()


def test_a_board_on_another_machine_or_gone_is_out_of_reach():
    with board() as place:
        assert open_board(place._replace(machine="another"), 0.0) is None
    assert open_board(place, 0.0) is None


def figures(sampler):
    """The figures of some states of each program."""
    state = np.zeros((6, NR_STATE), np.int64)
    state[:, 0] = [5000, 90_000, 1 << 20] * 2
    state[:, 1:4] = state[:, :1] // 2
    state[:, 4] = 100
    numbers = [sampler.program(*program) for program in PROGRAMS[:2] for _ in range(3)]
    return sampler.figures(np.array(numbers), state)


def test_who_finds_all_samples_simulates_none_and_has_the_same_figures():
    alone, one, two = (Sampler(1, ACCESSES) for _ in range(3))
    with board() as place:
        one.board, two.board = open_board(place, 0.0), open_board(place, 0.5)
        expected = figures(alone).tobytes()
        assert figures(one).tobytes() == expected
        assert figures(two).tobytes() == expected
    assert one.usage().samples == alone.usage().samples > 0
    assert two.usage().samples == 0


def test_workers_begin_with_different_samples():
    """Each at its own part of what all of them want, and around from there."""
    orders = []
    with board() as place:
        for first in (0.0, 0.5):
            sampler = Sampler(1, ACCESSES)
            sampler.board = open_board(place, first)
            orders.append(written := [])
            sampler.board.put = lambda *sample, written=written: written.append(sample[:2])
            figures(sampler)
    half = len(orders[0]) // 2
    assert orders[1] == orders[0][half:] + orders[0][:half]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_workers_write_on_the_board_of_their_run(small, tmp_path):
    """All that one process simulates stands there in the end, and nothing else."""
    backends = []

    def make(scenario):
        backends.append(RayBackend(scenario, hosts_per_actor=2))
        return backends[0]

    def read_before_the_end(progress):
        worker = open_board(backends[0].board, 0.0)
        nr_written.append(int(np.count_nonzero(worker._records["checksum"])))

    nr_written = []
    scenario = small(*TINY, "mmu.accesses=8000", "run.seed=77")
    options = Options(checkpoint_epochs=0)
    scheduler.run(
        scenario, tmp_path / "ray", options, make_backend=make, on_epoch=read_before_the_end
    )
    alone = scheduler.run(scenario, tmp_path / "inline", Options(inline=True))
    assert nr_written[-1] == alone["execution"]["mmu"]["samples"] > 0
