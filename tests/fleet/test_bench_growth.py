import numpy as np
import pytest

from fleet.bench_growth import HOST_GIB, _plan, judge, measure_growth, measure_sizes
from fleet.loading import load
from fleet.node import START, STOP
from fleet.scheduler import Options

SMALL = ["hosts.memory=64GiB", "run.duration=2h", "run.epoch_ticks=6", "vms.scale=0.0002"]


def test_growth_has_a_row_for_every_size():
    scenarios = [load("churn", [*SMALL, f"hosts.count={n}"]) for n in (1, 2)]
    rows = measure_growth(scenarios, Options(inline=True, checkpoint_epochs=0))
    assert [row["hosts"] for row in rows] == [1, 2]
    assert all(row["peak_mib_per_host"] > 0 for row in rows)
    assert all(row["steady_cpu_ms_per_host_hour"] >= 0 for row in rows)


def _row(hosts, cpu, mib):
    return {"hosts": hosts, "steady_cpu_ms_per_host_hour": cpu, "peak_mib_per_host": mib}


def test_growth_is_judged_by_ratio_total_and_slope():
    base = [_row(10, 10.0, 50.0), _row(100, 10.0, 10.0), _row(1000, 11.9, 6.0)]
    cpu, mib, slope = judge(base)
    assert cpu.value == pytest.approx(1.19)
    assert cpu.verdict
    assert mib.verdict
    # 500 and 1,000 MiB: 5.56 a further host; 1,000 and 6,000: 5.56
    assert slope.value == pytest.approx(1.0)
    base[-1] = _row(1000, 12.1, 7.1)
    assert [claim.verdict for claim in judge(base)] == [False, False, False]
    assert len(judge(base[:2])) == 2


def test_every_vm_starts_once_and_is_replaced_after_an_hour():
    plans = _plan(0, 5, 2)
    started, ended = [], []
    for plan in plans:
        assert (np.diff(plan.t_ns) >= 0).all()
        started += plan.vm_id[plan.kind == START].tolist()
        ended += plan.vm_id[plan.kind == STOP].tolist()
    assert sorted(started) == list(range(15))
    assert sorted(ended) == list(range(10))


def test_sizes_of_hosts_are_compared_at_the_same_memory():
    found = measure_sizes(1, HOST_GIB[0])
    assert list(found) == [HOST_GIB[0]]
    assert found[HOST_GIB[0]] > 0
