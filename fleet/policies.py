"""Placement policies: filter the hosts, score them, break ties by host number.

Filter: a host has the free vCPUs and the free memory.  Hosts in use come before empty ones: an
empty host, the lowest-numbered, is opened only when no host in use fits; first fit and the
policies that read gauges alone weigh empty hosts against the others.  Score: one pure kernel a
policy, the lowest wins.  Tie: the lowest host number.

A policy's name stands in POLICIES, its number in Policy, and its kernel behind the number in
:func:`score`; docs/how-to-placement.md adds one.
"""

import difflib
import math
from enum import IntEnum
from typing import NamedTuple

from fleet.pool import GROUP_HOSTS, GROUP_SHIFT, NO_HOST, PAGES_BITS, Pool, choose_nodes, fits
from hostsim.core.jit import hot_kernel, kernel
from hostsim.core.units import NS_PER_HOUR


class Policy(IntEnum):
    """Placement policies, as the kernels know them."""

    FIRST_FIT = 0
    NEXT_FIT = 1
    BEST_FIT = 2
    BEST_FIT_L2 = 3
    WORST_FIT = 4
    RANDOM = 5
    POWER_OF_K = 6
    DOT_PRODUCT = 7
    COSINE = 8
    LIFETIME_ALIGNED = 9
    LIFETIME_PREDICTED = 10
    HUGEPAGE_AWARE = 11
    DRAIN_FRAGMENTED = 12
    NUMA_AWARE = 13


POLICIES: dict[str, Policy] = {
    "first-fit": Policy.FIRST_FIT,
    "next-fit": Policy.NEXT_FIT,
    "best-fit": Policy.BEST_FIT,
    "best-fit-l2": Policy.BEST_FIT_L2,
    "worst-fit": Policy.WORST_FIT,
    "random": Policy.RANDOM,
    "power-of-k": Policy.POWER_OF_K,
    "dot-product": Policy.DOT_PRODUCT,
    "cosine": Policy.COSINE,
    "lifetime-aligned": Policy.LIFETIME_ALIGNED,
    "lifetime-predicted": Policy.LIFETIME_PREDICTED,
    "hugepage-aware": Policy.HUGEPAGE_AWARE,
    "drain-fragmented": Policy.DRAIN_FRAGMENTED,
    "numa-aware": Policy.NUMA_AWARE,
}
READ_GAUGES = frozenset({Policy.HUGEPAGE_AWARE, Policy.DRAIN_FRAGMENTED})

_FIRST_FIT = int(Policy.FIRST_FIT)
_NEXT_FIT = int(Policy.NEXT_FIT)
_BEST_FIT = int(Policy.BEST_FIT)
_BEST_FIT_L2 = int(Policy.BEST_FIT_L2)
_WORST_FIT = int(Policy.WORST_FIT)
_RANDOM = int(Policy.RANDOM)
_POWER_OF_K = int(Policy.POWER_OF_K)
_DOT_PRODUCT = int(Policy.DOT_PRODUCT)
_COSINE = int(Policy.COSINE)
_LIFETIME_ALIGNED = int(Policy.LIFETIME_ALIGNED)
_LIFETIME_PREDICTED = int(Policy.LIFETIME_PREDICTED)
_HUGEPAGE_AWARE = int(Policy.HUGEPAGE_AWARE)
_DRAIN_FRAGMENTED = int(Policy.DRAIN_FRAGMENTED)
_NUMA_AWARE = int(Policy.NUMA_AWARE)

EMPTY = 1 << 57  # score of an empty host: above every free vCPUs << PAGES_BITS | free pages
CLASS_SHIFT = 58  # a class of 0 to 31 above such a score
DRAINING = 1 << 62
DRAIN_UNUSABLE = 500  # 1/1000; the middle, as vm.extfrag_threshold has it (kernel vm.rst)
SHORTFALL_PARTS = 16  # a host that lacks less than this part of a VM in huge pages is whole
SHARE_SHIFT = 20  # shares of a host are whole numbers of 2**-20
COSINE_BASE = 1 << 40


class Ask(NamedTuple):
    """What a VM asks for, and what is believed of it."""

    vcpus: int
    pages: int
    end_ns: int  # expected
    now_ns: int
    draw: int  # its random number in [0, 2**63)


def find_policy(name: str) -> Policy:
    """Return the policy of a name.

    Raises
    ------
    ValueError
        There is none; the message names the nearest.
    """
    if name not in POLICIES:
        close = difflib.get_close_matches(name, POLICIES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(POLICIES)}"
        raise ValueError(f"policy {name!r} is unknown; {hint}")
    return POLICIES[name]


@hot_kernel
def share(amount: int, total: int) -> int:
    """Return a host's part in units of 2**-20, rounded down."""
    return (amount << SHARE_SHIFT) // total


@hot_kernel
def next_fit(pool: Pool, host: int) -> int:
    """Score by the way from the host chosen last, round the pool."""
    return int((host - pool.last_host[0]) % pool.nr_vms.size)


@hot_kernel
def best_fit(pool: Pool, host: int) -> int:
    """Score by free vCPUs, then free memory: the fullest wins, empty hosts come last."""
    if pool.nr_vms[host] == 0:
        return EMPTY
    return int((pool.free_vcpus[host] << PAGES_BITS) | pool.free_pages[host])


@hot_kernel
def best_fit_l2(pool: Pool, host: int, ask: Ask) -> int:
    """Score by the square sum of the shares that stay free: the least is left over.

    Source: Panigrahy et al. 2011, Heuristics for Vector Bin Packing, norm-based greedy.
    """
    vcpus = share(pool.free_vcpus[host] - ask.vcpus, pool.total_vcpus[host])
    pages = share(pool.free_pages[host] - ask.pages, pool.total_pages[host])
    return vcpus * vcpus + pages * pages


@hot_kernel
def worst_fit(pool: Pool, host: int) -> int:
    """Score by free vCPUs, then free memory: the emptiest of the hosts in use wins."""
    return -int((pool.free_vcpus[host] << PAGES_BITS) | pool.free_pages[host])


@hot_kernel
def dot_product(pool: Pool, host: int, ask: Ask) -> int:
    """Score by the product of demand and free room, as shares: the largest wins.

    Source: Panigrahy et al. 2011, Heuristics for Vector Bin Packing, dot product.
    """
    vcpus = share(ask.vcpus, pool.total_vcpus[host]) * share(
        pool.free_vcpus[host], pool.total_vcpus[host]
    )
    pages = share(ask.pages, pool.total_pages[host]) * share(
        pool.free_pages[host], pool.total_pages[host]
    )
    return -(vcpus + pages)


@hot_kernel
def cosine(pool: Pool, host: int, ask: Ask) -> int:
    """Score by the angle between demand and free room, as shares: the smallest wins.

    Cosines are rounded to 2**-40.
    """
    vcpus = share(ask.vcpus, pool.total_vcpus[host])
    pages = share(ask.pages, pool.total_pages[host])
    free_vcpus = share(pool.free_vcpus[host], pool.total_vcpus[host])
    free_pages = share(pool.free_pages[host], pool.total_pages[host])
    demand = math.sqrt(float(vcpus * vcpus + pages * pages))
    room = math.sqrt(float(free_vcpus * free_vcpus + free_pages * free_pages))
    if demand == 0.0 or room == 0.0:
        return 0
    product = float(vcpus * free_vcpus + pages * free_pages)
    return -int(product / (demand * room) * COSINE_BASE + 0.5)


@hot_kernel
def lifetime_aligned(pool: Pool, host: int, ask: Ask) -> int:
    """Score by how much longer the VM keeps the host in use, in classes; within one best fit.

    Class 0: not at all; 1: up to an hour; then each class twice as wide.  What a host's VMs
    outlive of their expected ends is over now.

    Source: after Barbalho et al. 2023, Virtual Machine Allocation with Lifetime Predictions.
    """
    longer_ns = ask.end_ns - max(pool.last_end_ns[host], ask.now_ns)
    hours = 0
    if longer_ns > 0:
        hours = (longer_ns - 1) // NS_PER_HOUR + 1
    lifetime_class = 0
    while hours > 0:
        lifetime_class += 1
        hours >>= 1
    return (lifetime_class << CLASS_SHIFT) | best_fit(pool, host)


@hot_kernel
def hugepage_aware(pool: Pool, host: int, ask: Ask) -> int:
    """Score by the part of the VM that finds no huge pages, in sixteenths; within one best fit.

    Free memory that is in small blocks cannot back it, and what others asked for is theirs
    though they have not touched it: whole for this VM is what is not promised less what is
    broken.
    """
    whole = max(pool.free_pages[host] - pool.broken_pages[host], 0)
    lacking = max(ask.pages - whole, 0)
    shortfall_class = int(lacking * SHORTFALL_PARTS // ask.pages)
    return (shortfall_class << CLASS_SHIFT) | best_fit(pool, host)


@hot_kernel
def drain_fragmented(pool: Pool, host: int) -> int:
    """Score fragmented hosts last, so that they empty and their memory becomes whole.

    The other hosts are scored as best fit does, empty ones included.  Among fragmented ones
    that with the fewest partial pageblocks wins: it has the least to repair.
    """
    if pool.unusable[host] >= DRAIN_UNUSABLE:
        return int(DRAINING | pool.partial[host])
    return best_fit(pool, host)


@hot_kernel
def numa_aware(pool: Pool, host: int, ask: Ask) -> int:
    """Score hosts first whose next node has room for the whole VM; within a class best fit.

    Then come hosts where several nodes have room for a part each, and last those where some node
    has not, so that memory or vCPUs will be remote.
    """
    if pool.nr_nodes[host] == 1:
        return best_fit(pool, host)
    _, parts, fits = choose_nodes(pool, host, ask.vcpus, ask.pages)
    remote_class = (0 if parts == 1 else 1) if fits else 2
    return (remote_class << CLASS_SHIFT) | best_fit(pool, host)


@hot_kernel
def score(policy: int, pool: Pool, host: int, ask: Ask) -> int:
    """Score a fitting host under a policy; the lowest wins, ties go to the lowest number."""
    if policy == _NEXT_FIT:
        return next_fit(pool, host)
    if policy == _BEST_FIT:
        return best_fit(pool, host)
    if policy == _BEST_FIT_L2:
        return best_fit_l2(pool, host, ask)
    if policy == _WORST_FIT or policy == _POWER_OF_K:
        return worst_fit(pool, host)
    if policy == _DOT_PRODUCT:
        return dot_product(pool, host, ask)
    if policy == _COSINE:
        return cosine(pool, host, ask)
    if policy == _LIFETIME_ALIGNED or policy == _LIFETIME_PREDICTED:
        return lifetime_aligned(pool, host, ask)
    if policy == _HUGEPAGE_AWARE:
        return hugepage_aware(pool, host, ask)
    if policy == _DRAIN_FRAGMENTED:
        return drain_fragmented(pool, host)
    if policy == _NUMA_AWARE:
        return numa_aware(pool, host, ask)
    return 0


@kernel
def first_fit(pool: Pool, ask: Ask) -> int:
    """Return the lowest-numbered fitting host, or NO_HOST."""
    nr_hosts = pool.nr_vms.size
    for group in range(pool.group_vcpus.size):
        if pool.group_vcpus[group] < ask.vcpus or pool.group_pages[group] < ask.pages:
            continue
        first = group << GROUP_SHIFT
        for host in range(first, min(first + GROUP_HOSTS, nr_hosts)):
            if fits(pool, host, ask.vcpus, ask.pages):
                return host
    return NO_HOST


@kernel
def filter_hosts(pool: Pool, ask: Ask, with_empty: bool) -> int:
    """Collect the hosts a VM may go to, in order of number; return how many.

    Groups without a large enough maximum are skipped whole.

    Parameters
    ----------
    with_empty : bool
        Empty hosts are weighed like the others; else the first one stands in if no other fits.
    """
    nr_hosts = pool.nr_vms.size
    count = 0
    empty = NO_HOST
    for group in range(pool.group_vcpus.size):
        if pool.group_vcpus[group] < ask.vcpus or pool.group_pages[group] < ask.pages:
            continue
        first = group << GROUP_SHIFT
        for host in range(first, min(first + GROUP_HOSTS, nr_hosts)):
            if not fits(pool, host, ask.vcpus, ask.pages):
                continue
            if pool.nr_vms[host] > 0 or with_empty:
                pool.candidate[count] = host
                count += 1
            elif empty == NO_HOST:
                empty = host
    if count == 0 and empty != NO_HOST:
        pool.candidate[0] = empty
        count = 1
    return count


@kernel
def sample_hosts(pool: Pool, count: int, choices: int, draw: int) -> int:
    """Bring some candidates, chosen at random without repetition, to the front.

    The draw is read as digits to the bases ``count``, ``count - 1`` and so on: all choices are
    equally likely up to ``count ** choices / 2 ** 63``.
    """
    choices = min(choices, count)
    for at in range(choices):
        chosen = at + draw % (count - at)
        draw //= count - at
        host = pool.candidate[chosen]
        pool.candidate[chosen] = pool.candidate[at]
        pool.candidate[at] = host
    return choices


@kernel
def choose_host(policy: int, choices: int, pool: Pool, ask: Ask) -> int:
    """Return the host a VM goes to, or NO_HOST.

    Parameters
    ----------
    choices : int
        Hosts that power-of-k looks at.
    """
    if policy == _FIRST_FIT:
        return first_fit(pool, ask)
    with_empty = policy == _HUGEPAGE_AWARE or policy == _DRAIN_FRAGMENTED or policy == _NUMA_AWARE
    count = filter_hosts(pool, ask, with_empty)
    if policy == _RANDOM:
        count = sample_hosts(pool, count, 1, ask.draw)
    elif policy == _POWER_OF_K:
        count = sample_hosts(pool, count, choices, ask.draw)
    best = NO_HOST
    best_score = 0
    for at in range(count):
        host = pool.candidate[at]
        value = score(policy, pool, host, ask)
        if best == NO_HOST or value < best_score or (value == best_score and host < best):
            best = host
            best_score = value
    return best
