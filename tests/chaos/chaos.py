"""Faults at seeded random moments, and the bytes that are left in the end."""

import contextlib
import hashlib
import json
import os
import signal

from fleet import store as store_module
from fleet.store import Store, reported


def draw(*key):
    """Return a number in [0, 1) that the key alone decides."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def digest(out):
    """Return the digest of every byte of the tables, their manifest and what run.json says."""
    found = hashlib.sha256()
    for path in sorted([*out.glob("*/part-*.parquet"), out / "_manifest.json"]):
        found.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    record = json.loads((out / "run.json").read_text())
    del record["execution"]
    found.update(json.dumps(record, sort_keys=True).encode())
    return found.hexdigest()


def leftovers(out):
    """Return what a complete run should not leave behind."""
    ours = {"run.json", "_manifest.json"}
    return [p.name for p in out.iterdir() if p.name not in ours and p.name.startswith(("_", "."))]


class WriteFaults:
    """Does something at one of the steps in which files are written: sync, rename, delete.

    Parameters
    ----------
    at
        The step, from 1 on; 0 for none.
    act
        Is called with the file that is about to be synced, or None.
    """

    def __init__(self, at, act):
        self.at, self.act = at, act
        self.count = 0

    def step(self, handle=None):
        self.count += 1
        if self.count == self.at:
            self.act(handle)

    @contextlib.contextmanager
    def installed(self):
        """Put the faults between the store and the system."""
        fsync, commit, delete = os.fsync, Store._commit, Store.delete

        def faulty_fsync(handle):
            self.step(handle)
            fsync(handle)

        def faulty_commit(store, staged, path):
            with reported(path, "commit"):
                self.step()
                commit(store, staged, path)
                self.step()

        def faulty_delete(store, path):
            with reported(path, "delete"):
                self.step()
                delete(store, path)

        store_module.os.fsync = faulty_fsync
        Store._commit, Store.delete = faulty_commit, faulty_delete
        try:
            yield self
        finally:
            store_module.os.fsync = fsync
            Store._commit, Store.delete = commit, delete


def die(handle):
    """End as SIGKILL does, the file that is being written half there."""
    if handle is not None:
        with contextlib.suppress(OSError):  # a folder
            os.ftruncate(handle, os.fstat(handle).st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


def no_space(_handle):
    """Say that the disk is full."""
    raise OSError(28, "No space left on device")
