"""Checks of the MMU: cold walks, the LRU oracle, the seed's table, native measurements.

Source: targets.md 2 and 3: native figures of a Cascade Lake (run time without and with THP, walk
cycles of both walkers over run cycles), of CBMM's artifact (Skylake class) and of Mitosis's
(Haswell).  What the calibrated model says of KVM is printed by `predictions`; it is fitted on
nothing there.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final, NamedTuple

from fleet.claims import Claim, Found
from fleet.hardware import load_cpu
from fleet.lru_cascade import STREAMS, compare
from fleet.mmu import Outcome, Setup, memory_for, run
from fleet.profiles import load_workload
from hostsim.mmu.coldwalk import PAGE, cold_tables, cold_walk, nr_references
from hostsim.mmu.cpus import cold_mmu
from hostsim.mmu.paging import PAGE_SIZES
from hostsim.mmu.tlb import C_READS, forget_counts
from hostsim.mmu.walker import translate

ACCESSES: Final = 1_000_000
LEVELS: Final = 4
SHARE_TOLERANCE: Final = 0.15  # of a walk share, relative
SHARE_FLOOR: Final = 0.01  # or absolute, on the rows of CBMM
RATIO_TOLERANCE: Final = 0.10

COLD: Final[tuple[tuple[str, str | None, int, int], ...]] = (
    # guest page, host page, levels, references
    ("4K", "4K", 4, 24),
    ("4K", "2M", 4, 19),
    ("2M", "4K", 4, 19),
    ("2M", "2M", 4, 15),
    ("1G", "1G", 4, 8),
    ("4K", "4K", 5, 35),
    ("4K", None, 4, 4),
    ("2M", None, 4, 3),
    ("1G", None, 4, 2),
    ("4K", None, 5, 5),
)
# One tuple a number of EPT levels found; in it, by guest levels found.  One cell of Intel's is 1
# where its own formula gives 2: a misprint.
MATRICES: Final[dict[str, tuple[tuple[int, ...], ...]]] = {
    "4K": (
        (24, 15, 10, 5, 0),
        (19, 12, 8, 4, 0),
        (14, 9, 6, 3, 0),
        (9, 6, 4, 2, 0),
        (4, 3, 2, 1, 0),
    ),
    "2M": ((15, 8, 4, 0), (11, 6, 3, 0), (7, 4, 2, 0), (3, 2, 1, 0)),
}


NOT_MEASURED: Final = float("nan")


class NativeRow(NamedTuple):
    """What was measured of one program, walk shares in percent without and with THP."""

    profile: str
    never: float  # walk share
    always: float
    time_ratio: float | None = None  # run time without THP over that with


CASCADE_LAKE: Final = (
    NativeRow("gups", 155.0, 61.0, 134 / 66),
    NativeRow("btree", 52.5, NOT_MEASURED),
    NativeRow("canneal", 73.7, 40.8, 174 / 140),
    NativeRow("xsbench", 34.5, 10.8, 138 / 114),
)
CBMM: Final = (
    NativeRow("mcf", 7.3, 0.01),
    NativeRow("memcached", 20.9, 6.2),
    NativeRow("redis", 13.6, 12.7),
    NativeRow("canneal-cbmm", 41.4, 9.3),
)
HASWELL: Final = (
    NativeRow("gups", 82.6, 47.1),
    NativeRow("btree", 43.0, 34.4),
    NativeRow("redis", 28.3, 25.7),
    NativeRow("xsbench", 34.6, 5.2),
    NativeRow("canneal", 46.8, 23.0),
)
PREDICTED: Final = (
    *(("cascade-lake", row.profile) for row in CASCADE_LAKE),
    *(("skylake-sp", row.profile) for row in CBMM),
)


def cold_walks() -> Iterator[Claim]:
    """Yield memory references of cold walks, and of walks with forced hits."""
    for guest, host, levels, expected in COLD:
        found = nr_references(cold_walk(guest, host, levels, levels))
        name = f"cold walk, {guest} on {host or 'no EPT'}, {levels} levels: references"
        yield Claim(name, str(expected), "targets.md 3; seed", str(found), found == expected)
    for size, rows in MATRICES.items():
        for host_found, expected_row in enumerate(rows):
            row = [_references(size, g, host_found) for g in range(len(expected_row))]
            yield Claim(
                f"walk of {size} on {size}, {host_found} EPT levels found, by guest levels found",
                " ".join(map(str, expected_row)),
                "Intel 814346, 4.3.9.2.1",
                " ".join(map(str, row)),
                tuple(row) == expected_row,
            )


def _references(size: str, guest_found: int, host_found: int) -> int:
    """Return the references of a walk; with every guest level found it is a TLB hit."""
    if guest_found < LEVELS - PAGE_SIZES.index(size):
        return nr_references(cold_walk(size, size, LEVELS, LEVELS, guest_found, host_found))
    mmu = cold_mmu()
    guest, ept = cold_tables(size, size, LEVELS, LEVELS)
    translate(mmu, guest, ept, True, PAGE, 1)
    forget_counts(mmu)
    translate(mmu, guest, ept, True, PAGE, 1)
    return int(mmu.counts[C_READS:].sum())


def oracle() -> Iterator[Claim]:
    """Yield hits, walks and reads at every level against an LRU cascade in NumPy."""
    for cpu, name, huge in STREAMS:
        expected, found = compare(cpu, name, huge, ACCESSES)
        yield Claim(
            f"oracle, {cpu}, {name}, huge windows {huge}: L1 hits, L2 hits, walks, reads",
            " ".join(map(str, (*expected[:3], *expected.reads))),
            "LRU cascade in NumPy, 1 M accesses",
            " ".join(map(str, (*found[:3], *found.reads))),
            expected == found,
        )


def seed_table() -> Iterator[Claim]:
    """Yield every figure of the seed's table."""
    from fleet.largepages import judge, run_all

    for cell in judge(run_all()):
        digits = 4 if " / " in cell.name else 0
        yield Claim(
            f"largepages, {cell.name}",
            f"{cell.expected:.{digits}f} +- {cell.tolerance:g}",
            "seed's table",
            f"{cell.printed:.{digits}f}",
            cell.verdict,
        )


@cache
def measured(profile: str, cpu: str, nested: bool, guest_thp: str, host_thp: str) -> Outcome:
    """Return a simulated run of a program."""
    workload = load_workload(profile)
    setup = Setup(nested, guest_thp, host_thp, LEVELS, memory_for(workload))
    return run(workload, load_cpu(cpu), setup, ACCESSES)[1]


def _native(profile: str, cpu: str, thp: str) -> Outcome:
    return measured(profile, cpu, False, thp, "never")


def _share(cpu: str, profile: str, thp: str, percent: float, floor: float, source: str) -> Claim:
    expected = percent / 100.0
    found = _native(profile, cpu, thp).share
    near = abs(found - expected) <= max(SHARE_TOLERANCE * expected, floor)
    allowed = f"+- {SHARE_TOLERANCE:.0%}" + (f" or {floor:.0%} of the run" if floor else "")
    name = f"native {cpu}, {profile}, THP {thp}: walk share"
    return Claim(name, f"{expected:.1%} {allowed}", source, f"{found:.1%}", near)


def native() -> Iterator[Claim]:
    """Yield the native measurements that the workload profiles are calibrated on."""
    source = "targets.md 2, Gold 6252"
    for row in CASCADE_LAKE:
        yield _share("cascade-lake", row.profile, "never", row.never, 0.0, source)
        if row.time_ratio is not None:
            slow, fast = (
                _native(row.profile, "cascade-lake", thp).run_cycles for thp in ("never", "always")
            )
            yield Claim(
                f"native cascade-lake, {row.profile}: run time THP off / on",
                f"{row.time_ratio:.3f} +- {RATIO_TOLERANCE:.0%}",
                source,
                f"{slow / fast:.3f}",
                abs(slow / fast / row.time_ratio - 1.0) <= RATIO_TOLERANCE,
            )
    for row in CBMM:
        for thp, percent in (("never", row.never), ("always", row.always)):
            yield _share("skylake-sp", row.profile, thp, percent, SHARE_FLOOR, "targets.md 2, CBMM")


class Compared(NamedTuple):
    """Two figures printed beside each other; nobody is judged."""

    name: str
    published: str
    printed: str


def haswell() -> Iterator[Compared]:
    """Yield Mitosis's native rows, which nothing was fitted on."""
    for row in HASWELL:
        shares = [_native(row.profile, "haswell", thp).share for thp in ("never", "always")]
        yield Compared(
            f"native haswell, {row.profile}: walk share, THP off -> on",
            f"{row.never:.1f} -> {row.always:.1f} %",
            f"{100 * shares[0]:.1f} -> {100 * shares[1]:.1f} %",
        )


class Prediction(NamedTuple):
    """What the calibrated model says of one program under KVM with EPT."""

    profile: str
    cpu: str
    time_ratio_4k: float  # run time under KVM over native, no huge pages in either kernel
    time_ratio_thp: float  # both with huge pages
    walk_ratio_4k: float  # walk cycles under KVM over native
    walk_ratio_thp: float
    ept_part_4k: float  # of the walk cycles
    ept_part_thp: float
    references_native: float  # a walk, 4K
    references_nested: float
    host_only: float  # run time without huge pages over that with them in the host only
    guest_only: float
    both: float


def predictions() -> Iterator[Prediction]:
    """Yield what follows for KVM; no figure of it was fitted."""
    for cpu, profile in PREDICTED:
        native_run = {thp: _native(profile, cpu, thp) for thp in ("never", "always")}
        kvm = {
            (guest, host): measured(profile, cpu, True, guest, host)
            for guest in ("never", "always")
            for host in ("never", "always")
        }
        small, huge = kvm["never", "never"], kvm["always", "always"]
        yield Prediction(
            profile,
            cpu,
            small.run_cycles / native_run["never"].run_cycles,
            huge.run_cycles / native_run["always"].run_cycles,
            _ratio(small.walk_cycles, native_run["never"].walk_cycles),
            _ratio(huge.walk_cycles, native_run["always"].walk_cycles),
            small.cost.ept_ratio,
            huge.cost.ept_ratio,
            _per_walk(native_run["never"]),
            _per_walk(small),
            small.run_cycles / kvm["never", "always"].run_cycles,
            small.run_cycles / kvm["always", "never"].run_cycles,
            small.run_cycles / huge.run_cycles,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else float("nan")


def _per_walk(found: Outcome) -> float:
    return _ratio(float(found.cost.reads.sum()), found.cost.walks)


CHECKS: Final[dict[str, Callable[[], Iterator[Claim]]]] = {
    "cold-walks": cold_walks,
    "oracle": oracle,
    "largepages": seed_table,
    "native": native,
}


def beside() -> Found:
    """Return what is printed and not judged: Haswell's rows, and what follows for KVM."""
    compared, predicted = list(haswell()), list(predictions())
    lines = ["A check that nothing was fitted on (not judged):"]
    lines += [f"  {c.name}: published {c.published}, printed {c.printed}" for c in compared]
    lines += [
        "What follows for KVM with EPT (4K: no huge pages; THP: in both kernels):",
        f"  {'':<26}{'run KVM/native':>16}{'walks KVM/native':>18}{'EPT part':>16}"
        f"{'reads a walk':>15}{'speed-up of THP in':>24}",
        f"  {'':<26}{'4K':>8}{'THP':>8}{'4K':>9}{'THP':>9}{'4K':>8}{'THP':>8}"
        f"{'native':>8}{'KVM':>7}{'host':>8}{'guest':>8}{'both':>8}",
    ]
    lines += [
        f"  {row.profile + ', ' + row.cpu:<26}{row.time_ratio_4k:>8.3f}{row.time_ratio_thp:>8.3f}"
        f"{row.walk_ratio_4k:>9.2f}{row.walk_ratio_thp:>9.2f}"
        f"{row.ept_part_4k:>8.1%}{row.ept_part_thp:>8.1%}"
        f"{row.references_native:>8.2f}{row.references_nested:>7.2f}"
        f"{row.host_only:>8.3f}{row.guest_only:>8.3f}{row.both:>8.3f}"
        for row in predicted
    ]
    details = {
        "haswell": [row._asdict() for row in compared],
        "kvm": [row._asdict() for row in predicted],
    }
    return Found((), details, lines)
