"""Validators of the daemons: khugepaged's list, its cursor and what it holds."""

import numpy as np

from hostsim.mm.check_free import agree, forbid
from hostsim.mm.mm_slot import K_HELD, K_LAST, K_REGISTERED, K_SLOT, K_STOPPED
from hostsim.mm.mm_types import (
    D_WAKE,
    DAEMON_KHUGEPAGED,
    MM_KHUGEPAGED,
    MM_LIVE,
    NIL,
    P_DAEMON_NS,
    P_EXT_USED,
    P_SETTLED_NS,
    Memory,
)
from hostsim.mm.rmap import KIND_KERNEL, KIND_MASK


def check_daemons(mem: Memory) -> None:
    """Places on khugepaged's list differ and are counted; a stopped thread sleeps."""
    own = mem.daemon[DAEMON_KHUGEPAGED]
    live = mem.mm[:, MM_LIVE] != 0
    places = mem.mm[:, MM_KHUGEPAGED] * live
    listed = np.sort(places[places > 0])
    agree("processes on khugepaged's list", counter=own[K_REGISTERED], found=listed.size)
    forbid("two processes in one place", listed[1:] == listed[:-1], at=listed[1:])
    forbid("place never given", listed > own[K_LAST], at=listed)
    forbid(
        "cursor or wake-up of a stopped khugepaged",
        [own[K_STOPPED] != 0 and (own[D_WAKE] != 0 or own[K_SLOT] != 0)],
        wake=[own[D_WAKE]],
        cursor=[own[K_SLOT]],
    )
    forbid("cursor behind the list's end", [own[K_SLOT] > own[K_LAST]], cursor=[own[K_SLOT]])
    held = int(own[K_HELD]) - 1
    if held != NIL:
        used = held < mem.pool[P_EXT_USED]
        kind = int(mem.ext[held]["flags"]) & KIND_MASK
        forbid("khugepaged holds no kernel memory", [not used or kind != KIND_KERNEL], ext=[held])
    forbid(
        "daemons spent more than all did",
        [mem.pool[P_DAEMON_NS] > mem.pool[P_SETTLED_NS]],
        daemons=[mem.pool[P_DAEMON_NS]],
        settled=[mem.pool[P_SETTLED_NS]],
    )
