"""VMs of a snapshot: the first of a run, on their hosts, ended as standing VMs end."""

import numpy as np
import pytest

from fleet.captured import FLAVOUR, captured_hosts, captured_on, with_captured
from fleet.demand import make_placer, open_demand
from fleet.loading import build
from fleet.plan import Kind
from fleet.trace import NEVER, make_trace
from hostsim.core.errors import ScenarioError
from hostsim.core.units import NS_PER_HOUR

GIB = 1 << 18
ZONE = {
    "node": 0, "zone": "Normal", "managed": "16GiB", "per_cpu": "0KiB",
    "pageblocks": "100 8092 0 0", "movable": "0 0 0 0 0 0 0 0 0 0 2000",
}  # fmt: skip
VMS = [
    {"vcpus": 2, "memory": "4GiB", "rss": "3GiB", "huge": "2GiB"},
    {"vcpus": 16, "memory": "2GiB", "rss": "3GiB", "huge": "3GiB"},
]


def scenario_of(*vms, **more):
    """Return a host without a snapshot, then two with these VMs."""
    snapshot = {"source": "h", "vcpus": 8, "types_known": True, "zones": [ZONE], "vms": list(vms)}
    host = {"vcpus": 8, "memory": "16GiB", "count": 2, "snapshot": snapshot}
    host |= {"reserved": "9GiB"}
    empty = {"vcpus": 8, "memory": "16GiB"}
    raw = {"hosts": [empty, host], "placement": {"reject_oversized": True}, **more}
    return build({"vms": {"scale": 0.0005}, **raw}, "x", "x")


def test_vms_are_numbered_in_the_order_of_their_hosts():
    scenario = scenario_of(*VMS)
    assert captured_hosts(scenario).tolist() == [1, 1, 2, 2]
    found = captured_on(scenario, (0, 2))
    assert list(found[0]) == []
    assert list(found[1]) == [2, 3]
    assert found[1][2].huge_pages == 2 * GIB


def test_what_a_vm_has_is_no_more_than_it_was_given():
    vm = captured_on(scenario_of(*VMS), (1,))[0][1]
    assert (vm.rss_pages, vm.huge_pages) == (2 * GIB, 2 * GIB)


def test_memory_of_vms_is_not_reserved():
    """Of 16384 MiB 8000 are free, and 5120 the VMs'."""
    section = scenario_of(*VMS).document["hosts"][1]
    assert section["snapshot"]["vms"][0]["rss"] == "3GiB"
    with pytest.raises(ScenarioError, match="than what is in use in the snapshot h, 3264MiB"):
        scenario_of(*VMS, hosts=[{**section, "reserved": "3GiB"}])


def test_captured_vms_stand_before_the_demand_and_end_as_it_does():
    scenario = scenario_of(*VMS)
    trace = open_demand(scenario)
    assert trace.flavours[trace.flavour[0]] == FLAVOUR
    assert (trace.flavour[:4] == trace.flavour[0]).all()
    assert not (trace.flavour[4:] == trace.flavour[0]).any()
    assert trace.memory_pages[:4].tolist() == [4 * GIB, 2 * GIB, 4 * GIB, 2 * GIB]
    assert (trace.start_ns[:4] < trace.start_ns[4]).all()
    standing = trace.end_ns[4:][trace.start_ns[4:] < 0]
    assert np.isin(trace.end_ns[:4], standing).all()


def test_demand_without_standing_vms_lends_its_lifetimes():
    trace = open_demand(scenario_of(*VMS, vms={"scale": 0.0005, "standing": False}))
    assert (trace.end_ns[:4] > 0).all()
    assert (trace.end_ns[:4] < NEVER).all()
    assert (trace.start_ns[4:] >= 0).all()


def test_vms_stay_where_the_demand_says_nothing():
    scenario = scenario_of(*VMS, vms={"source": "trace", "path": "t.parquet"})
    one = np.ones(1, np.int64)
    own = make_trace(0 * one, 5 * one, one, one, 0 * one, one, ("a",), NS_PER_HOUR)
    assert with_captured(scenario, own).end_ns.tolist() == [NEVER] * 4 + [5]


def test_captured_vms_start_on_their_hosts_whatever_these_offer():
    """The second VM has more vCPUs than its host."""
    scenario = scenario_of(*VMS)
    placer = make_placer(scenario, open_demand(scenario))
    before = placer.state()
    plan = placer.epoch(0, NS_PER_HOUR)
    mine = plan.vm < 4
    assert plan.host_id[mine].tolist() == [1, 1, 2, 2]
    assert (plan.kind[mine][:4] == Kind.START).all()
    assert (plan.t_ns[mine] == 0).all()
    later = placer.epoch(NS_PER_HOUR, 2 * NS_PER_HOUR)
    assert not ((later.vm < 4) & (later.kind == Kind.START)).any()
    placer.restore(before)
    again = placer.epoch(0, NS_PER_HOUR)
    assert all((a == b).all() for a, b in zip(plan, again, strict=True))
    placer.restore(before)


def test_hosts_without_captured_vms_change_nothing():
    scenario = scenario_of()
    assert with_captured(scenario, own := open_demand(scenario)) is own
