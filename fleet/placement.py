"""Placement: which host a VM starts on, decided epoch by epoch in event order.

Requested sizes count, not what a VM has touched; overcommit scales what a host offers.  The pool is
in ``fleet.pool``, the policies in ``fleet.policies``.
"""

from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fleet.plan import EpochPlan, Kind, PlanBuffer, plan_buffer, plan_of, with_starts
from fleet.policies import READ_GAUGES, Ask, Policy, choose_host, find_policy
from fleet.pool import (
    MAX_PAGES,
    MAX_VCPUS,
    NO_HOST,
    NO_VM,
    Gauges,
    Pool,
    Requests,
    give_back,
    make_pool,
    rebuild,
    reject_reason,
    take,
)
from fleet.trace import NEVER, Trace
from hostsim.core.jit import kernel
from hostsim.core.rng import Stream, stream

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


_STOP = int(Kind.STOP)
_START = int(Kind.START)
MAX_CHOICES = 4  # a draw of 63 bits serves so many choices among 10,000 hosts
MAX_LIFETIME_ERROR = 10.0
CLOSED_VCPUS = 1 << 40  # that a closed host owes: it fits no VM
LATEST_NS = float(1 << 62)  # of predicted ends: 146 years


class Tuning(NamedTuple):
    """What some policies take besides the pool."""

    seed: int = 0  # of the random numbers of VMs
    choices: int = 2  # hosts that power-of-k looks at
    lifetime_error: float = 1.0  # of predicted lifetimes: standard deviation of their log


DEFAULT_TUNING = Tuning()
NOT_PINNED: I64 = np.zeros(0, np.int64)


@kernel
def depart_until(
    pool: Pool, req: Requests, out: PlanBuffer, counts: I64, next_departure: int, last_ns: int
) -> int:
    """Process departures at or before a time; return the place of the next one.

    VMs that were turned away, never placed or killed hold no host and are passed over.
    """
    while next_departure < req.departures.size:
        vm = req.departures[next_departure]
        if req.end_ns[vm] > last_ns:
            break
        next_departure += 1
        host = req.host_of[vm]
        if host == NO_HOST:
            continue
        give_back(pool, req, vm)
        at = counts[0]
        out.t_ns[at] = req.end_ns[vm]
        out.host_id[at] = host
        out.kind[at] = _STOP
        out.vm[at] = vm
        counts[0] = at + 1
    return next_departure


@kernel
def place_epoch(
    policy: int,
    choices: int,
    pool: Pool,
    req: Requests,
    out: PlanBuffer,
    counts: I64,
    first_vm: int,
    last_vm: int,
    next_departure: int,
    t0_ns: int,
    t1_ns: int,
) -> int:
    """Place VMs ``first_vm .. last_vm - 1`` and process departures before ``t1_ns``.

    Departures at or before a start go first.  A VM that started before ``t0_ns`` starts at
    ``t0_ns``; one that ended by then never runs.

    Parameters
    ----------
    counts : array
        Out: number of commands, number of rejections.

    Returns
    -------
    int
        Place of the next departure.
    """
    counts[0] = 0
    counts[1] = 0
    for vm in range(first_vm, last_vm):
        now_ns = max(req.start_ns[vm], t0_ns)
        if req.end_ns[vm] <= now_ns:
            continue
        next_departure = depart_until(pool, req, out, counts, next_departure, now_ns)
        vcpus = int(req.vcpus[vm])
        pages = req.memory_pages[vm]
        ask = Ask(vcpus, pages, req.expected_end_ns[vm], now_ns, req.draw[vm])
        host = choose_host(policy, choices, pool, ask)
        if host == NO_HOST:
            at = counts[1]
            out.rejected[at] = vm
            out.rejected_t_ns[at] = now_ns
            out.reject_reason[at] = reject_reason(pool, vcpus, pages)
            counts[1] = at + 1
            continue
        take(pool, req, host, vm)
        at = counts[0]
        out.t_ns[at] = now_ns
        out.host_id[at] = host
        out.kind[at] = _START
        out.vm[at] = vm
        counts[0] = at + 1
    return depart_until(pool, req, out, counts, next_departure, t1_ns - 1)


def check_overcommit(vcpu_overcommit: float, memory_overcommit: float) -> None:
    """Check that a pool offers something.

    Raises
    ------
    ValueError
        An overcommit is not above 0.
    """
    if not (vcpu_overcommit > 0 and memory_overcommit > 0):
        raise ValueError(f"overcommit {vcpu_overcommit}, {memory_overcommit} must be above 0")


def check_tuning(tuning: Tuning) -> None:
    """Check the numbers that policies take.

    Raises
    ------
    ValueError
        One is out of its range.
    """
    if not 1 <= tuning.choices <= MAX_CHOICES:
        raise ValueError(f"choices {tuning.choices} must be 1 to {MAX_CHOICES}")
    if not 0 <= tuning.lifetime_error <= MAX_LIFETIME_ERROR:
        raise ValueError(
            f"lifetime error {tuning.lifetime_error} must be 0 to {MAX_LIFETIME_ERROR:g}"
        )


def expected_ends(trace: Trace, tuning: Tuning) -> I64:
    """Predict when VMs end: their lifetime times a log-normal error of median 1.

    A VM that never ends is known to.  Row by row from one stream: a VM's error is the same
    whatever the epochs.
    """
    normal = stream(tuning.seed, Stream.LIFETIME_ERROR).standard_normal(trace.nr_vms)
    ends = trace.end_ns != NEVER
    lived_ns = np.where(ends, trace.end_ns, 0).astype(np.float64) - trace.start_ns
    end_ns = trace.start_ns + lived_ns * np.exp(tuning.lifetime_error * normal)
    expected = np.where(ends, np.minimum(end_ns, LATEST_NS), 0.0).astype(np.int64)
    return np.where(ends, expected, NEVER)


def _offered(capacity: NDArray[Any], overcommit: float, limit: int) -> I64:
    """Return what a capacity offers under overcommit, rounded down.

    Raises
    ------
    ValueError
        It is more than scores have bits for.
    """
    offered = np.floor(capacity.astype(np.float64) * overcommit)
    if offered.max(initial=0) >= limit:
        raise ValueError(f"a host offers {offered.max():g}, it must be below {limit}")
    return offered.astype(np.int64)


class Placer:
    """Places a trace on a pool, one epoch after the other.

    Parameters
    ----------
    trace : Trace
        Who arrives when.
    host_vcpus, host_pages : arrays
        vCPUs and base pages of every host.
    policy : str
        A key of POLICIES.
    vcpu_overcommit, memory_overcommit : float
        What a host offers is its capacity times this, rounded down.
    tuning : Tuning
        What some policies take besides.
    host_nodes : array
        NUMA nodes of every host; None: one each.
    pinned : array
        Hosts of the first VMs, which run there at the start whatever the host offers.

    Raises
    ------
    ValueError
        Unknown policy, no hosts, arrays of different length, or a number out of its range.
    """

    def __init__(
        self,
        trace: Trace,
        host_vcpus: I32,
        host_pages: I64,
        policy: str,
        vcpu_overcommit: float = 1.0,
        memory_overcommit: float = 1.0,
        tuning: Tuning = DEFAULT_TUNING,
        host_nodes: I64 | None = None,
        pinned: I64 = NOT_PINNED,
    ) -> None:
        self._policy = find_policy(policy)
        if host_vcpus.size == 0 or host_vcpus.size != host_pages.size:
            raise ValueError(
                f"{host_vcpus.size} host_vcpus and {host_pages.size} host_pages: "
                "both must hold one number per host"
            )
        check_overcommit(vcpu_overcommit, memory_overcommit)
        check_tuning(tuning)
        self.trace = trace
        self._choices, self._pinned = tuning.choices, pinned
        self.pool = make_pool(
            _offered(host_vcpus, vcpu_overcommit, MAX_VCPUS),
            _offered(host_pages, memory_overcommit, MAX_PAGES),
            host_nodes,
        )
        leaving = np.flatnonzero(trace.end_ns != NEVER)
        departures = leaving[np.argsort(trace.end_ns[leaving], kind="stable")]
        predicted = self._policy == Policy.LIFETIME_PREDICTED
        self._req = Requests(
            start_ns=trace.start_ns,
            end_ns=trace.end_ns,
            expected_end_ns=expected_ends(trace, tuning) if predicted else trace.end_ns,
            vcpus=trace.vcpus,
            memory_pages=trace.memory_pages,
            draw=stream(tuning.seed, Stream.PLACEMENT).integers(0, NEVER, trace.nr_vms),
            departures=departures.astype(np.int64),
            host_of=np.full(trace.nr_vms, NO_HOST, np.int32),
            next_vm=np.full(trace.nr_vms, NO_VM, np.int64),
            prev_vm=np.full(trace.nr_vms, NO_VM, np.int64),
            home=np.zeros(trace.nr_vms, np.int64),
        )
        self._departure_ns = trace.end_ns[departures]
        self.closed: NDArray[np.bool_] = np.zeros(host_vcpus.size, np.bool_)
        self._next = np.zeros(3, np.int64)  # next VM, next departure, 1 once an epoch is planned
        self._t_ns = 0  # end of the last epoch

    @property
    def host_of(self) -> I32:
        """Host of every VM, NO_HOST where it does not run (a view: do not write)."""
        return cast(I32, self._req.host_of)

    @property
    def reads_gauges(self) -> bool:
        """Whether the policy looks at the gauges of the last barrier."""
        return self._policy in READ_GAUGES

    def observe(self, gauges: Gauges) -> None:
        """Take the gauges of a barrier: the coming epochs are placed by them."""
        self.pool.broken_pages[:] = gauges.broken_pages
        self.pool.unusable[:] = gauges.unusable
        self.pool.partial[:] = gauges.partial

    def epoch(self, t0_ns: int, t1_ns: int) -> EpochPlan:
        """Place all arrivals in ``[t0_ns, t1_ns)`` in event order.

        The first call also places, in VM order at ``t0_ns``, what started before and still
        runs.  Departures at ``t1_ns`` belong to the next epoch.

        Raises
        ------
        ValueError
            The epoch is empty or does not follow the one before.
        """
        if t1_ns <= t0_ns:
            raise ValueError(f"epoch [{t0_ns}, {t1_ns}) ns is empty")
        if self._next[2] and t0_ns != self._t_ns:
            raise ValueError(f"epoch starts at {t0_ns} ns, the last one ended at {self._t_ns} ns")
        pinned = NOT_PINNED if self._next[2] else self._pinned
        for vm, host in enumerate(pinned):
            self.put(vm, int(host))
        first_vm, next_departure = max(int(self._next[0]), len(pinned)), int(self._next[1])
        last_vm = int(np.searchsorted(self._req.start_ns, t1_ns, "left"))
        last_departure = int(np.searchsorted(self._departure_ns, t1_ns, "left"))
        out = plan_buffer(last_vm - first_vm, last_departure - next_departure)
        counts = np.zeros(2, np.int64)
        self._next[1] = place_epoch(
            int(self._policy),
            self._choices,
            self.pool,
            self._req,
            out,
            counts,
            first_vm,
            last_vm,
            next_departure,
            t0_ns,
            t1_ns,
        )
        self._next[0] = last_vm
        self._next[2] = 1
        self._t_ns = t1_ns
        plan = plan_of(out, int(counts[0]), int(counts[1]))
        return plan if not len(pinned) else with_starts(plan, pinned, t0_ns)

    def kill(self, vms: I64) -> None:
        """Free the room of VMs that died and drop their departures.

        A VM whose departure was already planned has left; it is passed over.
        """
        for vm in np.unique(vms):
            if self._req.host_of[vm] != NO_HOST:
                give_back(self.pool, self._req, int(vm))

    def vms_on(self, host: int) -> I64:
        """Return the VMs of a host, ascending."""
        return np.flatnonzero(self._req.host_of == host)

    def close(self, closed: NDArray[np.bool_]) -> None:
        """Say which hosts take no VMs from now on; those on them stay."""
        change = closed.astype(np.int64) - self.closed
        self.pool.free_vcpus[:] -= change * CLOSED_VCPUS
        self.closed = closed.copy()
        rebuild(self.pool, self._req)

    def choose(self, vm: int, t_ns: int, policy: Policy | None = None) -> int:
        """Return the host that a VM would get, or NO_HOST."""
        req = self._req
        ask = Ask(
            int(req.vcpus[vm]),
            int(req.memory_pages[vm]),
            int(req.expected_end_ns[vm]),
            t_ns,
            int(req.draw[vm]),
        )
        chosen = self._policy if policy is None else policy
        return int(choose_host(int(chosen), self._choices, self.pool, ask))

    def put(self, vm: int, host: int) -> None:
        """Place a VM on a host, from wherever it is."""
        if self._req.host_of[vm] != NO_HOST:
            give_back(self.pool, self._req, vm)
        take(self.pool, self._req, host, vm)

    def state(self) -> dict[str, NDArray[Any]]:
        """Return all that changes, as arrays, for a checkpoint."""
        return {
            "free_vcpus": self.pool.free_vcpus.copy(),
            "free_pages": self.pool.free_pages.copy(),
            "nr_vms": self.pool.nr_vms.copy(),
            "host_of": self._req.host_of.copy(),
            "home": self._req.home.copy(),
            "last_host": self.pool.last_host.copy(),
            "broken_pages": self.pool.broken_pages.copy(),
            "unusable": self.pool.unusable.copy(),
            "partial": self.pool.partial.copy(),
            "closed": self.closed.copy(),
            "next": np.append(self._next, np.int64(self._t_ns)),
        }

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take up a state that :meth:`state` returned, on the same trace and pool.

        Raises
        ------
        ValueError
            The state is of another number of hosts or VMs.
        """
        if (
            state["free_vcpus"].shape != self.pool.free_vcpus.shape
            or state["host_of"].shape != self._req.host_of.shape
        ):
            raise ValueError(
                f"state of {state['free_vcpus'].size} hosts and {state['host_of'].size} VMs, "
                f"expected {self.pool.free_vcpus.size} and {self._req.host_of.size}"
            )
        for name in ("free_vcpus", "free_pages", "nr_vms", "last_host"):
            getattr(self.pool, name)[:] = state[name]
        self.observe(Gauges(*(state[name] for name in Gauges._fields)))
        self._req.host_of[:] = state["host_of"]
        self._req.home[:] = state["home"]
        self.closed = state["closed"].copy()
        self._next[:] = state["next"][:3]
        self._t_ns = int(state["next"][3])
        rebuild(self.pool, self._req)
