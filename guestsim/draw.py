"""What the fleet does not know of a VM, drawn when it starts.

Every draw is a pure function of the run's key and the VM's number.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from guestsim.behaviour import (
    B_BELOW,
    B_HEAP,
    B_LOAD,
    G_BALLOONED,
    G_CACHE,
    G_CLASS,
    G_HEAD,
    G_HEAP,
    G_KEY,
    G_LOAD,
    G_PAGES,
    G_REPORT_NS,
    G_REPORTS,
    G_RING,
    G_VM,
)
from guestsim.guest import CACHE_SHARE, ring_pages
from guestsim.spec import GuestSpec
from hostsim.core.counter_rng import hash64, uniform
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream

# Shares of VMs, as `device_shares` returns them
SHARE_ADVISED: Final = 0
SHARE_REPORTS: Final = 1
SHARE_BALLOON: Final = 2
NR_IMAGES: Final = 3  # and how many systems they run,
REPORTING_ORDER: Final = 4  # lowest order that is reported free,
REPORTING_DELAY: Final = 5  # and the delay between two passes, ns

FITTING: Final = 8  # a main process leaves an eighth of memory to the kernel and others (assumed)


def guests_key(seed: int) -> int:
    """Return the key of what a run's guests draw."""
    return int(stream(seed, Stream.GUEST_MEMORY).integers(1 << 62))


def device_shares(spec: GuestSpec) -> NDArray[np.float64]:
    """Return which shares of VMs QEMU advises, report free pages and have a balloon, and so on."""
    shares = (spec.madvise_ratio, spec.reporting_ratio, spec.balloon_ratio)
    return np.array([*shares, spec.images, spec.reporting_order, spec.reporting_delay_ns])


def touched_share(spec: GuestSpec, key: int, vm_id: int) -> float:
    """Return the hidden share of its size that a VM grows to."""
    mean, concentration = spec.touched_share_mean, spec.touched_share_concentration
    if mean == 1.0:
        return 1.0
    drawn = uniform(key, vm_id, 0)
    return float(betaincinv(mean * concentration, (1.0 - mean) * concentration, drawn))


@kernel
def draw_class(profiles: NDArray[np.float64], drawn: float) -> int:
    """Return the behaviour that a number in (0, 1) picks by the scenario's weights."""
    for number in range(profiles.shape[0] - 1):
        if drawn < profiles[number, B_BELOW]:
            return number
    return profiles.shape[0] - 1


@kernel
def draw_guest(
    guest: NDArray[np.int64],
    profiles: NDArray[np.float64],
    shares: NDArray[np.float64],
    touched: float,
    boot_pages: int,
    key: int,
) -> bool:
    """Draw what the fleet does not know of a VM into its row; return whether QEMU advises.

    Parameters
    ----------
    guest
        Row of the table of guests, modified: key, class, targets, devices.  Its number and size
        stand there.
    shares
        As `device_shares` returns them.
    touched
        Hidden share of its size that it grows to.
    boot_pages
        Boot footprint.
    key
        As `guests_key` returns it.
    """
    vm_id = guest[G_VM]
    pages = guest[G_PAGES]
    number = draw_class(profiles, uniform(key, vm_id, 3))
    room = max(math.ceil(touched * float(pages)) - pages // 64 - boot_pages, 0)
    largest = max(pages - pages // FITTING - boot_pages, 0)  # programs are set up to fit
    heap = min(int(profiles[number, B_HEAP] * float(room)), largest)
    guest[G_KEY] = hash64(key, vm_id, 2)
    guest[G_CLASS] = number
    guest[G_HEAP] = heap
    guest[G_CACHE] = boot_pages * CACHE_SHARE // 8 + room - heap
    guest[G_RING] = ring_pages(guest[G_CACHE])
    guest[G_HEAD] = boot_pages * CACHE_SHARE // 8
    guest[G_REPORT_NS] = int(shares[REPORTING_DELAY])
    if uniform(key, vm_id, 4) < shares[SHARE_REPORTS]:
        guest[G_REPORTS] = 1 + int(shares[REPORTING_ORDER])
    guest[G_BALLOONED] = 1 if uniform(key, vm_id, 5) < shares[SHARE_BALLOON] else 0
    guest[G_LOAD] = int(profiles[number, B_LOAD])
    return bool(uniform(key, vm_id, 1) < shares[SHARE_ADVISED])
