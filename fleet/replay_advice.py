"""The operations that change what a memory area may do: read-only, mergeable; writing ksm/run."""

from typing import TYPE_CHECKING

from fleet.replay_script import Op
from hostsim.mm.ksm import madvise_mergeable, unmerge_all
from hostsim.mm.mm_types import NIL
from hostsim.mm.mprotect import mprotect

if TYPE_CHECKING:
    from fleet.replay import Replay


def op_readonly(replay: "Replay", op: Op) -> None:
    """Make pages of a VM read-only (mprotect)."""
    mm = replay.alive(op.words[0])
    if mm != NIL:
        mprotect(replay.mem, mm, int(op.words[1]), int(op.words[2]), True)


def op_merge(replay: "Replay", op: Op) -> None:
    """Let ksmd merge pages of a VM (MADV_MERGEABLE)."""
    mm = replay.alive(op.words[0])
    if mm != NIL:
        madvise_mergeable(replay.mem, mm, int(op.words[1]), int(op.words[2]))


def ksm_run_written(replay: "Replay", value: str) -> None:
    """Do at once what writing ksm/run does: 2 gives every process copies of its merged pages."""
    if value == "2":
        while not unmerge_all(replay.mem):
            replay.kill()
