"""The arms of a comparison: runs of one scenario over seeds, and whether they may be compared."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fleet.loading import build
from fleet.rundir import RUN_FILE, RunDirectory, open_run
from fleet.scenario import Scenario
from fleet.sections import duration_text
from fleet.store import Store
from fleet.sweepdir import is_sweep, read_sweep, run_store
from hostsim.core.errors import Problem, ScenarioError


class Member(NamedTuple):
    """One run of an arm."""

    run: RunDirectory
    scenario: Scenario

    @property
    def place(self) -> str:
        """The run's directory."""
        return str(self.run.store)


class Arm(NamedTuple):
    """Runs that differ by their seed alone."""

    name: str
    members: dict[int, Member]  # by seed

    def places(self) -> list[str]:
        """Return the directories of its runs."""
        return [member.place for member in self.members.values()]


def open_arms(places: Sequence[str | Path | Store]) -> list[Arm]:
    """Open the arms of a sweep, or group runs into arms, and hold them against each other.

    Raises
    ------
    ScenarioError
        Runs are no runs, not finished, or not comparable.
    """
    stores = [Store.of(place) for place in places]
    if len(stores) == 1 and is_sweep(stores[0]):
        arms = _of_sweep(stores[0])
    else:
        names = list(map(str, stores))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ScenarioError([Problem(name, "is named twice") for name in twice])
        arms = _of_runs([_member(store) for store in stores])
    if len(arms) < 2:
        hint = "name two runs, or the directory of a sweep"
        where = " ".join(map(str, places))
        raise ScenarioError([Problem(where, "is one arm; there is nothing to compare", hint)])
    problems = list(_differences(arms))
    if problems:
        raise ScenarioError(problems)
    return arms


def _member(store: Store) -> Member:
    run = open_run(store)
    scenario = build(dict(run.record["scenario"]), run.record["name"], str(store))
    return Member(run, scenario)


def _of_sweep(store: Store) -> list[Arm]:
    record = read_sweep(store)
    arms, seeds = record["arms"], record["seeds"]
    stores = {(arm, seed): run_store(store, arm, seed) for arm in arms for seed in seeds}
    missing = [run for run in stores.values() if not run.exists(RUN_FILE)]
    if missing:
        message = f"{len(missing)} of {len(stores)} runs are missing"
        raise ScenarioError([Problem(str(store), message, "fleet sweep --resume makes them")])
    return [Arm(arm, {seed: _member(stores[arm, seed]) for seed in seeds}) for arm in arms]


def _of_runs(members: list[Member]) -> list[Arm]:
    """Group runs by scenario; runs of the same scenario and seed are arms of their own."""
    documents = [without_seed(member.scenario.document) for member in members]
    keys = [(document, m.scenario.seed) for document, m in zip(documents, members, strict=True)]
    if any(keys.count(key) > 1 for key in keys):
        names = [Path(member.place).name for member in members]
        if len(set(names)) < len(names):
            names = [member.place for member in members]
        return [Arm(n, {m.scenario.seed: m}) for n, m in zip(names, members, strict=True)]
    groups: list[dict[str, Any]] = []
    arms: list[dict[int, Member]] = []
    for document, member in zip(documents, members, strict=True):
        if document not in groups:
            groups.append(document)
            arms.append({})
        arms[groups.index(document)][member.scenario.seed] = member
    names = names_of([dict(leaves(document)) for document in groups])
    return [Arm(name, dict(sorted(arm.items()))) for name, arm in zip(names, arms, strict=True)]


def without_seed(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the runs of an arm have in common."""
    run = {key: value for key, value in document["run"].items() if key != "seed"}
    return document | {"run": run}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Go through the fields of a scenario with their paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else key)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, node


def names_of(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Name arms by the fields in which they differ, as short as is clear."""
    paths = list(dict.fromkeys(path for fields in settings for path in fields))
    differing = [p for p in paths if len({str(fields.get(p)) for fields in settings}) > 1]
    columns: dict[str, list[Any]] = {}  # values by name, an arm each
    for path in differing:
        values = [fields.get(path) for fields in settings]
        everywhere = re.sub(r"\[\d+\]", "", path)  # one name for all groups that agree
        columns[everywhere if columns.get(everywhere, values) == values else path] = values
    last = [name.rpartition(".")[2] for name in columns]
    short = [end if last.count(end) == 1 else name for name, end in zip(columns, last, strict=True)]
    return [
        ",".join(
            f"{name}={values[arm]}" for name, values in zip(short, columns.values(), strict=True)
        )
        for arm in range(len(settings))
    ]


def _differences(arms: list[Arm]) -> Iterator[Problem]:
    """Find what keeps runs from being compared."""
    base = next(iter(arms[0].members.values()))
    for arm in arms:
        for member in arm.members.values():
            if not member.run.complete:
                message = f'is not finished: its status is "{member.run.record["status"]}"'
                yield Problem(member.place, message, "--resume continues it")
            yield from _other_frame(base, member)
        if arm.members.keys() != arms[0].members.keys():
            seeds, others = (", ".join(map(str, a.members)) for a in (arms[0], arm))
            message = f"seeds {others}, not {seeds} as {arms[0].name}: different arrivals"
            yield Problem(arm.name, message, "runs are paired by seed; fleet sweep makes them so")
            continue
        for seed, member in arm.members.items():
            yield from _other_arrivals(arms[0].members[seed], member)


def _other_frame(base: Member, member: Member) -> Iterator[Problem]:
    """Find another duration or number of hosts."""
    here, there = member.scenario, base.scenario
    if here.duration_ns != there.duration_ns:
        durations = [duration_text(scenario.duration_ns) for scenario in (here, there)]
        yield Problem(member.place, f"lasts {durations[0]}, {base.place} {durations[1]}")
    if here.nr_hosts != there.nr_hosts:
        yield Problem(member.place, f"has {here.nr_hosts} hosts, {base.place} has {there.nr_hosts}")


def _other_arrivals(base: Member, member: Member) -> Iterator[Problem]:
    digests = [m.run.record.get("arrivals_sha256") for m in (base, member)]
    if None in digests:
        place = (base, member)[digests.index(None)].place
        message = "does not say which VMs arrived: an earlier version wrote it"
        yield Problem(place, message, "run it again")
    elif digests[0] != digests[1] and base.scenario.duration_ns == member.scenario.duration_ns:
        seeds = f"seeds {member.scenario.seed} and {base.scenario.seed}"
        why = f" ({seeds})" if member.scenario.seed != base.scenario.seed else ""
        hint = "seed, vms and run.duration decide who arrives; they must be alike"
        yield Problem(member.place, f"had other arrivals than {base.place}{why}", hint)
