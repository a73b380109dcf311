"""Live migration: what is sent in how many rounds, and how the memory lands.

The source logs dirty pages, which splits the large leaves of the VM's EPT, and sends all that is
resident; then, round by round, what was written meanwhile.  When the rest fits into the allowed
downtime, or rounds do not get shorter, the VM stops, the rest is sent, and it goes on at the
destination.  There QEMU writes page by page into fresh memory: a window is huge again if the
destination has a huge page for the first page that lands in it.  With post-copy the VM moves
after the first round; what it wrote meanwhile is discarded at the destination and comes in pages
of 4 KiB, which khugepaged may join later.

Source: QEMU 8.2 migration/ram.c (ram_save_iterate, mig_throttle_guest_down, trigger 50 %, initial
20 %, step 10 %, at most 99 %), migration/migration.c (migration_iteration_run,
migration_completion), migration/postcopy-ram.c (ram_discard_range, postcopy_place_page).
Simplified: a migration is decided and done at a barrier; the time it takes is counted, but
neither guest nor hosts do anything in it.
Simplified: of a working set H, written D pages a second, H (1 - exp(-D t / H)) are dirty after t.
Simplified: dirty pages lie anywhere in the VM's memory with the same probability.
Simplified: what is swapped out at the source is read for the first round, and not again if it is
written out meanwhile.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.scenario import MigrationTerms
from fleet.start import see_in_order
from guestsim.behaviour import (
    G_CLASS,
    G_KEY,
    G_LOAD,
    G_MM,
    G_PAGES,
    G_VCPUS,
    G_VM,
)
from guestsim.spec import Behaviour
from hostsim.core.counter_rng import uniform
from hostsim.core.errors import InvariantError
from hostsim.core.jit import kernel
from hostsim.core.stats import REASON_NAMES
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NS_PER_MS, NS_PER_S
from hostsim.ept import start_dirty_log
from hostsim.host import PROCESS_TABLE_FULL, own_first_page, start_qemu
from hostsim.mm.content import is_written, partly_written
from hostsim.mm.fault import FAULT_OK, touch_range
from hostsim.mm.mm_types import (
    MM_ADVICE,
    MM_EPT_FLAGS,
    MM_HUGE,
    MM_RAM_ANON,
    MM_RAM_PAGES,
    MM_SWAP,
    NIL,
    P_COST_NS,
    Memory,
)
from hostsim.mm.mmap import (
    ADVICE_HUGE,
    W_HUGE,
    W_TABLE,
    W_TAG,
    window_word,
)
from hostsim.mm.mmu_notifier import EPT_MISALIGNED
from hostsim.mm.physmem import PB_HUGE, pageblock_state
from hostsim.mm.rmap import EXT_ZERO, KIND_MASK, KIND_SWAP, extents_in
from hostsim.mm.zap import discard_range

if TYPE_CHECKING:
    from fleet.node import Node

I64 = NDArray[np.int64]

DEVICE_STATE_NS: Final = 20 * NS_PER_MS  # of the downtime: devices, vCPUs (assumed)
THROTTLE_FIRST: Final = 20  # percent: QEMU 8.2 cpu-throttle-initial
THROTTLE_STEP: Final = 10  # cpu-throttle-increment
THROTTLE_MAX: Final = 99  # max-cpu-throttle
TRIGGER_SHARE: Final = 0.5  # of what was sent, dirtied meanwhile: throttle-trigger-threshold
MAX_ROUNDS: Final = 64  # then the VM is stopped, however much is left (assumed)
_DIRTY_SALT: Final = 7


class Course(NamedTuple):
    """How one migration went."""

    rounds: int
    sent_pages: int
    left_pages: int  # of them, sent while the VM stood still, or after it moved with post-copy
    throttle: int  # percent of the guest's CPU time that it was denied at the end
    total_ns: int
    downtime_ns: int


class Emigrant(NamedTuple):
    """A VM between two hosts."""

    guest: I64  # its row of the table of guests
    state: dict[str, NDArray[Any]]  # of its kernel
    source: int  # host
    reason: int  # index into hostsim.core.stats.REASON_NAMES
    begin_ns: int  # behind the barrier: migrations of a host go one after the other
    runs: I64  # (runs, 2) pages of guest RAM that hold something: first, pages
    advice: int  # of its RAM on the host
    rss_pages: int
    huge_pages: int  # huge pages at the source
    course: Course


def dirtied(hot_pages: float, pages_per_s: float, ns: float) -> int:
    """Return how many pages of a working set are written at least once in a time."""
    if hot_pages <= 0 or pages_per_s <= 0:
        return 0
    return int(hot_pages * -math.expm1(-pages_per_s * ns / NS_PER_S / hot_pages))


def migrate(
    pages: int,
    hot_pages: float,
    dirty_pages_per_s: float,
    terms: MigrationTerms,
    read_ns: int = 0,
) -> Course:
    """Work out the rounds of a migration.

    Parameters
    ----------
    pages
        Pages that the first round sends.
    hot_pages, dirty_pages_per_s
        Working set that the guest keeps writing, and how fast.
    read_ns
        What the first round waits for swap.
    """
    ns_per_page = NS_PER_S / terms.pages_per_s
    now_ns = pages * ns_per_page + read_ns
    sent, rounds, throttle, slow_rounds = pages, 1, 0, 0
    left = dirtied(hot_pages, dirty_pages_per_s, now_ns)
    last = pages
    while (
        not terms.postcopy and left * ns_per_page > terms.downtime_limit_ns and rounds < MAX_ROUNDS
    ):
        if terms.auto_converge and left > TRIGGER_SHARE * last:
            slow_rounds += 1
            if slow_rounds >= 2:
                slow_rounds = 0
                throttle = min(
                    throttle + (THROTTLE_STEP if throttle else THROTTLE_FIRST), THROTTLE_MAX
                )
        round_ns = left * ns_per_page
        sent, rounds, now_ns, last = sent + left, rounds + 1, now_ns + round_ns, left
        left = dirtied(hot_pages, dirty_pages_per_s * (100 - throttle) / 100, round_ns)
    rest_ns = left * ns_per_page
    downtime_ns = DEVICE_STATE_NS + (0 if terms.postcopy else rest_ns)
    total_ns = int(now_ns + rest_ns + DEVICE_STATE_NS)
    return Course(rounds, sent + left, left, throttle, total_ns, int(downtime_ns))


@kernel
def _add_run(runs: NDArray[np.int64], nr: int, page: int, pages: int) -> int:
    """Add pages behind the runs so far, as many as there is room for; return how many there are."""
    if 0 < nr <= runs.shape[0] and runs[nr - 1, 0] + runs[nr - 1, 1] == page:
        runs[nr - 1, 1] += pages
        return nr
    if nr < runs.shape[0]:
        runs[nr, 0] = page
        runs[nr, 1] = pages
    return nr + 1


@kernel
def _runs_of_huge(mem: Memory, window: int, pb: int, runs: NDArray[np.int64], nr: int) -> int:
    """Add the pages of a huge page that were ever written: the others are zero and not sent."""
    first = window << HPAGE_PMD_ORDER
    if not partly_written(mem, pb) or pageblock_state(mem, pb) != PB_HUGE:
        return _add_run(runs, nr, first, HPAGE_PMD_NR)
    for i in range(HPAGE_PMD_NR):
        if is_written(mem, pb, i):
            nr = _add_run(runs, nr, first + i, 1)
    return nr


@kernel
def full_runs(mem: Memory, mm: int, runs: NDArray[np.int64]) -> int:
    """List the pages of a VM's RAM that hold something, swapped ones included, ascending.

    Returns
    -------
    int
        Number of runs; those that find no room in ``runs`` are counted only.
    """
    nr = 0
    ram_pages = mem.mm[mm, MM_RAM_PAGES]
    for window in range((ram_pages + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER):
        word = window_word(mem, mm, window)
        if word & W_TAG == W_HUGE:
            nr = _runs_of_huge(mem, window, word >> 2, runs, nr)
        elif word & W_TAG == W_TABLE:
            x = extents_in(mem, mm, window)
            while x != NIL:
                if mem.ext[x].flags & EXT_ZERO == 0:
                    nr = _add_run(runs, nr, int(mem.ext[x].vpn), int(mem.ext[x].nr))
                x = int(mem.ext[x].next)
    return nr


@kernel
def read_swapped(mem: Memory, mm: int) -> int:
    """Read what of a VM's RAM is swapped out, since QEMU sends every page; return what it costs.

    Where memory runs out, the rest stays where it is.
    """
    begin_ns = mem.pool[P_COST_NS]
    ram_pages = mem.mm[mm, MM_RAM_PAGES]
    for window in range((ram_pages + HPAGE_PMD_NR - 1) >> HPAGE_PMD_ORDER):
        page = window << HPAGE_PMD_ORDER
        x = _swapped_from(mem, mm, page)
        while x != NIL:  # each read changes the window, and reclaim may change it behind
            page = int(mem.ext[x].vpn)
            nr = int(mem.ext[x].nr)
            if touch_range(mem, mm, page, nr, 1, 1.0, 0, False, page) != FAULT_OK:
                return int(mem.pool[P_COST_NS] - begin_ns)
            page += nr
            if page >= (window + 1) << HPAGE_PMD_ORDER:
                break
            x = _swapped_from(mem, mm, page)
    return int(mem.pool[P_COST_NS] - begin_ns)


@kernel
def _swapped_from(mem: Memory, mm: int, page: int) -> int:
    """Return the first swapped extent of a page's window at or behind the page, or NIL."""
    word = window_word(mem, mm, page >> HPAGE_PMD_ORDER)
    if word & W_TAG != W_TABLE:
        return NIL
    x = extents_in(mem, mm, page >> HPAGE_PMD_ORDER)
    while x != NIL and (mem.ext[x].flags & KIND_MASK != KIND_SWAP or mem.ext[x].vpn < page):
        x = int(mem.ext[x].next)
    return x


@kernel
def dirty_runs(full: NDArray[np.int64], share: float, key: int, runs: NDArray[np.int64]) -> int:
    """Choose the pages that were written behind the first round's back; return as `full_runs`."""
    nr = 0
    for i in range(full.shape[0]):
        for page in range(full[i, 0], full[i, 0] + full[i, 1]):
            if uniform(key, _DIRTY_SALT, page) < share:
                nr = _add_run(runs, nr, page, 1)
    return nr


def listed(kernel_of_runs: Any, *arguments: Any) -> I64:
    """Return the runs that a kernel lists, as many as there are."""
    runs: I64 = np.zeros((1024, 2), np.int64)
    nr = int(kernel_of_runs(*arguments, runs))
    if nr > len(runs):
        runs = np.zeros((nr, 2), np.int64)
        nr = int(kernel_of_runs(*arguments, runs))
    return runs[:nr]


def send(
    mem: Memory, guest: I64, behaviour: Behaviour, terms: MigrationTerms
) -> tuple[I64, int, int, int, Course]:
    """Send a VM's memory; return what an `Emigrant` holds from ``runs`` on.

    The VM is left with dirty logging on.
    """
    mm = int(guest[G_MM])
    rss, huge, advice = (int(mem.mm[mm, field]) for field in (MM_RAM_ANON, MM_HUGE, MM_ADVICE))
    start_dirty_log(mem, mm)
    read_ns = read_swapped(mem, mm) if mem.mm[mm, MM_SWAP] else 0
    runs = listed(full_runs, mem, mm)
    running = guest[G_VCPUS] * guest[G_LOAD] / 1000
    course = migrate(
        int(runs[:, 1].sum()),
        behaviour.hot_ratio * rss,
        behaviour.dirty_pages_per_s * float(running),
        terms,
        read_ns,
    )
    return runs, advice, rss, huge, course


def receive(
    mem: Memory, guest: I64, emigrant: Emigrant, own_pages: int, offset: int
) -> tuple[int, bool]:
    """Start the process that a VM arrives in; return as `hostsim.host.start_qemu`."""
    advised = emigrant.advice == ADVICE_HUGE
    ram_pages, vm_id, vcpus = (int(guest[column]) for column in (G_PAGES, G_VM, G_VCPUS))
    mm, enough = start_qemu(mem, offset + ram_pages, own_pages, advised, vm_id, vcpus)
    guest[G_MM] = mm
    if mm != NIL and offset:
        mem.mm[mm, MM_EPT_FLAGS] |= EPT_MISALIGNED
    return int(mm), bool(enough)


def runs_of_dirty(emigrant: Emigrant) -> I64:
    """Return the pages that a VM wrote during the first round."""
    share = emigrant.course.left_pages / max(int(emigrant.runs[:, 1].sum()), 1)
    return listed(dirty_runs, emigrant.runs, share, int(emigrant.guest[G_KEY]))


def migration_row(mem: Memory, guest: I64, emigrant: Emigrant) -> list[int]:
    """Return a row of ``migrations`` from ``vm_id`` on, when the VM has arrived."""
    course = emigrant.course
    return [
        int(guest[G_VM]),
        emigrant.source,
        emigrant.reason,
        int(guest[G_PAGES]),
        emigrant.begin_ns,
        course.total_ns,
        course.downtime_ns,
        course.rounds,
        course.sent_pages,
        course.throttle,
        emigrant.rss_pages,
        emigrant.huge_pages,
        int(mem.mm[guest[G_MM], MM_RAM_ANON]),
        int(mem.mm[guest[G_MM], MM_HUGE]),
    ]


def emigrate(
    node: "Node", t_ns: int, moves: Sequence[tuple[int, int]], terms: MigrationTerms
) -> list[Emigrant]:
    """Send VMs away from a node at a barrier, one after the other.

    Parameters
    ----------
    moves
        VM and reason of each.
    """
    leaving: list[Emigrant] = []
    begin_ns = 0
    for vm_id, reason in moves:
        row = node.row_of[vm_id]
        guest = node.guests[row]
        behaviour = node.guest_spec.behaviours[guest[G_CLASS]]
        sent = send(node.host.mem, guest, behaviour, terms)
        state = {name: part.copy() for name, part in node.save_guest(row).items()}
        leaving.append(Emigrant(guest.copy(), state, node.host_id, reason, begin_ns, *sent))
        begin_ns += leaving[-1].course.total_ns
        node.note_event(t_ns, row, "migrate", REASON_NAMES[reason])
        node.leave(row)
    return leaving


def immigrate(node: "Node", t_ns: int, arriving: Sequence[Emigrant], terms: MigrationTerms) -> None:
    """Take VMs in at a barrier; their memory lands at the same time, in turns."""
    for emigrant in arriving:
        _arrive(node, t_ns, emigrant)
    node.finish_starts(t_ns)
    if terms.postcopy:
        _land_dirty(node, t_ns, arriving)
    for emigrant in arriving:
        row = _row_of(node, emigrant)
        if row != NIL:
            figures = migration_row(node.host.mem, node.guests[row], emigrant)
            node.migration_rows.append([t_ns, node.host_id, *figures])


def _row_of(node: "Node", emigrant: Emigrant) -> int:
    """Return the row of a VM that arrives, or NIL if it has been killed meanwhile."""
    return node.row_of.get(int(emigrant.guest[G_VM]), NIL)


def _arrive(node: "Node", t_ns: int, emigrant: Emigrant) -> None:
    """Start the process of a VM that arrives, and queue what its memory holds."""
    row = node.new_row()
    pages = int(emigrant.guest[G_PAGES])
    node.row_of[int(emigrant.guest[G_VM])] = row
    guest = node.guests[row]
    guest[:] = emigrant.guest
    node.restore_guest(row, emigrant.state)
    own_pages = node.guest_spec.overhead_pages
    mm, enough = receive(node.host.mem, guest, emigrant, own_pages, node.offset)
    if mm == NIL:
        raise InvariantError(PROCESS_TABLE_FULL)
    node.make_mergeable(row)
    see_in_order(node.host.mem, guest)
    if not enough:
        node.kill(t_ns)
    node.queue(row, np.array([[own_first_page(node.offset + pages), own_pages]]))
    node.queue(row, emigrant.runs)


def _land_dirty(node: "Node", t_ns: int, arriving: Sequence[Emigrant]) -> None:
    """Let what was written since the first round come behind the VMs, in small pages."""
    for emigrant in arriving:
        row = _row_of(node, emigrant)
        if row != NIL:
            dirty = runs_of_dirty(emigrant)
            discard_runs(node.host.mem, int(node.guests[row, G_MM]), dirty)
            node.queue(row, dirty)
    node.finish_starts(t_ns)


@kernel
def discard_runs(mem: Memory, mm: int, runs: NDArray[np.int64]) -> None:
    """Discard what was sent in vain; page tables stay, so that no huge page comes there at once."""
    for i in range(runs.shape[0]):
        discard_range(mem, mm, runs[i, 0], runs[i, 1])
