"""How a guest gives memory back: virtio-balloon.

The balloon takes single pages, in batches of 256, and only where memory is plenty; it gives
them back when the guest runs out.

Source: Linux v6.1 drivers/virtio/virtio_balloon.c (VIRTIO_BALLOON_ARRAY_PFNS_MAX,
virtio_balloon_oom_notify).
Simplified: pages in the balloon are small pages of a process whose tables are never backed.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.behaviour import G_BALLOON
from guestsim.guest import MM_BALLOON, free_room
from hostsim.core.jit import kernel
from hostsim.core.units import (
    HPAGE_PMD_ORDER,
)
from hostsim.mm.fault import touch_range
from hostsim.mm.mm_types import (
    NIL,
    P_TOUCHED,
    P_TRACED,
    Memory,
)
from hostsim.mm.rmap import extents_in, frame_at, near_extent
from hostsim.mm.zap import discard_range

BALLOON_PAGES: Final = 256  # VIRTIO_BALLOON_ARRAY_PFNS_MAX


@kernel
def inflate(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> int:
    """Let the balloon take up to a batch of pages; return how many it took.

    Their frames stand as runs in ``mem.touched``, ``mem.pool[P_TOUCHED]`` of them, for the host
    to take back.
    """
    nr = min(min(nr, BALLOON_PAGES), free_room(mem))
    if nr <= 0:
        return 0
    first = guests[row, G_BALLOON]
    mem.pool[P_TRACED] = 0
    touch_range(mem, MM_BALLOON, first, nr, 1, 1.0, 0, True, first)
    mem.pool[P_TRACED] = 1
    guests[row, G_BALLOON] = first + nr
    runs = 0
    for window in range(first >> HPAGE_PMD_ORDER, ((first + nr - 1) >> HPAGE_PMD_ORDER) + 1):
        x = extents_in(mem, MM_BALLOON, window)
        x = near_extent(mem, MM_BALLOON, max(first, window << HPAGE_PMD_ORDER), x)
        while x != NIL:
            vpn = int(mem.ext[x].vpn)
            low = max(vpn, first)
            high = min(vpn + int(mem.ext[x].nr), first + nr)
            if low < high:
                mem.touched[runs, 0] = min(frame_at(mem, x, low), frame_at(mem, x, high - 1))
                mem.touched[runs, 1] = high - low
                runs += 1
            x = int(mem.ext[x].next)
    mem.pool[P_TOUCHED] = runs
    return nr


@kernel
def deflate(mem: Memory, guests: NDArray[np.int64], row: int, nr: int) -> int:
    """Give pages of the balloon back to the guest, newest first; return how many."""
    nr = min(nr, guests[row, G_BALLOON])
    if nr > 0:
        guests[row, G_BALLOON] -= nr
        discard_range(mem, MM_BALLOON, guests[row, G_BALLOON], nr)
    return nr
