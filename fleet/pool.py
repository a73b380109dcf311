"""The pool of hosts and the placement policies over it.

A policy is a pure kernel over the pool's arrays, found by name in POLICIES.  To add one: a number
in Policy, its score in :func:`score`, a line in POLICIES.  Requested sizes count, not what a VM
has touched.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.stats import REASON_NAMES

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_HOST = -1  # host_of of a VM that is not placed; result of a policy that finds no room
GROUP_SHIFT = 5  # hosts are summarised in groups of 32
GROUP_HOSTS = 1 << GROUP_SHIFT
NO_HOST_FITS = REASON_NAMES.index("no_host_fits")
LARGER_THAN_ANY_HOST = REASON_NAMES.index("larger_than_any_host")


class Policy(IntEnum):
    """Placement policies, as the kernels know them."""

    FIRST_FIT = 0
    BEST_FIT = 1


POLICIES: dict[str, Policy] = {
    "first-fit": Policy.FIRST_FIT,
    "best-fit": Policy.BEST_FIT,
}

_FIRST_FIT = int(Policy.FIRST_FIT)
_BEST_FIT = int(Policy.BEST_FIT)


class Pool(NamedTuple):
    """What the hosts offer and what is left of it.

    Invariants: ``0 <= free <= total``; ``nr_vms`` counts the VMs whose ``host_of`` is the host;
    a group's maximum is that of its hosts.
    """

    total_vcpus: I64  # (hosts,) vCPUs offered, overcommit included
    total_pages: I64  # (hosts,) base pages offered, overcommit included
    free_vcpus: I64  # (hosts,)
    free_pages: I64  # (hosts,)
    nr_vms: I32  # (hosts,)
    group_vcpus: I64  # (groups,) largest free_vcpus of the group
    group_pages: I64  # (groups,) largest free_pages of the group


@inline_kernel
def fits(pool: Pool, host: int, vcpus: int, pages: int) -> bool:
    """Return whether a host has room for a VM."""
    return bool(pool.free_vcpus[host] >= vcpus and pool.free_pages[host] >= pages)


@kernel
def best_fit_score(pool: Pool, host: int) -> int:
    """Score a fitting host: used before empty, then fewest free vCPUs, then least free memory.

    Empty hosts score alike, so that the tie-break takes the lowest-numbered one.
    """
    if pool.nr_vms[host] == 0:
        return 1 << 62
    return int((pool.free_vcpus[host] << 40) | pool.free_pages[host])


@kernel
def score(policy: int, pool: Pool, host: int, vcpus: int, pages: int) -> int:
    """Score a fitting host under a policy; the lowest wins, ties go to the lowest number."""
    if policy == _BEST_FIT:
        return best_fit_score(pool, host)
    return 0


@kernel
def choose_host(policy: int, pool: Pool, vcpus: int, pages: int) -> int:
    """Return the host a VM goes to, or NO_HOST.

    Groups without a large enough maximum are skipped whole.  First fit stops at the first
    fitting host; every other policy scores all of them.
    """
    best = NO_HOST
    best_score = 0
    nr_hosts = pool.free_vcpus.size
    for group in range(pool.group_vcpus.size):
        if pool.group_vcpus[group] < vcpus or pool.group_pages[group] < pages:
            continue
        first = group << GROUP_SHIFT
        for host in range(first, min(first + GROUP_HOSTS, nr_hosts)):
            if not fits(pool, host, vcpus, pages):
                continue
            if policy == _FIRST_FIT:
                return host
            value = score(policy, pool, host, vcpus, pages)
            if best == NO_HOST or value < best_score:
                best = host
                best_score = value
    return best


@kernel
def update_group(pool: Pool, host: int) -> None:
    """Recompute the maxima of a host's group."""
    group = host >> GROUP_SHIFT
    first = group << GROUP_SHIFT
    max_vcpus = np.int64(0)
    max_pages = np.int64(0)
    for other in range(first, min(first + GROUP_HOSTS, pool.free_vcpus.size)):
        max_vcpus = max(max_vcpus, pool.free_vcpus[other])
        max_pages = max(max_pages, pool.free_pages[other])
    pool.group_vcpus[group] = max_vcpus
    pool.group_pages[group] = max_pages


@kernel
def take(pool: Pool, host: int, vcpus: int, pages: int) -> None:
    """Give a VM its room on a host."""
    pool.free_vcpus[host] -= vcpus
    pool.free_pages[host] -= pages
    pool.nr_vms[host] += 1
    update_group(pool, host)


@kernel
def give_back(pool: Pool, host: int, vcpus: int, pages: int) -> None:
    """Free the room of a VM that left a host."""
    pool.free_vcpus[host] += vcpus
    pool.free_pages[host] += pages
    pool.nr_vms[host] -= 1
    update_group(pool, host)


@kernel
def reject_reason(pool: Pool, vcpus: int, pages: int) -> int:
    """Say why no host took a VM: too large even for an empty one, or no room now."""
    for host in range(pool.total_vcpus.size):
        if pool.total_vcpus[host] >= vcpus and pool.total_pages[host] >= pages:
            return NO_HOST_FITS
    return LARGER_THAN_ANY_HOST


def make_pool(total_vcpus: I64, total_pages: I64) -> Pool:
    """Return an empty pool."""
    nr_hosts = total_vcpus.size
    nr_groups = -(-nr_hosts // GROUP_HOSTS)
    pool = Pool(
        total_vcpus.copy(),
        total_pages.copy(),
        total_vcpus.copy(),
        total_pages.copy(),
        np.zeros(nr_hosts, np.int32),
        np.zeros(nr_groups, np.int64),
        np.zeros(nr_groups, np.int64),
    )
    for host in range(0, nr_hosts, GROUP_HOSTS):
        update_group(pool, host)
    return pool
