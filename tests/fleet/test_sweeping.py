import hashlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from fakenode import FakeNode
from tiny import SMALL

from fleet import scheduler, sweeping
from fleet.shard import InlineBackend
from fleet.sql import query
from fleet.sweeping import cost, sweep
from hostsim.core.errors import ScenarioError, WorkerError

THP = {"hosts.thp.enabled": ["always", "never"]}


TEXT = SMALL.replace('"2h"', '"1h"').replace("hosts_per_part = 2", "hosts_per_part = 8")


def small_sweep(folder, vary=THP, seeds=2, **options):
    """Sweep a scenario of two epochs on nodes that keep books."""
    path = folder.parent / "small.toml"
    path.write_text(TEXT)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "_backend", lambda s, _: InlineBackend(s, FakeNode))
        return sweep(str(path), vary, seeds, out=folder, inline=True, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a sweep, what came of it and what its progress was; not to be changed."""
    seen = []
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, small_sweep(folder, watch=seen.append), seen


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole[0], tmp_path / "a"))


@pytest.fixture
def begun(monkeypatch):
    """Note the runs that are carried out."""
    places = []
    one = sweeping.run_one
    monkeypatch.setattr(
        sweeping, "run_one", lambda *args: (places.append(args[1].split("/")[-2:]), one(*args))
    )
    return places


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("part-*.parquet"))
    }


def test_runs_lie_by_arm_and_seed_and_are_ordinary_ones(whole):
    folder, found, _ = whole
    assert found.arms == ("enabled=always", "enabled=never")
    assert (found.seeds, found.pairing) == ((1, 2), "seeds")
    for arm in found.arms:
        for seed in found.seeds:
            place = folder / arm / f"seed-{seed}"
            assert json.loads((place / "run.json").read_text())["seed"] == seed
            assert len(query(place, "coverage")) == 2
    assert json.loads((folder / "sweep.json").read_text())["vary"] == THP
    assert cost(folder)[0] == 4


def test_arms_have_the_same_arrivals_and_seeds_have_others(whole):
    started = {}
    for arm in ("enabled=always", "enabled=never"):
        for seed in (1, 2):
            rows = query(whole[0] / arm / f"seed-{seed}", "SELECT * FROM events").rows()
            started[arm, seed] = sorted((r[0], r[2]) for r in rows if r[3] in ("start", "reject"))
    assert started["enabled=always", 1] == started["enabled=never", 1]
    assert started["enabled=always", 2] == started["enabled=never", 2]
    assert started["enabled=always", 1] != started["enabled=always", 2]


def test_progress_counts_runs_and_epochs(whole):
    seen = whole[2]
    assert [(step.runs, step.epochs) for step in seen] == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]
    assert {(step.nr_runs, step.nr_epochs) for step in seen} == {(4, 8)}


def test_stopped_sweep_goes_on_and_ends_with_the_same_bytes(whole, tmp_path, monkeypatch, begun):
    def stop_in_third(node, commands, t0_ns, t1_ns, advance=FakeNode.advance):
        if len(begun) == 3 and t0_ns > 0:
            raise KeyboardInterrupt
        return advance(node, commands, t0_ns, t1_ns)

    with monkeypatch.context() as patched:
        patched.setattr(FakeNode, "advance", stop_in_third)
        with pytest.raises(KeyboardInterrupt):
            small_sweep(tmp_path / "a")
    begun.clear()
    with pytest.raises(ScenarioError, match="already holds a sweep\n    hint: --resume"):
        small_sweep(tmp_path / "a")
    small_sweep(tmp_path / "a", resume=True)
    assert begun == [["enabled=always", "seed-2"], ["enabled=never", "seed-2"]]
    assert digests(tmp_path / "a") == digests(whole[0])


def test_seeds_and_values_may_be_added(copied, begun):
    more = {"hosts.thp.enabled": ["always", "madvise", "never"]}
    found = small_sweep(copied, more, seeds=3, resume=True)
    assert len(begun) == 9 - 4
    assert found.seeds == (1, 2, 3)
    with pytest.raises(ScenarioError, match="has seeds 3 that this sweep has not"):
        small_sweep(copied, more, seeds=2, resume=True)
    with pytest.raises(ScenarioError, match="has arms enabled=madvise that"):
        small_sweep(copied, THP, seeds=3, resume=True)


def test_folder_of_something_else_stays_untouched(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "letter").write_text("dear")
    with pytest.raises(ScenarioError, match="exists and is no sweep; it stays untouched"):
        small_sweep(tmp_path / "a", resume=True)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["letter"]


def test_sweep_begun_with_other_settings_or_versions_does_not_go_on(copied):
    path = copied / "sweep.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"versions": record["versions"] | {"numba": "0.1"}}))
    with pytest.raises(ScenarioError, match=r"begun with numba = 0\.1, not"):
        small_sweep(copied, resume=True)
    with pytest.raises(ScenarioError, match=r"placement.policy = best-fit, not worst-fit"):
        small_sweep(copied, overrides=["placement.policy=worst-fit"], resume=True)


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
