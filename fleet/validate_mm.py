"""Checks of the memory manager against its specification: each says what it expected and got."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from fleet.claims import Claim
from hostsim.core.units import HPAGE_PMD_NR, NR_PAGE_ORDERS, NS_PER_S
from hostsim.mm.daemons import run_daemons
from hostsim.mm.fault import touch_range
from hostsim.mm.memory import new_memory
from hostsim.mm.mm_slot import khugepaged_enter
from hostsim.mm.mmap import ADVICE_NONE, mm_alloc
from hostsim.mm.pageblock import fragmentation_index, fragmentation_score, unusable_free_index
from hostsim.mm.settings import write_setting
from hostsim.mm.vmstat import KHUGEPAGED_WINDOWS


def _scanner(windows: int, pages_to_scan: int, sleep_ms: int) -> int:
    """Return how many windows khugepaged looks at in an hour.

    The guest's windows each hold one small page and `max_ptes_none` forbids a collapse, so that
    nothing but looking and sleeping takes time.
    """
    mem = new_memory(1 << 16, "6.12", 1)
    for name, value in (
        ("enabled", "never"),
        ("khugepaged/pages_to_scan", str(pages_to_scan)),
        ("khugepaged/scan_sleep_millisecs", str(sleep_ms)),
        ("khugepaged/max_ptes_none", "0"),
    ):
        write_setting(mem, name, value)
    pages = windows * HPAGE_PMD_NR
    mm = int(mm_alloc(mem, pages, 0, ADVICE_NONE, False, 0))
    touch_range(mem, mm, 0, pages, HPAGE_PMD_NR, 1.0, 0, True, 0)
    mem.cost[:] = 0
    write_setting(mem, "enabled", "always")
    khugepaged_enter(mem, mm)
    run_daemons(mem, 3600 * NS_PER_S - 1)
    return int(mem.vmstat[KHUGEPAGED_WINDOWS])


def khugepaged_bound() -> Iterator[Claim]:
    """Yield the rate bound: pages_to_scan / 512 windows every scan_sleep, whatever they hold."""
    for pages_to_scan, sleep_ms in ((4096, 10_000), (512, 10_000), (8192, 1_000)):
        bound = 3600 * 1000 // sleep_ms * -(-pages_to_scan // HPAGE_PMD_NR)
        looked_at = _scanner(120, pages_to_scan, sleep_ms)
        yield Claim(
            f"khugepaged: windows an hour at pages_to_scan={pages_to_scan}, sleep {sleep_ms} ms",
            str(bound),
            "kernel.md 5.2: T_full = windows * 512 / pages_to_scan * scan_sleep",
            str(looked_at),
            looked_at == bound,
        )


INDEX_VECTORS: Final[tuple[tuple[str, tuple[int, ...], tuple[int, ...], int], ...]] = (
    # zone, nr_free by order, unusable index by order, fragmentation score
    (
        "A",
        (155, 130, 25, 83, 83, 42, 23, 17, 22, 23, 73),
        (0, 1, 4, 5, 11, 25, 38, 53, 75, 131, 249),
        13,
    ),
    ("B", (262144, *[0] * 10), (0, *[1000] * 10), 100),
    (
        "C",
        (1000, 500, 250, 100, 50, 20, 10, 5, 2, 0, 0),
        (0, 142, 284, 426, 540, 654, 745, 836, 927, 1000, 1000),
        100,
    ),
    ("D", (10, 2, 1, *[0] * 8), (0, 555, 777, *[1000] * 8), 100),
    ("E", (*[0] * 10, 256), (*[0] * 11,), 0),
    ("F", (*[0] * 8, 512, 0, 0), (*[0] * 9, 1000, 1000), 100),
    ("G", (0,) * 11, (1000,) * 11, 0),
)
EXTFRAG_VECTORS: Final = {
    "A": (-1000,) * 11,
    "B": (-1000, 500, 750, 875, 938, 969, 985, 993, 997, 999, 1000),
    "C": (*[-1000] * 9, 993, 996),
    "D": (*[-1000] * 3, 750, 837, 880, 902, 913, 918, 921, 922),
    "E": (-1000,) * 11,
    "F": (*[-1000] * 9, 499, 749),
    "G": (0,) * 11,
}


def indices() -> Iterator[Claim]:
    """Yield the fragmentation indices of the specification's zones, to 1/1000."""
    for zone, counts, unusable, score in INDEX_VECTORS:
        free = np.array(counts, np.int64)
        orders = range(NR_PAGE_ORDERS)
        for name, expected, found in (
            ("unusable_index", unusable, [int(unusable_free_index(free, o)) for o in orders]),
            (
                "extfrag_index",
                EXTFRAG_VECTORS[zone],
                [int(fragmentation_index(free, o)) for o in orders],
            ),
            ("score", (score,), [int(fragmentation_score(free))]),
        ):
            yield Claim(
                f"{name} of zone {zone}",
                " ".join(map(str, expected)),
                "kernel.md 2, mm/vmstat.c and mm/compaction.c",
                " ".join(map(str, found)),
                tuple(found) == tuple(expected),
            )


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    "khugepaged-bound": khugepaged_bound,
    "indices": indices,
}
