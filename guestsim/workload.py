"""Streams of memory accesses of a program, page by page.

An operation (a look-up, an update) makes a fixed number of accesses, its *steps*.  At every step
one of the components that take part in it is drawn by weight, and its law names the page.
Everything is a pure function of a key and the number of the access.

Simplified: accesses that stay on a page or in the hottest few pages are left out; what they cost
is part of the cycles of an operation.
Simplified: a Zipf rank is drawn from the continuous law and rounded down.
Simplified: a component that moves on (sequential, phase) advances by its share of all accesses.
"""

import itertools
import math
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hostsim.core.counter_rng import hash64
from hostsim.core.jit import kernel
from hostsim.core.units import PAGE_BYTES

LINE_SHIFT: Final = 6  # 64-byte lines
LINES_PER_PAGE_SHIFT: Final = 6


class Law(IntEnum):
    """How a component's accesses choose a page of its region."""

    UNIFORM = 0  # any page
    CHILD = 1  # the page of a tree level above a key that all steps of an operation share
    ZIPF = 2  # objects by popularity, scattered over the region
    SEQUENTIAL = 3  # a fixed distance further each time
    PHASE = 4  # any page of a window that moves now and then


class Component(NamedTuple):
    """One kind of access of an operation."""

    law: Law
    weight: float  # among the components of the same step
    first: int  # first page of its region
    pages: int  # of its region
    step: int  # step at which it takes part; ANY_STEP: at every one
    objects_per_page: int = 1
    exponent: float = 0.0
    stride_bytes: int = 0
    window_pages: int = 0
    window_accesses: int = 0


ANY_STEP: Final = -1


class Workload(NamedTuple):
    """A program's accesses and what it does beside."""

    name: str
    pages: int  # footprint
    steps: int  # accesses of an operation
    components: tuple[Component, ...]
    instructions: float  # of an operation
    cycles: float  # of an operation beside translation, if nothing overlapped
    overlap: float  # operations under way at a time
    huge_ratio: float  # share of the footprint in areas large and aligned enough for huge pages
    madvised: bool  # whether those areas have MADV_HUGEPAGE


# Columns of the table that the kernel reads, one row a component and step
W_LAW: Final = 0
W_BELOW: Final = 1  # draws below this take the row, of 2**62
W_FIRST: Final = 2
W_PAGES: Final = 3
W_OBJECTS: Final = 4
W_SCATTER: Final = 5
W_STRIDE: Final = 6  # bytes
W_WINDOW: Final = 7
W_WINDOW_ACCESSES: Final = 8
W_EVERY: Final = 9  # of 2**20 accesses of the stream, so many are this row's
W_OBJECTS_PER_PAGE: Final = 10
W_SALT: Final = 11  # of the draws that all steps of a component share
NR_W_FIELDS: Final = 12
DRAW_BITS: Final = 62
EVERY_SHIFT: Final = 20
SALT_KIND: Final = 1
SALT_PAGE: Final = 2
NR_SALTS: Final = 3


class Program(NamedTuple):
    """A workload as the kernel reads it."""

    row: NDArray[np.int64]  # (rows, NR_W_FIELDS), rows of a step behind each other
    power: NDArray[np.float64]  # (rows, 2) of a Zipf law: (n + 1)**(1 - s) - 1 and 1 / (1 - s)
    first_row: NDArray[np.int64]  # (steps + 1,)


def _scatter(nr: int) -> int:
    """Return a multiplier coprime with ``nr`` that spreads neighbours evenly."""
    multiplier = max(1, int(nr * (math.sqrt(5.0) - 1.0) / 2.0))
    while math.gcd(multiplier, nr) != 1:
        multiplier += 1
    return multiplier


def compile_workload(workload: Workload) -> Program:
    """Return the tables that `draw_pages` reads.

    Raises
    ------
    ValueError
        A step has no component, or a region lies outside the footprint.
    """
    rows, powers, first_row = [], [], [0]
    shares = _shares(workload)
    for step in range(workload.steps):
        here = [(i, c) for i, c in enumerate(workload.components) if c.step in (step, ANY_STEP)]
        total = sum(c.weight for _, c in here)
        below = 0.0
        for number, component in here:
            if component.first < 0 or component.pages < 1:
                raise ValueError(f"{component}: an empty region")
            if component.first + component.pages > workload.pages:
                raise ValueError(f"{component}: outside of {workload.pages} pages")
            below += component.weight / total
            row = np.zeros(NR_W_FIELDS, np.int64)
            row[W_LAW] = component.law
            row[W_BELOW] = int(min(below, 1.0) * (1 << DRAW_BITS))
            row[W_FIRST] = component.first
            row[W_PAGES] = component.pages
            row[W_OBJECTS_PER_PAGE] = component.objects_per_page
            row[W_OBJECTS] = component.pages * component.objects_per_page
            row[W_SCATTER] = _scatter(int(row[W_OBJECTS]))
            row[W_STRIDE] = component.stride_bytes
            row[W_WINDOW] = min(component.window_pages, component.pages)
            row[W_WINDOW_ACCESSES] = component.window_accesses
            row[W_EVERY] = max(1, round(shares[number] * (1 << EVERY_SHIFT)))
            row[W_SALT] = NR_SALTS * (workload.steps + 1 + number)
            rows.append(row)
            powers.append(_zipf_power(component.exponent, int(row[W_OBJECTS])))
        rows[-1][W_BELOW] = np.iinfo(np.int64).max
        first_row.append(len(rows))
    return Program(np.array(rows), np.array(powers), np.array(first_row, np.int64))


def _shares(workload: Workload) -> list[float]:
    """Return the share of all accesses that each component has.

    Raises
    ------
    ValueError
        A step has no component.
    """
    shares = [0.0] * len(workload.components)
    for step in range(workload.steps):
        here = [i for i, c in enumerate(workload.components) if c.step in (step, ANY_STEP)]
        total = sum(workload.components[i].weight for i in here)
        if not total > 0.0:
            raise ValueError(f"step {step}: no component")
        for i in here:
            shares[i] += workload.components[i].weight / total / workload.steps
    return shares


def _zipf_power(exponent: float, nr: int) -> tuple[float, float]:
    if exponent == 1.0:
        exponent = 1.0 + 1e-9
    return (nr + 1.0) ** (1.0 - exponent) - 1.0, 1.0 / (1.0 - exponent)


def zipf_share(exponent: float, nr: int, rank: float) -> float:
    """Return the share of draws that fall on the first ``rank`` of ``nr`` objects."""
    power, inverse = _zipf_power(exponent, nr)
    return float(((rank + 1.0) ** (1.0 / inverse) - 1.0) / power)


@kernel
def _scaled(draw: int, nr: int) -> int:
    """Return a number below ``nr`` (at most 2**31) from a draw of 62 bits."""
    return ((draw >> 30) * nr) >> 32


@kernel
def page_of(
    row: NDArray[np.int64],
    power: NDArray[np.float64],
    r: int,
    key: int,
    number: int,
    operation: int,
    step: int,
) -> int:
    """Return the page that one access of a component touches."""
    law = row[r, W_LAW]
    first = row[r, W_FIRST]
    pages = row[r, W_PAGES]
    if law == Law.SEQUENTIAL:
        at = ((number * row[r, W_EVERY]) >> EVERY_SHIFT) * row[r, W_STRIDE]
        return int(first + (at // PAGE_BYTES) % pages)
    if law == Law.CHILD:
        return int(first + _scaled(hash64(key, operation, SALT_PAGE), pages))
    draw = hash64(key, operation, SALT_PAGE + NR_SALTS * (step + 1))
    if law == Law.UNIFORM:
        return int(first + _scaled(draw, pages))
    if law == Law.PHASE:
        phase = ((number * row[r, W_EVERY]) >> EVERY_SHIFT) // row[r, W_WINDOW_ACCESSES]
        window = row[r, W_WINDOW]
        start = _scaled(hash64(key, phase, row[r, W_SALT]), pages - window + 1)
        return int(first + start + _scaled(draw, window))
    share = (float(draw) + 0.5) * 2.0**-DRAW_BITS
    rank = int((power[r, 0] * share + 1.0) ** power[r, 1]) - 1
    objects = row[r, W_OBJECTS]
    rank = min(max(rank, 0), objects - 1)
    return int(first + (rank * row[r, W_SCATTER]) % objects // row[r, W_OBJECTS_PER_PAGE])


@kernel
def draw_pages(
    row: NDArray[np.int64],
    power: NDArray[np.float64],
    first_row: NDArray[np.int64],
    key: int,
    start: int,
    pages: NDArray[np.int64],
) -> None:
    """Write the pages that accesses ``start, start + 1, ...`` of a stream touch.

    Parameters
    ----------
    row, power, first_row
        A `Program`.
    pages
        Filled; its length is the number of accesses.
    """
    steps = first_row.size - 1
    for i in range(pages.size):
        number = start + i
        operation = number // steps
        step = number - operation * steps
        r = first_row[step]
        if first_row[step + 1] - r > 1:
            draw = hash64(key, operation, SALT_KIND + NR_SALTS * (step + 1))
            while draw >= row[r, W_BELOW]:
                r += 1
        pages[i] = page_of(row, power, r, key, number, operation, step)


BY_PAGE: Final = -1


class PageClass(NamedTuple):
    """Objects of a region that are accessed equally often."""

    region: tuple[int, int]  # first page and pages of the region they are scattered over
    objects: float
    objects_per_page: int
    rate: float  # accesses to one object, of one access of the stream
    run: float  # accesses in a row to one object's line of eight pages, 1 if at random
    rank: int = BY_PAGE  # of its most popular object, if they differ


ZIPF_CLASSES: Final = 48


def page_classes(workload: Workload) -> list[PageClass]:
    """Return the popularity of everything that a workload accesses, in classes."""
    found = []
    for c, share in zip(workload.components, _shares(workload), strict=True):
        region = c.first, c.pages
        if share <= 0.0:
            continue
        if c.law == Law.ZIPF:
            found += _zipf_classes(c, share)
        elif c.law == Law.PHASE:
            window = min(c.window_pages, c.pages)
            found.append(PageClass((c.first, window), window, 1, share / window, 1.0))
        else:
            run = 1.0
            if c.law == Law.SEQUENTIAL:
                run = max(1.0, 8.0 * PAGE_BYTES / c.stride_bytes)
            found.append(PageClass(region, c.pages, 1, share / c.pages, run))
    return _merged(found)


def _merged(classes: list[PageClass]) -> list[PageClass]:
    """Return classes of which no two are about the same objects: their rates add up.

    What is drawn page by page is cut where another region begins or ends, and put together.
    """
    together: dict[tuple[object, ...], PageClass] = {}
    edges = sorted({edge for c in classes for edge in (c.region[0], sum(c.region))})
    for c in classes:
        for part in _cut(c, edges) if c.rank == BY_PAGE and c.run <= 1.0 else [c]:
            key = part.region, part.objects, part.objects_per_page, part.run, part.rank
            known = together.get(key)
            together[key] = part if known is None else part._replace(rate=known.rate + part.rate)
    return list(together.values())


def _cut(c: PageClass, edges: list[int]) -> list[PageClass]:
    first, end = c.region[0], sum(c.region)
    cuts = [edge for edge in edges if first < edge < end]
    return [
        c._replace(region=(low, high - low), objects=float(high - low))
        for low, high in itertools.pairwise([first, *cuts, end])
    ]


def _zipf_classes(component: Component, share: float) -> list[PageClass]:
    nr = component.pages * component.objects_per_page
    edges = np.unique(np.round(np.geomspace(1, nr + 1, ZIPF_CLASSES + 1)).astype(np.int64)) - 1
    found = []
    for low, high in itertools.pairwise(edges):
        part = zipf_share(component.exponent, nr, high) - zipf_share(component.exponent, nr, low)
        found.append(
            PageClass(
                (component.first, component.pages),
                float(high - low),
                component.objects_per_page,
                share * part / (high - low),
                1.0,
                int(low),
            )
        )
    return found
