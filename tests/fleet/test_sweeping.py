import hashlib
import json
import os
import signal

import pytest
from fakenode import FakeNode
from tiny import SMALL

from fleet import scheduler, sweeping
from fleet.shard import InlineBackend
from fleet.sql import query
from fleet.sweeping import cost, sweep
from hostsim.core.errors import ScenarioError, WorkerError

THP = {"hosts.thp.enabled": ["always", "never"]}


@pytest.fixture
def run_sweep(tmp_path, monkeypatch):
    """Sweep the small scenario on nodes that keep books."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    monkeypatch.setattr(scheduler, "_backend", lambda s, _: InlineBackend(s, FakeNode))

    def run(name, vary=THP, seeds=2, **options):
        return sweep(str(path), vary, seeds, out=tmp_path / name, inline=True, **options)

    return run


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("part-*.parquet"))
    }


def test_runs_lie_by_arm_and_seed_and_are_ordinary_ones(run_sweep, tmp_path):
    found = run_sweep("a")
    assert found.arms == ("enabled=always", "enabled=never")
    assert (found.seeds, found.pairing) == ((1, 2), "seeds")
    for arm in found.arms:
        for seed in found.seeds:
            place = tmp_path / "a" / arm / f"seed-{seed}"
            assert json.loads((place / "run.json").read_text())["seed"] == seed
            assert len(query(place, "coverage")) == 4
    record = json.loads((tmp_path / "a" / "sweep.json").read_text())
    assert record["vary"] == THP
    assert cost(tmp_path / "a")[0] == 4


def test_arms_have_the_same_arrivals_and_seeds_have_others(run_sweep, tmp_path):
    run_sweep("a")
    started = {}
    for arm in ("enabled=always", "enabled=never"):
        for seed in (1, 2):
            rows = query(tmp_path / "a" / arm / f"seed-{seed}", "SELECT * FROM events").rows()
            started[arm, seed] = sorted((r[0], r[2]) for r in rows if r[3] in ("start", "reject"))
    assert started["enabled=always", 1] == started["enabled=never", 1]
    assert started["enabled=always", 2] == started["enabled=never", 2]
    assert started["enabled=always", 1] != started["enabled=always", 2]


def test_stopped_sweep_goes_on_and_ends_with_the_same_bytes(run_sweep, tmp_path, monkeypatch):
    run_sweep("whole")
    begun = []

    def stop_in_third(node, commands, t0_ns, t1_ns, advance=FakeNode.advance):
        run = len(list((tmp_path / "a").glob("*/seed-*")))
        if run == 3 and t0_ns > 0:
            raise KeyboardInterrupt
        return advance(node, commands, t0_ns, t1_ns)

    monkeypatch.setattr(FakeNode, "advance", stop_in_third)
    with pytest.raises(KeyboardInterrupt):
        run_sweep("a")
    monkeypatch.undo()
    monkeypatch.setattr(scheduler, "_backend", lambda s, _: InlineBackend(s, FakeNode))
    one = sweeping.run_one
    monkeypatch.setattr(sweeping, "run_one", lambda *args: (begun.append(args[1]), one(*args)))
    with pytest.raises(ScenarioError, match="already holds a sweep\n    hint: --resume"):
        run_sweep("a")
    run_sweep("a", resume=True)
    assert [place.split("/")[-2:] for place in begun] == [
        ["enabled=always", "seed-2"],
        ["enabled=never", "seed-2"],
    ]
    assert digests(tmp_path / "a") == digests(tmp_path / "whole")


def test_seeds_and_values_may_be_added(run_sweep, tmp_path, monkeypatch):
    run_sweep("a")
    begun = []
    one = sweeping.run_one
    monkeypatch.setattr(sweeping, "run_one", lambda *args: (begun.append(args[1]), one(*args)))
    more = {"hosts.thp.enabled": ["always", "madvise", "never"]}
    found = run_sweep("a", more, seeds=3, resume=True)
    assert len(begun) == 9 - 4
    assert found.seeds == (1, 2, 3)
    with pytest.raises(ScenarioError, match="has seeds 3 that this sweep has not"):
        run_sweep("a", more, seeds=2, resume=True)
    with pytest.raises(ScenarioError, match="has arms enabled=madvise that"):
        run_sweep("a", THP, seeds=3, resume=True)


def test_folder_of_something_else_stays_untouched(run_sweep, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter").write_text("dear")
    with pytest.raises(ScenarioError, match="exists and is no sweep; it stays untouched"):
        run_sweep("a", resume=True)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["letter"]


def test_sweep_begun_with_other_versions_does_not_go_on(run_sweep, tmp_path):
    run_sweep("a")
    path = tmp_path / "a" / "sweep.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"versions": {"numba": "0.1"}, "set": ["x=1"]}))
    with pytest.raises(ScenarioError) as caught:
        run_sweep("a", resume=True)
    messages = [problem.message for problem in caught.value.problems]
    assert [message.split()[3] for message in messages] == ["set", "versions"]


def test_progress_counts_runs_and_epochs(run_sweep):
    seen = []
    run_sweep("a", watch=seen.append)
    assert [(step.runs, step.epochs) for step in seen] == [(0, 0), (1, 4), (2, 8), (3, 12), (4, 16)]
    assert {(step.nr_runs, step.nr_epochs) for step in seen} == {(4, 16)}


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_call_whose_worker_dies_is_made_again_but_not_for_ever(tmp_path, monkeypatch):
    from fleet import actors

    def die_at_first(name):
        with (tmp_path / name).open("a") as file:
            file.write(".")
        if name == "b" and (tmp_path / name).read_text() == ".":
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in actors.run_each(die_at_first, [("a",), ("b",)], workers=2):
        pass
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == [".", ".."]
    (tmp_path / "b").unlink()
    monkeypatch.setattr(actors, "MAX_LOSSES", 0)
    with pytest.raises(WorkerError, match="a worker died 1 times"):
        list(actors.run_each(die_at_first, [("b",)], workers=1))


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_mistake_that_a_worker_finds_is_raised_here():
    from fleet import actors

    def fail():
        from hostsim.core.errors import Problem, ScenarioError

        raise ScenarioError([Problem("here", "is wrong")])

    with pytest.raises(ScenarioError, match="here: is wrong"):
        list(actors.run_each(fail, [()], workers=1))
