"""A run: its directory, its record, who computes it, how it ended; the loop is in ``driver``."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from fleet import checkpoint, rundir
from fleet.costs import Costs, cost_record, sampling_record
from fleet.demand import arrivals_digest, open_demand
from fleet.driver import Backend, Driver
from fleet.live import Watch
from fleet.lock import Lock, held
from fleet.scenario import Scenario
from fleet.shard import (
    InlineBackend,
)
from fleet.sink import Sink
from fleet.store import STAGING, Store
from fleet.trace import Trace
from fleet.warmup import is_cold, warm_up
from hostsim.core import jit_options
from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.stats import SCHEMA_VERSION

_LOG = logging.getLogger(__name__)


class Options(NamedTuple):
    """How a run is carried out; none of it changes a result.

    Attributes
    ----------
    inline
        Compute in this process, without Ray.
    workers
        Worker processes; one a core if left out.
    hosts_per_actor
        Hosts that share a worker's actor; hosts / workers if left out.
    address
        ``HOST:PORT`` of a Ray cluster, or ``auto``; an embedded Ray if left out.
    overwrite, resume
        What to do with a run that is there: delete it, or continue it.
    checkpoint_epochs
        Epochs between checkpoints; 0 for none.
    metrics_port
        Where an embedded Ray serves metrics to Prometheus.
    """

    inline: bool = False
    workers: int | None = None
    hosts_per_actor: int | None = None
    address: str | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_epochs: int = 24
    metrics_port: int | None = None


def run(
    scenario: Scenario,
    out: str | Path | Store,
    options: Options | None = None,
    on_epoch: Watch | None = None,
    make_backend: Callable[[Scenario], Backend] | None = None,
) -> dict[str, Any]:
    """Run a scenario into a run directory and return the content of its ``run.json``.

    Parameters
    ----------
    scenario
        As `fleet.load` returns it.
    out
        A path or a URI of `fleet.store`.
    options
        How to run it; an embedded Ray with a worker a core if left out.
    on_epoch
        Called after every epoch with a `Progress`.
    make_backend
        Who computes, for tests.

    Raises
    ------
    ScenarioError
        The scenario cannot be run, or ``out`` already holds something, or is in use.
    ResultsError
        A file cannot be written, or a checkpoint cannot be taken up.
    WorkerError
        The Ray cluster cannot be reached or used, or workers die again and again.
    InvariantError
        A host's state is inconsistent.

    Examples
    --------
    >>> from fleet import Options, load, run
    >>> few = ["hosts.count=1", "run.duration=1h", "vms.scale=0.0001", "mmu.enabled=false"]
    >>> record = run(load("smoke", few), "runs/few", Options(inline=True))
    >>> record["status"], record["tally"]["start"] > 0
    ('complete', True)
    """
    options = options or Options()
    costs = Costs()
    if options.address:
        from fleet import cluster

        cluster.reach(options.address)  # within seconds, and before there is a directory
    trace = open_demand(scenario)
    store = Store.of(out)
    rundir.claim(store, options.overwrite, options.resume)
    with held(store, _LOG.warning) as lock:
        record = _record(scenario, trace)
        if options.overwrite:
            rundir.clear(store)
        if store.exists(rundir.RUN_FILE):
            before = rundir.read_json(store, rundir.RUN_FILE)
            _same_run(store, before, record)
            if before["status"] == "complete":
                checkpoint.clear(store)  # if it was killed before it could
                return cast(dict[str, Any], before)
            record["execution"]["attempt"] = before["execution"]["attempt"] + 1
        rundir.write_json(store, rundir.RUN_FILE, record)
        make = make_backend or (lambda s: _backend(s, options))
        _attempt(scenario, trace, make, record, costs, options, lock, on_epoch)
        checkpoint.clear(store)
    return record


def _attempt(
    scenario: Scenario,
    trace: Trace,
    make_backend: Callable[[Scenario], Backend],
    record: dict[str, Any],
    costs: Costs,
    options: Options,
    lock: Lock,
    on_epoch: Watch | None,
) -> None:
    """Run a scenario to its end, and write into ``run.json`` how it ended."""
    status = "failed"
    try:
        backend = make_backend(scenario)
        try:
            record["execution"]["backend"] = backend.name
            record["execution"]["shards"] = len(backend.host_ids)
            record["execution"]["nodes"] = backend.nodes
            attempt = record["execution"]["attempt"]
            per_part = scenario.hosts_per_part
            sink = Sink(lock.store, scenario.nr_hosts, per_part, attempt, lock.check)
            every, resume = options.checkpoint_epochs, options.resume
            driver = Driver(scenario, trace, backend, sink, costs, lock, every, resume)
            record["tally"] = driver.run(_watches(scenario, backend, on_epoch))
            costs.look(backend.remote_usage, force=True)
            record["execution"]["mmu"] = sampling_record(backend.sampling())
            record["execution"]["recoveries"] = backend.recoveries()
        finally:
            backend.close()
        status = "complete"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        record["status"] = status
        record["execution"] |= cost_record(costs, scenario.nr_hosts)
        _note_end(lock, record, status)


def _watches(scenario: Scenario, backend: Backend, on_epoch: Watch | None) -> list[Watch]:
    """Return all that is to be called after every epoch: where Ray computes, metrics too."""
    watches = [on_epoch] if on_epoch else []
    if backend.name == "ray":
        from fleet.metrics import Exporter

        watches.append(Exporter(scenario.name, scenario.seed))
    return watches


def _same_run(store: Store, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a run under another scenario or other package versions."""
    for key in ("scenario", "versions"):
        for name in before[key].keys() | now[key].keys():
            was, is_now = before[key].get(name), now[key].get(name)
            if was != is_now:
                message = f"was run with {key} {name} = {was}, not {is_now}"
                raise ScenarioError([Problem(f"--out {store}", message, "--overwrite starts anew")])


def _note_end(lock: Lock, record: dict[str, Any], status: str) -> None:
    """Write how the run ended; a full disk must not hide the error that ended it."""
    store = lock.store
    try:
        lock.check()
        if status != "complete":
            store.delete_folder(STAGING)  # makes room for run.json
        rundir.write_json(store, rundir.RUN_FILE, record)
    except ResultsError:
        if status == "complete":
            raise


def _backend(scenario: Scenario, options: Options) -> Backend:
    if options.inline or is_cold():
        warm_up()  # compile here once, not in every worker at the same time
    if options.inline:
        return InlineBackend(scenario)
    from fleet.actors import RayBackend

    jit_options.processes = 0  # a process with Ray's threads must not fork
    workers, per_actor = options.workers, options.hosts_per_actor
    return RayBackend(scenario, workers, per_actor, options.address, options.metrics_port)


def _record(scenario: Scenario, trace: Trace) -> dict[str, Any]:
    """Return what ``run.json`` says of a run that has just begun."""
    return {
        "format": rundir.FORMAT,
        "schema_version": SCHEMA_VERSION,
        "status": "running",
        "name": scenario.name,
        "seed": scenario.seed,
        "scenario": scenario.document,
        "arrivals_sha256": arrivals_digest(trace, scenario.duration_ns),
        "versions": rundir.versions(),
        "git_commit": rundir.git_commit(),
        "tally": {},
        "execution": {
            "attempt": 1,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
