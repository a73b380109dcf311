"""Ops of a replay that reclaim memory: ``swapon`` and ``pageout``."""

from typing import TYPE_CHECKING, Final

from fleet.replay_script import Op
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import HPAGE_PUD_ORDER
from hostsim.mm.madvise import madvise_pageout
from hostsim.mm.mm_types import NIL
from hostsim.mm.swapfile import swapon

if TYPE_CHECKING:
    from fleet.replay import Replay

SWAP_SLOTS: Final = 2 << HPAGE_PUD_ORDER  # 2 GiB, the recorder's disk


def op_swapon(replay: "Replay", op: Op) -> None:
    """Turn on 2 GiB of swap."""
    if not swapon(replay.mem, SWAP_SLOTS):
        place = f"{replay.script.path}: line {op.line}"
        raise ScenarioError([Problem(place, "swap is on already")])


def op_pageout(replay: "Replay", op: Op) -> None:
    """Let a VM write pages to swap (MADV_PAGEOUT)."""
    name, start, nr = op.words[0], int(op.words[1]), int(op.words[2])
    mm = replay.alive(name)
    if mm != NIL:
        madvise_pageout(replay.mem, mm, start, nr)
