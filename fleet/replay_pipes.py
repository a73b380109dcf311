"""Kernel pages of op scripts: the recorder fills pipes, whose buffers nothing can move.

A pipe is open in the recorder and, as file descriptors are inherited, in every process started
while it was: ``kfree`` closes the recorder's ends, and the pages go when the last process that
has the pipe open is gone.

Source: Linux v6.1 fs/pipe.c alloc_pipe_info, free_pipe_info; kernel/fork.c copy_files.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.replay_script import Op
from hostsim.mm.fault import chosen
from hostsim.mm.kalloc import alloc_blocks, free_blocks
from hostsim.mm.mm_types import MIGRATE_RECLAIMABLE, MIGRATE_UNMOVABLE, NIL

if TYPE_CHECKING:
    from fleet.replay import Replay

PIPE_BUFFERS: Final = 16  # PIPE_DEF_BUFFERS, include/linux/pipe_fs_i.h


class Cache(NamedTuple):
    """A slab cache with objects of pipes."""

    per_slab: int
    order: int
    migratetype: int
    per_pipe: int = 1


CACHES: Final = (  # objects a slab: /proc/slabinfo of x86-64 kernels
    Cache(16, 2, MIGRATE_UNMOVABLE),  # kmalloc-1k: the array of pipe_buffer
    Cache(21, 0, MIGRATE_UNMOVABLE),  # kmalloc-192: pipe_inode_info
    Cache(16, 0, MIGRATE_UNMOVABLE, 2),  # filp: a struct file an end
    Cache(26, 2, MIGRATE_RECLAIMABLE),  # inode_cache
    Cache(21, 0, MIGRATE_RECLAIMABLE),  # dentry
)


class Pipes:
    """All pipes that a script has made.

    Slabs stay when their objects are gone, and serve later pipes.
    """

    def __init__(self) -> None:
        self.extents: list[NDArray[np.int64]] = []
        self.users: list[int] = []  # processes that have a pipe open, the recorder included
        self.opened: set[int] = set()  # pipes open in the recorder
        self.held: dict[int, tuple[int, ...]] = {}  # process -> pipes it has open
        self.live = 0
        self.nr_slabs = [0] * len(CACHES)

    def copy(self) -> "Pipes":
        """Return an independent copy."""
        other = Pipes()
        other.extents = self.extents.copy()
        other.users = self.users.copy()
        other.opened = self.opened.copy()
        other.held = self.held.copy()
        other.live = self.live
        other.nr_slabs = self.nr_slabs.copy()
        return other

    def inherit(self, mm: int, parent: int) -> None:
        """Let a new process have open what its parent has; the recorder is NIL."""
        self.held[mm] = tuple(sorted(self.opened)) if parent == NIL else self.held[parent]
        for pipe in self.held[mm]:
            self.users[pipe] += 1


def end_files(replay: "Replay", mm: int) -> None:
    """Close the pipes of a process that ends."""
    for pipe in replay.pipes.held.pop(mm):
        _close(replay, pipe)


def _close(replay: "Replay", pipe: int) -> None:
    """Close a pipe in one process; the last one frees its buffers."""
    pipes = replay.pipes
    pipes.users[pipe] -= 1
    if pipes.users[pipe] == 0:
        pipes.live -= 1
        free_blocks(replay.mem, 0, pipes.extents[pipe])


def op_kalloc(replay: "Replay", op: Op) -> None:
    """Fill pipes with kernel pages, 16 a pipe; their own slab comes on top."""
    pipes = replay.pipes
    want = int(op.words[0])
    while want > 0:
        here = min(want, PIPE_BUFFERS)
        pipes.live += 1
        for i, cache in enumerate(CACHES):
            while pipes.live * cache.per_pipe > pipes.nr_slabs[i] * cache.per_slab:
                slab = np.zeros(1, np.int64)
                alloc_blocks(replay.mem, cache.order, cache.migratetype, 1, slab)
                pipes.nr_slabs[i] += 1
        extents = np.zeros(here, np.int64)
        got = int(alloc_blocks(replay.mem, 0, MIGRATE_UNMOVABLE, here, extents))
        pipes.opened.add(len(pipes.extents))
        pipes.extents.append(extents[:got])
        pipes.users.append(1)
        if got < here:
            replay.kill()
        want -= here


def op_kfree(replay: "Replay", op: Op) -> None:
    """Close the chosen pipes in the recorder."""
    fraction = float(op.options.get("fraction", "1"))
    seed = int(op.options.get("seed", "0"))
    for pipe in sorted(replay.pipes.opened):
        if chosen(seed, pipe, fraction):
            replay.pipes.opened.remove(pipe)
            _close(replay, pipe)
