"""One driver a run directory: a lock that says whose it is, and never outlives its owner for long.

The lock is the file ``_lock.json``: machine, process, when the process began, a token, and a
count that its owner raises every few seconds. Whether the owner lives is seen at once if it ran
on this machine (its process is there and began at that time), and otherwise from the count: if it
stands still for `LEASE_S`, the owner is dead. No clock of another machine is believed. On a disk
the file is locked as well, so that of two drivers that start at once only one gets it.

Simplified: where a file cannot be locked, at an object store, two drivers that begin in the same
second on two machines both believe to hold the lock; the one that wrote it first stops before it
commits.

A driver that was held up so long that another took its place finds the other's token before it
commits the next rows, and stops (`Lock.check`).
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fleet.store import Store, reported
from fleet.usage import machine, start_ticks
from hostsim.core.errors import Problem, ResultsError, ScenarioError

LOCK_FILE: Final = "_lock.json"
BEAT_S: Final = 5.0
LOCK_BYTES: Final = 512  # on a disk, so that its length never changes
LEASE_S: Final = 20.0  # four beats: a network file system may show a file seconds late


class Lock:
    """The lock of a run directory that this process holds."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._owner = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "start_ticks": start_ticks(os.getpid()),
            "token": secrets.token_hex(16),
        }
        self._beat = 0
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._file: int | None = None

    def take(self, say: Callable[[str], None], lease_s: float = LEASE_S) -> None:
        """Take the lock, from a dead owner if need be.

        Raises
        ------
        ScenarioError
            Another driver holds it and lives.
        """
        self._lock_file()
        try:
            owner = _read(self.store)
            if owner and _lives(self.store, owner, say, lease_s):
                raise _taken(self.store, owner)
            self._write()
        except BaseException:
            self._unlock_file()
            raise
        threading.Thread(target=self._keep, daemon=True, name="lock").start()

    def check(self) -> None:
        """Make sure that nobody has taken the lock from us.

        Raises
        ------
        ResultsError
            Somebody has.
        """
        owner = _read(self.store)
        if owner.get("token") != self._owner["token"]:
            by = f"{owner['host']}, process {owner['pid']}" if owner else "nobody"
            raise ResultsError(
                f"{self.store}: another driver has taken this run over ({by} holds its lock)"
            )

    def release(self) -> None:
        """Give the lock back, if it is still ours."""
        self._ended.set()
        with self._writing:
            try:
                if _read(self.store).get("token") == self._owner["token"]:
                    self.store.delete(LOCK_FILE)
            except ResultsError:
                pass  # what is left is seen to be a dead owner's
        self._unlock_file()

    def _keep(self) -> None:
        """Raise the count until the end; a full disk may make a beat fail."""
        while not self._ended.wait(BEAT_S):
            with self._writing:
                if self._ended.is_set():
                    return
                try:
                    if _read(self.store).get("token") == self._owner["token"]:
                        self._write()
                except ResultsError:
                    continue

    def _write(self) -> None:
        self._beat += 1
        content = json.dumps(self._owner | {"beat": self._beat}).encode()
        if self._file is None:
            self.store.write(LOCK_FILE, content)
            return
        with reported(self.store.label(LOCK_FILE), "write"):  # in place: the file is locked
            os.pwrite(self._file, content.ljust(LOCK_BYTES), 0)

    def _lock_file(self) -> None:
        """Lock the file itself, on a disk; the kernel gives it back when the owner dies."""
        if self.store.folder is None:
            return
        path = self.store.folder / LOCK_FILE
        with reported(path, "lock"):
            while self._file is None:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    raise _taken(self.store, _read(self.store)) from None
                except OSError:
                    os.close(handle)
                    raise
                if _is_at(path, handle):
                    self._file = handle
                else:
                    os.close(handle)  # its owner has just deleted it

    def _unlock_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _is_at(path: Any, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _read(store: Store) -> dict[str, Any]:
    """Return who holds the lock, nothing if nobody does or it was left half written."""
    if not store.exists(LOCK_FILE):
        return {}
    try:
        found = json.loads(store.read(LOCK_FILE))
    except ValueError:
        return {}
    keys = ("host", "machine", "pid", "start_ticks", "token", "beat")
    return found if isinstance(found, dict) and all(key in found for key in keys) else {}


def _lives(store: Store, owner: dict[str, Any], say: Callable[[str], None], lease_s: float) -> bool:
    """Say whether the owner of a lock lives."""
    if owner["machine"] == machine():
        return bool(start_ticks(owner["pid"]) == owner["start_ticks"])
    say(
        f"{store}: locked by {owner['host']}, process {owner['pid']};"
        f" waiting {lease_s:g} s for a sign of life"
    )
    end_s = time.monotonic() + lease_s
    while time.monotonic() < end_s:
        time.sleep(min(1.0, lease_s / 4))
        if _read(store).get("beat") != owner["beat"]:
            return True
    return False


def _taken(store: Store, owner: dict[str, Any]) -> ScenarioError:
    by = f"{owner['host']}, process {owner['pid']}" if owner else "another process"
    message = f"is being written by {by}"
    return ScenarioError([Problem(f"--out {store}", message, "wait for it or end it")])


@contextmanager
def held(store: Store, say: Callable[[str], None]) -> Iterator[Lock]:
    """Hold the lock of a run directory.

    Raises
    ------
    ScenarioError
        Another driver holds it.
    """
    lock = Lock(store)
    lock.take(say)
    try:
        yield lock
    finally:
        lock.release()
