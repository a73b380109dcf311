"""Memory maps of a host of a run, at the ends of some of its epochs."""

from typing import Any, NamedTuple

from fleet.loading import build
from fleet.memory_map import MemoryMap, memory_map
from fleet.node import Node
from fleet.rerun import Rerun, nr_epochs_written, rerun
from fleet.rundir import open_run
from fleet.scenario import Scenario
from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.units import format_duration, parse_duration_ns


class Maps(NamedTuple):
    """What was found of a host."""

    host_id: int
    title: str
    maps: list[MemoryMap]
    rerun: Rerun


def maps_of(place: str, host_id: int, at: str | None = None, every: str | None = None) -> Maps:
    """Compute a host of a run again, and look at its memory.

    Parameters
    ----------
    at, every
        Times as text: a list of them, or the time from one to the next; the end if both are None.

    Raises
    ------
    ScenarioError
        The place is no run, it has no such host, or a time is none that can be looked at.
    ResultsError
        The run has no rows, or what is computed is not what was recorded.
    """
    run = open_run(place)
    name = run.record["name"]
    scenario = build(dict(run.record["scenario"]), name, str(run.store))
    if not 0 <= host_id < scenario.nr_hosts:
        message = f"the run has no host {host_id}"
        raise ScenarioError([Problem("HOST", message, f"0 to {scenario.nr_hosts - 1}")])
    written = nr_epochs_written(run)
    if not written:
        raise ResultsError(f"{run.store}: has no rows yet")
    times = _times(scenario, written, at, every)
    found: list[MemoryMap] = []

    def look(t_ns: int, node: Node) -> None:
        if t_ns in times:
            found.append(memory_map(node.host.mem, t_ns))

    ends = [scenario.epoch_bounds_ns(epoch)[1] for epoch in range(written)]
    proof = rerun(run, scenario, host_id, ends.index(max(times)) + 1, look)
    return Maps(host_id, f"Host {host_id} of {name}, seed {run.record['seed']}", found, proof)


def _times(scenario: Scenario, written: int, at: str | None, every: str | None) -> set[int]:
    """Return the times to look at: ends of epochs that were written."""
    ends = [scenario.epoch_bounds_ns(epoch)[1] for epoch in range(written)]
    option = "--every" if every else "--at"
    problems, times = [], set()
    for text in (every or at or "").split(","):
        if not text:
            continue
        try:
            time_ns = parse_duration_ns(text)
        except ValueError as error:
            problems.append(Problem(option, str(error)))
            continue
        wanted = range(time_ns, ends[-1] + 1, time_ns) if every and time_ns > 0 else [time_ns]
        missing = [t_ns for t_ns in wanted if t_ns not in ends]
        if missing or not len(wanted):
            t_ns = missing[0] if missing else time_ns
            near = min(ends, key=lambda end: abs(end - t_ns))
            message = f"{format_duration(t_ns)} is not the end of an epoch of the run"
            epoch, end = format_duration(scenario.epoch_ns), format_duration(ends[-1])
            hint = f"nearest: {format_duration(near)}; an epoch is {epoch}, rows end at {end}"
            problems.append(Problem(f"{option} {text}", message, hint))
        times |= set(wanted)
    if problems:
        raise ScenarioError(problems)
    return times or {ends[-1]}


def as_json(found: Maps) -> dict[str, Any]:
    """Return the counts for programs."""
    return {
        "computed_hosts": list(found.rerun.host_ids),
        "equal_rows": found.rerun.rows,
        "maps": [
            {
                "t_ns": one.t_ns,
                "pageblocks": {cell.name.lower(): nr for cell, nr in one.counts().items()},
                "migratetypes": one.type_counts(),
            }
            for one in found.maps
        ],
    }
