"""Failures, maintenance, rebalancing, defragmentation and restarts, on nodes that keep books."""

import numpy as np
import pytest
from fakenode import FakeNode

from fleet import scheduler
from fleet.operations import Gauges, Operations, failures
from fleet.placement import Placer
from fleet.pool import NO_HOST
from fleet.sections import GIB_PAGES
from fleet.shard import InlineBackend
from fleet.sql import query
from fleet.summary import summarise
from fleet.trace import NEVER, make_trace
from hostsim.core.errors import ScenarioError
from hostsim.core.stats import REASON_NAMES
from hostsim.core.units import NS_PER_DAY, NS_PER_HOUR, NS_PER_MIN

MAINTAINED = (
    "run.duration=6h",
    "maintenance=[{first_host = 0, hosts = 2, start = '1h', duration = '2h'}]",
)
ROOMY = ("vms.scale=0.00008",)  # two of five hosts are in use


class Healthy(FakeNode):
    """Kills nothing."""

    kill_every = 0


class Deadly(FakeNode):
    """Kills every third VM."""

    kill_every = 3


def events(out, what):
    sql = f"SELECT t_ns, host_id, vm_id, reason FROM events WHERE event = '{what}'"
    return query(out, sql).sort("t_ns", "host_id", "vm_id").rows()


def hours(rows):
    return sorted({t_ns / NS_PER_HOUR for t_ns, *_ in rows})


def test_hosts_under_maintenance_are_empty_and_take_no_vm(run_small):
    out = run_small("r", [*MAINTAINED, *ROOMY], Healthy)
    down, up = events(out, "host_down"), events(out, "host_up")
    assert [(t // NS_PER_HOUR, host, reason) for t, host, _, reason in down] == [
        (1, 0, "maintenance"),
        (1, 1, "maintenance"),
    ]
    assert [(t // NS_PER_HOUR, host) for t, host, *_ in up] == [(3, 0), (3, 1)]
    sql = f"""SELECT MAX(nr_vms) FROM hosts WHERE host_id IN (0, 1)
              AND t_ns > {NS_PER_HOUR} AND t_ns <= {3 * NS_PER_HOUR}"""
    assert query(out, sql).item() == 0


def test_every_vm_that_leaves_a_host_arrives_at_another(run_small):
    out = run_small("r", [*MAINTAINED, *ROOMY], Healthy)
    left = events(out, "migrate")
    sql = "SELECT t_ns, source_host_id, vm_id, reason, host_id FROM migrations"
    came = query(out, sql).sort("t_ns", "source_host_id", "vm_id").rows()
    assert len(left) >= 5
    assert [row[:4] for row in came] == left
    assert all(source != host and host not in (0, 1) for _, source, _, _, host in came)
    found = summarise(out)["vms"]  # raises unless all VMs are accounted for
    assert found["migrated"] == len(left)


def test_network_bounds_what_leaves_a_host_in_an_epoch(run_small):
    slow = "migration.mib_per_s=4"  # 7 GiB in an epoch of half an hour
    out = run_small("r", [*MAINTAINED, *ROOMY, slow], Healthy)
    sql = "SELECT t_ns, source_host_id, COUNT(*) AS n FROM migrations GROUP BY t_ns, source_host_id"
    assert len(query(out, sql)) > 2


@pytest.mark.parametrize("policy", ["anywhere", "elsewhere"])
def test_vm_killed_by_oom_starts_again_at_the_next_barrier(run_small, policy):
    out = run_small("r", [f"placement.restart={policy}", *ROOMY])
    killed, again = events(out, "kill"), events(out, "restart")
    assert {reason for *_, reason in killed} == {"oom"}
    assert [vm for _, _, vm, _ in again] == [vm for _, _, vm, _ in killed]
    for (died_ns, lost, *_), (t_ns, host, *_) in zip(killed, again, strict=True):
        assert t_ns == (died_ns // (30 * NS_PER_MIN) + 1) * 30 * NS_PER_MIN
        if policy == "elsewhere":
            assert host != lost
    assert summarise(out)["vms"]["restarted"] == len(again)


def test_killed_vms_stay_dead_unless_asked_for(run_small):
    assert events(run_small("r", ROOMY), "restart") == []


FAILING = ("failures.mtbf=8h", "failures.repair=1h", "run.duration=12h", *ROOMY)


def test_failed_hosts_lose_their_vms_and_come_back_after_repair(run_small):
    out = run_small("r", [*FAILING, "placement.restart=anywhere"], Healthy)
    down, killed = events(out, "host_down"), events(out, "kill")
    assert len(down) > 1
    assert {reason for *_, reason in down} == {reason for *_, reason in killed} == {"failure"}
    assert {(t, host) for t, host, *_ in killed} <= {(t, host) for t, host, *_ in down}
    for t_ns, host, *_ in events(out, "host_up"):
        assert any(t < t_ns and host == h for t, h, *_ in down)
    again = events(out, "restart")
    assert {vm for _, _, vm, _ in again} <= {vm for _, _, vm, _ in killed}
    summarise(out)


def test_failures_are_those_of_a_host_alone(small):
    few = failures(small("run.duration=30d", "failures.mtbf=2d"))
    more = failures(small("run.duration=30d", "failures.mtbf=2d", "hosts[1].count=9"))
    assert few == [failure for failure in more if failure[1] < 5]
    assert few == sorted(few)


def test_time_between_failures_is_exponential_with_its_mean(small):
    # 200 hosts x 300 days at 2 days of work and 4 h of repair
    found = failures(small("hosts.count=100", "run.duration=300d", "failures.mtbf=2d"))
    host = np.array([h for _, h in found])
    t_ns = np.array([t for t, _ in found], np.int64)
    order = np.lexsort((t_ns, host))
    gaps = np.diff(t_ns[order])[np.diff(host[order]) == 0] - 4 * NS_PER_HOUR
    assert gaps.min() >= 0
    n, mean = len(gaps), 2 * NS_PER_DAY  # standard error of the mean: mean / sqrt(n)
    assert abs(gaps.mean() - mean) < 4 * mean / np.sqrt(n)
    assert abs((gaps > mean).mean() - np.exp(-1)) < 4 * np.sqrt(np.exp(-1) / n)


def operator(small, nr_hosts, sizes, *overrides):
    """Return an operator and a placer of VMs of so many GiB, one after the other on host 0."""
    scenario = small(f"hosts=[{{count = {nr_hosts}, memory = '64GiB'}}]", *overrides)
    n = len(sizes)
    pages = np.array(sizes, np.int64) * GIB_PAGES
    trace = make_trace(
        np.zeros(n, np.int64),
        np.full(n, NEVER, np.int64),
        np.ones(n, np.int32),
        pages,
        np.zeros(n, np.int16),
        np.zeros(n, np.int64),
        ("any",),
        NS_PER_DAY,
    )
    vcpus, room = np.full(nr_hosts, 96, np.int32), np.full(nr_hosts, 56 * GIB_PAGES)
    placer = Placer(trace, vcpus, room, "worst-fit")
    placer.epoch(0, NS_PER_MIN)
    for vm in range(n):
        placer.put(vm, 0)
    return Operations(scenario, trace), placer


def test_vms_that_find_no_room_stay_and_go_later(small):
    window = "maintenance=[{start = '30min', duration = '1h'}]"
    operations, placer = operator(small, 2, [30, 8, 20, 40], window)
    placer.put(3, 1)  # 16 of 56 GiB are left there
    orders = operations.barrier(1, placer)
    assert [move.vm_id for move in orders.moves] == [1]
    assert orders.rebooted == []
    placer.kill(np.array([3]))
    orders = operations.barrier(2, placer)
    assert [move.vm_id for move in orders.moves] == [0]  # and VM 2 still finds no room
    placer.kill(np.array([0]))
    orders = operations.barrier(2, placer)
    assert ([move.vm_id for move in orders.moves], orders.rebooted) == ([2], [0])
    assert operations.barrier(2, placer).rebooted == []  # once is enough


def show(operations, free_pages, **gauges):
    """Let hosts of 100 pages have so many free; whole unless told otherwise."""
    hosts = len(free_pages)
    gauges = {"managed_pages": [100] * hosts, "unusable": [0] * hosts, **gauges}
    gauges.setdefault("small_pages", [0] * len(gauges["rss_pages"]))
    arrays = {name: np.array(values, np.int64) for name, values in gauges.items()}
    operations._gauges = Gauges(free_pages=np.array(free_pages, np.int64), **arrays)


def test_host_short_of_memory_gives_away_the_smallest_vm_that_helps(small):
    operations, placer = operator(small, 3, [4, 16, 8], "migration.rebalance_below=0.1")
    show(operations, [3, 40, 40], rss_pages=[5, 30, 7])
    (move,) = operations.barrier(1, placer).moves
    assert (move.vm_id, move.source) == (2, 0)  # 7 are missing: 5 is too little
    assert REASON_NAMES[move.reason] == "rebalance"
    assert placer.host_of[2] == move.destination != 0


@pytest.mark.parametrize(("free", "moves"), [(10, 0), (9, 1)])
def test_rebalancing_begins_below_the_share(small, free, moves):
    operations, placer = operator(small, 2, [4], "migration.rebalance_below=0.1")
    show(operations, [free, 50], rss_pages=[40])
    assert len(operations.barrier(1, placer).moves) == moves


def test_hosts_short_of_memory_take_no_vm_of_each_other(small):
    operations, placer = operator(small, 2, [4], "migration.rebalance_below=0.1")
    show(operations, [1, 1], rss_pages=[40])
    assert operations.barrier(1, placer).moves == []
    assert not placer.closed.any()


def test_fragmented_host_gives_away_the_vm_with_most_small_pages(small):
    operations, placer = operator(small, 3, [4, 4, 4], "migration.defragment_above=0.5")
    show(operations, [50] * 3, unusable=[501, 500, 0], rss_pages=[40] * 3, small_pages=[3, 9, 5])
    (move,) = operations.barrier(1, placer).moves
    assert (move.vm_id, REASON_NAMES[move.reason]) == (1, "defragment")


def test_closed_host_takes_no_vm_and_keeps_its_own(small):
    operations, placer = operator(small, 2, [4])
    placer.close(np.array([True, True]))
    assert placer.choose(0, 0) == NO_HOST
    assert placer.host_of[0] == 0
    placer.close(np.array([True, False]))
    assert placer.choose(0, 0) == 1
    saved = placer.state()
    placer.close(np.array([False, False]))
    assert placer.pool.free_vcpus.tolist() == [95, 96]
    placer.restore(saved)
    assert placer.choose(0, 0) == 1
    assert operations.barrier(1, placer).up == [0]


@pytest.mark.parametrize("at", [2, 17])
def test_resumed_run_with_an_operator_gives_the_same_rows(small, tmp_path, monkeypatch, at):
    overrides = [*FAILING, MAINTAINED[1], "placement.restart=elsewhere", "vms.scale=0.0002"]

    def run(name, **options):
        scheduler.run(
            small(*overrides),
            tmp_path / name,
            scheduler.Options(checkpoint_epochs=1, **options),
            make_backend=lambda scenario: InlineBackend(scenario, Deadly),
        )
        return tmp_path / name

    whole = run("whole")
    barrier = Operations.barrier

    def stop(self, epoch, placer):
        if epoch == at:
            raise KeyboardInterrupt
        return barrier(self, epoch, placer)

    monkeypatch.setattr(Operations, "barrier", stop)
    with pytest.raises(KeyboardInterrupt):
        run("stopped")
    monkeypatch.undo()
    run("stopped", resume=True)
    for table in ("hosts", "vms", "events", "migrations"):
        sql = f"SELECT * FROM {table}"
        assert query(whole, sql).equals(query(tmp_path / "stopped", sql)), table


def test_maintenance_that_no_host_is_in_is_an_error(small, tmp_path):
    windows = "maintenance=[{first_host = 4, hosts = 3, start = '9h'}, {start = '1h'}]"
    with pytest.raises(ScenarioError, match=r"maintenance\[0\].hosts") as found:
        scheduler.run(small(windows), tmp_path / "r")
    assert "hosts 4 to 6 are not all in a fleet of 0 to 4" in str(found.value)
    assert "maintenance[0].start: 9h is not before the end of the run at 2h" in str(found.value)
    assert not (tmp_path / "r").exists()
