import numpy as np
import pytest

from fleet import checkpoint, rundir
from fleet import store as store_module
from fleet.checkpoint import checkpoint_path
from fleet.store import Store
from hostsim.core.errors import ResultsError

HOSTS = 5


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def write(store, scenario, epoch):
    states = ((host, f"state {host} of {epoch}".encode()) for host in range(HOSTS))
    return checkpoint.write(store, scenario, epoch, {"free": np.arange(3)}, {"start": 7}, states)


def test_checkpoint_reads_back(store, small):
    load = write(store, small(), 4)
    found = checkpoint.latest(store, small())
    assert (found.epoch, found.tally) == (4, {"start": 7})
    assert found.placer["free"].tolist() == [0, 1, 2]
    assert found.load([3, 0]) == load([3, 0]) == [b"state 3 of 4", b"state 0 of 4"]


def test_newer_checkpoint_replaces_the_older(store, small):
    write(store, small(), 4)
    write(store, small(), 8)
    assert store.names("_checkpoints") == ["e00008.ckpt"]


def test_no_checkpoint_is_none(store, small):
    assert checkpoint.latest(store, small()) is None


@pytest.mark.parametrize("keep", [0, 10, -200, -90, -1])
def test_truncated_checkpoint_is_named(store, small, tmp_path, keep):
    write(store, small(), 4)
    path = tmp_path / checkpoint_path(4)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultsError, match=r"e00004\.ckpt: is (damaged|not a checkpoint)"):
        checkpoint.latest(store, small())


def test_no_flipped_bit_goes_unseen(store, small, tmp_path):
    write(store, small(), 4)
    path = tmp_path / checkpoint_path(4)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(ResultsError, match=r"e00004\.ckpt: is "):
            checkpoint.latest(store, small()).load(range(HOSTS))


def test_checkpoint_of_another_scenario_is_refused(store, small):
    write(store, small(), 4)
    with pytest.raises(ResultsError, match="is of another scenario"):
        checkpoint.latest(store, small("run.seed=2"))


def test_checkpoint_of_another_version_is_refused(store, small, monkeypatch):
    write(store, small(), 4)
    now = rundir.versions() | {"numba": "0.1"}
    monkeypatch.setattr(checkpoint, "versions", lambda: now)
    with pytest.raises(ResultsError, match=r"was written with numba .*, not 0\.1"):
        checkpoint.latest(store, small())


def test_checkpoint_without_a_host_is_refused(store, small):
    checkpoint.write(store, small(), 4, {}, {}, [(0, b"zero")])
    with pytest.raises(ResultsError, match="hosts are missing"):
        checkpoint.latest(store, small())


def test_failed_write_keeps_the_older_checkpoint(store, small, monkeypatch):
    write(store, small(), 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(ResultsError, match="No space left on device"):
        write(store, small(), 8)
    assert checkpoint.latest(store, small()).epoch == 4
