import os
import signal

import pytest
from tiny import TINY

from fleet import scheduler
from fleet.actors import RayBackend, start
from fleet.scheduler import Options
from hostsim.core.errors import WorkerError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def backend(small):
    backend = RayBackend(small(*TINY), hosts_per_actor=2)
    yield backend
    backend.close()


def test_hosts_per_actor_sets_the_number_of_actors(backend):
    assert backend.host_ids == [(0, 3), (1, 4), (2,)]


def test_joining_a_running_ray_leaves_it_running(backend):
    assert not backend.ours
    assert start(workers=2, address=None) is False


def test_actor_refuses_an_epoch_that_is_not_its_next(backend):
    backend._pending = [backend.actors[0].advance.remote(5, 0, 1, None)]
    with pytest.raises(ValueError, match="shard is at epoch 0, not 5"):
        backend.collect()


def test_dead_worker_ends_the_run_with_a_clear_message(small, tmp_path):
    made = []

    def make(scenario):
        made.append(RayBackend(scenario, workers=2))
        return made[0]

    def kill_one(progress):
        if progress.epoch == 1:
            os.kill(made[0].pids()[0], signal.SIGKILL)

    with pytest.raises(WorkerError, match=r"a worker died.*--resume continues"):
        scheduler.run(small(*TINY), tmp_path / "r", Options(), kill_one, make)
