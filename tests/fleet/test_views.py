"""Views against plain Python over rows made by hand."""

import itertools
import statistics

import pytest
from fakenode import AT
from handmade import write_run

from fleet.rundir import open_run
from fleet.sql import query
from fleet.view_columns import VIEW_COLUMNS, VIEW_DOCS
from fleet.views import view
from hostsim.core.stats import TABLES

MIN_NS = 60 * 10**9
HOUR_NS = 60 * MIN_NS
TICK_NS = 10 * MIN_NS
EPOCH_NS = 30 * MIN_NS
TIMES = range(TICK_NS, 2 * HOUR_NS + 1, TICK_NS)
HOSTS = range(5)
KIND = {column.name: column.kind for column in TABLES["hosts"]}
CLASSES = ("build-server", "hpc", "idle", "jvm", "key-value")  # guests.mix, in order
LOAD = {"idle": 0.02}  # scenarios/guests; the others run all the time


def number(*key):
    """Return an arbitrary number that depends on a key."""
    found = 7
    for part in key:
        found = (found * 31 + sum(str(part).encode()) * 17) % 9973
    return found


def host_row(t_ns, host_id):
    row = {"t_ns": t_ns, "host_id": host_id}
    for name in AT["hosts"]:
        if name in row:
            continue
        step = number(name, host_id) % 50
        if KIND[name] == "counter":
            row[name] = step * (t_ns // TICK_NS)
        else:
            row[name] = 1 + number(name, host_id, t_ns // TICK_NS)
    row["unusable_index_order9"] %= 1000
    row["nr_free_order9"] = row["nr_free_order10"] = host_id % 2 * (t_ns // TICK_NS)
    row["slowdown_all_huge"] = 1_000_000 + number("slow", host_id) * 10
    row["running_milli_vcpus"] = 0 if host_id == 3 else 1000 * (host_id + 1)
    return row


def vm_row(t_ns, vm_id):
    row = {"t_ns": t_ns, "host_id": vm_id % 5, "vm_id": vm_id, "behaviour": vm_id % 5}
    row |= {"vcpus": 1 + vm_id % 3, "ended": int(vm_id == 7)}
    for name in ("tlb_misses", "tlb_misses_error", "walk_guest_reads", "walk_ept_reads"):
        row[name] = 1 + number(name, vm_id, t_ns)
    for name in ("walk_guest_cycles", "walk_ept_cycles", "walk_share"):
        row[name] = 1 + number(name, vm_id, t_ns)
    for name in ("slowdown_all_huge", "slowdown_native"):
        row[name] = 1_000_000 + number(name, vm_id, t_ns)
    if vm_id == 8:  # a VM without a program
        row |= {name: 0 for name in row if name.startswith(("tlb", "walk", "slow"))}
    return row


HOST_ROWS = [host_row(t_ns, host_id) for t_ns in TIMES for host_id in HOSTS]
VM_ROWS = [
    vm_row(t_ns, vm) for t_ns in range(EPOCH_NS, 2 * HOUR_NS + 1, EPOCH_NS) for vm in range(12)
]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory):
    import tomllib

    from tiny import SMALL

    from fleet.loading import build

    out = tmp_path_factory.mktemp("views") / "run"
    tables = {"hosts": HOST_ROWS, "vms": VM_ROWS}
    return write_run(out, build(tomllib.loads(SMALL), "small", "small.toml"), tables)


def rows_of(run_directory, name, step_ns=None):
    return view(open_run(run_directory), name, step_ns).collect().to_dicts()


def hosts_at(t_ns):
    return [row for row in HOST_ROWS if row["t_ns"] == t_ns]


def total(t_ns, name):
    return sum(row[name] for row in hosts_at(t_ns))


def grown(t_ns, name, step_ns=EPOCH_NS):
    return total(t_ns, name) - (total(t_ns - step_ns, name) if t_ns > step_ns else 0)


@pytest.mark.parametrize("name", VIEW_COLUMNS)
def test_views_have_the_columns_that_they_declare(run_directory, name):
    schema = view(open_run(run_directory), name).collect_schema()
    found = {column: str(dtype).lower() for column, dtype in schema.items()}
    assert found == {column.name: column.dtype for column in VIEW_COLUMNS[name]}
    assert name in VIEW_DOCS
    assert all(column.doc.endswith(".") for column in VIEW_COLUMNS[name])


def test_coverage_is_sums_over_hosts_at_the_end_of_each_epoch(run_directory):
    rows = rows_of(run_directory, "coverage")
    assert [row["t_h"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    for row in rows:
        t_ns = round(row["t_h"] * HOUR_NS)
        assert row["nr_vms"] == total(t_ns, "nr_vms")
        assert row["guest_gib"] == pytest.approx(total(t_ns, "nr_guest_pages") / 2**18)
        assert row["huge_coverage_ratio"] == pytest.approx(
            total(t_ns, "nr_anon_transparent_hugepages") * 512 / total(t_ns, "nr_guest_pages")
        )
        for column, pages in (
            ("guest_coverage_ratio", "guest_huge_pages"),
            ("effective_coverage_ratio", "effective_huge_pages"),
        ):
            expected = total(t_ns, pages) * 512 / total(t_ns, "guest_used_pages")
            assert row[column] == pytest.approx(expected)
        fallback, alloc = grown(t_ns, "thp_fault_fallback"), grown(t_ns, "thp_fault_alloc")
        assert row["thp_fallback_ratio"] == pytest.approx(fallback / (fallback + alloc))
        per_host_hour = grown(t_ns, "pages_collapsed") / (5 * 0.5)
        assert row["collapses_per_host_h"] == pytest.approx(per_host_hour)


def test_steps_are_as_long_as_asked_for(run_directory):
    assert [row["t_h"] for row in rows_of(run_directory, "coverage", 2 * TICK_NS)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]
    )
    rows = rows_of(run_directory, "stalls", 50 * MIN_NS)  # the last step is shorter
    assert [row["t_h"] for row in rows] == pytest.approx([5 / 6, 10 / 6, 2])
    stalled = total(120 * MIN_NS, "stall_ns") - total(100 * MIN_NS, "stall_ns")
    assert rows[-1]["stall_ms_per_host_h"] == pytest.approx(stalled / 1e6 / (5 / 3))


def test_rates_of_stalls_are_per_host_and_hour(run_directory):
    for row in rows_of(run_directory, "stalls"):
        t_ns = round(row["t_h"] * HOUR_NS)
        host_h = 5 * 0.5
        expected = {
            "stall_ms_per_host_h": grown(t_ns, "stall_ns") / 1e6 / host_h,
            "allocstalls_per_host_h": grown(t_ns, "allocstall") / host_h,
            "daemon_s_per_host_h": grown(t_ns, "daemon_ns") / 1e9 / host_h,
            "swap_in_mib_per_host_h": grown(t_ns, "pswpin") / 256 / host_h,
            "swap_out_mib_per_host_h": grown(t_ns, "pswpout") / 256 / host_h,
            "swap_used_gib_per_host": total(t_ns, "swap_used_pages") / 2**18 / 5,
            "oom_kills": grown(t_ns, "oom_kill"),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def by_rank(values):
    """Return 5th and 95th percentile (nearest rank) and median of five values."""
    ranked = sorted(values)
    return ranked[0], statistics.median(ranked), ranked[-1]


def test_fragmentation_is_over_hosts(run_directory):
    for row in rows_of(run_directory, "fragmentation"):
        t_ns = round(row["t_h"] * HOUR_NS)
        index = [host["unusable_index_order9"] / 1000 for host in hosts_at(t_ns)]
        found = tuple(row[f"unusable_ratio_{rank}"] for rank in ("p5", "median", "p95"))
        assert found == pytest.approx(by_rank(index))
        assert row["free_gib_per_host"] == pytest.approx(total(t_ns, "nr_free_pages") / 5 / 2**18)
        partial = total(t_ns, "pageblocks_partial") * 512 / total(t_ns, "managed_pages")
        assert row["partial_pageblocks_ratio"] == pytest.approx(partial)
        assert row["hosts_no_free_2m"] == 3
        assert row["hosts_no_free_32m"] == sum(h["nr_free_32m"] == 0 for h in hosts_at(t_ns))


def test_buddy_has_every_order_at_every_step(run_directory):
    rows = rows_of(run_directory, "buddy")
    steps = [0.5, 1.0, 1.5, 2.0]
    keys = [(row["t_h"], row["order"]) for row in rows]
    assert keys == list(itertools.product(steps, range(11)))
    for row in rows:
        t_ns, order = round(row["t_h"] * HOUR_NS), row["order"]
        blocks = [host[f"nr_free_order{order}"] for host in hosts_at(t_ns)]
        found = tuple(row[f"free_blocks_{rank}"] for rank in ("p5", "median", "p95"))
        assert found == pytest.approx(by_rank(blocks))
        free = sum(total(t_ns, f"nr_free_order{o}") << o for o in range(11))
        assert row["share_of_free_ratio"] == pytest.approx((sum(blocks) << order) / free)


def weighted(rows, name, weights, unit):
    return sum(w * row[name] for row, w in zip(rows, weights, strict=True)) / sum(weights) / unit


@pytest.mark.parametrize("behaviour", [*CLASSES, "fleet"])
def test_translation_is_a_mean_over_running_vcpus(run_directory, behaviour):
    found = [row for row in rows_of(run_directory, "tlb") if row["behaviour"] == behaviour]
    assert [row["t_h"] for row in found] == [0.5, 1.0, 1.5, 2.0]
    for row in found:
        t_ns = round(row["t_h"] * HOUR_NS)
        rows = [
            vm
            for vm in VM_ROWS
            if vm["t_ns"] == t_ns
            and not vm["ended"]
            and vm["slowdown_all_huge"]
            and behaviour in (CLASSES[vm["behaviour"]], "fleet")
        ]
        vcpus = [vm["vcpus"] * LOAD.get(CLASSES[vm["behaviour"]], 1.0) for vm in rows]
        walks = [w * vm["tlb_misses"] for vm, w in zip(rows, vcpus, strict=True)]
        cycles = sum(
            weighted(rows, name, walks, 1e3) for name in ("walk_guest_cycles", "walk_ept_cycles")
        )
        expected = {
            "nr_vms": len(rows),
            "running_vcpus": sum(vcpus),
            "misses_per_1000": weighted(rows, "tlb_misses", vcpus, 1e3),
            "misses_per_1000_error": weighted(rows, "tlb_misses_error", vcpus, 1e3),
            "guest_reads_per_walk": weighted(rows, "walk_guest_reads", walks, 1e3),
            "ept_reads_per_walk": weighted(rows, "walk_ept_reads", walks, 1e3),
            "cycles_per_walk": cycles,
            "walk_ratio": weighted(rows, "walk_share", vcpus, 1e6),
            "slowdown_all_huge": weighted(rows, "slowdown_all_huge", vcpus, 1e6),
            "slowdown_native": weighted(rows, "slowdown_native", vcpus, 1e6),
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_top_ranks_hosts_by_what_their_guests_lose(run_directory):
    rows = rows_of(run_directory, "top")
    lost = {}
    for now, before in zip(hosts_at(2 * HOUR_NS), hosts_at(2 * HOUR_NS - EPOCH_NS), strict=True):
        share = 1 - 1e6 / now["slowdown_all_huge"]
        stalled = now["stall_ns"] - before["stall_ns"]
        lost[now["host_id"]] = now["running_milli_vcpus"] / 1000 * share + stalled / EPOCH_NS
    assert {row["host_id"]: row["lost_vcpus"] for row in rows} == pytest.approx(lost)
    assert [row["host_id"] for row in rows] == sorted(lost, key=lost.get, reverse=True)
    for row in rows:
        now = host_row(2 * HOUR_NS, row["host_id"])
        before = host_row(2 * HOUR_NS - EPOCH_NS, row["host_id"])
        hourly_ms = (now["stall_ns"] - before["stall_ns"]) / 1e6 * 2
        assert row["stall_ms_per_h"] == pytest.approx(hourly_ms)
        assert row["oom_kills"] == now["oom_kill"] - before["oom_kill"]
        coverage = now["nr_anon_transparent_hugepages"] * 512 / now["nr_guest_pages"]
        assert row["huge_coverage_ratio"] == pytest.approx(coverage)
        assert row["free_gib"] == pytest.approx(now["nr_free_pages"] / 2**18)


def test_top_over_a_step_of_several_epochs(run_directory):
    rows = rows_of(run_directory, "top", 90 * MIN_NS)
    for row in rows:
        now, before = (host_row(t * MIN_NS, row["host_id"])["oom_kill"] for t in (120, 30))
        assert row["oom_kills"] == now - before


def test_top_of_a_run_no_longer_than_a_step_counts_from_its_start(run_directory):
    for row in rows_of(run_directory, "top", 5 * HOUR_NS):
        assert row["oom_kills"] == host_row(2 * HOUR_NS, row["host_id"])["oom_kill"]


def test_ratios_of_nothing_are_missing(small, tmp_path):
    rows = [{"t_ns": TICK_NS, "host_id": host_id} for host_id in HOSTS]
    out = write_run(
        tmp_path / "run", small("run.duration=10min", "run.vm_rows=10min"), {"hosts": rows}
    )
    (coverage,) = query(out, "coverage").to_dicts()
    assert coverage["huge_coverage_ratio"] is None
    assert coverage["thp_fallback_ratio"] is None
    assert query(out, "top")["lost_vcpus"].to_list() == [0.0] * 5
    assert query(out, "tlb").is_empty()


def test_views_can_be_filtered_and_joined_with_sql(run_directory):
    sql = (
        "SELECT c.t_h, c.nr_vms, s.oom_kills FROM coverage c JOIN stalls s ON c.t_h = s.t_h"
        " WHERE c.t_h > 1 ORDER BY c.t_h"
    )
    expected = [
        (t_ns / HOUR_NS, total(t_ns, "nr_vms"), grown(t_ns, "oom_kill"))
        for t_ns in (90 * MIN_NS, 120 * MIN_NS)
    ]
    assert query(run_directory, sql).rows() == expected
