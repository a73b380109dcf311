import numpy as np
import pytest

from fleet import checkpoint
from fleet.checkpoint import Checkpoint
from hostsim.core.errors import ResultsError


def make(epoch):
    return Checkpoint(epoch, {"free": np.arange(3)}, {"start": 7}, {0: b"zero", 1: b"one"})


def test_checkpoint_reads_back(tmp_path):
    checkpoint.write(tmp_path, make(4))
    found = checkpoint.latest(tmp_path)
    assert (found.epoch, found.tally, found.nodes) == (4, {"start": 7}, {0: b"zero", 1: b"one"})
    assert found.placer["free"].tolist() == [0, 1, 2]


def test_newer_checkpoint_replaces_the_older(tmp_path):
    checkpoint.write(tmp_path, make(4))
    checkpoint.write(tmp_path, make(8))
    assert [path.name for path in (tmp_path / "_checkpoints").iterdir()] == ["e00008.ckpt"]


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_damaged_checkpoint_is_named(tmp_path, keep):
    checkpoint.write(tmp_path, make(4))
    path = checkpoint.checkpoint_path(tmp_path, 4)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResultsError, match=r"e00004\.ckpt"):
        checkpoint.latest(tmp_path)


def test_failed_write_keeps_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.write(tmp_path, make(4))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(ResultsError, match="No space left on device"):
        checkpoint.write(tmp_path, make(8))
    assert checkpoint.latest(tmp_path).epoch == 4
