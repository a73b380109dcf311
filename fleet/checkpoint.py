"""Checkpoints: the state between two epochs, so that a stopped run ends with the same bytes."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

from numpy.typing import NDArray

from fleet.rundir import CHECKPOINTS, reported
from hostsim.core.errors import ResultsError

_MAGIC = "hugefleet checkpoint 3"


class Checkpoint(NamedTuple):
    """All that changes while a run advances."""

    epoch: int  # the next one to run
    placer: dict[str, NDArray[Any]]
    tally: dict[str, int]
    nodes: dict[int, bytes]  # by host, as the shards pack them


def checkpoint_path(out: Path, epoch: int) -> Path:
    """Return where the checkpoint before an epoch lies."""
    return out / CHECKPOINTS / f"e{epoch:05d}.ckpt"


def write(out: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, then drop older ones.

    Raises
    ------
    ResultsError
        It cannot be written.
    """
    path = checkpoint_path(out, checkpoint.epoch)
    staged = path.with_suffix(".new")
    with reported(path, "write"):
        path.parent.mkdir(exist_ok=True)
        with staged.open("wb") as stream:
            head = (_MAGIC, checkpoint._replace(nodes={}), sorted(checkpoint.nodes))
            pickle.dump(head, stream, pickle.HIGHEST_PROTOCOL)
            for host_id in sorted(checkpoint.nodes):
                pickle.dump(checkpoint.nodes[host_id], stream, pickle.HIGHEST_PROTOCOL)
            stream.flush()
            os.fsync(stream.fileno())
        staged.replace(path)
        for other in path.parent.glob("e*.ckpt"):
            if other != path:
                other.unlink()


def latest(out: Path) -> Checkpoint | None:
    """Return the last checkpoint of a run directory, or None.

    Raises
    ------
    ResultsError
        It cannot be read.
    """
    found = sorted((out / CHECKPOINTS).glob("e*.ckpt"))
    if not found:
        return None
    path = found[-1]
    try:
        with reported(path, "read"), path.open("rb") as stream:
            magic, checkpoint, host_ids = pickle.load(stream)
            if magic != _MAGIC:
                raise ResultsError(f"{path}: is not a checkpoint this program reads")
            nodes = {host_id: pickle.load(stream) for host_id in host_ids}
    except (pickle.UnpicklingError, EOFError, ValueError, AttributeError, ImportError) as error:
        raise ResultsError(f"{path}: is damaged: {error}") from error
    return cast(Checkpoint, checkpoint)._replace(nodes=nodes)


def clear(out: Path) -> None:
    """Remove the checkpoints of a run that is complete."""
    with reported(out / CHECKPOINTS, "remove"):
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
