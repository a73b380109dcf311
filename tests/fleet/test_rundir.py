import json

import pytest

from fleet import rundir
from fleet.store import Store
from hostsim.core.errors import ResultsError, ScenarioError


def make_run(path, **changes):
    path.mkdir(parents=True, exist_ok=True)
    record = {"format": rundir.FORMAT, "schema_version": rundir.SCHEMA_VERSION} | changes
    (path / "run.json").write_text(json.dumps(record))
    (path / "hosts").mkdir()
    (path / "hosts" / "x.parquet").write_text("x")


def test_new_directory_is_made(tmp_path):
    rundir.claim(Store(tmp_path / "a" / "b"), overwrite=False, resume=False)
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_directory_that_is_no_run_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ScenarioError, match="not a run directory"):
        rundir.claim(Store(tmp_path), overwrite, resume=False)
    assert (tmp_path / "thesis.txt").exists()


def test_run_is_refused_unless_overwrite_or_resume(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ScenarioError, match="already holds a run"):
        rundir.claim(Store(tmp_path), overwrite=False, resume=False)
    rundir.claim(Store(tmp_path), overwrite=False, resume=True)
    assert (tmp_path / "hosts" / "x.parquet").exists()


def test_clear_deletes_the_run_and_nothing_else(tmp_path):
    make_run(tmp_path)
    (tmp_path / "notes.txt").write_text("keep")
    rundir.claim(Store(tmp_path), overwrite=True, resume=False)
    assert (tmp_path / "run.json").exists()  # not before the lock is ours
    rundir.clear(Store(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_link_in_place_of_a_table_is_deleted_and_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    make_run(tmp_path / "run")
    (tmp_path / "run" / "vms").symlink_to(tmp_path / "other")
    rundir.clear(Store(tmp_path / "run"))
    assert (tmp_path / "other" / "thesis.txt").exists()
    assert not (tmp_path / "run" / "vms").exists()


def test_run_that_died_before_its_first_file_can_begin_or_go_on(tmp_path):
    (tmp_path / "_lock.json").write_text("{}")
    for resume in (False, True):
        rundir.claim(Store(tmp_path), overwrite=False, resume=resume)


@pytest.mark.parametrize(
    "path", ["../../secret.parquet", "/etc/passwd", "hosts/part-e00001-g0000.parquet"]
)
def test_manifest_that_names_other_files_is_refused(tmp_path, path):
    make_run(tmp_path)
    part = {"table": "hosts", "epoch": 0, "group": 0, "path": path, "rows": 1, "bytes": 1}
    (tmp_path / "_manifest.json").write_text(json.dumps({"parts": [part]}))
    with pytest.raises(ResultsError, match=r"_manifest.json: is damaged: .* is no part of a run"):
        rundir.open_run(tmp_path)


def test_resume_of_nothing_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="holds no run to resume"):
        rundir.claim(Store(tmp_path), overwrite=False, resume=True)


def test_out_that_cannot_be_made_is_a_results_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Not a directory"):
        rundir.claim(Store(tmp_path / "file" / "run"), overwrite=False, resume=False)


def test_reader_names_the_version_it_cannot_read(tmp_path):
    make_run(tmp_path, schema_version=99)
    with pytest.raises(ScenarioError, match="a newer hugefleet: schema 99"):
        rundir.open_run(tmp_path)


def test_reader_refuses_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(ScenarioError, match="is not a run directory"):
        rundir.open_run(tmp_path)
