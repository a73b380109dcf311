import hashlib
import json

import pytest
from fakenode import FakeNode

from fleet import scheduler
from fleet.query import query
from fleet.shard import InlineBackend
from hostsim.core.errors import InvariantError, ResultsError, ScenarioError


def digest(out):
    """Return the digest of every byte of the tables and their manifest."""
    found = hashlib.sha256()
    for path in sorted([*out.glob("*/part-*.parquet"), out / "_manifest.json"]):
        found.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


def status(out):
    return json.loads((out / "run.json").read_text())["status"]


class Failing(FakeNode):
    """Fails at the start of the third epoch, as often as `left` says."""

    left = 0
    error: BaseException = InvariantError("broken")

    def advance(self, commands, t0_ns, t1_ns):
        if t0_ns >= 3600 * 10**9 and self.host_id == 1 and Failing.left:
            Failing.left -= 1
            raise Failing.error
        return super().advance(commands, t0_ns, t1_ns)


@pytest.fixture
def failing():
    def fail(error):
        Failing.left, Failing.error = 1, error
        return Failing

    yield fail
    Failing.left = 0


def test_same_scenario_gives_the_same_bytes(run_small):
    assert digest(run_small("a")) == digest(run_small("b"))


def test_other_seed_gives_other_bytes(run_small):
    assert digest(run_small("a")) != digest(run_small("b", ["run.seed=2"]))


def test_hosts_have_one_row_a_tick_in_host_order(run_small):
    rows = query(run_small(), "SELECT host_id, COUNT(*) AS n FROM hosts GROUP BY host_id")
    assert rows.sort("host_id").rows() == [(host, 12) for host in range(5)]


def test_rejects_are_events_of_no_host(run_small):
    rows = query(run_small(), "SELECT DISTINCT host_id FROM events WHERE event = 'reject'")
    assert rows.rows() == [(-1,)]


def test_room_of_a_killed_vm_is_free_at_the_next_barrier(run_small, monkeypatch):
    """When every VM dies at once, a full fleet takes VMs again in later epochs."""

    def late_starts(name, kill_every):
        monkeypatch.setattr(FakeNode, "kill_every", kill_every)
        sql = "SELECT COUNT(*) FROM events WHERE event = 'start' AND t_ns > 0"
        return query(run_small(name, ["vms.scale=0.004", "run.duration=12h"]), sql).item()

    assert late_starts("dying", 1) > late_starts("living", 10**9)


@pytest.mark.parametrize("checkpoint_epochs", [0, 1, 2])
def test_resumed_run_ends_with_the_same_bytes(run_small, failing, tmp_path, checkpoint_epochs):
    whole = digest(run_small("whole"))
    with pytest.raises(InvariantError, match="host 1, epoch 2, seed 1: broken"):
        run_small(
            "stopped",
            make_node=failing(InvariantError("broken")),
            checkpoint_epochs=checkpoint_epochs,
        )
    assert status(tmp_path / "stopped") == "failed"
    run_small("stopped", make_node=Failing, resume=True, checkpoint_epochs=checkpoint_epochs)
    assert digest(tmp_path / "stopped") == whole
    assert status(tmp_path / "stopped") == "complete"
    assert not (tmp_path / "stopped" / "_checkpoints").exists()


def test_resume_starts_at_the_last_checkpoint(run_small, failing, small, tmp_path):
    with pytest.raises(InvariantError):
        run_small("r", make_node=failing(InvariantError("x")), checkpoint_epochs=2)
    epochs = []
    scheduler.run(
        small(),
        tmp_path / "r",
        scheduler.Options(resume=True),
        lambda progress: epochs.append(progress.epoch),
        lambda scenario: InlineBackend(scenario, Failing),
    )
    assert epochs == [3, 4]


def test_interrupted_run_says_so(run_small, failing, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_small("r", make_node=failing(KeyboardInterrupt()))
    assert status(tmp_path / "r") == "interrupted"


def test_resume_of_a_complete_run_does_nothing(run_small):
    out = run_small()
    before = (out / "run.json").read_bytes()
    run_small(resume=True)
    assert (out / "run.json").read_bytes() == before


def test_resume_under_another_scenario_is_refused(run_small):
    run_small()
    with pytest.raises(ScenarioError, match="was run with scenario run = "):
        run_small(overrides=["run.seed=2"], resume=True)


def test_damaged_checkpoint_is_a_results_error(run_small, failing, tmp_path):
    with pytest.raises(InvariantError, match="x"):
        run_small("r", make_node=failing(InvariantError("x")), checkpoint_epochs=2)
    path = tmp_path / "r" / "_checkpoints" / "e00002.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ResultsError, match=r"e00002\.ckpt"):
        run_small("r", make_node=Failing, resume=True)


def test_run_record_names_what_the_bytes_depend_on(run_small):
    record = json.loads((run_small() / "run.json").read_text())
    assert {"python", "numpy", "numba", "pyarrow", "hugefleet"} <= set(record["versions"])
    assert record["scenario"]["run"]["seed"] == record["seed"] == 1
    assert record["execution"]["peak_memory_bytes"] > 0
