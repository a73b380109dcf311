"""A VM's start: what the fleet does not know of it is drawn, QEMU starts, the guest boots.

Simplified: a VM that ran before the simulation began grows to its size in one step.
"""

import numpy as np
from numpy.typing import NDArray

from fleet.backing import decide_one
from guestsim.behaviour import (
    B_ALIKE,
    B_PERIOD,
    G_CLASS,
    G_HEAP_NS,
    G_KEY,
    G_LAST_NS,
    G_MM,
    G_NEXT_TICK,
    G_PAGES,
    G_SLOT,
    G_START_NS,
    G_STATE,
    G_VCPUS,
    G_VM,
    NEVER_TICK,
    NO_KERNEL,
    NR_SLOTS,
    OP_HOST,
    push,
)
from guestsim.draw import NR_IMAGES, draw_guest
from hostsim.core.byref import state_at
from hostsim.core.counter_rng import hash64
from hostsim.core.jit import kernel
from hostsim.host import own_first_page, start_qemu
from hostsim.mm.ksm import madvise_mergeable
from hostsim.mm.mm_slot import thp_enabled
from hostsim.mm.mm_types import (
    MM_ALIKE,
    MM_CONTENT,
    MM_EPT_FLAGS,
    MM_IMAGE,
    MM_RAM_PAGES,
    NIL,
    P_IN_ORDER,
    Memory,
)
from hostsim.mm.mmu_notifier import EPT_MISALIGNED
from hostsim.mm.tunables import T_KSM_RUN


@kernel
def fill_guest(
    guest: NDArray[np.int64],
    vm_id: int,
    pages: int,
    vcpus: int,
    t_ns: int,
    age_ns: int,
) -> None:
    """Begin a row of the table of guests: what the scheduler knows of a VM.

    Parameters
    ----------
    age_ns
        How long it has already run.
    """
    guest[:] = 0
    guest[G_VM] = vm_id
    guest[G_PAGES] = pages
    guest[G_VCPUS] = vcpus
    guest[G_START_NS] = t_ns - age_ns
    guest[G_HEAP_NS] = t_ns - age_ns
    guest[G_LAST_NS] = t_ns
    for slot in range(NR_SLOTS):
        guest[G_SLOT + 2 * slot] = NIL


@kernel
def make_mergeable(
    host: Memory,
    guest: NDArray[np.int64],
    profiles: NDArray[np.float64],
    shares: NDArray[np.float64],
    key: int,
) -> None:
    """Let ksmd merge a guest's RAM, if it runs, and say what that holds."""
    if host.tunables[T_KSM_RUN] == 0:
        return
    mm = guest[G_MM]
    host.mm[mm, MM_CONTENT] = guest[G_KEY] | 1
    host.mm[mm, MM_ALIKE] = int(profiles[guest[G_CLASS], B_ALIKE])
    host.mm[mm, MM_IMAGE] = 1 + hash64(key, guest[G_VM], 6) % int(shares[NR_IMAGES])
    madvise_mergeable(host, mm, 0, host.mm[mm, MM_RAM_PAGES])


@kernel
def see_in_order(host: Memory, guest: NDArray[np.int64]) -> None:
    """Let a guest say in which order it takes frames where its host maps them one by one.

    That order is the order of the host's small pages; a huge page has no order within.
    """
    if guest[G_STATE] == NO_KERNEL:
        return
    mem = state_at(host, guest[G_STATE])
    mem.pool[P_IN_ORDER] = 0 if thp_enabled(host, guest[G_MM]) else 1


@kernel
def start_vm(
    host: Memory,
    guests: NDArray[np.int64],
    row: int,
    profiles: NDArray[np.float64],
    shares: NDArray[np.float64],
    touched: float,
    boot_pages: int,
    boot: NDArray[np.int64],
    key: int,
    ops: NDArray[np.int64],
    nr: int,
    own_pages: int,
    offset: int,
    tick_ns: int,
) -> tuple[int, bool]:
    """Start a VM whose row `fill_guest` has begun, and note what it touches first.

    Parameters
    ----------
    shares, touched, boot_pages, key
        As `draw_guest` takes them.
    boot
        (runs, 2) frames that are written before the guest decides anything.
    ops
        Operations are appended at ``nr``.
    own_pages
        Small-page memory of QEMU itself.
    offset
        Page of QEMU's address space at which guest RAM begins.

    Returns
    -------
    nr, enough
        Number of operations, and whether the host's memory sufficed for the process, which is
        NIL if the process table is full.
    """
    guest = guests[row]
    madvised = draw_guest(guest, profiles, shares, touched, boot_pages, key)
    ram_pages = offset + guest[G_PAGES]
    mm, enough = start_qemu(host, ram_pages, own_pages, madvised, guest[G_VM], guest[G_VCPUS])
    guest[G_MM] = mm
    if mm == NIL:
        return nr, False
    if offset != 0:
        host.mm[mm, MM_EPT_FLAGS] |= EPT_MISALIGNED
    make_mergeable(host, guest, profiles, shares, key)
    see_in_order(host, guest)
    nr = push(ops, nr, row, OP_HOST, 0, own_first_page(ram_pages), own_pages)
    for i in range(boot.shape[0]):
        nr = push(ops, nr, row, OP_HOST, 0, boot[i, 0] + offset, boot[i, 1])
    if guest[G_STATE] == NO_KERNEL:
        guest[G_NEXT_TICK] = NEVER_TICK
        return nr, enough
    t_ns = guest[G_LAST_NS]
    nr = decide_one(host, guests, row, profiles, ops, nr, tick_ns, t_ns, 0)
    # Not all guests of a kind act at once: a guest acts first by its key.
    period = max(int(profiles[guest[G_CLASS], B_PERIOD]) // tick_ns, 1)
    guest[G_NEXT_TICK] = t_ns // tick_ns + 1 + guest[G_KEY] % period
    return nr, enough
