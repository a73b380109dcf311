"""The projection by hand: what is fixed, what grows, who waits for whom."""

import pytest

from fleet import bench_project
from fleet.bench_project import Cost, Seen, _Look, costs, lines, on_cluster, seen
from hostsim.core.stats import TABLES


def test_a_run_is_seen_between_the_first_quarter_and_the_last_look():
    looks = [
        _Look(1, [4.0, 5.0, 6.0], 1 << 30, 1.0),
        _Look(2, [5.0, 6.0, 7.0], 1 << 30, 2.0),
        _Look(6, [9.0, 10.0, 15.0], 3 << 30, 6.0),
    ]
    parts = [{"table": "hosts", "rows": 96, "bytes": 8000}]
    record = {"execution": {"barrier_cpu_s": 4.0}}
    found = seen(looks, record, parts, 30_000, hosts=10, hours=8)
    assert found.start_cpu_s == 15.0
    assert found.worker_cpu_s == 16.0 / 4
    assert found.uneven_ratio == 8.0 * 3 / 16.0
    assert found.driver_cpu_s == 1.0
    assert found.barrier_cpu_s == 0.5
    assert found.memory_bytes == 3 << 30
    assert found.result_bytes == 1000
    assert found.row_bytes == 12 * len(TABLES["hosts"]) * 8
    assert found.checkpoint_bytes == 30_000


def _seen(hosts, value):
    return Seen(hosts, *[value] * (len(Seen._fields) - 1))


def test_two_runs_tell_what_is_fixed_from_what_grows():
    found = costs(_seen(10, 30.0), _seen(40, 90.0))
    assert found["start_cpu_s"] == Cost(10.0, 2.0)
    assert found["start_cpu_s"].of(100) == 210.0
    # a line through zero where the fixed part would be negative
    assert costs(_seen(10, 10.0), _seen(40, 80.0))["start_cpu_s"] == Cost(0.0, 2.0)


def test_the_slowest_of_workers_and_driver_counts_and_all_wait_at_barriers(monkeypatch):
    monkeypatch.setattr(bench_project, "NETWORK_BYTES_PER_S", 1000.0)
    monkeypatch.setattr(bench_project, "STORE_BYTES_PER_S", 2000.0)
    cost = {
        "start_cpu_s": Cost(3.0, 0.6),  # a worker: 1 fixed
        "worker_cpu_s": Cost(0.0, 0.06),
        "driver_cpu_s": Cost(0.01, 0.001),
        "barrier_cpu_s": Cost(0.0, 0.0005),
        "memory_bytes": Cost(3 * (1 << 30), 1 << 30),
        "result_bytes": Cost(0.0, 1 << 20),
        "row_bytes": Cost(0.0, 10.0),
        "checkpoint_bytes": Cost(0.0, 100.0),
    }
    found = on_cluster(cost, 1.5, hosts=120, hours=49, machines=2, cores=16)
    # 30 workers of 4 hosts
    assert found.start_s == pytest.approx((1 + 0.6 * 4) * 1.5)
    assert found.compute_s == pytest.approx(0.06 * 4 * 1.5 * 49)
    assert found.driver_s == pytest.approx((0.01 + 0.0005 * 120) * 49)
    assert found.barrier_s == pytest.approx((0.0005 * 120 + 1.2) * 49)
    assert found.checkpoint_s == pytest.approx(2 * 120 * 100 / 2000)  # after 24 and 48 hours
    assert found.wall_s == pytest.approx(
        found.start_s + found.compute_s + found.barrier_s + found.checkpoint_s
    )
    assert found.bound_by == "barriers"
    assert found.gib_a_machine == pytest.approx((30 + 120) / 2)
    assert found.results_gib == pytest.approx(120 * 49 / 1024)
    cpu_s = 30 * (1 + 0.6 * 4) + 0.06 * 120 * 49 + 0.13 * 49
    assert found.cpu_hours == pytest.approx(cpu_s / 3600)
    runs = [_seen(3, 1.0), _seen(12, 2.0)]
    assert max(map(len, lines(runs, cost, 120, 49, [found]))) <= 100
