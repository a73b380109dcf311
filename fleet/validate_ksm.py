"""What ksmd saves of VMs of mixed classes, and how many VMs of one image fit on a host.

What pages hold is an input (`hostsim.mm.content`; shares by class in scenarios/guests): what is
tried is what ksmd makes of it, page by page and through huge pages, zeros and limits on sharing.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.loading import build
from fleet.node import START, Commands, Node
from hostsim.core.units import NS_PER_HOUR, NS_PER_S, PAGE_SHIFT
from hostsim.mm.content import KEY_ZERO
from hostsim.mm.mm_types import (
    NIL,
    P_KSM_ITEM_USED,
    PCP_COUNT,
    Z_FREE,
    Memory,
)
from hostsim.mm.vmstat import NR_GUEST_PAGES, OOM_KILL

GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
MIXED_VMS: Final = 10  # two of each class on average
MIXED_HOURS: Final = 1
XP_VMS: Final = 52  # of 1 GiB on 16 GiB: Red Hat, in kernelnewbies.org Linux 2.6.32
XP_HOST_GIB: Final = 16
XP_ARRIVAL_NS: Final = 120 * NS_PER_S  # ksmd sees all pages of 52 GiB in 128 s
XP_RATIOS: Final = (0.6, 0.2)  # of a VM's pages: zeros, of the image; the rest its own (assumed)


class Shared(NamedTuple):
    """What ksmd saved of guest memory, pages of zeros left out."""

    saved_ratio: float  # of guest memory as its guests see it
    self_ratio: float  # of what was saved, what is saved if no two VMs share


def shared(mem: Memory) -> Shared:
    """Count who shares which merged frame."""
    used = int(mem.pool[P_KSM_ITEM_USED])
    node = mem.ksm_item["node"][:used].astype(np.int64)
    merged = np.flatnonzero(node != NIL)
    key = mem.ksm_node["key"][node[merged]]
    merged = merged[key != KEY_ZERO]
    frames = node[merged]
    owners = np.stack([frames, mem.ksm_item["mm"][merged].astype(np.int64)])
    saved = len(merged) - len(np.unique(frames))
    alone = len(merged) - np.unique(owners, axis=1).shape[1]
    return Shared(saved / int(mem.vmstat[NR_GUEST_PAGES]), alone / max(saved, 1))


class Overcommit(NamedTuple):
    """What a host held when the last VM had arrived and ksmd had seen it twice."""

    vms: int  # that run
    oom_kills: int
    guest_pages: int  # guest memory that was touched
    used_pages: int  # host memory that is not free, the kernel's own included
    promised_pages: int  # to the VMs that run
    host_pages: int

    @property
    def overcommit(self) -> float:
        """Memory promised, of all the host has."""
        return self.promised_pages / self.host_pages

    @property
    def ratio(self) -> float:
        """Guest memory touched, of host memory in use."""
        return self.guest_pages / self.used_pages


def mixed() -> Shared:
    """Let ksmd scan a host of VMs of the default mix of classes for an hour."""
    host = {
        "memory": "32GiB",
        "reserved": "2GiB",
        "slab": {"base": "512MiB"},
        "thp": {"enabled": "madvise"},
        "ksm": {"run": 1},
    }
    scenario = build({"hosts": [host], "mmu": {"enabled": False}}, "ksm", "ksm")
    node = Node(
        scenario.host_specs()[0], scenario.guests, 0, scenario.seed, scenario.tick_ns, NS_PER_HOUR
    )
    t_ns = np.zeros(MIXED_VMS, np.int64)
    node.advance(_starts(t_ns, 2 * GIB_PAGES), 0, MIXED_HOURS * NS_PER_HOUR)
    return shared(node.host.mem)


def homogeneous(vms: int = XP_VMS, host_gib: int = XP_HOST_GIB) -> Overcommit:
    """Let idle VMs of 1 GiB and one image arrive one by one on a host without swap.

    Each comes with 12 hours of age, which is most of its memory touched at once.  ksmd runs as
    fast as ksmtuned lets it where memory is short: KSM_NPAGES_MAX pages, then KSM_SLEEP_MSEC,
    which grows as memory is smaller.
    """
    host = {
        "memory": f"{host_gib}GiB",
        "reserved": f"{host_gib * 32}MiB",  # half of it struct pages, 64 B a frame
        "slab": {"base": f"{host_gib * 16}MiB"},
        "thp": {"enabled": "madvise"},
        "ksm": {"run": 1, "pages_to_scan": 1250, "sleep_millisecs": 10 * max(16 // host_gib, 1)},
    }
    guests = {"mix": {"idle": 1.0}, "touched_share_mean": 1.0, "images": 1}
    scenario = build({"hosts": [host], "guests": guests, "mmu": {"enabled": False}}, "ksm", "ksm")
    zero, image = XP_RATIOS
    idle = scenario.guests.behaviours[0]._replace(
        zero_ratio=zero, alike_ratio=0.0, image_ratio=image
    )
    spec = scenario.guests._replace(behaviours=(idle,))
    node = Node(scenario.host_specs()[0], spec, 0, scenario.seed, XP_ARRIVAL_NS, NS_PER_HOUR)
    t_ns = np.arange(vms) * XP_ARRIVAL_NS
    node.advance(_starts(t_ns, GIB_PAGES), 0, (vms + 2) * XP_ARRIVAL_NS)
    mem = node.host.mem
    free = int(mem.zone[:, Z_FREE].sum() + mem.zone[:, PCP_COUNT].sum())
    return Overcommit(
        vms=len(node.row_of),
        oom_kills=int(mem.vmstat[OOM_KILL]),
        guest_pages=int(mem.vmstat[NR_GUEST_PAGES]),
        used_pages=host_gib * GIB_PAGES - free,
        promised_pages=len(node.row_of) * GIB_PAGES,
        host_pages=host_gib * GIB_PAGES,
    )


def _starts(t_ns: NDArray[np.int64], pages: int) -> Commands:
    """Return the starts of VMs that have run for half a day."""
    nr = len(t_ns)
    return Commands(
        t_ns=t_ns,
        kind=np.full(nr, START, np.int8),
        vm_id=np.arange(nr),
        vcpus=np.full(nr, 2, np.int32),
        memory_pages=np.full(nr, pages),
        age_ns=np.full(nr, 12 * NS_PER_HOUR),
    )
