import numpy as np
import pytest

from fleet.demand import arrivals, offered, open_demand
from fleet.sections import GIB_PAGES
from fleet.trace import NEVER, make_trace, write_trace
from hostsim.core.errors import ScenarioError
from hostsim.core.units import NS_PER_HOUR


def trace_of(rows, tmp_path):
    """Write a trace of (start hour, end hour or None, vcpus, GiB) rows; return its path."""
    start, end, vcpus, gib = zip(*rows, strict=True)
    flavours = tuple(dict.fromkeys(f"{c}c-{g}GiB" for c, g in zip(vcpus, gib, strict=True)))
    names = [f"{c}c-{g}GiB" for c, g in zip(vcpus, gib, strict=True)]
    trace = make_trace(
        np.array(start) * NS_PER_HOUR,
        np.array([NEVER if e is None else e * NS_PER_HOUR for e in end]),
        np.array(vcpus),
        np.array(gib) * GIB_PAGES,
        np.array([flavours.index(name) for name in names]),
        np.arange(len(rows)),
        flavours,
        24 * NS_PER_HOUR,
    )
    write_trace(trace, tmp_path / "t.parquet")
    return trace, f"vms.path={tmp_path / 't.parquet'}"


@pytest.fixture
def with_trace(small, tmp_path):
    def build(rows, *overrides):
        import tomllib

        from tiny import SMALL

        from fleet.loading import build

        raw = tomllib.loads(SMALL)
        raw["vms"] = {"source": "trace"}
        raw["placement"] = {}
        return build(raw, "t", "t.toml", [trace_of(rows, tmp_path)[1], *overrides])

    return build


def test_arrivals_are_those_that_run_within_the_duration(tmp_path):
    rows = [(-2, -1, 1, 1), (-2, 3, 1, 1), (0, 1, 1, 1), (1, None, 1, 1), (2, 3, 1, 1)]
    trace, _ = trace_of(rows, tmp_path)
    assert arrivals(trace, 2 * NS_PER_HOUR).tolist() == [False, True, True, True, False]


def test_flavour_larger_than_every_host_is_a_problem_naming_both(with_trace):
    scenario = with_trace([(0, 1, 8, 56), (0, 1, 1, 1), (0, 1, 8, 56)])
    with pytest.raises(ScenarioError) as caught:
        open_demand(scenario)
    (problem,) = caught.value.problems
    assert problem.place == "t.toml: hosts[0].memory"
    assert "32GiB with 30GiB for VMs is smaller than VM flavour 8c-56GiB (2 arrive)" in str(problem)


def test_flavour_with_too_many_vcpus_is_a_problem(with_trace):
    scenario = with_trace([(0, 1, 17, 1)])
    with pytest.raises(ScenarioError, match=r"hosts\[0\].vcpus: 16 with 16 .* 17c-1GiB"):
        open_demand(scenario)


def test_flavour_as_large_as_a_host_fits(with_trace):
    assert open_demand(with_trace([(0, 1, 16, 30)])).nr_vms == 1


def test_oversized_vms_may_be_rejected_on_demand_but_not_all(with_trace):
    reject = "placement.reject_oversized=true"
    assert open_demand(with_trace([(0, 1, 8, 56), (0, 1, 1, 1)], reject)).nr_vms == 2
    with pytest.raises(ScenarioError, match="8c-56GiB"):
        open_demand(with_trace([(0, 1, 8, 56)], reject))


def test_overcommit_widens_what_a_host_offers(with_trace):
    scenario = with_trace([(0, 1, 17, 1)], "placement.vcpu_overcommit=1.5")
    assert offered(scenario, scenario.groups[0]) == (24, 30 * GIB_PAGES)
    assert open_demand(scenario).nr_vms == 1


def test_missing_trace_is_a_problem(with_trace):
    scenario = with_trace([(0, 1, 1, 1)], "vms.path=nowhere.parquet")
    with pytest.raises(ScenarioError, match=r"nowhere\.parquet: no such file"):
        open_demand(scenario)


def test_trace_without_path_is_a_problem(with_trace):
    scenario = with_trace([(0, 1, 1, 1)], "vms.path=")
    with pytest.raises(ScenarioError, match=r"vms.path: is missing"):
        open_demand(scenario)


def test_no_arrivals_is_a_problem(with_trace):
    with pytest.raises(ScenarioError, match="no VM arrives"):
        open_demand(with_trace([(5, 6, 1, 1)]))


def test_vms_too_small_to_boot_are_a_problem_naming_the_smallest(with_trace):
    scenario = with_trace([(0, 1, 1, 1), (0, 1, 1, 1 / 32), (0, 1, 1, 1 / 64)])
    with pytest.raises(ScenarioError) as caught:
        open_demand(scenario)
    (problem,) = caught.value.problems
    assert "VM 2 has 16MiB, and 2 in all have less than the 64MiB a guest boots" in str(problem)


def test_overcommit_beyond_what_placement_counts_is_named(small):
    # 16 and 8 vCPUs times 10000 against 2**17
    with pytest.raises(ScenarioError) as error:
        open_demand(small("placement.vcpu_overcommit=10000"))
    text = str(error.value)
    assert "small.toml: hosts[0].vcpus: 16 times overcommit 10000 must be below 131072" in text
    assert "hosts[1]" not in text
