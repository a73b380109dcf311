import numpy as np
import pytest

from fleet.bench_placement import CASES, churn_trace, measure
from hostsim.core.units import NS_PER_DAY


def test_first_fit_places_as_other_programs_do_and_the_sum_is_judged():
    case = next(case for case in CASES if case.policy == "first-fit")
    found = measure(case._replace(bar=1))
    # printed by a heap-and-scan first fit in Python, numpy and numba
    assert (found.host_sum, found.started, found.rejected) == (19_656_369, 100_000, 0)
    assert found.passes
    assert not measure(case._replace(bar=1, host_sum=19_656_368)).passes
    assert not measure(case._replace(bar=1e12)).passes


@pytest.mark.parametrize(("hosts", "days"), [(1_000, 0.4), (10_000, 0.04)])
def test_more_hosts_get_the_same_vms_faster(hosts, days):
    trace = churn_trace(10_000, hosts)
    assert trace.start_ns[-1] / NS_PER_DAY == pytest.approx(days, rel=0.01)
    assert (np.diff(trace.start_ns) >= 0).all()
