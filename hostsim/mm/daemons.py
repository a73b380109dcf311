"""The kernel's threads and when they run.

Every daemon has the time at which it runs next (``Memory.daemon[d, D_WAKE]``), or sleeps until
something wakes it.  Work costs simulated time (hostsim.mm.cost): `settle` turns what has been
spent into time, and `run_daemons` runs whatever falls due on the way.

A new daemon is a row of ``Memory.daemon`` and a line in `_step`.

On a machine with one CPU a daemon's work takes longer while a process runs: fresh from sleep it
gets a slice at once, and then time by its weight.

Simplified: a daemon's step is done at the moment it begins, and what it costs passes before its
next one; daemons do not slow each other or the processes down.
"""

from typing import Final

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, NS_PER_S, NS_PER_US
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.kcompactd import SLICE_NS, arm_kcompactd, kcompactd_node, kcompactd_step
from hostsim.mm.khugepaged import UNTIL_WOKEN, arm_khugepaged, khugepaged_step
from hostsim.mm.ksm import ksmd_step
from hostsim.mm.mm_types import (
    D_CREDIT,
    D_SAVED,
    D_SINCE,
    D_WAKE,
    D_WORK,
    DAEMON_KHUGEPAGED,
    DAEMON_KSMD,
    DAEMON_VMSTAT,
    NIL,
    NR_DAEMONS,
    P_BUSY,
    P_COST_NS,
    P_DAEMON_NS,
    P_DAEMON_SCALE,
    P_NOW_NS,
    P_NR_CPUS,
    P_SETTLED_NS,
    P_TIME_SCALE,
    TIME_SCALE_ONE,
    Memory,
)
from hostsim.mm.pcp import decay_pcp
from hostsim.mm.tunables import T_PCP_6_12

WEIGHT: Final = 1024  # of nice 0: kernel/sched/core.c sched_prio_to_weight
_WEIGHTS: Final = (15, WEIGHT, WEIGHT, 335, WEIGHT)  # khugepaged has nice 19, ksmd 5
SHORTEST_STEP_NS: Final = NS_PER_US  # so that a daemon that never sleeps lets time pass


@kernel
def _step(mem: Memory, daemon: int) -> int:
    """Let a daemon take its next step; return how long it sleeps then, or UNTIL_WOKEN."""
    if daemon == DAEMON_KHUGEPAGED:
        return khugepaged_step(mem)
    nid = kcompactd_node(daemon)
    if nid != NIL:
        return kcompactd_step(mem, nid)
    if daemon == DAEMON_KSMD:
        return ksmd_step(mem)
    if daemon == DAEMON_VMSTAT:
        if mem.tunables[T_PCP_6_12] != 0:
            decay_pcp(mem, 1)
        return NS_PER_S
    return UNTIL_WOKEN


@inline_kernel
def _weight(daemon: int) -> int:
    """Return the scheduler's weight of a daemon."""
    return _WEIGHTS[daemon] if daemon < NR_DAEMONS else WEIGHT


@inline_kernel
def _remaining_ns(mem: Memory, daemon: int) -> int:
    """Return how long a daemon still needs for the work it has begun, as things are now."""
    own = mem.daemon[daemon]
    if mem.pool[P_BUSY] == 0:
        return int(own[D_WORK])
    at_once = min(own[D_WORK], own[D_CREDIT])
    slow = own[D_WORK] - at_once
    return int(at_once + slow * (WEIGHT + _weight(daemon)) // _weight(daemon))


@kernel
def _advance_work(mem: Memory, daemon: int) -> None:
    """Take off a daemon's work what it has got done since it was last looked at."""
    own = mem.daemon[daemon]
    elapsed = mem.pool[P_NOW_NS] - own[D_SINCE]
    own[D_SINCE] = mem.pool[P_NOW_NS]
    done = elapsed
    if mem.pool[P_BUSY] != 0:
        at_once = min(min(own[D_WORK], own[D_CREDIT]), elapsed)
        own[D_CREDIT] -= at_once
        done = at_once + (elapsed - at_once) * _weight(daemon) // (WEIGHT + _weight(daemon))
    own[D_WORK] = max(own[D_WORK] - done, 0)


@kernel
def set_busy(mem: Memory, busy: bool) -> None:
    """Say whether a process runs from now on; work that daemons have begun goes on accordingly.

    Only a machine with one CPU is ever busy.
    """
    state = 1 if busy and mem.pool[P_NR_CPUS] == 1 else 0
    if state == mem.pool[P_BUSY]:
        return
    for daemon in range(len(mem.daemon)):
        _advance_work(mem, daemon)
        mem.daemon[daemon, D_SAVED] = _remaining_ns(mem, daemon)
    mem.pool[P_BUSY] = state
    for daemon in range(len(mem.daemon)):
        if mem.daemon[daemon, D_WAKE] != 0 and mem.daemon[daemon, D_WORK] > 0:
            mem.daemon[daemon, D_WAKE] += _remaining_ns(mem, daemon) - mem.daemon[daemon, D_SAVED]


@kernel
def next_daemon(mem: Memory) -> int:
    """Return the daemon that runs next, or NIL if all sleep until woken."""
    best = NIL
    for daemon in range(len(mem.daemon)):
        wake = mem.daemon[daemon, D_WAKE]
        if wake != 0 and (best == NIL or wake < mem.daemon[best, D_WAKE]):
            best = daemon
    return best


@kernel
def run_daemon(mem: Memory, daemon: int) -> None:
    """Let a daemon that falls due make a step; the clock then shows at least that time."""
    own = mem.daemon[daemon]
    mem.pool[P_NOW_NS] = max(mem.pool[P_NOW_NS], own[D_WAKE] - 1)
    own[D_WAKE] = 0
    before = mem.pool[P_COST_NS]
    sleep_ns = _step(mem, daemon)
    work_ns = mem.pool[P_COST_NS] - before
    mem.pool[P_SETTLED_NS] += work_ns
    mem.pool[P_DAEMON_NS] += work_ns
    own[D_SINCE] = mem.pool[P_NOW_NS]
    own[D_WORK] = work_ns * mem.pool[P_DAEMON_SCALE] // TIME_SCALE_ONE
    needed_ns = _remaining_ns(mem, daemon)
    own[D_CREDIT] = max(own[D_CREDIT] - own[D_WORK], 0)
    if sleep_ns > 0 or sleep_ns == UNTIL_WOKEN:
        own[D_CREDIT] = SLICE_NS
    if sleep_ns != UNTIL_WOKEN and own[D_WAKE] == 0:
        pause_ns = max(needed_ns + sleep_ns, SHORTEST_STEP_NS)
        own[D_WAKE] = mem.pool[P_NOW_NS] + pause_ns + 1


@kernel
def run_daemons(mem: Memory, until_ns: int) -> None:
    """Run what falls due up to a time, in the order of time; the clock then shows that time."""
    while True:
        arm_kcompactd(mem)
        arm_khugepaged(mem)
        daemon = next_daemon(mem)
        if daemon == NIL or mem.daemon[daemon, D_WAKE] - 1 > until_ns:
            break
        run_daemon(mem, daemon)
    mem.pool[P_NOW_NS] = max(mem.pool[P_NOW_NS], until_ns)


@kernel
def settle(mem: Memory) -> None:
    """Let the time pass that operations have cost since the last call."""
    if mem.pool[P_COST_NS] == mem.pool[P_SETTLED_NS]:
        return
    spent_ns = mem.pool[P_COST_NS] - mem.pool[P_SETTLED_NS]
    mem.pool[P_SETTLED_NS] = mem.pool[P_COST_NS]
    set_busy(mem, True)
    run_daemons(mem, mem.pool[P_NOW_NS] + spent_ns * mem.pool[P_TIME_SCALE] // TIME_SCALE_ONE)


@kernel
def wait(mem: Memory, ns: int) -> None:
    """Let time pass while no process runs."""
    set_busy(mem, False)
    run_daemons(mem, mem.pool[P_NOW_NS] + ns)


@kernel
def pass_tick(mem: Memory, until_ns: int) -> None:
    """Let daemons work up to a time at which processes act; those take no time themselves."""
    mem.pool[P_SETTLED_NS] = mem.pool[P_COST_NS]
    run_daemons(mem, until_ns)


@kernel
def access_range(
    mem: Memory,
    mm: int,
    start: int,
    nr: int,
    step: int,
    fraction: float,
    seed: int,
    write: bool,
    resume: int,
) -> int:
    """Access pages as `hostsim.mm.fault.touch_range` does, while time passes and daemons run."""
    turn = max(HPAGE_PMD_NR // step, 1) * step
    end = start + nr
    page = start + (resume - start) // turn * turn
    status = FAULT_OK
    while page < end and status == FAULT_OK:
        here = min(turn, end - page)
        at = max(page, resume)
        status = touch_range(mem, mm, page, here, step, fraction, seed, write, at)
        settle(mem)
        page += here
    return status


@kernel
def start_vmstat_worker(mem: Memory) -> None:
    """Let the once-a-second worker run by the clock, from the next whole second on."""
    now = mem.pool[P_NOW_NS]
    mem.daemon[DAEMON_VMSTAT, D_WAKE] = (now // NS_PER_S + 1) * NS_PER_S + 1
