"""Samples of translation that the workers of a run have simulated, for each other to take.

A sample is a pure function of its class, seed and length (`fleet.mmu_sample`), so it does not
matter who has simulated it: workers share them through memory of the driver's process, which those
on its machine map, and no lock is needed. A sample stands there with its checksum; one that is
half written is not there yet. Workers on other machines simulate their own.
"""

import contextlib
import mmap
import os
import zlib
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.mmu_classes import NR_CLASSES
from fleet.mmu_sample import NR_S_FIGURES
from fleet.scenario import Scenario
from fleet.usage import machine

_RECORD: Final = np.dtype([("sample", np.float64, NR_S_FIGURES), ("checksum", np.int64)])
_WRITTEN: Final = 1 << 32  # added to a CRC-32, so that no checksum is 0

Program = tuple[str, str]  # CPU and workload


class BoardPlace(NamedTuple):
    """Where a board is, and what samples it is for."""

    machine: str
    pid: int  # of the driver
    file: int  # its descriptor there
    seed: int
    accesses: int
    programs: tuple[Program, ...]

    @property
    def nr_bytes(self) -> int:
        """Size of the board; memory is taken where samples stand."""
        return max(len(self.programs), 1) * NR_CLASSES * _RECORD.itemsize


class Board:
    """A board as one worker sees it.

    Parameters
    ----------
    first
        Share of what it wants at which a worker begins, so that not all begin with the same.
    """

    def __init__(self, file: int, place: BoardPlace, first: float = 0.0) -> None:
        memory = mmap.mmap(file, place.nr_bytes)
        self._records = np.frombuffer(memory, _RECORD).reshape(-1, NR_CLASSES)
        self.place, self.first = place, first

    def find(self, program: Program, number: int) -> NDArray[np.float64] | None:
        """Return the sample of a class of a program, None if nobody has written it."""
        record = self._record(program, number)
        if record is None:
            return None
        found: NDArray[np.float64] = record["sample"].copy()
        return found if record["checksum"] == _checksum(found) else None

    def put(self, program: Program, number: int, sample: NDArray[np.float64]) -> None:
        """Write a sample for the others."""
        record = self._record(program, number)
        if record is not None:
            record["sample"] = sample
            record["checksum"] = _checksum(sample)

    def _record(self, program: Program, number: int) -> Any:
        if program not in self.place.programs:
            return None
        return self._records[self.place.programs.index(program), number]


def _checksum(sample: NDArray[np.float64]) -> int:
    return zlib.crc32(sample.tobytes()) + _WRITTEN


def make_board(scenario: Scenario) -> tuple[BinaryIO, BoardPlace]:
    """Make the board of a run in memory of this process; it is there until its file is closed."""
    specs = scenario.host_specs()
    workloads = {behaviour.workload for behaviour in scenario.guests.behaviours} - {""}
    programs = sorted({(spec.cpu, workload) for spec in specs for workload in workloads})
    accesses = max(spec.mmu_accesses for spec in specs)
    file = os.fdopen(os.memfd_create("hugefleet-samples"), "r+b")
    own = machine(), os.getpid(), file.fileno()
    place = BoardPlace(*own, scenario.seed, accesses, tuple(programs))
    file.truncate(place.nr_bytes)
    return file, place


def open_board(place: BoardPlace, first: float) -> Board | None:
    """Return the board of a run, None if it is out of reach: on another machine, or not ours."""
    if place.machine != machine():
        return None
    with contextlib.suppress(OSError):
        file = os.open(f"/proc/{place.pid}/fd/{place.file}", os.O_RDWR)
        try:
            return Board(file, place, first)
        finally:
            os.close(file)
    return None
