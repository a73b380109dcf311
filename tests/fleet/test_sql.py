import io
import json
import tomllib

import polars as pl
import pytest
from handmade import write_run
from tiny import SMALL

from fleet.loading import build
from fleet.sql import ask, open_runs, query, write_csv, write_parquet
from hostsim.core.errors import ResultsError, ScenarioError
from hostsim.core.stats import SCHEMA_VERSION


@pytest.fixture(scope="module")
def empty_run(tmp_path_factory):
    scenario = build(tomllib.loads(SMALL), "small", "small.toml")
    return write_run(tmp_path_factory.mktemp("empty") / "run", scenario, {})


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
        (
            "SELECT h.foo FROM hosts h",
            "unknown column 'foo'\n    hint: fleet columns hosts lists them",
        ),
        ("SELECT * FROM host", "unknown table 'host'\n    hint: did you mean hosts"),
        ("SELECT * FROM covrage", "unknown table 'covrage'\n    hint: did you mean coverage"),
        ("stall", "unknown table 'stall'\n    hint: did you mean stalls"),
        ("SELECT t_hh FROM coverage", "unknown column 't_hh'\n    hint: did you mean t_h"),
        ("SELEC 1", r"does not parse: line 1, column 1: .*, found: SELEC\n    SELEC 1\n    \^"),
        (
            "SELECT t_ns\n FROM hosts WHERE ))",
            r"line 2, column 19: .*\n     FROM hosts WHERE \)\)\n {22}\^",
        ),
        ("SELECT t_ns FROM hosts WHERE", "does not parse: .* but it ends"),
        ("SELECT 1; SELECT 2", "one statement|only one"),
        ("SELECT nothing(t_ns) FROM hosts", "unsupported function 'nothing'"),
        (
            "SELECT t_ns FROM hosts WHERE event = 1",
            "unknown column 'event'\n    hint: a column of events",
        ),
        ("DROP TABLE hosts", "DROP is no query; the tables of a run do not change"),
        ("-- all of it\n delete from hosts", "DELETE is no query"),
        ("DESCRIBE hosts", "is no query"),
        ("", "one statement|only one"),
    ],
)
def test_wrong_statement_is_explained(empty_run, sql, message):
    with pytest.raises(ScenarioError, match=message):
        query(empty_run, sql)


def test_path_that_is_no_run_is_bad_input(tmp_path):
    with pytest.raises(ScenarioError, match="is not a run directory"):
        query(tmp_path, "SELECT 1")


@pytest.mark.parametrize(
    ("version", "age"), [(SCHEMA_VERSION + 1, "a newer"), (SCHEMA_VERSION - 1, "an older")]
)
def test_run_of_another_schema_is_refused(run_small, version, age):
    out = run_small()
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"schema_version": version}))
    message = f"was written by {age} hugefleet: schema {version}, this one reads {SCHEMA_VERSION}"
    with pytest.raises(ScenarioError, match=message):
        query(out, "SELECT 1")


def test_name_alone_is_the_whole_table(run_small):
    out = run_small()
    assert query(out, " fleet ").equals(query(out, "SELECT * FROM fleet"))


def test_csv_is_the_whole_result(run_small):
    out = run_small()
    sql = "SELECT host_id, t_ns, unusable_index_order9 / 2.0 AS half FROM hosts ORDER BY 1, 2"
    file = io.BytesIO()
    write_csv(ask(open_runs(out), sql), file)
    file.seek(0)
    assert pl.read_csv(file).rows() == query(out, sql).rows()


def test_result_file_appears_whole_or_not_at_all(run_small, tmp_path, monkeypatch):
    found = ask(open_runs(run_small()), "SELECT host_id FROM hosts")
    write_parquet(found, tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "a.parquet").equals(found.collect())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", full)
    with pytest.raises(ResultsError, match=r"b\.parquet: cannot write: No space left"):
        write_parquet(found, tmp_path / "b.parquet")
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["a.parquet"]


def test_one_host_is_read_from_the_parts_of_its_group_alone(run_small):
    """The other parts are spoilt but for their footers, and nobody notices."""
    out = run_small()
    sql = "SELECT t_ns, nr_vms FROM hosts WHERE host_id = 3"
    expected = query(out, sql)
    spoilt = [path for path in out.glob("hosts/*.parquet") if "-g0001" not in path.name]
    for path in spoilt:
        content = bytearray(path.read_bytes())
        footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        content[4:footer] = bytes(footer - 4)
        path.write_bytes(content)
    assert len(spoilt) == 8
    assert len(expected) == 12
    assert query(out, sql).equals(expected)
    with pytest.raises(ScenarioError):
        query(out, "SELECT SUM(nr_vms) FROM hosts")


def test_rows_of_a_sweep_are_told_apart_by_arm_and_seed(small, tmp_path):
    times = {("x", 1): [10, 20], ("x", 2): [30], ("y", 1): [40]}  # y has no second seed yet
    for (arm, seed), minutes in times.items():
        rows = [{"t_ns": t * 60 * 10**9, "host_id": 4, "nr_vms": t} for t in minutes]
        events = [{"t_ns": 60 * 10**9, "host_id": 1, "event": "kill"}] if arm == "y" else []
        tables = {"hosts": rows, "events": events}
        place = tmp_path / arm / f"seed-{seed}"
        write_run(place, small("run.duration=1h"), tables)
    record = {"format": "hugefleet sweep", "arms": ["x", "y"], "seeds": [1, 2]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    found = query(tmp_path, "SELECT arm, seed, t_ns, nr_vms FROM hosts ORDER BY t_ns")
    assert found.rows() == [
        (arm, seed, t * 60 * 10**9, t) for (arm, seed), minutes in times.items() for t in minutes
    ]
    assert query(tmp_path, "coverage").columns[:3] == ["arm", "seed", "t_h"]
    assert query(tmp_path, "SELECT arm, event FROM events").rows() == [("y", "kill")]
    with pytest.raises(ScenarioError, match="unknown column 'arms'\n    hint: did you mean arm"):
        query(tmp_path, "SELECT arms FROM coverage")


def test_sweep_without_a_run_has_no_rows_to_ask(tmp_path):
    record = {"format": "hugefleet sweep", "arms": ["x"], "seeds": [1]}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(ScenarioError, match="is a sweep without a run yet"):
        query(tmp_path, "hosts")
