"""A run, its checkpoints and its readers at places that are no path of a disk."""

import json

import pyarrow.fs as pafs
import pytest
from fakenode import FakeNode
from test_store import KINDS
from typer.testing import CliRunner

from fleet import scheduler
from fleet.cli import app
from fleet.scheduler import Options
from fleet.shard import InlineBackend
from fleet.sql import query
from fleet.store import Store
from fleet.summary import summarise
from hostsim.core.errors import InvariantError, ResultsError, ScenarioError


class Failing(FakeNode):
    """Fails at the start of the third epoch, once."""

    left = 0

    def advance(self, commands, t0_ns, t1_ns):
        if t0_ns >= 3600 * 10**9 and Failing.left:
            Failing.left -= 1
            raise InvariantError("broken")
        return super().advance(commands, t0_ns, t1_ns)


def fake(scenario):
    return InlineBackend(scenario, Failing)


def content(store):
    """Return every part and the manifest of a run."""
    parts = json.loads(store.read("_manifest.json"))["parts"]
    return {name: store.read(name) for name in ["_manifest.json", *(p["path"] for p in parts)]}


@pytest.mark.parametrize("kind", KINDS)
def test_run_is_written_stopped_resumed_and_read_anywhere(small, tmp_path, kind):
    options = Options(checkpoint_epochs=2)
    scheduler.run(small(), tmp_path / "whole", options, None, fake)
    (tmp_path / "run").mkdir()
    store = KINDS[kind](tmp_path)
    Failing.left = 1
    with pytest.raises(InvariantError, match="broken"):
        scheduler.run(small(), store, options, None, fake)
    assert store.names("_checkpoints") == ["e00002.ckpt"]
    assert summarise(store)["status"] == "failed"
    epochs = []
    resume = options._replace(resume=True)
    scheduler.run(small(), store, resume, lambda progress: epochs.append(progress.epoch), fake)
    assert epochs == [3, 4]
    assert content(store) == content(Store(tmp_path / "whole"))
    assert store.names("_checkpoints") == []
    sql = "SELECT host_id, COUNT(*) AS n, SUM(nr_vms) AS vms FROM hosts GROUP BY host_id"
    sql += " ORDER BY host_id"
    assert query(store, sql).equals(query(tmp_path / "whole", sql))
    there, here = summarise(store), summarise(tmp_path / "whole")
    assert there | {"cost": None} == here | {"cost": None}


def test_a_part_at_an_object_store_counts_only_when_the_manifest_has_it(small, tmp_path):
    (tmp_path / "run").mkdir()
    store = KINDS["objects"](tmp_path)
    scheduler.run(small(), store, Options(), None, fake)
    before = query(store, "SELECT COUNT(*) FROM hosts").item()
    store.write("hosts/part-e00099-g0000.parquet", b"uploaded, but never committed")
    assert query(store, "SELECT COUNT(*) FROM hosts").item() == before


def test_place_that_cannot_be_written_is_refused_with_the_reason(small):
    store = Store("run", pafs.SubTreeFileSystem("/proc", pafs.LocalFileSystem()))
    with pytest.raises(ResultsError, match="run: cannot make: "):
        scheduler.run(small(), store, Options(), None, fake)
    with pytest.raises(ScenarioError, match="cannot be opened"):
        scheduler.run(small(), "nfs4://host/run", Options(), None, fake)


@pytest.mark.parametrize(
    "command",
    [["run", "smoke", "--inline", "--out"], ["summary"], ["query"]],
    ids=lambda command: command[0],
)
def test_command_names_a_uri_that_it_does_not_know(command):
    words = [*command, "nfs4://host/run", *(["SELECT 1"] if command == ["query"] else [])]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, ScenarioError)
    assert "nfs4://host/run: cannot be opened" in str(done.exception)
