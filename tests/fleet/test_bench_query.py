from fleet import bench_query
from fleet.sql import query


def test_made_up_rows_are_those_of_a_run(tmp_path):
    made = bench_query.make(tmp_path / "run", 3, 30)
    assert made["rows"] == 90
    found = query(tmp_path / "run", "SELECT MIN(t_ns), MAX(t_ns), MAX(host_id) FROM hosts")
    assert found.rows() == [(300 * 10**9, 30 * 300 * 10**9, 2)]
    counters = query(tmp_path / "run", "SELECT pgfault FROM hosts WHERE host_id = 1 ORDER BY t_ns")
    assert counters["pgfault"].is_sorted()
    assert counters["pgfault"].n_unique() > 15


def test_costs_are_held_against_their_bars():
    cheap = [bench_query.Measured("", 1.0, 1.0, 1.0, 1 << 30)] * 3
    assert [claim.verdict for claim in bench_query.judge(10, cheap)] == [True, True, True]
    dear = [bench_query.Measured("", 1.1, 1.1, 1.1, (1 << 30) + 1)] * 3
    assert [claim.verdict for claim in bench_query.judge(10, dear)] == [False, False, False]
