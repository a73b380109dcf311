"""The plan of an epoch: what hosts are told to do, and who was turned away.

Placement's kernels write it into a `PlanBuffer` in the order of events; hosts get theirs sorted.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.byref import ByReference

I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


class Kind(IntEnum):
    """What a command of a plan does; those of one time and host sort in this order."""

    STOP = 0
    START = 1
    RESTART = 2  # of a VM that was killed
    REBOOT = 3  # with whatever runs on the host
    REBOOT_EMPTY = 4


class _PlanArrays(NamedTuple):
    """Where the kernel writes the commands and rejections of one epoch, in event order."""

    t_ns: I64
    host_id: I32
    kind: I8
    vm: I64
    rejected: I64
    rejected_t_ns: I64
    reject_reason: I8


class PlanBuffer(ByReference, _PlanArrays):
    """The buffer as kernels take it, see `_PlanArrays`."""


class EpochPlan(NamedTuple):
    """Commands of one epoch, sorted by (host_id, t_ns, stop before start, vm)."""

    t_ns: I64
    host_id: I32
    kind: I8  # Kind
    vm: I64  # row of the trace
    rejected: I64  # VMs that were turned away, in event order
    rejected_t_ns: I64
    reject_reason: I8  # index into hostsim.core.stats.REASON_NAMES


def plan_buffer(nr_arrivals: int, nr_departures: int) -> PlanBuffer:
    """Return room for the commands of one epoch."""
    nr_commands = nr_arrivals + nr_departures
    buffer: PlanBuffer = PlanBuffer(
        np.empty(nr_commands, np.int64),
        np.empty(nr_commands, np.int32),
        np.empty(nr_commands, np.int8),
        np.empty(nr_commands, np.int64),
        np.empty(nr_arrivals, np.int64),
        np.empty(nr_arrivals, np.int64),
        np.empty(nr_arrivals, np.int8),
    )
    return buffer


def plan_of(out: PlanBuffer, nr_commands: int, nr_rejected: int) -> EpochPlan:
    """Return what a kernel has planned, in the order of the hosts."""
    return sorted_plan(
        EpochPlan(
            out.t_ns[:nr_commands],
            out.host_id[:nr_commands],
            out.kind[:nr_commands],
            out.vm[:nr_commands],
            out.rejected[:nr_rejected].copy(),
            out.rejected_t_ns[:nr_rejected].copy(),
            out.reject_reason[:nr_rejected].copy(),
        )
    )


def with_starts(plan: EpochPlan, hosts: I64, t_ns: int) -> EpochPlan:
    """Return a plan in which the first VMs start on their hosts."""
    nr = len(hosts)
    return sorted_plan(
        plan._replace(
            t_ns=np.concatenate([np.full(nr, t_ns, np.int64), plan.t_ns]),
            host_id=np.concatenate([hosts.astype(np.int32), plan.host_id]),
            kind=np.concatenate([np.full(nr, int(Kind.START), np.int8), plan.kind]),
            vm=np.concatenate([np.arange(nr), plan.vm]),
        )
    )


def sorted_plan(plan: EpochPlan) -> EpochPlan:
    """Order the commands of an epoch for its hosts; rejections keep event order."""
    order = np.lexsort((plan.vm, plan.kind, plan.t_ns, plan.host_id))
    return plan._replace(
        t_ns=plan.t_ns[order],
        host_id=plan.host_id[order],
        kind=plan.kind[order],
        vm=plan.vm[order],
    )


def empty_plan() -> EpochPlan:
    """Return the plan of an epoch in which nothing happens."""
    return plan_of(plan_buffer(0, 0), 0, 0)
