"""What ksmd saves of VMs of mixed classes.

What pages hold is an input (`hostsim.mm.content`; shares by class in scenarios/guests): what is
tried is what ksmd makes of it, page by page and through huge pages, zeros and limits on sharing.
"""

from typing import Final, NamedTuple

import numpy as np

from fleet.loading import build
from fleet.node import START, Commands, Node
from hostsim.core.units import NS_PER_HOUR, PAGE_SHIFT
from hostsim.mm.content import KEY_ZERO
from hostsim.mm.mm_types import (
    NIL,
    P_KSM_ITEM_USED,
    Memory,
)
from hostsim.mm.vmstat import NR_GUEST_PAGES

GIB_PAGES: Final = 1 << (30 - PAGE_SHIFT)
MIXED_VMS: Final = 10  # two of each class on average
MIXED_HOURS: Final = 1


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
    vm_id = np.arange(MIXED_VMS)
    zeros = np.zeros(MIXED_VMS, np.int64)
    commands = Commands(
        t_ns=zeros,
        kind=np.full(MIXED_VMS, START, np.int8),
        vm_id=vm_id,
        vcpus=np.full(MIXED_VMS, 2, np.int32),
        memory_pages=np.full(MIXED_VMS, 2 * GIB_PAGES),
        age_ns=np.full(MIXED_VMS, 12 * NS_PER_HOUR),
    )
    node.advance(commands, 0, MIXED_HOURS * NS_PER_HOUR)
    return shared(node.host.mem)
