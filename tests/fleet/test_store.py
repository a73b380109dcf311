import os

import pyarrow.fs as pafs
import pytest

from fleet import rundir
from fleet import store as store_module
from fleet.store import Store
from hostsim.core.errors import ResultsError, ScenarioError


class ObjectStore(Store):
    """A store that shows an object when its upload has ended."""

    def __init__(self, place, filesystem):
        super().__init__(place, filesystem)
        self.is_object_store = True

    def _stream(self, path):
        self.fs.create_dir(self.full(path.rpartition("/")[0]), recursive=True)  # keys need none
        return super()._stream(path)


def sub_tree(path):
    return pafs.SubTreeFileSystem(str(path), pafs.LocalFileSystem())


KINDS = {
    "path": lambda path: Store(path / "run"),
    "file uri": lambda path: Store(f"file://{path}/run"),
    "sub tree": lambda path: Store("run", sub_tree(path)),
    "memory": lambda path: Store("run", pafs._MockFileSystem()),
    "objects": lambda path: ObjectStore("run", sub_tree(path)),
}


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    (tmp_path / "run" / "a").mkdir(parents=True)  # object stores need no folders
    made = KINDS[request.param](tmp_path)
    made.make_folder("a")
    return made


def test_files_are_written_listed_read_and_deleted(store):
    store.write("a/x", b"one")
    store.write("a/x", b"two")
    store.write_all({"a/y": b"three", "top": b"four"}, attempt="a001")
    assert store.names("a") == ["x", "y"]
    assert [store.read(path) for path in ("a/x", "a/y", "top")] == [b"two", b"three", b"four"]
    assert (store.exists("a/x"), store.exists("a/z"), store.exists("a")) == (True, False, False)
    assert store.missing(["a/x", "a/z"]) == ["a/z"]
    store.delete("a/x")
    store.delete_folder("a")
    store.delete_folder("a")
    assert store.names("a") == []


def test_a_long_file_appears_when_it_is_whole(store):
    store.write("a/x", b"old")
    with store.writing("a/x") as file:
        file.write(b"new ")
        assert store.read("a/x") == b"old"
        file.write(b"content")
    with store.opened("a/x") as file:
        assert bytes(file.read_at(7, 4)) == b"content"


def test_a_long_file_that_fails_leaves_the_old_one(store):
    store.write("a/x", b"old")
    with pytest.raises(TypeError, match="bytes-like"), store.writing("a/x") as file:  # noqa: PT012
        file.write(b"new")
        file.write(3)
    assert store.read("a/x") == b"old"


def test_full_disk_leaves_the_old_content(tmp_path, monkeypatch):
    store = Store(tmp_path)
    rundir.write_json(store, "a.json", {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(ResultsError, match=r"a\.json.*: cannot write: No space left on device"):
        rundir.write_json(store, "a.json", {"a": 2})
    assert rundir.read_json(store, "a.json") == {"a": 1}


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda _: done.append("sync"))
    store = Store(tmp_path)
    commit = store._commit
    monkeypatch.setattr(store, "_commit", lambda *p: (done.append("rename"), commit(*p)))
    store.write_all({"x": b"1", "y": b"2"})
    assert done == ["sync", "sync", "rename", "rename", "sync"]


@pytest.mark.parametrize("place", ["nfs4://host/x", "s3://", "file://relative/x"])
def test_uri_that_cannot_be_opened_is_refused_with_the_reason(place):
    with pytest.raises(ScenarioError, match="cannot be opened: "):
        Store(place)


def test_error_of_a_file_system_names_the_file(store):
    with pytest.raises(ResultsError, match="run/nothing: cannot read: "):
        store.read("nothing")
