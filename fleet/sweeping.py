"""A sweep: the runs of a grid, several at a time, and their comparison.

With many runs to do, a whole run a worker is far cheaper than every run spread over all workers:
nothing waits at barriers.  Runs that are done stay; one that was stopped goes on or begins anew.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet import rundir, scheduler
from fleet.arms import leaves, open_arms, without_seed
from fleet.comparison import Comparison, compare
from fleet.grid import Grid, Planned, plan
from fleet.live import SweepProgress
from fleet.lock import held
from fleet.scenario import Scenario
from fleet.store import Store
from fleet.sweepdir import SWEEP_FILE, SWEEP_FORMAT, is_sweep, read_sweep
from fleet.warmup import warm_up
from hostsim.core import jit_options
from hostsim.core.errors import Problem, ScenarioError

_LOG = logging.getLogger(__name__)
LOOK_AT_LOCK_S = 0.5  # between two looks at whether a run is still being written
LOOKS_AT_LOCK = 20


def sweep(
    scenario: str,
    vary: Mapping[str, Sequence[str]],
    seeds: int = 3,
    *,
    out: str | Path | Store,
    overrides: Sequence[str] = (),
    first_seed: int | None = None,
    workers: int | None = None,
    inline: bool = False,
    resume: bool = False,
    baseline: str | None = None,
    watch: Callable[[SweepProgress], None] | None = None,
) -> Comparison:
    """Run a scenario over a grid of fields and seeds, and compare the arms.

    ``sweep("churn", {"hosts.thp.enabled": ["always", "never"]}, out="sweeps/thp")``

    Parameters
    ----------
    scenario
        A built-in name, or a TOML file.
    vary
        Values by field, as text: the paths of ``--set``.
    out
        Folder of the sweep; its runs are ``<arm>/seed-<n>``, ordinary run directories.
    inline
        One run after the other in this process, without Ray.
    resume
        Go on with the sweep that the folder holds; it may have got more seeds or values.

    Raises
    ------
    ScenarioError
        A field or value is wrong, arms would see other arrivals, or the folder is in use.
    ResultsError
        A file cannot be written.
    WorkerError
        Ray does not start, or workers die again and again.
    """
    grid = plan(scenario, vary, seeds, overrides, first_seed)
    store = Store.of(out)
    record = _record(scenario, overrides, grid)
    _claim(store, record, resume)
    with held(store, _LOG.warning):
        rundir.write_json(store, SWEEP_FILE, record)
        todo = [run for run in grid.runs if not _is_done(store, run)]
        steps = _one_by_one(store, todo) if inline else _on_workers(store, todo, workers)
        for _ in steps:
            if watch:
                watch(_progress(store, grid))
    return compare([store], baseline)


def _record(scenario: str, overrides: Sequence[str], grid: Grid) -> dict[str, Any]:
    """Return the content of ``sweep.json``."""
    return {
        "format": SWEEP_FORMAT,
        "scenario": scenario,
        "set": list(overrides),
        "vary": grid.vary,
        "seeds": grid.seeds,
        "arms": grid.arms,
        "documents": {run.arm: without_seed(run.scenario.document) for run in grid.runs},
        "versions": rundir.versions(),
        "git_commit": rundir.git_commit(),
    }


def _claim(store: Store, record: dict[str, Any], resume: bool) -> None:
    """Look whether a sweep may begin or go on in a folder, and make the folder.

    Raises
    ------
    ScenarioError
        It holds something else, or another sweep.
    """
    place = f"--out {store}"
    names = store.names()
    if not is_sweep(store):
        if set(names) - set(rundir.UNBORN):
            message = "exists and is no sweep; it stays untouched"
            raise ScenarioError([Problem(place, message, "choose another --out")])
        store.make_folder()
        return
    before = read_sweep(store)
    if not resume:
        hint = "--resume goes on with it, --out names another place"
        raise ScenarioError([Problem(place, "already holds a sweep", hint)])
    problems = []
    for key in ("versions", "documents"):
        was, is_now = (dict(leaves(found[key])) for found in (before, record))
        for path in was:
            if path in is_now and was[path] != is_now[path]:
                message = f"was begun with {path} = {was[path]}, not {is_now[path]}"
                problems.append(Problem(place, message, "choose another --out"))
    for key in ("arms", "seeds"):
        lost = [str(one) for one in before[key] if one not in record[key]]
        if lost:
            message = f"has {key} {', '.join(lost)} that this sweep has not"
            problems.append(
                Problem(place, message, "more values and seeds may be added, none left")
            )
    if problems:
        raise ScenarioError(problems)


def _is_done(store: Store, run: Planned) -> bool:
    path = f"{run.place}/{rundir.RUN_FILE}"
    if not store.exists(path):
        return False
    return bool(rundir.read_json(store, path).get("status") == "complete")


def _progress(store: Store, grid: Grid) -> SweepProgress:
    """Count what is written; every epoch adds a part to the table ``fleet``."""
    epochs = sum(len(store.names(f"{run.place}/fleet")) for run in grid.runs)
    done = sum(_is_done(store, run) for run in grid.runs)
    nr_epochs = sum(run.scenario.nr_epochs for run in grid.runs)
    return SweepProgress(done, len(grid.runs), min(epochs, nr_epochs), nr_epochs)


def _place(store: Store, run: Planned) -> str:
    return store.label(run.place)


def _one_by_one(store: Store, todo: list[Planned]) -> Iterator[None]:
    for run in todo:
        yield
        run_one(run.scenario, _place(store, run))
    yield


def _on_workers(store: Store, todo: list[Planned], workers: int | None) -> Iterator[None]:
    if not todo:
        return
    warm_up()  # compile here once, not in every worker at the same time
    from fleet import actors

    jit_options.processes = 0  # a process with Ray's threads must not fork
    yield from actors.run_each(
        run_one, [(run.scenario, _place(store, run)) for run in todo], workers
    )


def run_one(scenario: Scenario, place: str) -> None:
    """Run a scenario in this process, or go on with it where it was stopped."""
    store = Store(place)
    begun = store.exists(rundir.RUN_FILE)
    if begun:
        _await_end(store)
    scheduler.run(scenario, store, scheduler.Options(inline=True, resume=begun))


def _await_end(store: Store) -> None:
    """Wait for the worker of a sweep that was killed: Ray ends it two seconds later."""
    for _ in range(LOOKS_AT_LOCK):
        try:
            with held(store, _LOG.warning):
                return
        except ScenarioError:
            time.sleep(LOOK_AT_LOCK_S)


def cost(place: str | Path | Store) -> tuple[int, float]:
    """Return how many runs a sweep has, and the CPU seconds they took."""
    members = [member for arm in open_arms([place]) for member in arm.members.values()]
    return len(members), sum(float(m.run.record["execution"]["cpu_s"]) for m in members)
