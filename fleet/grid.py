"""The grid of a sweep: every combination of the values that fields are given, and every seed.

All arms must see the same arrivals: draws are keyed by seed, host and VM, so a difference
between arms is then the work of the fields that were varied, not of chance.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fleet.arms import names_of
from fleet.demand import arrivals_digest, open_demand
from fleet.loading import load
from fleet.scenario import Scenario
from fleet.sweepdir import run_place
from hostsim.core.errors import Problem, ScenarioError

_SEED = "run.seed"
_SEEDS_HINT = "--seeds N gives every arm the same N seeds"
_OTHER_ARRIVALS = {
    "run.duration": "runs of unlike length cannot be paired; sweep each on its own",
    "vms": "other VMs arrive, so no difference is the setting's alone; sweep each on its own",
}


class Planned(NamedTuple):
    """One run of a sweep."""

    arm: str
    seed: int
    scenario: Scenario

    @property
    def place(self) -> str:
        """Where it lies in the sweep's folder."""
        return run_place(self.arm, self.seed)


class Grid(NamedTuple):
    """A sweep before it is run; ``runs`` has all arms of a seed, then those of the next."""

    vary: dict[str, list[str]]
    arms: list[str]
    seeds: list[int]
    runs: list[Planned]


def parse_vary(text: str) -> tuple[str, list[str]]:
    """Split ``PATH=V1,V2``; a comma inside brackets or quotes is part of a value.

    Raises
    ------
    ValueError
        It has no path, or no value.
    """
    path, equals, raw = text.partition("=")
    if not equals or not path.strip() or not raw.strip():
        raise ValueError("is not PATH=V1,V2, such as hosts.thp.enabled=always,never")
    values = [""]
    depth, quote = 0, ""
    for letter in raw:
        if letter == "," and depth == 0 and not quote:
            values.append("")
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        depth += (letter in "[{") - (letter in "]}")
        values[-1] += letter
    values = [value.strip() for value in values]
    if not all(values):
        raise ValueError("has an empty value")
    return path.strip(), values


def plan(
    name: str,
    vary: Mapping[str, Sequence[str]],
    nr_seeds: int,
    overrides: Sequence[str] = (),
    first_seed: int | None = None,
) -> Grid:
    """Return the runs of a sweep; every one is valid, and all arms see the same arrivals.

    Raises
    ------
    ScenarioError
        With every problem of every arm.
    """
    at_first = [] if first_seed is None else [f"{_SEED}={first_seed}"]
    paths = list(vary)
    choices = list(itertools.product(*vary.values()))
    problems: list[Problem] = []
    if len(choices) < 2:
        what = " ".join(f"--vary {path}={','.join(vary[path])}" for path in paths) or "--vary"
        problems.append(Problem(what, "is one arm; there is nothing to compare", "name two values"))
    if _SEED in vary:
        message = "would give the arms other arrivals"
        problems.append(Problem(f"--vary {_SEED}", message, _SEEDS_HINT))
    loaded = []
    for values in choices:
        settings = [f"{path}={value}" for path, value in zip(paths, values, strict=True)]
        try:
            loaded.append(load(name, [*overrides, *settings, *at_first]))
        except ScenarioError as error:
            problems += [_of_vary(problem, settings) for problem in error.problems]
    if problems:
        raise ScenarioError(list(dict.fromkeys(problems)))
    arms = _folder_names([dict(zip(paths, values, strict=True)) for values in choices])
    problems += _not_alike(paths, arms, loaded)
    if problems:
        raise ScenarioError(problems)
    seeds = list(range(loaded[0].seed, loaded[0].seed + nr_seeds))
    scenarios = dict(zip(arms, zip(choices, loaded, strict=True), strict=True))
    runs = [
        Planned(arm, seed, _with_seed(name, overrides, paths, values, seed, scenario))
        for seed in seeds
        for arm, (values, scenario) in scenarios.items()
    ]
    return Grid({path: list(values) for path, values in vary.items()}, arms, seeds, runs)


def _with_seed(
    name: str,
    overrides: Sequence[str],
    paths: list[str],
    values: Sequence[str],
    seed: int,
    scenario: Scenario,
) -> Scenario:
    if scenario.seed == seed:
        return scenario
    settings = [f"{path}={value}" for path, value in zip(paths, values, strict=True)]
    return load(name, [*overrides, *settings, f"{_SEED}={seed}"])


def _of_vary(problem: Problem, settings: list[str]) -> Problem:
    """Name the option that the user typed."""
    for setting in settings:
        if problem.place == f"--set {setting}":
            return problem._replace(place=f"--vary {setting}")
    return problem


def _folder_names(settings: list[dict[str, str]]) -> list[str]:
    """Name arms so that a folder can have the name, too."""
    names = [re.sub(r"[^A-Za-z0-9._=,+-]", "_", name) for name in names_of(settings)]
    alike = len(set(names)) < len(names)
    return [f"{name}.{i}" for i, name in enumerate(names)] if alike else names


def _not_alike(paths: list[str], arms: list[str], scenarios: list[Scenario]) -> Iterator[Problem]:
    """Find arms that do not see what the first one sees, and arms that are there twice."""
    known: list[dict[str, object]] = []
    base_digest = ""
    for arm, scenario in zip(arms, scenarios, strict=True):
        trace = open_demand(scenario)
        digest = arrivals_digest(trace, scenario.duration_ns)
        base_digest = base_digest or digest
        if scenario.document in known:
            yield Problem(f"--vary {arm}", "is there twice")
        known.append(scenario.document)
        if scenario.nr_hosts != scenarios[0].nr_hosts:
            message = (
                f"is a fleet of {scenario.nr_hosts} hosts, {arms[0]} of {scenarios[0].nr_hosts}"
            )
            yield Problem(f"--vary {arm}", message, "figures are per host; sweep each on its own")
        elif digest != base_digest or scenario.duration_ns != scenarios[0].duration_ns:
            hints = [hint for key, hint in _OTHER_ARRIVALS.items() if _varied(key, paths)]
            message = f"has other arrivals than {arms[0]}"
            yield Problem(f"--vary {arm}", message, "; ".join(hints))


def _varied(key: str, paths: list[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for path in paths)
