"""The text of /proc files that say how memory is divided: read into numbers.

Source: Linux mm/vmstat.c frag_show_print, pagetypeinfo_showfree_print,
pagetypeinfo_showblockcount_print, zoneinfo_show_print (v6.1); fs/proc/meminfo.c.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

Place = tuple[int, str]  # node and zone: (0, "Normal")

_PLACE: Final = r"Node\s+(\d+), zone\s+(\w+)"
_CAP: Final = ">"  # before a count that pagetypeinfo cuts off at 100000


class PageTypes(NamedTuple):
    """What /proc/pagetypeinfo says, by place and type."""

    free: dict[Place, dict[str, list[int]]]  # blocks by order
    capped: dict[Place, dict[str, list[bool]]]  # counts that are only lower bounds
    pageblocks: dict[Place, dict[str, int]]


class ZoneText(NamedTuple):
    """What /proc/zoneinfo says of a zone, in pages."""

    node: int
    name: str
    free_pages: int
    min_pages: int
    low_pages: int
    high_pages: int
    boost_pages: int
    spanned_pages: int
    present_pages: int
    managed_pages: int
    pcp_pages: int  # on the lists of all CPUs


def parse_buddyinfo(lines: Iterable[str]) -> dict[Place, list[int]]:
    """Return free blocks by order of each zone.

    Raises
    ------
    ValueError
        A line is none of /proc/buddyinfo.
    """
    found = {}
    for line in lines:
        match = re.fullmatch(rf"{_PLACE}\s+([\d\s]+)", line.strip())
        if match is None:
            raise ValueError(f"{line.strip()!r} is no line of /proc/buddyinfo")
        found[int(match[1]), match[2]] = [int(cell) for cell in match[3].split()]
    return found


def parse_pagetypeinfo(lines: Sequence[str]) -> PageTypes:
    """Return free blocks and pageblocks by migratetype.

    Raises
    ------
    ValueError
        The lines are none of /proc/pagetypeinfo.
    """
    found = PageTypes({}, {}, {})
    names: list[str] = []
    for line in lines:
        free = re.match(rf"{_PLACE}, type\s+(\w+)\s+([\d>\s]+)$", line)
        if free:
            place, kind, cells = (int(free[1]), free[2]), free[3], free[4].split()
            found.free.setdefault(place, {})[kind] = [int(cell.lstrip(_CAP)) for cell in cells]
            found.capped.setdefault(place, {})[kind] = [cell[0] == _CAP for cell in cells]
        elif line.startswith("Number of blocks type"):
            names = line.split("type", 1)[1].split()
        elif names and (blocks := re.match(rf"{_PLACE}\s+([\d\s]+)$", line)):
            counts = [int(cell) for cell in blocks[3].split()]
            if len(counts) != len(names):
                raise ValueError(f"{line.strip()!r} has not {len(names)} counts of pageblocks")
            found.pageblocks[int(blocks[1]), blocks[2]] = dict(zip(names, counts, strict=True))
    if not found.free or found.free.keys() != found.pageblocks.keys():
        raise ValueError("are no lines of /proc/pagetypeinfo")
    return found


def parse_zoneinfo(text: str) -> list[ZoneText]:
    """Return the zones that have pages."""
    zones = []
    for part in re.split(r"^(?=Node\s)", text, flags=re.MULTILINE):
        head = re.match(_PLACE, part)
        if head is None:
            continue

        def number(name: str, part: str = part) -> int:
            found = re.search(rf"^\s+(?:pages )?{name}\s+(\d+)$", part, re.MULTILINE)
            return int(found[1]) if found else 0

        names = ("free", "min", "low", "high", "boost", "spanned", "present", "managed")
        lists = part.partition("pagesets")[2]
        on_lists = sum(map(int, re.findall(r"^\s+count:\s+(\d+)$", lists, re.MULTILINE)))
        values = [number(name) for name in names]
        zone = ZoneText._make([int(head[1]), head[2], *values, on_lists])
        if zone.present_pages:
            zones.append(zone)
    return zones


def parse_counters(text: str) -> dict[str, int]:
    """Return names and numbers of /proc/vmstat, /proc/meminfo or a smaps file, without units.

    A name that stands more than once has the sum.
    """
    found: dict[str, int] = {}
    for name, value in re.findall(r"^([\w()]+):?\s+(\d+)(?: kB)?\s*$", text, re.MULTILINE):
        found[name] = found.get(name, 0) + int(value)
    return found


def chosen_word(text: str) -> str:
    """Return the word in brackets of a settings file such as "always [madvise] never"."""
    match = re.search(r"\[([^\]]+)\]", text)
    return match[1] if match else text.strip()


def differing_cells(buddyinfo: Iterable[str], types: PageTypes) -> int:
    """Count the cells of buddyinfo that are not the sum over types; 0 where both were one state.

    A count that pagetypeinfo cuts off is taken to fill up what is missing.
    """
    differing = 0
    for place, counts in parse_buddyinfo(buddyinfo).items():
        free = types.free.get(place, {})
        capped = types.capped.get(place, {})
        for order, count in enumerate(counts):
            total = sum(sum(row[order : order + 1]) for row in free.values())
            is_least = any(any(row[order : order + 1]) for row in capped.values())
            differing += total > count if is_least else total != count
    return differing
