"""Runs of the same arrivals held against each other, figure by figure, with a verdict.

Seeds are the independent replicates: each brings other arrivals and other draws, the same in all
arms.  With one seed alone the hosts of two runs can be paired if every VM was on the same host
at the same time in both; such an interval holds for these arrivals and says nothing of others.
Where placement differed, one pair of runs gives a difference and no interval.

The figures of one arm are tested together (`fleet.paired`), each arm on its own: a table is read
as one decision about that arm.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from fleet.arms import Arm, Member, open_arms
from fleet.effects import BY_NAME, EFFECTS, Effect, Figures, figures
from fleet.paired import LEVEL, Paired, adjusted, more_pairs, paired
from fleet.scan import scan
from fleet.store import Store
from hostsim.core.errors import Problem, ScenarioError, near

Verdict = Literal["better", "worse", "no_difference", "identical", "cannot_tell", "no_data"]
Pairing = Literal["seeds", "hosts", "none"]


@dataclass(frozen=True)
class Difference:
    """One figure of an arm against that of the baseline; differences are arm minus baseline."""

    arm: str
    effect: str
    unit: str
    baseline_mean: float | None
    mean: float | None
    difference: float | None
    low: float | None  # 95 % interval
    high: float | None
    margin: float  # the smallest difference that matters
    p_difference: float | None  # adjusted for all figures of the arm
    p_margin: float | None
    verdict: Verdict
    more_pairs: int | None  # that would probably give a verdict, if there is none


@dataclass(frozen=True)
class Comparison:
    """What came of it; ``differences`` has a row an arm and figure."""

    baseline: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    nr_hosts: int
    duration_ns: int
    pairing: Pairing
    pairs: int
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def frame(self) -> pl.DataFrame:
        """Return the differences as a polars frame."""
        return pl.DataFrame([asdict(row) for row in self.differences], infer_schema_length=None)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON; the keys are stable."""
        found = asdict(self)
        return {"confidence": LEVEL, **found}


class _Pairs(NamedTuple):
    """Pairs of figures: baseline first."""

    values: list[tuple[float | None, float | None]]
    means: tuple[float | None, float | None]
    margin: float

    def alike(self) -> bool:
        """Say whether both sides of every pair are the same."""
        return all(a == b for a, b in self.values)


def compare(
    places: Sequence[str | Path | Store],
    baseline: str | None = None,
    margins: dict[str, float] | None = None,
    after_ns: int = 0,
) -> Comparison:
    """Compare a sweep, or several runs, with a baseline arm.

    Parameters
    ----------
    places
        The directory of a sweep, or those of two or more runs.
    baseline
        Name of an arm, or a run's directory; the first arm if left out.
    margins
        Smallest differences that matter, by effect, in its unit, in place of the built-in ones.
    after_ns
        Leave out what happened until then, while guests still grow.

    Raises
    ------
    ScenarioError
        The runs are not comparable, or a name is unknown.
    """
    arms = open_arms(places)
    margins = margins or {}
    problems = [_unknown("margin", name, BY_NAME) for name in margins if name not in BY_NAME]
    names = [arm.name for arm in arms]
    first = next((a for a in arms if baseline in (a.name, *a.places())), None)
    if baseline is None:
        first = arms[0]
    elif first is None:
        problems.append(_unknown("baseline", baseline, names))
    if problems or first is None:
        raise ScenarioError(problems)
    others = [arm for arm in arms if arm is not first]
    found = {arm.name: _figures(arm, after_ns) for arm in arms}
    pairing, notes = _pairing(first, others)
    differences: list[Difference] = []
    for arm in others:
        rows = [(effect, _pairs(found, first, arm, effect, pairing, margins)) for effect in EFFECTS]
        differences += _judged(arm, rows)
    some = next(iter(first.members.values()))
    return Comparison(
        baseline=first.name,
        arms=tuple(names),
        seeds=tuple(first.members),
        nr_hosts=some.scenario.nr_hosts,
        duration_ns=some.scenario.duration_ns,
        pairing=pairing,
        pairs=some.scenario.nr_hosts if pairing == "hosts" else len(first.members),
        differences=tuple(differences),
        notes=(*notes, *_version_notes(arms)),
    )


def _unknown(what: str, name: str, known: Iterable[str]) -> Problem:
    return Problem(
        f"--{what} {name}", f"is no {'effect' if what == 'margin' else 'arm'}", near(name, known)
    )


def _figures(arm: Arm, after_ns: int) -> list[Figures]:
    """Return the figures of an arm's runs, in the order of its seeds."""
    return [figures(m.run, m.scenario.tick_ns, after_ns) for m in arm.members.values()]


def _pairing(first: Arm, others: list[Arm]) -> tuple[Pairing, list[str]]:
    """Decide what the pairs are, and say what that means."""
    if len(first.members) > 1:
        return "seeds", []
    (base,) = first.members.values()
    alone = [arm.name for arm in others if not _placed_alike(base, *arm.members.values())]
    if alone:
        return "none", [
            f"one seed, and VMs of {' and '.join(alone)} ran on other hosts or at other times than"
            f" those of {first.name}: a single pair of runs gives no interval (sweep --seeds 3)"
        ]
    return "hosts", [
        "one seed: the pairs are hosts, on which the same VMs ran; the intervals hold for these"
        " arrivals and say nothing of others (sweep --seeds 3 does)"
    ]


def _placed_alike(one: Member, other: Member) -> bool:
    """Say whether every VM was on the same host at the same time in both runs."""
    keys = ["t_ns", "host_id", "vm_id", "event"]

    def events(member: Member) -> pl.DataFrame:
        rows = scan(member.run, "events").select(keys).with_columns(pl.col("event").cast(pl.String))
        return rows.sort(keys).collect()

    return events(one).equals(events(other))


def _pairs(
    found: dict[str, list[Figures]],
    first: Arm,
    arm: Arm,
    effect: Effect,
    pairing: Pairing,
    margins: dict[str, float],
) -> _Pairs:
    """Return the pairs of one figure, and its margin in the figure's unit."""
    base, other = found[first.name], found[arm.name]
    share_of = base[0].run[effect.margin_of] if effect.margin_of else 1.0
    margin = margins.get(effect.name, effect.margin * (share_of or 1.0))
    by_run = [(a.run[effect.name], b.run[effect.name]) for a, b in zip(base, other, strict=True)]
    means = (_mean([a for a, _ in by_run]), _mean([b for _, b in by_run]))
    if pairing == "hosts" and effect.of_hosts:
        columns = (side[0].hosts[effect.name].to_list() for side in (base, other))
        both = [pair for pair in zip(*columns, strict=True) if None not in pair]
        if both:
            means = (_mean([a for a, _ in both]), _mean([b for _, b in both]))
        return _Pairs(both, means, margin)
    return _Pairs(by_run, means, margin)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _judged(arm: Arm, rows: list[tuple[Effect, _Pairs]]) -> list[Difference]:
    """Give every figure of an arm its verdict, all of them together.

    A figure that is the same in every pair claims nothing, and is not counted as a test.
    """
    results: list[Paired | None] = []
    for _, pairs in rows:
        differences = [b - a for a, b in pairs.values if a is not None and b is not None]
        whole = differences and len(differences) == len(pairs.values)
        results.append(paired(differences, pairs.margin) if whole else None)
    tested = {
        index: (result.p_difference, result.p_margin)
        for index, ((_, pairs), result) in enumerate(zip(rows, results, strict=True))
        if result and result.pairs > 1 and not pairs.alike()
    }
    p_values = dict(zip(tested, adjusted(list(tested.values())), strict=True))
    return [
        _difference(arm, effect, pairs, result, p_values.get(index, (1.0, 0.0)), len(tested))
        for index, ((effect, pairs), result) in enumerate(zip(rows, results, strict=True))
    ]


def _difference(
    arm: Arm,
    effect: Effect,
    pairs: _Pairs,
    result: Paired | None,
    p_values: tuple[float, float],
    nr_tests: int,
) -> Difference:
    base, mean = pairs.means
    if result is None:
        nothing = (None,) * 3
        return Difference(
            arm.name,
            effect.name,
            effect.unit,
            base,
            mean,
            *nothing,
            pairs.margin,
            None,
            None,
            "no_data",
            None,
        )
    verdict = _verdict(effect, pairs, result, p_values)
    more = more_pairs(result, pairs.margin, nr_tests) if verdict == "cannot_tell" else None
    return Difference(
        arm.name,
        effect.name,
        effect.unit,
        base,
        mean,
        result.mean,
        result.low,
        result.high,
        pairs.margin,
        *p_values,
        verdict,
        more,
    )


def _verdict(
    effect: Effect, pairs: _Pairs, result: Paired, p_values: tuple[float, float]
) -> Verdict:
    p_difference, p_margin = p_values
    if pairs.alike():
        return "identical"
    if result.pairs < 2:
        return "cannot_tell"
    if p_margin < 1 - LEVEL:
        return "no_difference"
    if p_difference < 1 - LEVEL:
        return "better" if result.mean * effect.better > 0 else "worse"
    return "cannot_tell"


def _version_notes(arms: list[Arm]) -> list[str]:
    """Say where runs were written by different programs: the difference may be theirs."""
    members = [member for arm in arms for member in arm.members.values()]
    notes = []
    for key in ("versions", "git_commit"):
        found = {str(member.run.record.get(key)) for member in members}
        if len(found) > 1:
            what = "package versions" if key == "versions" else "commits of hugefleet"
            notes.append(f"the runs were written by different {what}")
    return notes
