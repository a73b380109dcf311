import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fleet.trace import (
    MAX_PROBLEMS,
    NEVER,
    RowProblems,
    make_trace,
    read_trace,
    window,
    write_trace,
)
from hostsim.core.errors import ScenarioError


def small_trace():
    return make_trace(
        np.array([5, -3, 5, 9]),
        np.array([8, 7, NEVER, 30]),
        np.array([1, 2, 4, 8], np.int32),
        np.array([10, 20, 30, 40]),
        np.array([0, 1, 1, 2], np.int16),
        np.array([7, 3, 7, 9]),
        ("small", "large", "huge", "unused"),
        20,
        "by hand",
    )


def assert_equal(one, other):
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, its)
        assert getattr(mine, "dtype", None) == getattr(its, "dtype", None)


def test_rows_are_numbered_in_order_of_start_and_ties_keep_the_given_order():
    trace = small_trace()
    assert trace.vm_id.tolist() == [0, 1, 2, 3]
    assert trace.start_ns.tolist() == [-3, 5, 5, 9]
    assert trace.vcpus.tolist() == [2, 1, 4, 8]


def test_written_trace_reads_back_equal(tmp_path):
    write_trace(small_trace(), tmp_path / "t.parquet")
    assert_equal(read_trace(tmp_path / "t.parquet"), small_trace())
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_empty_trace_reads_back(tmp_path):
    none = np.zeros(0, np.int64)
    empty = make_trace(none, none, none, none, none, none, (), 20)
    write_trace(empty, tmp_path / "t.parquet")
    assert_equal(read_trace(tmp_path / "t.parquet"), empty)


def test_same_trace_gives_the_same_bytes(tmp_path):
    write_trace(small_trace(), tmp_path / "a")
    write_trace(small_trace(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_vm_that_never_ends_is_null_in_the_file(tmp_path):
    write_trace(small_trace(), tmp_path / "t.parquet")
    table = pq.ParquetFile(tmp_path / "t.parquet").read()
    assert table.column("end_ns").to_pylist() == [7, 8, None, 30]
    assert table.schema.metadata[b"hugefleet.source"] == b"by hand"


def test_window_keeps_who_is_alive_and_moves_time_zero():
    trace = window(small_trace(), 7, 9)
    assert trace.start_ns.tolist() == [-2, -2]
    assert trace.end_ns.tolist() == [1, NEVER]
    assert trace.vcpus.tolist() == [1, 4]
    assert trace.span_ns == 2


@pytest.mark.parametrize(("t0", "t1", "vms"), [(8, 9, 1), (7, 8, 2), (6, 8, 3), (8, 10, 2)])
def test_window_leaves_out_who_ends_at_its_start_or_starts_at_its_end(t0, t1, vms):
    assert window(small_trace(), t0, t1).nr_vms == vms


def test_empty_window_is_refused():
    with pytest.raises(ValueError, match=r"window \[9, 9\) ns is empty"):
        window(small_trace(), 9, 9)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ScenarioError, match=r"gone\.parquet: no such file"):
        read_trace(tmp_path / "gone.parquet")


def test_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "t.csv").write_text("vm_id,start_ns\n")
    with pytest.raises(ScenarioError, match=r"t\.csv: is not a parquet file"):
        read_trace(tmp_path / "t.csv")


def rewrite(path, change):
    """Write the small trace, then its table as `change` returns it."""
    write_trace(small_trace(), path)
    with pq.ParquetFile(path) as file:
        table = file.read()
    pq.write_table(change(table), path)


def test_missing_columns_and_wrong_types_are_found_together(tmp_path):
    def change(table):
        text = pa.array(["a", "b", "c", "d"])
        return table.drop(["vcpus"]).set_column(1, "start_ns", text)

    rewrite(tmp_path / "t", change)
    with pytest.raises(ScenarioError) as caught:
        read_trace(tmp_path / "t")
    text = str(caught.value)
    assert "has no column vcpus (int32)" in text
    assert "start_ns: is string, must be int64" in text


def test_nulls_are_refused(tmp_path):
    rewrite(
        tmp_path / "t",
        lambda table: table.set_column(6, "batch_id", pa.array([1, None, 2, 3], pa.int64())),
    )
    with pytest.raises(ScenarioError, match="batch_id: holds nulls"):
        read_trace(tmp_path / "t")


@pytest.mark.parametrize("name", ["span_ns", "trace_version"])
def test_missing_metadata_is_refused(tmp_path, name):
    key = f"hugefleet.{name}".encode()
    rewrite(
        tmp_path / "t",
        lambda table: table.replace_schema_metadata(
            {k: v for k, v in table.schema.metadata.items() if k != key}
        ),
    )
    with pytest.raises(ScenarioError, match=r"span_ns|version none, this program reads 1"):
        read_trace(tmp_path / "t")


def test_every_bad_row_is_reported_with_its_number(tmp_path):
    trace = small_trace()
    trace.end_ns[1] = 5
    trace.vcpus[2] = 0
    trace.memory_pages[3] = -1
    trace.vm_id[0] = 9
    write_trace(trace, tmp_path / "t")
    with pytest.raises(ScenarioError) as caught:
        read_trace(tmp_path / "t")
    places = [(p.place.rpartition(": ")[2], p.message) for p in caught.value.problems]
    assert places[0][0] == "row 0"
    assert places[1] == ("row 1", "end_ns 5 must lie after start_ns 5")
    assert places[2] == ("row 2", "vcpus 0 must be positive")
    assert places[3] == ("row 3", "memory_pages -1 must be positive")


def test_rows_out_of_order_are_refused(tmp_path):
    trace = small_trace()
    trace.start_ns[2] = 4
    write_trace(trace, tmp_path / "t")
    with pytest.raises(ScenarioError, match="row 2: start_ns 4 lies before the row above"):
        read_trace(tmp_path / "t")


@pytest.mark.parametrize(("bad", "shown"), [(MAX_PROBLEMS, 20), (MAX_PROBLEMS + 1, 21)])
def test_many_bad_rows_are_counted_and_the_first_shown(bad, shown):
    problems = RowProblems("f.csv")
    problems.check([(np.ones(bad - 1, bool), lambda row: "bad")])
    problems.add(99, "bad too")
    with pytest.raises(ScenarioError) as caught:
        problems.raise_if_any()
    assert len(caught.value.problems) == shown
    assert ("in all" in str(caught.value)) == (bad > MAX_PROBLEMS)


def test_unwritable_target_is_a_clear_error(tmp_path):
    with pytest.raises(ScenarioError, match="cannot be written"):
        write_trace(small_trace(), tmp_path / "no" / "such" / "folder.parquet")
