"""Checkpoints: the state between two epochs, so that a stopped run ends with the same bytes.

A checkpoint is one file of data: a magic line, blobs (`fleet.state`) one after the other, an
index as JSON, and a last line with the index's length and checksum. The index says what the
checkpoint is of (scenario, versions, epoch), and where each blob lies, how long it is and its
checksum. So it is written in one pass, without holding the fleet's state, any host is read on its
own, and nothing is looked into before its checksum is known to be right.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from fleet.rundir import CHECKPOINTS, versions
from fleet.scenario import Scenario
from fleet.shard import Load
from fleet.state import State, pack, unpack
from fleet.store import Store
from hostsim.core.errors import ResultsError

_MAGIC: Final = b"hugefleet checkpoint 4\n"
_SUFFIX: Final = ".ckpt"
_TAIL_BYTES: Final = 16 + 1 + 64 + 1  # length of the index, its checksum
_PLACER: Final = "placer"


class Checkpoint(NamedTuple):
    """All that changes while a run advances; the states of hosts are read when they are needed."""

    epoch: int  # the next one to run
    placer: State
    tally: dict[str, int]
    load: Load


def checkpoint_path(epoch: int) -> str:
    """Return where the checkpoint before an epoch lies."""
    return f"{CHECKPOINTS}/e{epoch:05d}{_SUFFIX}"


def identity(scenario: Scenario) -> dict[str, Any]:
    """Return what a checkpoint must agree with: what the bytes of a run depend on."""
    document = json.dumps(scenario.document, sort_keys=True).encode()
    return {"scenario": hashlib.sha256(document).hexdigest(), "versions": versions()}


def write(
    store: Store,
    scenario: Scenario,
    epoch: int,
    placer: State,
    tally: dict[str, int],
    states: Iterable[tuple[int, bytes]],
) -> Load:
    """Write a checkpoint, then drop older ones; return what reads the states of hosts from it.

    Raises
    ------
    ResultsError
        It cannot be written.
    """
    path = checkpoint_path(epoch)
    blobs: dict[str, list[Any]] = {}
    with store.writing(path) as file:
        file.write(_MAGIC)
        end = len(_MAGIC)
        for name, blob in _named(placer, states):
            file.write(blob)
            blobs[name] = [end, len(blob), hashlib.sha256(blob).hexdigest()]
            end += len(blob)
        head = {"epoch": epoch, "tally": tally, "blobs": blobs} | identity(scenario)
        index = json.dumps(head).encode()
        file.write(index)
        file.write(f"{len(index):016d} {hashlib.sha256(index).hexdigest()}\n".encode())
    for name in store.names(CHECKPOINTS):
        if f"{CHECKPOINTS}/{name}" != path:
            store.delete(f"{CHECKPOINTS}/{name}")
    return _loader(store, path, blobs)


def _named(placer: State, states: Iterable[tuple[int, bytes]]) -> Iterable[tuple[str, bytes]]:
    yield _PLACER, pack(placer)
    for host_id, blob in states:
        yield str(host_id), blob


def latest(store: Store, scenario: Scenario) -> Checkpoint | None:
    """Return the last checkpoint of a run directory, or None.

    Raises
    ------
    ResultsError
        It cannot be read, is damaged, or is another scenario's or version's.
    """
    found = [name for name in store.names(CHECKPOINTS) if name.endswith(_SUFFIX)]
    if not found:
        return None
    path = f"{CHECKPOINTS}/{found[-1]}"
    head = _index(store, path)
    _same(store.label(path), head, identity(scenario))
    if head["blobs"].keys() != {_PLACER, *map(str, range(scenario.nr_hosts))}:
        raise _damaged(store.label(path), "hosts are missing")
    blob = _blob(store, path, head["blobs"][_PLACER])
    try:
        placer = unpack(blob)
    except ValueError as error:
        raise _damaged(store.label(path), error) from error
    return Checkpoint(head["epoch"], placer, head["tally"], _loader(store, path, head["blobs"]))


def _index(store: Store, path: str) -> dict[str, Any]:
    """Read what a checkpoint says of itself."""
    place = store.label(path)
    with store.opened(path) as file:
        size = file.size()
        if bytes(file.read_at(len(_MAGIC), 0)) != _MAGIC:
            raise ResultsError(f"{place}: is not a checkpoint that this program reads")
        tail = bytes(file.read_at(_TAIL_BYTES, max(size - _TAIL_BYTES, 0)))
        length, _, checksum = tail.decode(errors="replace").rstrip("\n").partition(" ")
        if len(tail) < _TAIL_BYTES or not length.isdecimal() or int(length) > size - _TAIL_BYTES:
            raise _damaged(place, "it ends too early")
        index = bytes(file.read_at(int(length), size - _TAIL_BYTES - int(length)))
    if hashlib.sha256(index).hexdigest() != checksum:
        raise _damaged(place, "the checksum of its index is wrong")
    head: dict[str, Any] = json.loads(index)
    return head


def _same(place: str, head: dict[str, Any], now: dict[str, Any]) -> None:
    if head["scenario"] != now["scenario"]:
        raise ResultsError(f"{place}: is of another scenario; delete it to begin anew")
    for name in sorted(head["versions"].keys() | now["versions"].keys()):
        was, is_now = head["versions"].get(name), now["versions"].get(name)
        if was != is_now:
            raise ResultsError(f"{place}: was written with {name} {was}, not {is_now}")


def _loader(store: Store, path: str, blobs: dict[str, list[Any]]) -> Load:
    def load(host_ids: Sequence[int]) -> list[bytes]:
        return [_blob(store, path, blobs[str(host_id)]) for host_id in host_ids]

    return load


def _blob(store: Store, path: str, entry: list[Any]) -> bytes:
    first, nr_bytes, checksum = entry
    with store.opened(path) as file:
        blob = bytes(file.read_at(nr_bytes, first))
    if hashlib.sha256(blob).hexdigest() != checksum:
        raise _damaged(store.label(path), f"the checksum of bytes {first} on is wrong")
    return blob


def _damaged(place: str, why: object) -> ResultsError:
    return ResultsError(f"{place}: is damaged: {why}; delete it, and --resume begins anew")


def clear(store: Store) -> None:
    """Remove the checkpoints of a run that is complete."""
    store.delete_folder(CHECKPOINTS)
