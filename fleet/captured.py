"""VMs that ran on a host when it was captured: they run there at the start of a simulation.

They are the first VMs of a run, in the order of their hosts, so that their numbers need no table.

Simplified: how long they still run is not known. They end as VMs of the demand do that run at time
0, drawn at random; where the demand has none, they stay.
Simplified: they are as old as the oldest VM of the demand; what a guest does with the memory that
it has is drawn like any other's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.scenario import Scenario
from fleet.trace import NEVER, Trace, make_trace
from hostsim.core.rng import Stream, stream
from hostsim.core.units import NS_PER_DAY
from hostsim.mm.state_spec import VmSpec

FLAVOUR = "captured"


def captured_hosts(scenario: Scenario) -> NDArray[np.int64]:
    """Return the host of every captured VM: VM 0 is the first one of the first host."""
    counts = [len(spec.state.vms) if spec.state else 0 for spec in scenario.host_specs()]
    return np.repeat(np.arange(len(counts)), counts)


def captured_on(scenario: Scenario, host_ids: tuple[int, ...]) -> list[dict[int, VmSpec]]:
    """Return the captured VMs of some hosts by their number."""
    hosts, specs = captured_hosts(scenario), scenario.host_specs()
    found = []
    for host_id in host_ids:
        state = specs[host_id].state
        first = int(np.searchsorted(hosts, host_id))
        found.append(dict(enumerate(state.vms, first)) if state else {})
    return found


def with_captured(scenario: Scenario, trace: Trace) -> Trace:
    """Return a demand with the captured VMs before all others."""
    vms = [vm for spec in scenario.host_specs() if spec.state for vm in spec.state.vms]
    if not vms:
        return trace
    end_ns = _ends(scenario, trace, len(vms))
    before_ns = min(int(trace.start_ns.min(initial=0)), 0) - 1
    own: dict[str, NDArray[Any]] = {
        "start_ns": np.full(len(vms), before_ns, np.int64),
        "end_ns": end_ns,
        "vcpus": np.array([vm.vcpus for vm in vms], np.int32),
        "memory_pages": np.array([vm.memory_pages for vm in vms], np.int64),
        "flavour": np.full(len(vms), len(trace.flavours), np.int16),
        "batch_id": -1 - np.arange(len(vms)),
    }
    columns = {name: np.concatenate([own[name], getattr(trace, name)]) for name in own}
    flavours = (*trace.flavours, FLAVOUR)
    return make_trace(**columns, flavours=flavours, span_ns=trace.span_ns, source=trace.source)


def _ends(scenario: Scenario, trace: Trace, nr: int) -> NDArray[np.int64]:
    """Draw when VMs end that run at time 0."""
    standing = trace
    if scenario.vms.source == "azure-v1" and not scenario.vms.standing:
        from fleet.churn import generate_azure_v1

        standing = generate_azure_v1(scenario.seed, NS_PER_DAY, scenario.vms.scale, standing=True)
    ends = standing.end_ns[(standing.start_ns < 0) & (standing.end_ns > 0)]
    if not len(ends):
        return np.full(nr, NEVER, np.int64)
    drawn = stream(scenario.seed, Stream.CAPTURED).integers(0, len(ends), nr)
    return np.asarray(ends[drawn], np.int64)
