"""The pool of hosts: what each offers, what is left of it, and until when it is busy.

Requested sizes count, not what a VM has touched.  Policies over the pool are in
``fleet.policies``.

Of hosts with several NUMA nodes the pool keeps what is left of each, by the rule by which a host
chooses a VM's nodes (`hostsim.home_node`), on the sizes that the scheduler offers.
Simplified: with overcommit, or after a kill within an epoch, the host may have chosen otherwise.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.byref import ByReference
from hostsim.core.host_columns import HOST_COLUMNS
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.stats import REASON_NAMES
from hostsim.core.units import HPAGE_PMD_NR
from hostsim.home_node import is_better, nodes_needed
from hostsim.mm.mm_types import MAX_NUMNODES

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

NO_HOST = -1  # host_of of a VM that is not placed; result of a policy that finds no room
NO_VM = -1  # end of a host's list of VMs
PARTS = 8  # a VM's home: first node * PARTS + nodes
GROUP_SHIFT = 5  # hosts are summarised in groups of 32
GROUP_HOSTS = 1 << GROUP_SHIFT
PAGES_BITS = 40  # base pages a host may offer: 4 PiB
MAX_PAGES = 1 << PAGES_BITS
MAX_VCPUS = 1 << 17  # vCPUs a host may offer: both sizes and a flag fit a score
NO_HOST_FITS = REASON_NAMES.index("no_host_fits")
LARGER_THAN_ANY_HOST = REASON_NAMES.index("larger_than_any_host")
_COLUMN = {column.name: index for index, column in enumerate(HOST_COLUMNS)}


class _PoolArrays(NamedTuple):
    """What the hosts offer and what is left of it.

    Invariants: ``0 <= free <= total``; ``nr_vms`` counts the VMs whose ``host_of`` is the host,
    and they are its list; ``last_end_ns`` is their latest expected end; a group's maximum is
    that of its hosts.
    """

    total_vcpus: I64  # (hosts,) vCPUs offered, overcommit included
    total_pages: I64  # (hosts,) base pages offered, overcommit included
    free_vcpus: I64  # (hosts,)
    free_pages: I64  # (hosts,)
    nr_vms: I32  # (hosts,)
    first_vm: I64  # (hosts,) head of the list of the host's VMs, NO_VM
    last_end_ns: I64  # (hosts,) latest expected end of its VMs, 0 without VMs
    group_vcpus: I64  # (groups,) largest free_vcpus of the group
    group_pages: I64  # (groups,) largest free_pages of the group
    broken_pages: I64  # (hosts,) gauge of the last barrier: free pages in blocks below order 9
    unusable: I64  # (hosts,) gauge: unusable index of order 9, 1/1000
    partial: I64  # (hosts,) gauge: partial pageblocks
    last_host: I64  # (1,) host of the VM placed last
    candidate: I64  # (hosts,) scratch: the hosts a policy chooses from
    nr_nodes: I64  # (hosts,) NUMA nodes
    node_vcpus: I64  # (hosts, MAX_NUMNODES) free vCPUs of each node, maybe below 0
    node_pages: I64  # (hosts, MAX_NUMNODES) free base pages of each node


class Pool(ByReference, _PoolArrays):
    """The pool as kernels take it, see `_PoolArrays`."""


class _RequestArrays(NamedTuple):
    """The VMs of a trace as the kernels see them."""

    start_ns: I64  # (vms,)
    end_ns: I64  # (vms,)
    expected_end_ns: I64  # (vms,) what the scheduler believes
    vcpus: I32  # (vms,)
    memory_pages: I64  # (vms,)
    draw: I64  # (vms,) a random number in [0, 2**63) each
    departures: I64  # (leaving,) VMs in order of (end_ns, vm)
    host_of: I32  # (vms,) host the VM runs on or NO_HOST
    next_vm: I64  # (vms,) list of the VMs of a host
    prev_vm: I64  # (vms,)
    home: I64  # (vms,) first node it runs on, and how many: nid * PARTS + nodes


class Requests(ByReference, _RequestArrays):
    """The VMs as kernels take them, see `_RequestArrays`."""


class Gauges(NamedTuple):
    """What a scheduler sees of the hosts' memory at a barrier."""

    broken_pages: I64  # (hosts,) free pages in blocks smaller than a huge page
    unusable: I64  # (hosts,) unusable index of order 9, 1/1000
    partial: I64  # (hosts,) partial pageblocks


def gauges_of(rows: I64) -> Gauges:
    """Return the gauges in the last row of each host.

    Parameters
    ----------
    rows : array
        Rows of the table ``hosts``, host after host, each host's in order of time.
    """
    host = rows[:, _COLUMN["host_id"]]
    last = rows[np.flatnonzero(np.append(host[1:] != host[:-1], True))]
    huge = last[:, _COLUMN["nr_free_order9"]] + 2 * last[:, _COLUMN["nr_free_order10"]]
    return Gauges(
        last[:, _COLUMN["nr_free_pages"]] - huge * HPAGE_PMD_NR,
        last[:, _COLUMN["unusable_index_order9"]],
        last[:, _COLUMN["pageblocks_partial"]],
    )


@inline_kernel
def fits(pool: Pool, host: int, vcpus: int, pages: int) -> bool:
    """Return whether a host has room for a VM."""
    return bool(pool.free_vcpus[host] >= vcpus and pool.free_pages[host] >= pages)


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
def link(pool: Pool, req: Requests, host: int, vm: int) -> None:
    """Add a VM to the list of its host."""
    head = pool.first_vm[host]
    req.next_vm[vm] = head
    req.prev_vm[vm] = NO_VM
    if head != NO_VM:
        req.prev_vm[head] = vm
    pool.first_vm[host] = vm
    pool.last_end_ns[host] = max(pool.last_end_ns[host], req.expected_end_ns[vm])


@kernel
def unlink(pool: Pool, req: Requests, host: int, vm: int) -> None:
    """Take a VM off the list of its host; look for the latest end only if it was this VM's."""
    after, before = req.next_vm[vm], req.prev_vm[vm]
    if before == NO_VM:
        pool.first_vm[host] = after
    else:
        req.next_vm[before] = after
    if after != NO_VM:
        req.prev_vm[after] = before
    if req.expected_end_ns[vm] == pool.last_end_ns[host]:
        latest = np.int64(0)
        other = pool.first_vm[host]
        while other != NO_VM:
            latest = max(latest, req.expected_end_ns[other])
            other = req.next_vm[other]
        pool.last_end_ns[host] = latest


@kernel
def choose_nodes(pool: Pool, host: int, vcpus: int, pages: int) -> tuple[int, int, bool]:
    """Return the node of a host, or the first of several, that a VM gets.

    Returns
    -------
    first, parts, fits
        The node, on how many the VM runs, and whether each has room for its part.
    """
    nr_nodes = pool.nr_nodes[host]
    capacity = pool.total_pages[host] // nr_nodes, pool.total_vcpus[host] // nr_nodes
    parts = nodes_needed(pages, vcpus, capacity[0], capacity[1], nr_nodes)
    need_vcpus = (vcpus + parts - 1) // parts
    need_pages = (pages + parts - 1) // parts
    best = 0
    best_fits = False
    best_left = -(1 << 62)
    for first in range(nr_nodes):
        fits = True
        left = 1 << 62
        for i in range(parts):
            nid = (first + i) % nr_nodes
            fits = fits and pool.node_vcpus[host, nid] >= need_vcpus
            left = min(left, pool.node_pages[host, nid])
        if is_better(fits, left, best_fits, best_left):
            best = first
            best_fits = fits
            best_left = left
    return best, parts, best_fits and best_left >= need_pages


@kernel
def _use_nodes(pool: Pool, req: Requests, host: int, vm: int, sign: int) -> None:
    """Take a VM's part of its nodes (sign 1), or give it back (-1)."""
    first = req.home[vm] // PARTS
    parts = req.home[vm] % PARTS
    for i in range(parts):
        nid = (first + i) % pool.nr_nodes[host]
        pool.node_vcpus[host, nid] -= sign * ((req.vcpus[vm] + parts - 1) // parts)
        pool.node_pages[host, nid] -= sign * ((req.memory_pages[vm] + parts - 1) // parts)


@kernel
def take(pool: Pool, req: Requests, host: int, vm: int) -> None:
    """Give a VM its room on a host."""
    pool.free_vcpus[host] -= req.vcpus[vm]
    pool.free_pages[host] -= req.memory_pages[vm]
    pool.nr_vms[host] += 1
    pool.last_host[0] = host
    req.host_of[vm] = host
    if pool.nr_nodes[host] > 1:
        first, parts, _ = choose_nodes(pool, host, int(req.vcpus[vm]), req.memory_pages[vm])
        req.home[vm] = first * PARTS + parts
        _use_nodes(pool, req, host, vm, 1)
    link(pool, req, host, vm)
    update_group(pool, host)


@kernel
def give_back(pool: Pool, req: Requests, vm: int) -> None:
    """Free the room of a VM that left its host."""
    host = int(req.host_of[vm])
    pool.free_vcpus[host] += req.vcpus[vm]
    pool.free_pages[host] += req.memory_pages[vm]
    pool.nr_vms[host] -= 1
    req.host_of[vm] = NO_HOST
    if pool.nr_nodes[host] > 1:
        _use_nodes(pool, req, host, vm, -1)
    unlink(pool, req, host, vm)
    update_group(pool, host)


@kernel
def rebuild(pool: Pool, req: Requests) -> None:
    """Recompute lists, latest ends, nodes and groups from free room and who runs where."""
    for host in range(pool.first_vm.size):
        pool.first_vm[host] = NO_VM
        pool.last_end_ns[host] = 0
        for nid in range(pool.nr_nodes[host]):
            pool.node_vcpus[host, nid] = pool.total_vcpus[host] // pool.nr_nodes[host]
            pool.node_pages[host, nid] = pool.total_pages[host] // pool.nr_nodes[host]
    for vm in range(req.host_of.size):
        if req.host_of[vm] != NO_HOST:
            host = int(req.host_of[vm])
            link(pool, req, host, vm)
            if pool.nr_nodes[host] > 1:
                _use_nodes(pool, req, host, vm, 1)
    for group in range(pool.group_vcpus.size):
        update_group(pool, group << GROUP_SHIFT)


@kernel
def reject_reason(pool: Pool, vcpus: int, pages: int) -> int:
    """Say why no host took a VM: too large even for an empty one, or no room now."""
    for host in range(pool.total_vcpus.size):
        if pool.total_vcpus[host] >= vcpus and pool.total_pages[host] >= pages:
            return NO_HOST_FITS
    return LARGER_THAN_ANY_HOST


def make_pool(total_vcpus: I64, total_pages: I64, nr_nodes: I64 | None = None) -> Pool:
    """Return an empty pool whose gauges tell of whole memory.

    Parameters
    ----------
    nr_nodes
        NUMA nodes of each host; None: one each.
    """
    nr_hosts = total_vcpus.size
    nodes = np.ones(nr_hosts, np.int64) if nr_nodes is None else nr_nodes.astype(np.int64)
    nr_groups = -(-nr_hosts // GROUP_HOSTS)
    pool: Pool = Pool(
        total_vcpus=total_vcpus.copy(),
        total_pages=total_pages.copy(),
        free_vcpus=total_vcpus.copy(),
        free_pages=total_pages.copy(),
        nr_vms=np.zeros(nr_hosts, np.int32),
        first_vm=np.full(nr_hosts, NO_VM, np.int64),
        last_end_ns=np.zeros(nr_hosts, np.int64),
        group_vcpus=np.zeros(nr_groups, np.int64),
        group_pages=np.zeros(nr_groups, np.int64),
        broken_pages=np.zeros(nr_hosts, np.int64),
        unusable=np.zeros(nr_hosts, np.int64),
        partial=np.zeros(nr_hosts, np.int64),
        last_host=np.zeros(1, np.int64),
        candidate=np.zeros(nr_hosts, np.int64),
        nr_nodes=nodes,
        node_vcpus=np.repeat((total_vcpus // nodes)[:, None], MAX_NUMNODES, axis=1),
        node_pages=np.repeat((total_pages // nodes)[:, None], MAX_NUMNODES, axis=1),
    )
    for host in range(0, nr_hosts, GROUP_HOSTS):
        update_group(pool, host)
    return pool
