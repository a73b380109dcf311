"""What a guest does with its memory: grows to a hidden share, frees some, uses it again.

Every number is a pure function of the VM's key and the tick, so that a VM behaves alike on
whichever host it lands.

Simplified: until a guest has a kernel of its own, it touches its pages from the lowest up, and
what it frees is returned to the host at once, as free page reporting (whole 2 MiB windows) or
a balloon (runs of 4 KiB pages) would, and touched again one tick later.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from guestsim.spec import GuestSpec
from hostsim.core.counter_rng import hash64, uniform
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER

# Columns of the table of guests
G_VM: Final = 0  # VM number in the trace, -1 for a free row
G_MM: Final = 1  # its process on the host
G_PAGES: Final = 2  # memory size
G_VCPUS: Final = 3
G_START_NS: Final = 4  # when it began to run, before the simulation for a standing VM
G_BOOT: Final = 5  # pages touched at start
G_PEAK: Final = 6  # pages it grows to
G_GROWN: Final = 7  # pages touched so far, from page 0
G_KEY: Final = 8  # random key
G_FREED_AT: Final = 9  # range released at the last tick
G_FREED_NR: Final = 10
G_RUNS: Final = 11  # small runs released at the last tick
G_RUNS_TICK: Final = 12  # that tick
NR_G_FIELDS: Final = 13

# Columns of an operation on a VM's memory
OP_MM: Final = 0
OP_KIND: Final = 1
OP_START: Final = 2
OP_NR: Final = 3
NR_OP_FIELDS: Final = 4
OP_TOUCH: Final = 0
OP_DISCARD: Final = 1

MAX_RUNS: Final = 16  # runs of small pages released at a tick, at most
BALLOON_PAGES: Final = 256  # VIRTIO_BALLOON_ARRAY_PFNS_MAX, drivers/virtio/virtio_balloon.c
OPS_PER_GUEST: Final = 3 + 2 * MAX_RUNS


def guests_key(seed: int) -> int:
    """Return the key of what a run's guests draw."""
    return int(stream(seed, Stream.GUEST_MEMORY).integers(1 << 62))


def draw_guest(spec: GuestSpec, key: int, vm_id: int, pages: int) -> tuple[int, int, bool, int]:
    """Draw what the fleet does not know of a VM.

    Parameters
    ----------
    key
        As `guests_key` returns it.

    Returns
    -------
    boot_pages, peak_pages, madvised, key
        Pages touched at start, pages it grows to, whether its RAM has MADV_HUGEPAGE, and the
        key of everything it does later.
    """
    mean, concentration = spec.touched_share_mean, spec.touched_share_concentration
    share = 1.0
    if mean < 1.0:
        drawn = uniform(key, vm_id, 0)
        share = float(betaincinv(mean * concentration, (1.0 - mean) * concentration, drawn))
    boot = min(spec.boot_pages, pages)
    peak = max(boot, min(pages, math.ceil(share * pages)))
    madvised = uniform(key, vm_id, 1) < spec.madvise_ratio
    return boot, peak, bool(madvised), int(hash64(key, vm_id, 2))


@kernel
def pages_wanted(guests: NDArray[np.int64], row: int, now_ns: int, growth_ns: int) -> int:
    """Return how many pages a VM has touched by a time: exponential growth to its peak."""
    boot = guests[row, G_BOOT]
    age = float(now_ns - guests[row, G_START_NS])
    grown = 1.0 - math.exp(-age / float(growth_ns)) if growth_ns > 0 else 1.0
    return boot + int(float(guests[row, G_PEAK] - boot) * grown)


@kernel
def _push(ops: NDArray[np.int64], nr: int, mm: int, kind: int, start: int, pages: int) -> int:
    """Append an operation; return the new number of them."""
    ops[nr, OP_MM] = mm
    ops[nr, OP_KIND] = kind
    ops[nr, OP_START] = start
    ops[nr, OP_NR] = pages
    return nr + 1


@kernel
def _small_run(guests: NDArray[np.int64], row: int, tick: int, i: int) -> int:
    """Return where the i-th small run that a VM releases at a tick begins."""
    span = guests[row, G_GROWN] - BALLOON_PAGES
    return int(uniform(guests[row, G_KEY], tick, 10 + i) * float(span))


@kernel
def guests_tick(
    guests: NDArray[np.int64],
    ops: NDArray[np.int64],
    tick: int,
    now_ns: int,
    growth_ns: int,
    reuse_per_tick: float,
    small_ratio: float,
) -> int:
    """Decide what all guests of a host do at a tick.

    Parameters
    ----------
    guests
        (rows, NR_G_FIELDS); modified.
    ops
        (rows * OPS_PER_GUEST, NR_OP_FIELDS); the operations are written here, in order.
    reuse_per_tick
        Share of its touched memory that a guest releases and touches again.
    small_ratio
        Share of that which goes in runs of small pages.

    Returns
    -------
    int
        Number of operations.
    """
    nr = 0
    for row in range(guests.shape[0]):
        if guests[row, G_VM] < 0:
            continue
        mm = guests[row, G_MM]
        key = guests[row, G_KEY]
        if guests[row, G_FREED_NR] > 0:
            nr = _push(ops, nr, mm, OP_TOUCH, guests[row, G_FREED_AT], guests[row, G_FREED_NR])
            guests[row, G_FREED_NR] = 0
        grown = guests[row, G_GROWN]
        released = reuse_per_tick * float(grown) * 2.0 * uniform(key, tick, 0)
        runs = int(released * small_ratio / BALLOON_PAGES + uniform(key, tick, 1))
        for i in range(guests[row, G_RUNS]):
            start = _small_run(guests, row, guests[row, G_RUNS_TICK], i)
            nr = _push(ops, nr, mm, OP_TOUCH, start, BALLOON_PAGES)
        guests[row, G_RUNS] = 0
        wanted = pages_wanted(guests, row, now_ns, growth_ns)
        if wanted > grown:
            nr = _push(ops, nr, mm, OP_TOUCH, grown, wanted - grown)
            guests[row, G_GROWN] = wanted
        windows = int(released * (1.0 - small_ratio)) >> HPAGE_PMD_ORDER
        whole = grown >> HPAGE_PMD_ORDER
        if 0 < windows < whole:
            at = int(uniform(key, tick, 2) * float(whole - windows)) << HPAGE_PMD_ORDER
            nr = _push(ops, nr, mm, OP_DISCARD, at, windows * HPAGE_PMD_NR)
            guests[row, G_FREED_AT] = at
            guests[row, G_FREED_NR] = windows * HPAGE_PMD_NR
        if runs > 0 and grown > BALLOON_PAGES:
            guests[row, G_RUNS] = min(runs, MAX_RUNS)
            guests[row, G_RUNS_TICK] = tick
            for i in range(guests[row, G_RUNS]):
                start = _small_run(guests, row, tick, i)
                nr = _push(ops, nr, mm, OP_DISCARD, start, BALLOON_PAGES)
    return nr
