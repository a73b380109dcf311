import json

import pytest

from fleet import rundir
from hostsim.core.errors import ResultsError, ScenarioError


def make_run(path, **changes):
    path.mkdir(parents=True, exist_ok=True)
    record = {"format": rundir.FORMAT, "schema_version": rundir.SCHEMA_VERSION} | changes
    (path / "run.json").write_text(json.dumps(record))
    (path / "hosts").mkdir()
    (path / "hosts" / "x.parquet").write_text("x")


def test_new_directory_is_made(tmp_path):
    rundir.claim(tmp_path / "a" / "b", overwrite=False, resume=False)
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_directory_that_is_no_run_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ScenarioError, match="not a run directory"):
        rundir.claim(tmp_path, overwrite, resume=False)
    assert (tmp_path / "thesis.txt").exists()


def test_run_is_refused_unless_overwrite_or_resume(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ScenarioError, match="already holds a run"):
        rundir.claim(tmp_path, overwrite=False, resume=False)
    rundir.claim(tmp_path, overwrite=False, resume=True)
    assert (tmp_path / "hosts" / "x.parquet").exists()


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path):
    make_run(tmp_path)
    (tmp_path / "notes.txt").write_text("keep")
    rundir.claim(tmp_path, overwrite=True, resume=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_resume_of_nothing_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="holds no run to resume"):
        rundir.claim(tmp_path, overwrite=False, resume=True)


def test_out_that_cannot_be_made_is_a_results_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Not a directory"):
        rundir.claim(tmp_path / "file" / "run", overwrite=False, resume=False)


def test_reader_names_the_version_it_cannot_read(tmp_path):
    make_run(tmp_path, schema_version=99)
    with pytest.raises(ResultsError, match="schema version 99"):
        rundir.open_run(tmp_path)


def test_reader_refuses_a_directory_that_is_no_run(tmp_path):
    with pytest.raises(ResultsError, match="is not a run directory"):
        rundir.open_run(tmp_path)


def test_atomic_write_leaves_the_old_content_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    rundir.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(rundir.os, "fsync", full)
    with pytest.raises(ResultsError, match=r"a\.json: cannot write: No space left on device"):
        rundir.write_json(path, {"a": 2})
    assert rundir.read_json(path) == {"a": 1}
