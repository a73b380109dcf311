"""Figures of a state from the classes around it, as a reader would write it: no kernels."""

import math
from typing import NamedTuple

import numpy as np

from fleet.mmu_classes import LEAST_PAGES, LEAST_WEIGHT, REMOTE_PARTS
from fleet.mmu_sample import (
    NR_S_FIGURES,
    PER_OCTAVE,
    S_EPT_CYCLES,
    S_EPT_READS,
    S_ERROR,
    S_GUEST_CYCLES,
    S_GUEST_READS,
    S_MISSES,
    S_MISSES_OF_OPERATION,
    S_RUN_CYCLES,
    SMALL,
    Class,
    Side,
    sample,
)
from hostsim.mmu.cost import Remote

PPM = 1_000_000


class State(NamedTuple):
    """How a guest's programs are mapped; all in pages."""

    cpu: str
    workload: str
    pages: int
    guest_huge: int
    host_huge: int
    both_huge: int
    tables: int
    tables_huge: int
    remote: int = 0  # of 64 parts of the VM's memory, those on another node than its CPUs
    remote_ept: int = 0  # of 64 parts of its EPT

    def columns(self):
        """Return it as the kernels take it: an array of one row."""
        return np.array([self[2:]], np.int64)


def _between(value, classes):
    """Return the classes around a value and their weights."""
    above = next(i for i, edge in enumerate(classes) if value <= edge)
    if value == classes[above]:
        return [(above, 1.0)]
    weight = (value - classes[above - 1]) / (classes[above] - classes[above - 1])
    return [(above - 1, 1.0 - weight), (above, weight)]


def _footprints(pages):
    """Return the classes around a footprint and their weights."""
    at = math.log2(max(pages, LEAST_PAGES)) * PER_OCTAVE
    below = math.floor(at)
    return [(below, 1.0 - (at - below)), (below + 1, at - below)]


def _sides(state, small):
    """Return where a state's small entries are small, and the shares of them."""
    host = (state.guest_huge - state.both_huge) / max(small, 1)
    guest = (state.host_huge - state.both_huge) / max(small, 1)
    shares = {Side.HOST: host, Side.GUEST: guest, Side.BOTH: 1.0 - host - guest}
    return {side: share for side, share in shares.items() if share > 0.0}


def _remote(state, native):
    """Return what is remote, nothing, all memory, all of the EPT or both, and the shares of it."""
    memory = state.remote / REMOTE_PARTS
    ept = 0.0 if native else state.remote_ept / REMOTE_PARTS
    shares = {
        Remote(): (1.0 - memory) * (1.0 - ept),
        Remote(memory=True): memory * (1.0 - ept),
        Remote(ept=True): (1.0 - memory) * ept,
        Remote(memory=True, ept=True): memory * ept,
    }
    kept = {remote: share for remote, share in shares.items() if share > LEAST_WEIGHT}
    return [(remote, share / sum(kept.values())) for remote, share in kept.items()]


def classes_around(state, *, native=False):
    """Return the classes that a state lies between, and their weights, which add up to one.

    Those of little weight are left out.

    Parameters
    ----------
    native
        Of the same program without a hypervisor, mapped as the guest maps it.
    """
    pages = max(state.pages, 1)
    small = max(pages - (state.guest_huge if native else state.both_huge), 0)
    of_tables = 1.0 if native else state.tables_huge / max(state.tables, 1)
    tables = [(huge, c) for huge, c in ((True, of_tables), (False, 1.0 - of_tables)) if c > 0.0]
    sides = {Side.NATIVE: 1.0} if native else _sides(state, small)
    none = sides if native else {Side.GUEST: 1.0}  # all entries are large on both sides
    far = _remote(state, native)
    found = []
    for footprint, a in _footprints(pages):
        for share, b in _between(small / pages, SMALL):
            for side, c in (sides if SMALL[share] > 0.0 else none).items():
                for huge, d in tables:
                    weight = a * b * c * d
                    if weight > LEAST_WEIGHT:
                        program = (state.cpu, state.workload, footprint)
                        for remote, e in far:
                            key = Class(*program, share, side, huge, remote)
                            found.append((key, weight * e))
    total = sum(weight for _, weight in found)
    return [(key, weight / total) for key, weight in found]


def all_huge(state):
    """Return a state's program mapped by huge pages on both sides, page tables too."""
    pages = state.pages
    return state._replace(
        guest_huge=pages, host_huge=pages, both_huge=pages, tables_huge=state.tables
    )


def figures(state, seed, accesses):
    """Return a state's figures, every sample made anew."""

    def mean(classes):
        return sum(
            (weight * sample(key, seed, accesses) for key, weight in classes),
            np.zeros(NR_S_FIGURES),
        )

    return _as_integers(
        mean(classes_around(state)),
        mean(classes_around(all_huge(state))),
        mean(classes_around(state, native=True)),
        mean(classes_around(state._replace(remote=0, remote_ept=0))),
    )


def _as_integers(
    own,
    huge,
    native,
    local,
):
    """Return figures in fixed point: `hostsim.core.stats.MMU_COLUMNS`."""
    walks = own[S_MISSES] or 1.0
    walks_of_operation = own[S_MISSES_OF_OPERATION] or 1.0
    run = own[S_RUN_CYCLES]
    values = (
        PPM * own[S_MISSES],
        PPM * own[S_ERROR],
        1000.0 * own[S_GUEST_READS] / walks,
        1000.0 * own[S_EPT_READS] / walks,
        1000.0 * own[S_GUEST_CYCLES] / walks_of_operation,
        1000.0 * own[S_EPT_CYCLES] / walks_of_operation,
        PPM * (own[S_GUEST_CYCLES] + own[S_EPT_CYCLES]) / run,
        PPM * run / huge[S_RUN_CYCLES],
        PPM * run / native[S_RUN_CYCLES],
        PPM * run / local[S_RUN_CYCLES],
    )
    return np.array([round(value) for value in values], np.int64)
