import numpy as np
import pytest

from fleet.pack import pack_trace
from fleet.trace import NEVER, make_trace
from hostsim.core.units import NS_PER_HOUR

GIB = 262144  # base pages


def trace_of(vms, span_h):
    """Build a trace of (start hour, end hour or None, vcpus)."""
    start, end, vcpus = zip(*vms, strict=True)
    n = len(vms)
    return make_trace(
        np.array([round(s * NS_PER_HOUR) for s in start]),
        np.array([NEVER if e is None else round(e * NS_PER_HOUR) for e in end]),
        np.array(vcpus),
        np.full(n, GIB),
        np.zeros(n, int),
        np.arange(n),
        ("any",),
        span_h * NS_PER_HOUR,
    )


def test_host_hours_count_hosts_with_a_vm_up_to_the_span():
    # host 0: hours 0..4 and 6..10, host 1: 1..3
    trace = trace_of([(-1, 4, 2), (1, 3, 2), (2, 2.5, 1), (6, None, 2)], 10)
    result = pack_trace(trace, "first-fit", 3, 64 * GIB)
    assert result.host_hours == pytest.approx(4 + 2 + 4)
    assert result.peak_hosts == 2
    assert result.started == 4
    assert result.bound_host_hours == pytest.approx((8 + 4 + 0.5 + 8) / 3)


def test_bound_is_that_of_the_scarcer_resource():
    trace = trace_of([(0, None, 1)] * 4, 10)
    assert pack_trace(trace, "first-fit", 8, 2 * GIB).bound_host_hours == pytest.approx(20)
    assert pack_trace(trace, "first-fit", 2, 8 * GIB).bound_host_hours == pytest.approx(20)


@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_pool_of_given_size_rejects_what_does_not_fit(hosts):
    trace = trace_of([(0, 1, 3), (0, 1, 3), (0.5, 2, 9)], 10)
    result = pack_trace(trace, "best-fit", 4, 64 * GIB, nr_hosts=hosts)
    assert result.nr_hosts == hosts
    assert result.started == min(hosts, 2)
    assert (result.rejected, result.larger_than_any_host) == (3 - min(hosts, 2), 1)
    assert result.empty_ratio == pytest.approx(1 - min(hosts, 2) / (10 * hosts))


def test_unlimited_pool_grows_until_all_that_fit_an_empty_host_are_placed():
    # 3 of 4 vCPUs each: the demand fits in three quarters of the hosts that are needed
    trace = trace_of([(0, 1, 3)] * 400 + [(0, 1, 5)], 10)
    result = pack_trace(trace, "first-fit", 4, 1024 * GIB)
    assert (result.started, result.rejected, result.larger_than_any_host) == (400, 1, 1)
    assert result.peak_hosts == 400


def test_empty_trace_packs_to_nothing():
    none = np.zeros(0, np.int64)
    empty = make_trace(none, none, none, none, none, none, (), NS_PER_HOUR)
    result = pack_trace(empty, "first-fit", 4, GIB)
    assert (result.started, result.host_hours, result.peak_hosts) == (0, 0.0, 0)
