"""Benches of speed at tiny sizes: what they count and how they judge, never how long they take."""

import pytest

from fleet import (
    bench_boot,
    bench_buddy,
    bench_churn,
    bench_day,
    bench_ray,
    bench_results,
    bench_trace,
)
from fleet.bench_runs import measured_run
from fleet.loading import load
from fleet.scheduler import Options
from guestsim.spec import NO_GUEST_KERNEL

SMALL = [
    "hosts.count=2",
    "hosts.memory=16GiB",
    "hosts.reserved=2GiB",
    "hosts.slab.base=256MiB",
    "run.duration=2h",
    "run.epoch_ticks=6",
    "vms.scale=0.0002",
    "mmu.enabled=false",
]


def test_every_vm_of_the_trace_is_where_others_put_it():
    """The first 60 VMs of the published trace on 40 of its hosts: first fit by hand."""
    options = Options(inline=True, checkpoint_epochs=0)
    found = bench_trace.simulate(60, 40, options, 100_000, "mmu.enabled=false")
    trace = bench_trace.first_vms(bench_trace.churn_trace(100_000, 40), 60)
    free = [[bench_trace.HOST_VCPUS, bench_trace.HOST_PAGES] for _ in range(40)]
    leaving, host_sum = [], 0
    rows = zip(trace.start_ns, trace.end_ns, trace.vcpus, trace.memory_pages, strict=True)
    for start_ns, end_ns, vcpus, pages in rows:
        for gone in [vm for vm in leaving if vm[0] <= start_ns]:
            free[gone[1]][0] += gone[2]
            free[gone[1]][1] += gone[3]
            leaving.remove(gone)
        host = next(h for h, (v, p) in enumerate(free) if v >= vcpus and p >= pages)
        free[host][0] -= vcpus
        free[host][1] -= pages
        leaving.append((end_ns, host, vcpus, pages))
        host_sum += host
    assert found.host_sum == host_sum
    assert found.all_accounted_for
    assert (found.started, found.rejected, found.killed) == (60, 0, 0)
    wall, where = bench_trace.judge(found._replace(wall_s=60.0))
    assert wall.verdict
    assert where.verdict
    assert not bench_trace.judge(found._replace(wall_s=60.1))[0].verdict
    assert not bench_trace.judge(found._replace(running=found.running - 1))[1].verdict
    assert not bench_trace.judge(found._replace(started=59))[1].verdict
    whole = found._replace(vms=100_000, host_sum=19_656_369)
    assert bench_trace.judge(whole)[2].verdict
    assert not bench_trace.judge(whole._replace(host_sum=19_656_370))[2].verdict


@pytest.mark.parametrize("case", bench_buddy.CASES)
def test_blocks_are_exchanged_one_by_one_and_all_come_back(case):
    found = bench_buddy.measure(case._replace(batch=32, rounds=3), 3 << 18)
    assert found.operations == 2 * 3 * 32
    assert 0.85 < (found.held << case.order) / (3 << 18) < 0.9
    assert bench_buddy.judge(case, found._replace(rate=case.bar)).verdict
    assert not bench_buddy.judge(case, found._replace(rate=0.99 * case.bar)).verdict


@pytest.mark.parametrize("case", bench_boot.CASES)
def test_a_boot_backs_all_of_the_vm_and_its_exit_leaves_nothing(case):
    pages = 2 << 18
    found = bench_boot.measure(case, pages, runs=1)
    tables = pages // 512 if case.thp == "never" else 1  # window 0 has small leaves on a PC
    assert tables <= found.ept_pages <= tables + 12  # upper levels
    assert bench_boot.judge(case, found._replace(total_ms=case.bar_ms), "16GiB").verdict
    assert not bench_boot.judge(case, found._replace(total_ms=1.01 * case.bar_ms), "x").verdict


def test_a_run_is_measured_behind_its_beginning():
    found = measured_run(load("churn", SMALL), Options(inline=True, checkpoint_epochs=0))
    assert found.steady_host_hours == pytest.approx(2 * 2 * 0.75)
    assert found.record["execution"]["host_hours"] == 4
    assert found.steady_cpu_s <= found.cpu_s + 0.1
    assert found.peak_bytes > 1 << 26


def test_variants_of_churn_can_be_run_and_switch_off_more_and_more():
    overrides = list(SMALL)
    scenarios = []
    for variant in bench_churn.VARIANTS:
        overrides += variant.overrides
        scenarios.append(load("churn", overrides))
    bars = [variant.bar for variant in bench_churn.VARIANTS]
    assert bars == [None, 400, None, None, 4000, 400, 4000]
    daemons, no_daemons = scenarios[-2:]
    for scenario, base in ((daemons, load("churn", SMALL)), (no_daemons, scenarios[4])):
        assert scenario.guests.kernel == NO_GUEST_KERNEL
        (spec,), (usual,) = scenario.host_specs()[:1], base.host_specs()[:1]
        assert (spec.settings, spec.slab) == (usual.settings, usual.slab)  # as in the scenario, off


def test_all_values_are_written():
    scenario = load("churn", SMALL)
    tables = bench_results.tables_of(scenario)
    found = bench_results.measure(scenario, tables)
    assert found.rows["hosts"] == 2 * 24
    assert found.values == sum(rows.size for epoch in tables for rows in epoch.values())
    assert found.file_bytes > 1000
    exact = found._replace(cpu_s=found.values / 20e6, file_bytes=int(2.5 * found.values))
    assert [claim.verdict for claim in bench_results.judge(exact)] == [True, True]
    slow = exact._replace(cpu_s=1.01 * exact.cpu_s, file_bytes=exact.file_bytes + 2)
    assert [claim.verdict for claim in bench_results.judge(slow)] == [False, False]


def test_waiting_is_what_the_slowest_shard_and_the_driver_leave():
    timer = bench_ray._Timer()
    for epoch in range(4):
        timer.submitted()
        timer.collected([1.0, 2.0], 4.0 * epoch, 0.1 * epoch)
    timer.between_s = [0.5] * 4
    found = timer.measured(0.0)
    assert found.shards_s == 9.0  # the first epoch is the beginning
    assert found.slowest_s == 6.0
    assert found.own_s == pytest.approx(0.3)
    assert found.all_s == 12.0
    assert found.idle_ratio == pytest.approx(1 - 4.5 / 7.5)


def test_shards_of_an_inline_run_are_timed():
    found = bench_ray.measure(load("churn", SMALL), bench_ray._Inline)
    assert 0 < found.shards_s <= found.all_s
    assert found.own_s == 0.0
    base = found._replace(shards_s=10.0, slowest_s=5.0, between_s=0.0, own_s=0.5, all_s=10.0)
    worse = base._replace(shards_s=11.1, slowest_s=6.0, between_s=0.3, own_s=0.51)
    assert [c.verdict for c in bench_ray.judge([base] * 3, [base] * 3)] == [True] * 3
    assert [c.verdict for c in bench_ray.judge([base] * 3, [worse] * 3)] == [False] * 3


def test_a_day_is_held_against_its_bars_when_it_is_whole():
    found = bench_day.day(2, 2, 0)
    assert [claim.verdict for claim in found.claims] == [True]
    assert 0 <= found.details["worst_host"]["host_id"] < 2
    summary = found.details["summary"]
    run = bench_day.Measured({"execution": {"wall_s": 120.0}}, 1.0, 1.0, 1.0, 1)
    run.record["execution"] |= {"cpu_s": 200.0, "peak_memory_bytes": 8 << 30}
    summary["at_end"]["free_memory_ratio"]["mean"] = 0.3
    assert all(claim.verdict for claim in bench_day.judge(run, summary, 1000, 24))
    run.record["execution"] |= {"cpu_s": 200.1, "wall_s": 120.1, "peak_memory_bytes": (8 << 30) + 1}
    summary["at_end"]["free_memory_ratio"]["mean"] = 0.1
    summary["vms"]["running"] += 1
    assert not any(claim.verdict for claim in bench_day.judge(run, summary, 1000, 24))
