"""Random streams: one seed, one registry, no shared generator.

A stream is keyed by its consumer, host and VM, never by worker, process or arrival order, so
that results cannot depend on who computes them.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Consumers of randomness.  Numbers are never reused or renumbered."""

    TRACE_ARRIVALS = 1  # batches and their sizes, per day
    TRACE_FLAVOURS = 2
    TRACE_LIFETIMES = 3
    TRACE_STANDING = 4  # population alive at the start
    TRACE_SUBSAMPLE = 5
    PLACEMENT = 6
    GUEST_MEMORY = 7  # hidden share, growth and reuse of one VM
    KERNEL_MEMORY = 8  # unmovable slab-like churn of one host
    MMU = 9
    BOOT_LAYOUT = 10  # where a host's boot-time kernel memory lies
    BENCH = 11
    LIFETIME_ERROR = 12  # of the lifetimes a scheduler predicts
    FAILURE = 13  # when a host breaks down
    CAPTURED = 14  # how long VMs of a snapshot still run


def stream(seed: int, consumer: Stream, host_id: int = 0, vm_id: int = 0) -> np.random.Generator:
    """Return the generator of one consumer on one host for one VM.

    The same key gives the same sequence whatever other streams were opened before.
    """
    key = np.random.SeedSequence(seed, spawn_key=(int(consumer), host_id, vm_id))
    return np.random.Generator(np.random.PCG64(key))
