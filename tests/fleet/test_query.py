import polars as pl
import pytest

from fleet.query import as_text, query, write_parquet
from hostsim.core.errors import ResultsError, ScenarioError


def test_tables_can_be_joined(run_small):
    sql = (
        "SELECT e.vm_id, v.ended FROM events e JOIN vms v ON e.vm_id = v.vm_id"
        " WHERE e.event = 'kill' AND v.ended = 1"
    )
    assert query(run_small(), sql).rows() == [(0, 1)]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT t_nss FROM hosts", "unknown column 't_nss'\n    hint: did you mean t_ns"),
        ("SELECT h.foo FROM hosts h", "unknown column 'foo'\n    hint: fleet columns lists them"),
        ("SELECT * FROM host", "unknown table 'host'\n    hint: did you mean hosts"),
        ("SELEC 1", "sql parser error"),
        ("SELECT 1; SELECT 2", "one statement|only one"),
    ],
)
def test_wrong_statement_is_explained(run_small, sql, message):
    with pytest.raises(ScenarioError, match=message):
        query(run_small(), sql)


def test_path_that_is_no_run_is_a_results_error(tmp_path):
    with pytest.raises(ResultsError, match="is not a run directory"):
        query(tmp_path, "SELECT 1")


def test_text_shows_the_rows_asked_for(run_small):
    frame = query(run_small(), "SELECT host_id FROM hosts ORDER BY host_id, t_ns")
    assert as_text(frame.head(2), 10).splitlines() == [
        "| host_id |",
        "|---------|",
        "| 0       |",
        "| 0       |",
    ]


def test_result_file_appears_whole_or_not_at_all(run_small, tmp_path, monkeypatch):
    frame = query(run_small(), "SELECT host_id FROM hosts")
    write_parquet(frame, tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(frame)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fleet.query.pq.write_table", full)
    with pytest.raises(ResultsError, match=r"b\.parquet: cannot write: No space left"):
        write_parquet(frame, tmp_path / "b.parquet")
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["a.parquet"]
