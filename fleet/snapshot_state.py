"""From a host's snapshot to the state that a simulated host starts from.

Simplified: pageblocks and free memory of types that the model does not have (CMA, Isolate) count
as movable.
Simplified: where pagetypeinfo was not readable, kernel memory fills pageblocks of its own in the
highest zone of the first node, and all free memory is movable.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from fleet.kernel_files import KhugepagedSection, KsmSection, ThpSection, VmSection
from fleet.scenario_state import BY_TYPE, SnapshotSection
from fleet.sections import GIB_PAGES, MIB_PAGES, pages_text
from fleet.snapshot_file import HostSnapshot
from fleet.snapshot_text import PageTypes, Place, parse_buddyinfo, parse_pagetypeinfo
from guestsim.guest import MIN_PAGES
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import (
    HPAGE_PMD_NR,
    NR_PAGE_ORDERS,
    PAGE_SHIFT,
    PAGEBLOCK_NR_PAGES,
    PAGEBLOCK_ORDER,
)
from hostsim.mm.layout import ZoneState, plan_zone
from hostsim.mm.mm_types import (
    MIGRATE_MOVABLE,
    MIGRATE_RECLAIMABLE,
    MIGRATE_UNMOVABLE,
    NR_TYPES,
    TYPE_NAMES,
    ZONE_NAMES,
)

KB_SHIFT: Final = PAGE_SHIFT - 10
SLACK_SHIFT: Final = 5  # 1/32 of memory stays for QEMU and page tables: 8 of 256 GiB, as by default
NEW_LISTS: Final = (6, 10)  # first release in which free pages stand on their label's lists
UNMOVABLE_KB: Final = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu")


def _no_counts() -> ZoneState:
    return ZoneState(np.zeros((NR_TYPES, NR_PAGE_ORDERS), np.int64), np.zeros(NR_TYPES, np.int64))


def known_zones(snapshot: HostSnapshot) -> dict[Place, ZoneState]:
    """Return what pagetypeinfo says, counts that it cuts off completed from buddyinfo."""
    totals = parse_buddyinfo(snapshot.buddyinfo)
    types = parse_pagetypeinfo(snapshot.pagetypeinfo)
    found = {}
    for place, free in types.free.items():
        zone = _no_counts()
        for kind, counts in free.items():
            zone.free[_migratetype(kind)] += counts
        for kind, number in types.pageblocks[place].items():
            zone.pageblocks[_migratetype(kind)] += number
        _complete(zone, totals.get(place), types, place)
        found[place] = zone
    return found


def _migratetype(kind: str) -> int:
    return TYPE_NAMES.index(kind) if kind in TYPE_NAMES else MIGRATE_MOVABLE


def _complete(zone: ZoneState, totals: list[int] | None, types: PageTypes, place: Place) -> None:
    """Let a count that was cut off be what is missing of the total."""
    for kind, row in types.capped[place].items():
        for order, capped in enumerate(row):
            if capped and totals:
                missing = totals[order] - int(zone.free[:, order].sum())
                zone.free[_migratetype(kind), order] += max(missing, 0)


def divided_zones(snapshot: HostSnapshot) -> dict[Place, ZoneState]:
    """Return buddyinfo with types by the module's rule."""
    present = {(zone.node, zone.name): zone.present_pages for zone in snapshot.zones}
    found = {}
    for place, counts in parse_buddyinfo(snapshot.buddyinfo).items():
        zone = _no_counts()
        zone.free[MIGRATE_MOVABLE] = counts
        zone.pageblocks[MIGRATE_MOVABLE] = -(-present.get(place, 0) >> PAGEBLOCK_ORDER)
        found[place] = zone
    kernel = {
        MIGRATE_UNMOVABLE: sum(snapshot.meminfo_kb.get(key, 0) for key in UNMOVABLE_KB),
        MIGRATE_RECLAIMABLE: snapshot.meminfo_kb.get("SReclaimable", 0),
    }
    top = found[max((place for place in found if place[0] == 0), key=_rank)]
    for migratetype, kb in kernel.items():
        wanted = -(-(kb >> KB_SHIFT) // PAGEBLOCK_NR_PAGES)
        top.pageblocks[migratetype] = _room(top, wanted)
        top.pageblocks[MIGRATE_MOVABLE] -= top.pageblocks[migratetype]
    return found


def _rank(place: Place) -> int:
    return ZONE_NAMES.index(place[1]) if place[1] in ZONE_NAMES else -1


def _room(zone: ZoneState, wanted: int) -> int:
    """Return how many of so many pageblocks a zone can spare and still hold its free blocks."""
    least, most = 0, min(wanted, int(zone.pageblocks[MIGRATE_MOVABLE]))
    while least < most:
        middle = (least + most + 1) // 2
        pageblocks = zone.pageblocks.copy()
        pageblocks[MIGRATE_MOVABLE] -= middle
        try:
            plan_zone(ZoneState(zone.free, pageblocks), borrow=False)
            least = middle
        except ValueError:
            most = middle - 1
    return least


def zone_counts(snapshot: HostSnapshot, place: str) -> dict[Place, ZoneState]:
    """Return free blocks and pageblocks by zone and type.

    Raises
    ------
    ScenarioError
        The snapshot does not say enough, or of a machine that the model does not have.
    """
    if not snapshot.pagetypeinfo and not snapshot.zones:
        message = "holds neither pagetypeinfo nor zoneinfo: the size of zones is unknown"
        raise ScenarioError([Problem(place, message)])
    problems = list(machine_problems(snapshot, place))
    if problems:
        raise ScenarioError(problems)
    return known_zones(snapshot) if snapshot.pagetypeinfo else divided_zones(snapshot)


def machine_problems(snapshot: HostSnapshot, place: str) -> Iterator[Problem]:
    """Find what a machine has that the model does not."""
    for (node, name), counts in parse_buddyinfo(snapshot.buddyinfo).items():
        where = f"node {node}, zone {name}"
        if len(counts) != NR_PAGE_ORDERS:
            yield Problem(place, f"{where} has {len(counts)} orders, not {NR_PAGE_ORDERS}")
        if name not in (ZONE_NAMES if node == 0 else ZONE_NAMES[-1:]):
            message = f"{where}: hosts have DMA, DMA32 and Normal on node 0 and Normal on others"
            yield Problem(place, message)
    for line in snapshot.pagetypeinfo:
        if line.startswith("Page block order:") and line.split()[-1] != str(PAGEBLOCK_ORDER):
            yield Problem(place, f"{line}; the model has pageblocks of {PAGEBLOCK_ORDER}, 2 MiB")


def _managed_pages(counts: dict[Place, ZoneState], memory_pages: int) -> dict[Place, int]:
    """Divide MemTotal among zones by what is in use in them, where zoneinfo was not readable."""
    free = {place: _pages(zone) for place, zone in counts.items()}
    used = {place: _held(zone) - free[place] for place, zone in counts.items()}
    left = min(max(memory_pages - sum(free.values()), 0), sum(used.values()))
    return {
        place: free[place] + left * used[place] // max(sum(used.values()), 1) for place in counts
    }


def _pages(zone: ZoneState) -> int:
    return int((zone.free.sum(axis=0) << np.arange(NR_PAGE_ORDERS)).sum())


def _held(zone: ZoneState) -> int:
    return int(zone.pageblocks.sum()) << PAGEBLOCK_ORDER


def section_of(snapshot: HostSnapshot, source: str) -> dict[str, Any]:
    """Return ``[hosts.snapshot]`` in the words of a scenario file.

    Raises
    ------
    ScenarioError
        As `zone_counts`.
    """
    known = {(zone.node, zone.name): zone for zone in snapshot.zones}
    counts = zone_counts(snapshot, source)
    shares = _managed_pages(counts, snapshot.meminfo_kb.get("MemTotal", 0) >> KB_SHIFT)
    rows = []
    for (node, name), zone in sorted(counts.items()):
        read = known.get((node, name))
        managed = read.managed_pages if read else shares[node, name]
        row: dict[str, Any] = {
            "node": node,
            "zone": name,
            "managed": pages_text(managed),
            "per_cpu": pages_text(read.pcp_pages if read else 0),
            "marks": f"{read.min_pages} {read.low_pages} {read.high_pages}" if read else "",
            "pageblocks": " ".join(map(str, zone.pageblocks)),
        }
        for migratetype, key in enumerate(BY_TYPE):
            row[key] = " ".join(map(str, zone.free[migratetype]))
        rows.append(row)
    return {
        "source": source,
        "vcpus": snapshot.nr_cpus,
        "types_known": bool(snapshot.pagetypeinfo),
        "zones": rows,
        "vms": list(_vms(snapshot)),
    }


def _vms(snapshot: HostSnapshot) -> Iterator[dict[str, Any]]:
    """Yield the VMs whose size is known and that a guest's kernel can run in."""
    for process in snapshot.processes:
        pages = (process.memory_mib or 0) * MIB_PAGES
        if process.vcpus and pages >= MIN_PAGES:
            huge_kb = min(process.anon_huge_kb or 0, process.rss_kb)
            yield {
                "vcpus": process.vcpus,
                "memory": pages_text(pages),
                "rss": pages_text(process.rss_kb >> KB_SHIFT),
                "huge": pages_text(huge_kb >> KB_SHIFT),
            }


def embed(host: dict[str, Any], snapshot: HostSnapshot, source: str) -> None:
    """Put a snapshot's content into a ``[[hosts]]`` table, and what follows from it if not set.

    Raises
    ------
    ScenarioError
        It is of a machine that the model does not have.
    """
    raw = section_of(snapshot, source)
    host["snapshot"] = raw
    try:
        section = SnapshotSection.model_validate(raw)
    except ValueError:
        return  # said when the scenario is validated
    set_defaults(host, snapshot, section)


def set_defaults(host: dict[str, Any], snapshot: HostSnapshot, section: SnapshotSection) -> None:
    """Let what a table does not set be as it is on the host."""
    numbers = snapshot.kernel_release.split("-")[0].split(".")[:2]
    release = tuple(int(number) for number in numbers if number.isdigit())
    host.setdefault("vcpus", section.vcpus)
    host.setdefault("memory", pages_text(section.memory_pages))
    host.setdefault("numa_nodes", section.nr_nodes)
    host.setdefault("reserved", pages_text(reserved_pages(section)))
    host.setdefault("kernel", "6.12" if release >= NEW_LISTS else "6.1")
    kernel_kb = sum(snapshot.meminfo_kb.get(key, 0) for key in (*UNMOVABLE_KB, "SReclaimable"))
    base = min(kernel_kb >> KB_SHIFT, section.used_pages // 2) // MIB_PAGES * MIB_PAGES
    _fill(host, "slab", {"base": pages_text(min(base, GIB_PAGES))})
    swap_kb = snapshot.meminfo_kb.get("SwapTotal", 0)
    _fill(host, "swap", {"size": pages_text(swap_kb >> KB_SHIFT)})
    thp: dict[str, Any] = {
        key: snapshot.thp[key] for key in ("enabled", "defrag") if key in snapshot.thp
    }
    if "use_zero_page" in thp:
        thp["use_zero_page"] = thp["use_zero_page"] == "1"
    vm = {name.replace("-", "_"): value for name, value in snapshot.vm.items()}
    for name, model, values in (
        ("thp", ThpSection, thp),
        ("khugepaged", KhugepagedSection, snapshot.khugepaged),
        ("ksm", KsmSection, snapshot.ksm),
        ("vm", VmSection, vm),
    ):
        _fill(host, name, {key: values[key] for key in values if key in model.model_fields})


def _fill(host: dict[str, Any], name: str, values: dict[str, Any]) -> None:
    """Set what a table of a host does not set; what is no table is left to the validation."""
    table = host.setdefault(name, {})
    if isinstance(table, dict):
        for key, value in values.items():
            table.setdefault(key, value)


def reserved_pages(section: SnapshotSection) -> int:
    """Return what a host keeps from VMs: what is in use, its high marks, and 1/32 for QEMU."""
    memory = section.memory_pages
    marks = sum(int(zone.marks.split()[-1]) for zone in section.zones if zone.marks)
    wanted = section.used_pages + marks + (memory >> SLACK_SHIFT)
    huge = -(-wanted // HPAGE_PMD_NR) * HPAGE_PMD_NR
    return min(huge, memory - HPAGE_PMD_NR)
