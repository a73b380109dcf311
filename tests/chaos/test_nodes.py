"""Ray nodes with addresses of their own, one of them cut off; steps: fleet/bench_cluster.py."""

import shutil
from pathlib import Path

import pytest

import hostsim
from fleet import netns
from fleet.bench_cluster import CHECKPOINT_EPOCHS, SCENARIO, WAIT_S, run_cut, run_inline, run_on

WHY_NOT = netns.why_not()
pytestmark = [pytest.mark.ray, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
ROOT = Path(hostsim.__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    return run_inline(tmp_path_factory.mktemp("inline") / "run")


@pytest.fixture(scope="module")
def machines():
    """One machine; tests add theirs, in the order of this file."""
    with netns.Machines() as found:
        yield found


def test_one_node_gives_the_bytes_of_one_process(machines, inline, tmp_path):
    one = run_on(machines, tmp_path / "one")
    assert one.nodes == machines.addresses()
    assert one.digests == inline.digests
    assert one.stderr == ""  # nothing of Ray


def test_driver_without_the_clusters_token_is_told_what_to_set(machines, tmp_path):
    other = {"RAY_AUTH_TOKEN": "f" * 32}
    run = machines.fleet("smoke", "--out", str(tmp_path / "run"), environment=other)
    _, stderr = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1
    assert stderr.startswith(f"WorkerError: cannot reach Ray at {machines.address}: it demands")
    assert "RAY_AUTH_TOKEN" in stderr
    assert len(stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_three_nodes_give_the_bytes_of_one_process(machines, inline, tmp_path):
    machines.add()
    machines.add()
    three = run_on(machines, tmp_path / "three")
    assert three.nodes == machines.addresses()
    assert len(three.nodes) == 3
    assert three.digests == inline.digests


def test_run_whose_node_is_cut_off_goes_on_and_ends_with_the_same_bytes(machines, inline, tmp_path):
    """The worker on the lost node lives on, and comes back while the run goes on without it."""
    cut, _ = run_cut(machines, tmp_path / "cut", machine=2)
    assert cut.digests == inline.digests
    recoveries = cut.record["execution"]["recoveries"]
    assert len(recoveries) == 1  # the shard of that node, whichever it was
    assert recoveries[0]["from_epoch"] > 0
    assert recoveries[0]["from_epoch"] % CHECKPOINT_EPOCHS == 0
    assert "Traceback" not in cut.stderr
    assert len(cut.stderr.splitlines()) == 1  # that it was lost, and what is done about it


def test_node_with_other_sources_is_named(machines, tmp_path):
    """A stale install: one line of one kernel differs."""
    for package in ("fleet", "guestsim", "hostsim", "scenarios"):
        ignored = shutil.ignore_patterns("__pycache__", "groundtruth")
        shutil.copytree(ROOT / package, tmp_path / "stale" / package, ignore=ignored)
    with (tmp_path / "stale" / "hostsim" / "mm" / "buddy.py").open("a") as file:
        file.write("# another version\n")
    stale = machines.add({"PYTHONPATH": str(tmp_path / "stale")})
    run = machines.fleet(*SCENARIO, "--out", str(tmp_path / "run"))
    _, stderr = run.communicate(timeout=WAIT_S)
    assert run.returncode == 1
    address = machines.addresses()[stale]
    assert stderr.startswith(f"WorkerError: node {address} has hugefleet sources ")
    assert stderr.count("node 10.") == 1
    assert "Traceback" not in stderr
