"""The file: what is read is what was written, and everything else is refused."""

import json

import pytest
from test_snapshot_capture import root  # noqa: F401  (a fixture)

from fleet.snapshot_capture import capture
from fleet.snapshot_file import read_snapshot, to_json, write_snapshot
from hostsim.core.errors import ResultsError, ScenarioError


@pytest.fixture
def snapshot(root):  # noqa: F811
    return capture(root)


def test_what_is_read_is_what_was_written(snapshot, tmp_path):
    write_snapshot(snapshot, tmp_path / "h.json")
    assert read_snapshot(tmp_path / "h.json") == snapshot


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is no snapshot of a host, or is damaged: not JSON"),
        (lambda text: "[1, 2]", "is no snapshot of a host"),
        (lambda text: '{"format": "hugefleet run"}', "is no snapshot of a host"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "has format version 2"),
        (lambda text: text.replace('"nr_cpus": 2', '"nr_cpus": 3'), "its checksum is wrong"),
    ],
)
def test_other_files_are_refused(snapshot, tmp_path, change, message):
    path = tmp_path / "h.json"
    path.write_text(change(to_json(snapshot)))
    with pytest.raises(ScenarioError, match=message):
        read_snapshot(path)


def test_edited_file_without_checksum_names_every_wrong_part(snapshot, tmp_path):
    content = json.loads(to_json(snapshot))
    del content["sha256"], content["meminfo_kb"]
    content["nr_cpus"], content["later"] = 0, "left alone"
    path = tmp_path / "h.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ScenarioError) as caught:
        read_snapshot(path)
    places = [problem.place for problem in caught.value.problems]
    assert places == [f"{path}: nr_cpus", f"{path}: meminfo_kb"]


def test_text_that_no_kernel_prints_is_refused(snapshot, tmp_path):
    content = json.loads(to_json(snapshot))
    del content["sha256"]
    content["buddyinfo"] = ["Node 0, zone DMA many"]
    (tmp_path / "h.json").write_text(json.dumps(content))
    with pytest.raises(ScenarioError, match="is no line of /proc/buddyinfo"):
        read_snapshot(tmp_path / "h.json")


def test_missing_folder_is_a_message(snapshot, tmp_path):
    with pytest.raises(ResultsError, match=r"cannot be written: No such file"):
        write_snapshot(snapshot, tmp_path / "no" / "h.json")
    with pytest.raises(ScenarioError, match=r"cannot be read: No such file"):
        read_snapshot(tmp_path / "h.json")
