import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from fleet import store as store_module
from fleet.rundir import FORMAT, open_run, part_path
from fleet.schema import arrow_schema
from fleet.sink import Sink
from fleet.store import Store
from hostsim.core.errors import ResultsError
from hostsim.core.stats import NODE_TABLES, SCHEMA_VERSION, TABLES


def tables_of(host_ids):
    """Return one row a host in every table."""
    tables = {}
    for table in NODE_TABLES:
        columns = TABLES[table]
        rows = np.zeros((len(host_ids), len(columns)), np.int64)
        rows[:, [column.name for column in columns].index("host_id")] = host_ids
        tables[table] = rows
    tables["fleet"] = np.zeros((1, len(TABLES["fleet"])), np.int64)
    return tables


def parts_on_disk(out):
    return sorted(path.relative_to(out).as_posix() for path in out.glob("*/part-*.parquet"))


def test_parts_are_cut_by_host_group_and_epoch(tmp_path):
    sink = Sink(Store(tmp_path), nr_hosts=5, hosts_per_part=2, attempt=1)
    sink.write(3, tables_of([-1, 0, 1, 2, 4]))
    groups = [
        pq.read_table(tmp_path / part_path("events", 3, group))["host_id"].to_pylist()
        for group in range(3)
    ]
    assert groups == [[-1, 0, 1], [2], [4]]


@pytest.mark.parametrize("table", TABLES)
def test_part_says_its_version_and_little_else(tmp_path, table):
    sink = Sink(Store(tmp_path), nr_hosts=1, hosts_per_part=1, attempt=1)
    sink.write(0, tables_of([0]))
    path = tmp_path / part_path(table, 0, 0)
    schema = pq.read_schema(path)
    assert schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert [(field.name, field.type) for field in schema] == [
        (field.name, field.type) for field in arrow_schema(table)
    ]
    assert pq.read_metadata(path).serialized_size < 160 * len(schema) + 4096


def test_staging_is_gone_at_the_end(tmp_path):
    sink = Sink(Store(tmp_path), 2, 2, attempt=1)
    sink.write(0, tables_of([0, 1]))
    sink.finish()
    assert not (tmp_path / "_staging").exists()


def test_failed_epoch_leaves_no_part_and_no_manifest_entry(tmp_path, monkeypatch):
    sink = Sink(Store(tmp_path), 4, 2, attempt=1)
    sink.write(0, tables_of([0, 1, 2, 3]))
    before = parts_on_disk(tmp_path)
    written = []

    def fail_on_third(*args):
        written.append(args)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", fail_on_third)
    with pytest.raises(ResultsError, match="cannot write: No space left on device"):
        sink.write(1, tables_of([0, 1, 2, 3]))
    assert parts_on_disk(tmp_path) == before
    manifest = json.loads((tmp_path / "_manifest.json").read_text())
    assert sorted(part["path"] for part in manifest["parts"]) == before


def test_readers_go_by_the_manifest(tmp_path):
    sink = Sink(Store(tmp_path), 2, 2, attempt=1)
    sink.write(0, tables_of([0, 1]))
    record = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "status": "running"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    stray = tmp_path / part_path("hosts", 1, 0)
    stray.write_bytes(b"renamed, but not yet in the manifest")
    assert open_run(tmp_path).parts["hosts"] == [part_path("hosts", 0, 0)]


def test_missing_part_is_an_error_of_the_reader(tmp_path):
    sink = Sink(Store(tmp_path), 2, 2, attempt=1)
    sink.write(0, tables_of([0, 1]))
    record = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "status": "complete"}
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / part_path("vms", 0, 0)).unlink()
    with pytest.raises(ResultsError, match="in the manifest, but missing"):
        open_run(tmp_path)


def test_rewind_keeps_the_first_epochs_only(tmp_path):
    first = Sink(Store(tmp_path), 2, 2, attempt=1)
    for epoch in range(3):
        first.write(epoch, tables_of([0, 1]))
    again = Sink(Store(tmp_path), 2, 2, attempt=2)
    again.rewind(1)
    assert parts_on_disk(tmp_path) == sorted(part_path(table, 0, 0) for table in TABLES)


def test_driver_that_lost_its_lock_commits_nothing(tmp_path):
    def lost():
        raise ResultsError("another driver has taken this run over")

    Sink(Store(tmp_path), 2, 2, attempt=1).write(0, tables_of([0, 1]))
    before = parts_on_disk(tmp_path), (tmp_path / "_manifest.json").read_bytes()
    with pytest.raises(ResultsError, match="taken this run over"):
        Sink(Store(tmp_path), 2, 2, 2, lost).write(1, tables_of([0, 1]))
    assert (parts_on_disk(tmp_path), (tmp_path / "_manifest.json").read_bytes()) == before
