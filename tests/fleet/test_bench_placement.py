import numpy as np
import pytest

from fleet.bench_placement import FIRST_FIT, judge, measure
from fleet.bench_workload import churn_trace
from hostsim.core.units import NS_PER_DAY


@pytest.mark.parametrize("case", FIRST_FIT)
def test_first_fit_places_as_other_programs_do_and_the_sum_is_judged(case):
    found = measure(case)
    # printed by a heap-and-scan first fit in Python, numpy and numba
    sums = {10_000: 791_467, 30_000: 3_909_797, 100_000: 19_656_369}
    assert (found.host_sum, found.started) == (sums[case.nr_vms], case.nr_vms)
    assert found.rejected == 0

    def verdicts(case):
        return [claim.verdict for claim in judge(case, found)]

    assert verdicts(case._replace(bar=1)) == [True, True]
    assert verdicts(case._replace(bar=1, host_sum=case.host_sum - 1)) == [True, False]
    assert verdicts(case._replace(bar=1e12)) == [False, True]


@pytest.mark.parametrize(("hosts", "days"), [(1_000, 0.4), (10_000, 0.04)])
def test_more_hosts_get_the_same_vms_faster(hosts, days):
    trace = churn_trace(10_000, hosts)
    assert trace.start_ns[-1] / NS_PER_DAY == pytest.approx(days, rel=0.01)
    assert (np.diff(trace.start_ns) >= 0).all()
