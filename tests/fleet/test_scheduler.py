import functools
import hashlib
import json
import tomllib

import numpy as np
import pytest
from fakenode import AT, FakeNode
from tiny import SMALL

from fleet import scheduler
from fleet.loading import build
from fleet.policies import POLICIES
from fleet.sections import GIB_PAGES
from fleet.shard import InlineBackend, Shard, shard_plans
from fleet.sql import query
from fleet.trace import NEVER, make_trace, write_trace
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


class Breaking(FakeNode):
    """Says that the memory of a host that has just run its first VM is broken."""

    def host_row(self, t_ns):
        row = super().host_row(t_ns)
        row[AT["hosts"]["unusable_index_order9"]] = 900 if self.starts else 0
        return row


@pytest.mark.parametrize(
    ("policy", "hosts"),
    [("drain-fragmented", [0, 0, 1, 2, 3]), ("best-fit", [0, 0, 0, 0, 0])],
)
def test_placement_sees_the_gauges_of_the_last_barrier(tmp_path, policy, hosts):
    """Two VMs arrive in the first epoch of half an hour, then one in each."""
    start_ns = np.array([1, 2, 31, 61, 91]) * 60 * 10**9
    one = np.ones(5, np.int64)
    never = np.full(5, NEVER)
    trace = make_trace(start_ns, never, one, one * GIB_PAGES, one * 0, one, ("1c",), 10**13)
    write_trace(trace, tmp_path / "t.parquet")
    raw = tomllib.loads(SMALL)
    raw["vms"] = {"source": "trace", "path": str(tmp_path / "t.parquet")}
    scenario = build(raw, "small", "small.toml", [f"placement.policy={policy}"])
    backend = InlineBackend(scenario, Breaking)
    scheduler.run(scenario, tmp_path / "r", make_backend=lambda _: backend)
    rows = query(tmp_path / "r", "SELECT host_id FROM events WHERE event = 'start' ORDER BY t_ns")
    assert rows["host_id"].to_list() == hosts


class Shards:
    """A backend of several shards in one process."""

    name = "shards"
    nodes = ()

    def __init__(self, scenario, nr_shards):
        self.shards = [Shard(plan, Breaking) for plan in shard_plans(scenario, nr_shards)]
        self.host_ids = [shard.plan.host_ids for shard in self.shards]

    def emigrate(self, epoch, t_ns, moves):
        pairs = zip(self.shards, moves, strict=True)
        return [shard.emigrate(epoch, t_ns, part) for shard, part in pairs]

    def submit(self, steps):
        pairs = zip(self.shards, steps, strict=True)
        self.rows = [shard.advance(step) for shard, step in pairs]

    def collect(self):
        return self.rows[::-1]  # the last one answers first

    def remote_usage(self):
        return []

    def recoveries(self):
        return []

    def sampling(self):
        return [shard.sampling() for shard in self.shards]

    def close(self):
        pass


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_gives_the_same_bytes_for_any_number_of_shards(small, tmp_path, policy):
    scenario = small(f"placement.policy={policy}", "run.duration=4h")
    found = set()
    for nr_shards in (1, 2, 5):
        out, options = tmp_path / str(nr_shards), scheduler.Options(checkpoint_epochs=0)
        make = functools.partial(Shards, nr_shards=nr_shards)
        scheduler.run(scenario, out, options, make_backend=make)
        found.add(digest(out))
    assert len(found) == 1


def test_vms_move_between_any_number_of_shards_alike(small, tmp_path):
    drain = "maintenance=[{hosts = 2, start = '1h'}]"
    scenario = small(drain, "run.duration=4h", "vms.scale=0.00008", "failures.mtbf=8h")
    found = set()
    for nr_shards in (1, 2, 5):
        out, options = tmp_path / str(nr_shards), scheduler.Options(checkpoint_epochs=0)
        make = functools.partial(Shards, nr_shards=nr_shards)
        scheduler.run(scenario, out, options, make_backend=make)
        found.add(digest(out))
        assert query(out, "SELECT COUNT(*) FROM migrations").item() > 0
    assert len(found) == 1


@pytest.mark.parametrize("policy", ["random", "lifetime-predicted", "drain-fragmented"])
def test_resumed_run_of_a_policy_with_a_memory_ends_with_the_same_bytes(
    run_small, failing, tmp_path, policy
):
    overrides = [f"placement.policy={policy}"]
    whole = digest(run_small("whole", overrides))
    with pytest.raises(InvariantError):
        run_small("r", overrides, failing(InvariantError("x")), checkpoint_epochs=1)
    run_small("r", overrides, Failing, resume=True, checkpoint_epochs=1)
    assert digest(tmp_path / "r") == whole


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
