import os
import re
import signal

import pytest
from tiny import TINY

from fleet import scheduler
from fleet.actors import RayBackend, start
from fleet.bench import digest_tables
from fleet.scheduler import Options
from fleet.shard import Step
from fleet.usage import PROC, process_tree
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


def test_a_local_ray_has_neither_autoscaler_nor_log_monitor():
    commands = [(PROC / str(pid) / "cmdline").read_text() for pid in process_tree(os.getpid())]
    assert any("raylet" in command for command in commands)
    assert not [each for each in commands if re.search(r"/(log_)?monitor\.py", each)]


def test_actor_refuses_an_epoch_that_is_not_its_next(backend):
    with pytest.raises(ValueError, match="shard is at epoch 0, not 5"):
        backend._ask(lambda actor, _: actor.advance_as.remote(0, Step(5, 0, 1, [], None, ())))


def test_attempt_that_was_given_up_refuses_the_calls_of_its_successor(backend):
    with pytest.raises(ValueError, match="attempt 0 of a shard was given up for 1"):
        backend._ask(lambda actor, _: actor.advance_as.remote(1, Step(0, 0, 1, [], None, ())))


class Killer:
    """Makes a backend and kills workers of it when epochs have ended."""

    def __init__(self, *epochs, shard=0, **options):
        self.epochs, self.shard, self.options = epochs, shard, options

    def make(self, scenario):
        self.backend = RayBackend(scenario, **self.options)
        return self.backend

    def __call__(self, progress):
        if progress.epoch in self.epochs:
            os.kill(self.backend.pids()[self.shard], signal.SIGKILL)


@pytest.mark.parametrize(
    ("checkpoint_epochs", "killed", "from_epochs"), [(0, (1, 3), [0, 0]), (2, (1, 3), [0, 2])]
)
def test_run_whose_workers_were_killed_ends_with_the_same_bytes(
    small, tmp_path, caplog, checkpoint_epochs, killed, from_epochs
):
    """A host is drained at the barrier at which the first worker is gone."""
    moving = "maintenance=[{hosts = 1, start = '30min'}]"
    scenario = small(*TINY, "run.duration=2h", moving)
    options = Options(checkpoint_epochs=checkpoint_epochs)
    scheduler.run(scenario, tmp_path / "whole", Options(inline=True))
    killer = Killer(*killed, workers=2)
    record = scheduler.run(scenario, tmp_path / "r", options, killer, killer.make)
    assert [found["from_epoch"] for found in record["execution"]["recoveries"]] == from_epochs
    assert [found["epoch"] for found in record["execution"]["recoveries"]] == list(killed)
    assert digest_tables(tmp_path / "r") == digest_tables(tmp_path / "whole")
    assert f"worker of hosts 0, 2, 4 died at epoch {killed[0]} (" in caplog.text


def test_worker_that_dies_while_a_checkpoint_is_written_is_brought_back(
    small, tmp_path, monkeypatch
):
    scenario = small(*TINY)
    scheduler.run(scenario, tmp_path / "whole", Options(inline=True))
    killer = Killer(workers=2)
    save = RayBackend.save

    def kill_and_save(backend):
        os.kill(backend.pids()[1], signal.SIGKILL)
        yield from save(backend)

    monkeypatch.setattr(RayBackend, "save", kill_and_save)
    options = Options(checkpoint_epochs=1)
    record = scheduler.run(scenario, tmp_path / "r", options, None, killer.make)
    assert len(record["execution"]["recoveries"]) == 1
    assert digest_tables(tmp_path / "r") == digest_tables(tmp_path / "whole")


def test_worker_that_dies_again_and_again_ends_the_run(small, tmp_path, monkeypatch):
    restored = RayBackend._restored

    def restored_and_killed(backend, shard):
        yield from restored(backend, shard)
        os.kill(backend.pids()[shard], signal.SIGKILL)

    monkeypatch.setattr(RayBackend, "_restored", restored_and_killed)
    killer = Killer(1, workers=2)
    with pytest.raises(WorkerError, match=r"of hosts 0, 2, 4 died 4 times at epoch 1: .*--resume"):
        scheduler.run(small(*TINY), tmp_path / "r", Options(), killer, killer.make)
    scheduler.run(small(*TINY), tmp_path / "whole", Options(inline=True))
    scheduler.run(small(*TINY), tmp_path / "r", Options(inline=True, resume=True))
    assert digest_tables(tmp_path / "r") == digest_tables(tmp_path / "whole")
