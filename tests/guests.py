"""Guests for tests: a specification, one class that does a bit of everything, rows as drawn."""

import numpy as np

from guestsim.behaviour import (
    G_PAGES,
    G_SLOT,
    G_VM,
    NR_G_FIELDS,
    NR_SLOTS,
    behaviour_table,
)
from guestsim.draw import device_shares, draw_guest, guests_key, touched_share
from guestsim.guest import boot_footprint
from guestsim.spec import Behaviour, GuestSpec
from hostsim.core.units import NS_PER_HOUR, NS_PER_MIN
from hostsim.mm.mm_types import NIL

GIB = 1 << 18
KEY = guests_key(1)

BUSY = Behaviour(
    name="busy",
    weight=1.0,
    heap_ratio=0.6,
    heap_advice="none",
    growth_ratio=1.0,
    free_ratio=1.0,
    small_ratio=0.3,
    jobs_per_hour=10.0,
    job_ratio=0.05,
    job_life_ns=6 * NS_PER_MIN,
    cache_reads_per_hour=0.3,
    cache_drops_per_hour=0.2,
    restart_ns=2 * NS_PER_HOUR,
    period_ns=5 * NS_PER_MIN,
)
GUESTS = GuestSpec(
    kernel="6.12",
    thp_enabled="always",
    thp_defrag="madvise",
    use_zero_page=True,
    boot_pages=16384,
    touched_share_mean=0.8,
    touched_share_concentration=10.0,
    growth_ns=NS_PER_HOUR,
    reuse_per_hour=0.2,
    madvise_ratio=0.5,
    overhead_pages=1024,
    ram_offset_pages=0,
    reporting_ratio=0.5,
    balloon_ratio=0.0,
    balloon_below=0.1,
    behaviours=(BUSY,),
)


def drawn(vm_id, pages=GIB, spec=GUESTS):
    """Return the row of a VM that starts, and whether QEMU advises."""
    guest = np.zeros(NR_G_FIELDS, np.int64)
    guest[G_SLOT : G_SLOT + 2 * NR_SLOTS : 2] = NIL
    guest[G_VM], guest[G_PAGES] = vm_id, pages
    share, boot = touched_share(spec, KEY, vm_id), boot_footprint(spec, pages)
    return guest, draw_guest(guest, behaviour_table(spec), device_shares(spec), share, boot, KEY)
