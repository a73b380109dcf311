"""The operations of op scripts: processes, faults, discards, kernel pages, settings, time.

An operation is a function of the replay and the op; more of them stand in modules of their own
(``fleet.replay_<topic>``), joined in `OPS`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fleet.replay_advice import ksm_run_written, op_merge, op_readonly
from fleet.replay_pipes import op_kalloc, op_kfree
from fleet.replay_reclaim import op_pageout, op_swapon
from fleet.replay_script import ADVICE, Op
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_MS
from hostsim.mm.collapse import madvise_collapse
from hostsim.mm.compaction import compact_node
from hostsim.mm.daemons import settle, wait
from hostsim.mm.fault import chosen
from hostsim.mm.fork import copy_mm
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mm_types import (
    MM_ADVICE,
    MM_RAM_PAGES,
    NIL,
)
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NONE
from hostsim.mm.settings import write_setting
from hostsim.mm.zap import discard_range

if TYPE_CHECKING:
    from fleet.replay import Replay

LATER_OPS: Final[tuple[str, ...]] = ()


def options_of(op: Op) -> tuple[int, float, int]:
    """Return step, fraction and seed of an op."""
    options = op.options
    return (
        int(options.get("step", "1")),
        float(options.get("fraction", "1")),
        int(options.get("seed", "0")),
    )


def op_set(replay: "Replay", op: Op) -> None:
    """Write a setting."""
    key, value = op.words
    try:
        write_setting(replay.mem, key, value)
    except ValueError as error:
        place = f"{replay.script.path}: line {op.line}"
        raise ScenarioError([Problem(place, str(error))]) from error
    if key == "ksm/run":
        ksm_run_written(replay, value)


def op_vm(replay: "Replay", op: Op) -> None:
    """Start a VM."""
    advice = ADVICE[op.words[2]] if len(op.words) > 2 else ADVICE_NONE
    replay.spawn(op.words[0], int(op.words[1]), advice)
    mm = replay.alive(op.words[0])
    if advice == ADVICE_HUGE and mm != NIL:
        khugepaged_enter(replay.mem, mm)


def op_touch(replay: "Replay", op: Op) -> None:
    """Write (``touch``) or read pages."""
    name, start, nr = op.words[0], int(op.words[1]), int(op.words[2])
    step, fraction, seed = options_of(op)
    replay.access(name, start, nr, step, fraction, seed, op.name == "touch")


def op_discard(replay: "Replay", op: Op) -> None:
    """Drop pages: one call, or a call a page with step or fraction."""
    mm = replay.alive(op.words[0])
    if mm == NIL:
        return
    start, nr = int(op.words[1]), int(op.words[2])
    step, fraction, seed = options_of(op)
    if step == 1 and fraction >= 1.0:
        discard_range(replay.mem, mm, start, nr)
        return
    for page in range(start, start + nr, step):
        if chosen(seed, page, fraction):
            discard_range(replay.mem, mm, page, 1)


def op_interleave(replay: "Replay", op: Op) -> None:
    """Let VMs touch a range in turn, a chunk each."""
    names = op.words[0].split(",")
    start, nr, chunk = (int(word) for word in op.words[1:])
    _, fraction, seed = options_of(op)
    for offset in range(0, nr, chunk):
        for name in names:
            replay.access(name, start + offset, chunk, 1, fraction, seed, True)


def op_fork(replay: "Replay", op: Op) -> None:
    """Fork a VM."""
    parent = replay.alive(op.words[0])
    if parent == NIL:
        return
    pages, advice = (int(replay.mem.mm[parent, field]) for field in (MM_RAM_PAGES, MM_ADVICE))
    while True:
        child = replay.new_process(op.words[1], pages, advice, parent)
        if copy_mm(replay.mem, parent, child):
            return
        replay.end(child)
        replay.mm_of[op.words[1]] = NIL
        if replay.kill() == parent:
            return


def op_exit(replay: "Replay", op: Op) -> None:
    """Kill a VM's process."""
    mm = replay.alive(op.words[0])
    if mm != NIL:
        replay.end(mm)
        del replay.mm_of[op.words[0]]


def op_compact(replay: "Replay", op: Op) -> None:
    """Compact all memory, as a write to compact_memory does."""
    compact_node(replay.mem)


def op_collapse(replay: "Replay", op: Op) -> None:
    """Collapse pages into huge pages, a call each 2 MiB so that a failure stops nothing."""
    mm = replay.alive(op.words[0])
    if mm == NIL:
        return
    start, nr = int(op.words[1]), int(op.words[2])
    for page in range(start, start + nr, HPAGE_PMD_NR):
        madvise_collapse(replay.mem, mm, page, HPAGE_PMD_NR)
        settle(replay.mem)


def op_wait(replay: "Replay", op: Op) -> None:
    """Let time pass."""
    wait(replay.mem, int(op.words[0]) * NS_PER_MS)


OPS: Final[dict[str, Callable[["Replay", Op], None]]] = {
    "set": op_set,
    "vm": op_vm,
    "touch": op_touch,
    "read": op_touch,
    "discard": op_discard,
    "interleave": op_interleave,
    "fork": op_fork,
    "exit": op_exit,
    "kalloc": op_kalloc,
    "kfree": op_kfree,
    "compact": op_compact,
    "wait": op_wait,
    "merge": op_merge,
    "readonly": op_readonly,
    "swapon": op_swapon,
    "pageout": op_pageout,
    "collapse": op_collapse,
}
