"""The short form of the chaos suite; the long one is ``python tests/chaos/fleet_chaos.py``."""

import subprocess
import sys
from pathlib import Path

import pytest
from chaos import WriteFaults, digest, draw, leftovers, no_space
from fakenode import FakeNode
from tiny import TINY

from fleet import scheduler
from fleet.scheduler import Options
from fleet.shard import InlineBackend
from hostsim.core.errors import ResultsError

HERE = Path(__file__).parent


def test_drivers_killed_in_the_middle_of_writing_leave_what_resume_makes_whole(tmp_path):
    script = [sys.executable, str(HERE / "drivers.py"), str(tmp_path), "1", "12"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.count("same bytes")) == (0, 12), done.stdout + done.stderr


def fake(scenario):
    return InlineBackend(scenario, FakeNode)


@pytest.mark.parametrize("seed", range(8))
def test_full_disk_stops_the_run_and_resume_ends_with_the_same_bytes(small, tmp_path, seed):
    options = Options(checkpoint_epochs=2)
    with WriteFaults(0, no_space).installed() as counted:
        scheduler.run(small(), tmp_path / "whole", options, None, fake)
    at = 1 + int(counted.count * draw("full disk", seed))
    with (
        WriteFaults(at, no_space).installed(),
        pytest.raises(ResultsError, match="No space left on device"),
    ):
        scheduler.run(small(), tmp_path / "r", options, None, fake)
    resume = options._replace(resume=(tmp_path / "r" / "run.json").exists())
    scheduler.run(small(), tmp_path / "r", resume, None, fake)
    assert digest(tmp_path / "r") == digest(tmp_path / "whole")
    assert leftovers(tmp_path / "r") == []


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """Mount a file system of 1 MiB; skipped where that is not allowed."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_in_truth(small, tmp_path, small_disk):
    long = small("run.duration=12h")
    with pytest.raises(ResultsError, match=r"cannot write: .*No space left on device"):
        scheduler.run(long, small_disk / "r", Options(checkpoint_epochs=2), None, fake)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    scheduler.run(long, small_disk / "r", Options(resume=True), None, fake)
    scheduler.run(long, tmp_path / "whole", Options(), None, fake)
    assert digest(small_disk / "r") == digest(tmp_path / "whole")


@pytest.mark.ray
def test_a_worker_and_then_its_node_are_killed_and_an_orphan_commits_nothing(small, tmp_path):
    from fleet_chaos import Killer, node_cluster

    scenario = small(*TINY, "run.duration=2h", "maintenance=[{hosts = 1, start = '30min'}]")
    scheduler.run(scenario, tmp_path / "whole", Options(inline=True))
    with node_cluster() as cluster:
        for kind in ("worker", "node"):
            killer = Killer(cluster, kind, epoch=2, delay_s=0.0, wait=True)
            out = tmp_path / kind
            record = scheduler.run(
                scenario, out, Options(checkpoint_epochs=1), killer, killer.make_backend
            )
            assert len(record["execution"]["recoveries"]) == 1
            assert digest(out) == digest(tmp_path / "whole")
            killer.repair()
        assert killer.orphan_answer() != "advanced"
