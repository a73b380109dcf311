"""A scenario whose hosts start as real hosts were, and the proof that they do.

`compare` reads what the simulated kernel prints as /proc/buddyinfo and /proc/pagetypeinfo with
the same parser as the captured text, and compares cell by cell.
"""

import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from fleet.captured import captured_hosts
from fleet.loading import build, builtin_names, builtin_text, load
from fleet.scenario import Scenario, to_toml
from fleet.snapshot_file import HostSnapshot, read_snapshot
from fleet.snapshot_state import embed
from fleet.snapshot_text import PageTypes, Place, parse_buddyinfo, parse_pagetypeinfo
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import PAGE_SHIFT, format_bytes
from hostsim.host import Host
from hostsim.mm.memory import buddyinfo, pagetypeinfo
from hostsim.mm.mm_types import TYPE_NAMES, Memory
from hostsim.spec import HostSpec

FOLDED: Final = "Movable"  # types that the model does not have count as this one


class Compared(NamedTuple):
    """Captured and applied counts of a zone."""

    node: int
    zone: str
    what: str  # buddyinfo, pagetypeinfo, pageblocks
    cells: int
    differing: int


def spec_of(snapshot: HostSnapshot, source: str) -> HostSpec:
    """Return the description of a simulated host that starts as a snapshot says.

    Raises
    ------
    ScenarioError
        The snapshot is of a machine that the model does not have.
    """
    host: dict[str, Any] = {}
    embed(host, snapshot, source)
    return build({"hosts": [host]}, source, source).groups[0].spec


def _folded(types: PageTypes, place: Place) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Return free blocks and pageblocks of a zone by the types of the model."""
    free: dict[str, list[int]] = {}
    for kind, counts in types.free[place].items():
        name = kind if kind in TYPE_NAMES else FOLDED
        free[name] = [a + b for a, b in zip(free.get(name, [0] * len(counts)), counts, strict=True)]
    blocks: dict[str, int] = {}
    for kind, count in types.pageblocks[place].items():
        name = kind if kind in TYPE_NAMES else FOLDED
        blocks[name] = blocks.get(name, 0) + count
    return free, blocks


def compare(snapshot: HostSnapshot, mem: Memory) -> Iterator[Compared]:
    """Yield, zone by zone, how many captured cells differ from those of simulated memory.

    buddyinfo is left out where it is not of the same moment as pagetypeinfo.
    """
    if snapshot.consistent or not snapshot.pagetypeinfo:
        applied = parse_buddyinfo(buddyinfo(mem))
        for (node, zone), counts in parse_buddyinfo(snapshot.buddyinfo).items():
            found = applied.get((node, zone), [0] * len(counts))
            differing = sum(a != b for a, b in zip(counts, found, strict=True))
            yield Compared(node, zone, "buddyinfo", len(counts), differing)
    if not snapshot.pagetypeinfo:
        return
    captured = parse_pagetypeinfo(snapshot.pagetypeinfo)
    simulated = parse_pagetypeinfo(pagetypeinfo(mem))
    for place in captured.free:
        free, blocks = _folded(captured, place)
        own_free, own_blocks = _folded(simulated, place) if place in simulated.free else ({}, {})
        cells = [
            (n, own_free.get(t, [0] * len(row))[o])
            for t, row in free.items()
            for o, n in enumerate(row)
        ]
        yield Compared(*place, "pagetypeinfo", len(cells), sum(a != b for a, b in cells))
        differing = sum(count != own_blocks.get(kind, 0) for kind, count in blocks.items())
        yield Compared(*place, "pageblocks", len(blocks), differing)


def applied(snapshot: HostSnapshot, source: str) -> list[Compared]:
    """Start a simulated host from a snapshot; return captured and simulated counts compared.

    Raises
    ------
    ScenarioError
        The snapshot is of a machine that the model does not have.
    """
    return list(compare(snapshot, Host(spec_of(snapshot, source), 0, 0).mem))


def scenario_text(paths: Sequence[str], base: str, count: int, out: Path) -> tuple[str, Scenario]:
    """Return a scenario file with a group of hosts a snapshot, and what it means.

    Demand is scaled by what the hosts can still give, beside the hosts of the base scenario.

    Parameters
    ----------
    base
        Scenario from which everything but the hosts is taken.
    count
        Hosts a snapshot.
    out
        File that it is for: names of files are relative to its folder.

    Raises
    ------
    ScenarioError
        A file is no snapshot, or the base no scenario.
    """
    before = load(base)
    is_file = base not in builtin_names()
    raw = tomllib.loads(Path(base).read_text(encoding="utf-8") if is_file else builtin_text(base))
    folder = out.parent
    vms = raw.setdefault("vms", {})
    if "path" in vms and is_file:
        vms["path"] = os.path.relpath(Path(base).parent / vms["path"], folder)
    names = _group_names(paths)
    raw["hosts"] = [
        {"name": name, "count": count, "snapshot": os.path.relpath(path, folder)}
        for name, path in zip(names, paths, strict=True)
    ]
    raw.pop("maintenance", None)  # of hosts that are no longer there
    raw.setdefault("placement", {})["reject_oversized"] = True
    resolved = _resolve(raw, paths, base)
    if before.vms.source == "azure-v1":
        if len(captured_hosts(resolved)):
            vms["standing"] = False  # who runs at the start is known
        share = min(a / b for a, b in zip(_offered(resolved), _offered(before), strict=True))
        vms["scale"] = float(f"{max(before.vms.scale * share, 1e-6):.3g}")
        resolved = _resolve(raw, paths, base)
    head = [
        f"# Question: how do hosts fare that start as {', '.join(names)} did?",
        f"# Demand and guests are those of {base}, scaled to what these hosts can still give.",
        "# Takes about as long a host as that one. Settings, reserved memory, vCPUs and kernel are",
        "# those of the snapshots: fleet show prints them, and a field set here overrides them.",
    ]
    return "\n".join([*head, "", to_toml(raw)]), resolved


def _resolve(raw: dict[str, Any], paths: Sequence[str], base: str) -> Scenario:
    """Resolve a scenario whose files are found from here."""
    hosts = [{**host, "snapshot": path} for host, path in zip(raw["hosts"], paths, strict=True)]
    copy = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    return build({**copy, "hosts": hosts}, base, base)


def _offered(scenario: Scenario) -> tuple[int, int]:
    """Return the vCPUs and pages that all hosts of a scenario offer."""
    specs = scenario.host_specs()
    pages = sum(spec.memory_pages - spec.reserved_pages for spec in specs)
    return sum(spec.vcpus for spec in specs), pages


def _group_names(paths: Sequence[str]) -> list[str]:
    """Return the files' names without ending, numbered where they are equal."""
    stems = [Path(path).stem for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem}-{stems[: i + 1].count(stem)}"
        for i, stem in enumerate(stems)
    ]


def describe(paths: Sequence[str], scenario: Scenario) -> Iterator[str]:
    """Yield a line a group: what its hosts still give."""
    for path, group in zip(paths, scenario.groups, strict=True):
        spec = group.spec
        left = (spec.memory_pages - spec.reserved_pages) << PAGE_SHIFT
        nr_vms = len(spec.state.vms) if spec.state else 0
        has = f"{spec.vcpus} vCPUs and {format_bytes(spec.memory_pages << PAGE_SHIFT)}"
        yield (
            f"{group.name}: {group.nr_hosts} host{'s' * (group.nr_hosts > 1)} of {has},"
            f" {format_bytes(left)} of it for VMs, {nr_vms} of them running,"
            f" kernel {spec.kernel} ({path})"
        )


def check_lines(path: str, rows: Sequence[Compared]) -> Iterator[str]:
    """Yield the comparison as a table."""
    yield f"{path}: captured counts beside those of a simulated host that starts from them"
    yield f"  {'zone':<16}{'file':<16}{'cells':>7}{'different':>11}"
    for row in rows:
        place = f"{row.node} {row.zone}"
        yield f"  {place:<16}{row.what:<16}{row.cells:>7}{row.differing:>11}"


def read_all(paths: Sequence[str]) -> list[HostSnapshot]:
    """Read snapshots; all problems at once.

    Raises
    ------
    ScenarioError
        Files are no snapshots.
    """
    found, problems = [], []
    for path in paths:
        try:
            found.append(read_snapshot(path))
        except ScenarioError as error:
            problems += error.problems
    if problems:
        raise ScenarioError(problems)
    return found


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse to replace a file unasked, or to write where no folder is.

    Raises
    ------
    ScenarioError
        It exists, or its folder does not.
    """
    if out.exists() and not overwrite:
        raise ScenarioError([Problem(str(out), "exists", "--overwrite replaces it")])
    if not out.parent.is_dir():
        raise ScenarioError([Problem(str(out), "its folder does not exist")])
