"""Popularity: objects that are read equally often, and the lines and pages that hold them.

What is read by all guests of one program and footprint comes in classes of objects; lines and
pages are units of objects in a row. How long a unit stays unread follows from how often its
objects are read, which is what Che's approximation asks of it (`hostsim.mmu.cost`).

Source: Che, Tung, Wang, Hierarchical Web Caching Systems, IEEE JSAC 20(7), 2002.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ENTRIES_PER_LINE: Final = 8
LINES_PER_PAGE: Final = 64
Floats = NDArray[np.float64]


class Classes(NamedTuple):
    """Popularity: objects read equally often, one entry a class."""

    region_first: Floats  # first page of the region they are scattered over
    region_pages: Floats
    objects: Floats
    per_page: Floats  # objects of a page
    rate: Floats  # reads of one object, of one access
    run: Floats  # reads in a row of the eight pages of a line of page-table entries


def _groups(classes: Classes) -> NDArray[np.int64]:
    """Return which classes are scattered over the same region, as a number for each."""
    where = np.stack([classes.region_first, classes.region_pages, classes.per_page], axis=1)
    _, group = np.unique(where, axis=0, return_inverse=True)
    return group.astype(np.int64)


class Popularity:
    """Classes, and what follows from them alone."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.group = _groups(classes)
        self.nr_groups = int(self.group.max()) + 1
        objects = np.bincount(self.group, classes.objects)[self.group]
        self.share = classes.objects / objects  # of the objects of its region
        self.density = objects / classes.region_pages  # objects of a page
        self.everywhere = np.ones(len(classes.rate))
        self.cyclic = classes.run > 1.0
        # Of the accesses in a row to a page only the first can miss.
        once = np.minimum(ENTRIES_PER_LINE / classes.run, 1.0)
        self.first = np.where(self.cyclic, once, 1.0)
        self._data: dict[int, Lines] = {}

    def summed(self, values: Floats) -> Floats:
        """Return for each class the sum over the classes of its region, row by row."""
        sums: Any
        if values.ndim == 1:
            sums = np.bincount(self.group, values)
            return sums[self.group]
        rows = np.arange(len(values)) * self.nr_groups
        flat = (rows[:, None] + self.group).ravel()
        sums = np.bincount(flat, values.ravel(), len(values) * self.nr_groups)
        return sums.reshape(len(values), self.nr_groups)[:, self.group]

    def data_lines(self, together: int) -> "Lines":
        """Return the lines of the data itself: an access reads one line of its page.

        Parameters
        ----------
        together
            Lines that a read brings in.
        """
        if together not in self._data:
            rate = self.classes.rate * (together / LINES_PER_PAGE)
            self._data[together] = Lines(
                Units(self, rate, self.everywhere, LINES_PER_PAGE), 1.0, self.everywhere
            )
        return self._data[together]


class Units:
    """Pages in a row, taken together, and how long one of them stays unread.

    A unit that holds an object holds neighbours, too, which are drawn from all objects of its
    region: it stays unread while all of them do.

    Parameters
    ----------
    weight
        (..., classes) reads of one object that takes part, of one access.
    present
        (..., classes) share of the objects that take part.
    finer
        Pages are cut into so many, each of which is a page and holds as many objects.
    """

    def __init__(self, of: Popularity, weight: Floats, present: Floats, finer: int = 1) -> None:
        self.of, self.weight, self.present = of, weight, present
        self.region_pages = of.classes.region_pages * finer
        self.mean = of.summed(of.share * weight)

    def objects(self, pages: Any) -> Floats:
        """Return how many objects a unit of some pages holds, one at least."""
        return np.maximum(np.minimum(pages, self.region_pages) * self.of.density, 1.0)

    def units(self, pages: Any) -> Floats:
        """Return how many units hold the objects of each class, as its share of its region's."""
        return np.maximum(self.region_pages / pages, 1.0) * self.of.share * self.present

    def rate(self, objects: Floats) -> Floats:
        """Return the mean reads of a unit of so many objects that holds one of each class."""
        return self.weight + (objects - 1.0) * self.mean

    def log_unread(self, time: float) -> Floats:
        """Return the logarithm of the chance that some object of the region is not read."""
        one = np.expm1(-np.minimum(self.weight * time, 700.0))
        return np.log1p(np.maximum(self.of.summed(self.of.share * one), -1.0 + 1e-15))


class Lines:
    """Lines that compete for the caches, and the reads that look for them.

    Parameters
    ----------
    pages
        (..., 1) that one line stands for.
    row
        (..., classes) reads in a row.
    own_pages, tlb_time
        (..., 1) pages whose reads are as far apart as their TLB entry lives, 0 if they are not.
    """

    def __init__(
        self, units: Units, pages: Any, row: Floats, own_pages: Any = 0.0, tlb_time: Any = 0.0
    ) -> None:
        self.units, self.row, self.tlb_time = units, row, tlb_time
        self.objects = units.objects(pages)
        self.nr = units.units(pages)
        self.turns = units.rate(self.objects) / row
        objects = units.objects(own_pages)
        self._rate = units.rate(objects)
        self._others = np.maximum(self.objects - objects, 0.0)

    def read_again(self, time: float) -> Floats:
        """Return the share of reads for whose line the last read is no longer ago than a time.

        What is read at random is read again after any time, what is read from end to end after a
        full turn and not before.  Of reads in a row only the first can come too late.
        """
        if not np.isfinite(time):
            return np.ones(self.row.shape)
        # Walks for one page are at least the TLB's time apart, and 1 / rate on average.
        apart = np.minimum(self.tlb_time, time)
        later = (time - apart) / np.maximum(1.0 - self._rate * apart, 0.1)
        unread = -self._rate * later + self._others * self.units.log_unread(time)
        late = np.exp(np.maximum(unread, -700.0))
        missed = np.where(self.units.of.cyclic, self.turns * time < 1.0, late)
        return 1.0 - missed / self.row
