"""Page sizes, levels and the parsing of human units.

Memory is counted in base pages, time in integer nanoseconds.  Text such as ``"64GiB"`` or
``"10ms"`` is parsed here and nowhere else.
"""

import re
from typing import Final

PAGE_SHIFT: Final = 12  # x86-64 base page, Linux arch/x86/include/asm/page_types.h
PAGE_BYTES: Final = 1 << PAGE_SHIFT
HPAGE_PMD_ORDER: Final = 9  # 2 MiB PMD leaf, include/linux/huge_mm.h
HPAGE_PMD_NR: Final = 1 << HPAGE_PMD_ORDER
HPAGE_PMD_BYTES: Final = PAGE_BYTES << HPAGE_PMD_ORDER
HPAGE_PUD_ORDER: Final = 18  # 1 GiB PUD leaf
PAGEBLOCK_ORDER: Final = 9  # include/linux/pageblock-flags.h
PAGEBLOCK_NR_PAGES: Final = 1 << PAGEBLOCK_ORDER
MAX_PAGE_ORDER: Final = 10  # largest buddy order, include/linux/mmzone.h
NR_PAGE_ORDERS: Final = MAX_PAGE_ORDER + 1
PTRS_PER_TABLE: Final = 512  # entries of a page-table page at every level
COSTLY_ORDER: Final = 3  # PAGE_ALLOC_COSTLY_ORDER
NO_PFN: Final = -1

NS_PER_US: Final = 1_000
NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000
NS_PER_MIN: Final = 60 * NS_PER_S
NS_PER_HOUR: Final = 3_600 * NS_PER_S
NS_PER_DAY: Final = 24 * NS_PER_HOUR

_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_NS = {
    "ns": 1,
    "us": NS_PER_US,
    "ms": NS_PER_MS,
    "s": NS_PER_S,
    "min": NS_PER_MIN,
    "h": NS_PER_HOUR,
    "d": NS_PER_DAY,
}
_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def _parse(text: str, units: dict[str, int], kind: str) -> int:
    match = _QUANTITY.fullmatch(text)
    known = ", ".join(units)
    if match is None:
        raise ValueError(f"{text!r} is not a {kind}: a number and one of {known}")
    number, unit = match.groups()
    if unit not in units:
        near = next((u for u in units if u.lower() == unit.lower()), None)
        hint = f"; did you mean {near}?" if near else ""
        raise ValueError(f"{text!r}: unknown unit {unit!r}, expected one of {known}{hint}")
    if "." not in number:
        return int(number) * units[unit]
    whole, fraction = number.split(".")
    scaled = int(whole + fraction) * units[unit]
    one: int = 10 ** len(fraction)
    quotient, rest = divmod(scaled, one)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of {next(iter(units))}")
    return quotient


def parse_bytes(text: str) -> int:
    """Return the bytes that a text such as ``"64GiB"`` names.

    Raises
    ------
    ValueError
        The text is no number with one of the units B, KiB, MiB, GiB, TiB.
    """
    return _parse(text, _BYTES, "memory size")


def parse_pages(text: str) -> int:
    """Return the base pages that a text such as ``"64GiB"`` names.

    Raises
    ------
    ValueError
        The text is no memory size, or not a multiple of the base page.
    """
    nr_bytes = parse_bytes(text)
    if nr_bytes % PAGE_BYTES:
        raise ValueError(f"{text!r} is not a multiple of {PAGE_BYTES} B")
    return nr_bytes >> PAGE_SHIFT


def parse_duration_ns(text: str) -> int:
    """Return the nanoseconds that a text such as ``"5min"`` or ``"1.5h"`` names.

    Raises
    ------
    ValueError
        The text is no number with one of the units ns, us, ms, s, min, h, d.
    """
    return _parse(text, _NS, "duration")


def format_bytes(nr_bytes: float) -> str:
    """Print bytes in the largest unit that leaves a number of at least one."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if abs(nr_bytes) >= _BYTES[unit]:
            return f"{nr_bytes / _BYTES[unit]:.4g} {unit}"
    return f"{nr_bytes:.0f} B"


def format_duration(duration_ns: int) -> str:
    """Print a duration in the largest unit that leaves a number of at least one."""
    for unit in ("d", "h", "min", "s", "ms", "us"):
        if abs(duration_ns) >= _NS[unit]:
            return f"{duration_ns / _NS[unit]:.4g} {unit}"
    return f"{duration_ns} ns"
