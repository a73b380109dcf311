"""What a guest does with its memory, decided at each of its turns.

Every number is a pure function of the VM's key and the tick, so that a VM behaves alike on
whichever host it lands.

Simplified: a class of guests is a few rates: a main process that grows and reuses its heap,
short processes, and page cache that is read, grows and goes with deleted files.
Simplified: at most four short processes start at one turn of a guest.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from guestsim.guest import MM_CACHE, free_room
from guestsim.spec import GuestSpec
from hostsim.core.counter_rng import uniform
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, NS_PER_HOUR
from hostsim.mm.content import alike_word
from hostsim.mm.mm_types import MM_ANON, NIL, Memory
from hostsim.mm.mmap import ADVICE_HUGE, ADVICE_NOHUGE, ADVICE_NONE

# Columns of the table of guests
G_VM: Final = 0  # VM number in the trace, -1 for a free row
G_MM: Final = 1  # its process on the host
G_PAGES: Final = 2  # memory size
G_VCPUS: Final = 3
G_START_NS: Final = 4  # when it began to run, before the simulation for a standing VM
G_KEY: Final = 5  # random key
G_STATE: Final = 6  # address of its kernel's state, or NO_KERNEL
G_CLASS: Final = 7  # row of the table of behaviours
G_HEAP: Final = 8  # pages that the main process grows to
G_CACHE: Final = 9  # page cache that it grows to
G_RING: Final = 10  # pages of the ring in which page cache lies, whole windows
G_NEXT_TICK: Final = 11  # when it acts next
G_LAST_NS: Final = 12  # when it acted last
G_HEAP_NS: Final = 13  # when the main process began
G_GROWN: Final = 14  # pages of the heap touched so far
G_FREED_AT: Final = 15  # windows of the heap freed at the last turn
G_FREED_NR: Final = 16
G_RUNS: Final = 17  # small runs freed at the last turn
G_RUNS_TICK: Final = 18  # that tick
G_HEAD: Final = 19  # one past the place of the newest page of page cache
G_TAIL: Final = 20  # place of the oldest
G_BALLOON: Final = 21  # pages in the balloon
G_REPORTS: Final = 22  # lowest order that it reports free + 1; 0: no free page reporting
G_BALLOONED: Final = 23  # 1: has a balloon
G_KILLS: Final = 24  # processes that its OOM killer took
G_GUEST_HUGE: Final = 25  # huge pages of its processes, at the last look
G_EFFECTIVE: Final = 26  # of them, those that one EPT leaf maps too
G_USED: Final = 27  # frames in use in the guest, at the last look
G_ANON: Final = 28  # of them, memory of processes
G_REPORTED: Final = 29  # pages ever given back by free page reporting
G_PROGRAM: Final = 30  # pages of its processes, at the last look
G_PROGRAM_HUGE: Final = 31  # of them, those that the guest maps huge
G_PROGRAM_HOST: Final = 32  # of them, those in whose place one EPT leaf maps 2 MiB
G_PROGRAM_BOTH: Final = 33  # of them, both
G_TABLES: Final = 34  # pages of its processes' page tables
G_TABLES_HOST: Final = 35  # of them, those in whose place one EPT leaf maps 2 MiB
G_LOAD: Final = 36  # thousandths of its vCPUs that run its program
G_FIGURE: Final = 37  # figures of its address translation, at the last look
NR_FIGURES: Final = 10
G_REPORT_NS: Final = G_FIGURE + NR_FIGURES  # from one pass of reporting to the next
G_BALLOON_END: Final = G_REPORT_NS + 1  # one past the page of the newest in the balloon
G_SLOT: Final = G_BALLOON_END + 1  # per slot: process (NIL: none), tick at which it ends
NR_SLOTS: Final = 7  # the main process and six short ones
MAIN: Final = 0
NR_G_FIELDS: Final = G_SLOT + 2 * NR_SLOTS
NO_KERNEL: Final = 0  # of a VM in which nothing is simulated
NEVER_TICK: Final = 1 << 62

# Columns of the table of behaviours
B_ADVICE: Final = 0
B_GROWTH: Final = 1
B_FREE: Final = 2
B_SMALL: Final = 3
B_JOBS: Final = 4
B_JOB: Final = 5
B_JOB_LIFE: Final = 6  # ns
B_READS: Final = 7
B_DROPS: Final = 8
B_RESTART: Final = 9  # ns
B_PERIOD: Final = 10  # ns
B_BELOW: Final = 11  # numbers in (0, 1) below this one pick this class or one before
B_HEAP: Final = 12
B_LOAD: Final = 13  # thousandths
B_ALIKE: Final = 14  # shares of equal pages: hostsim.mm.content
B_HOT: Final = 15  # share of memory used all the time
B_COLD: Final = 16  # uses of the rest an hour
NR_B_FIELDS: Final = 17

# Columns of an operation
O_ROW: Final = 0  # guest
O_KIND: Final = 1
O_WHERE: Final = 2  # slot or process
O_START: Final = 3
O_NR: Final = 4
NR_O_FIELDS: Final = 5
OP_TOUCH_SLOT: Final = 0  # touch pages of the process in a slot
OP_FREE_SLOT: Final = 1  # the process frees pages
OP_BEGIN: Final = 2  # a process of O_NR pages begins in a slot; O_START: its advice
OP_EXIT: Final = 3  # the process in a slot ends
OP_READ: Final = 4  # O_NR pages are read into page cache
OP_DROP: Final = 5  # the oldest O_NR pages of page cache are dropped
OP_HOST: Final = 6  # QEMU or the guest's boot touches pages of the host's process
OP_REPORT: Final = 7  # O_NR passes of free page reporting, O_WHERE: lowest order
OP_INFLATE: Final = 8  # the balloon takes O_NR pages
OP_DEFLATE: Final = 9
OP_DAEMONS: Final = 10  # the kernel's threads work from O_WHERE to O_START, in ns
OP_USE: Final = 11  # memory that it has is used again: O_NR windows, O_WHERE: chance of a cold one

MAX_JOBS: Final = 4
MAX_RUNS: Final = 16
RUN_PAGES: Final = 64  # of a heap, freed together
BALLOON_RESERVE_SHIFT: Final = 5  # a balloon leaves its guest 1/32 of its memory free (assumed)
OPS_PER_GUEST: Final = 18 + 3 * MAX_JOBS + 2 * NR_SLOTS + 2 * MAX_RUNS

_ADVICE = {"none": ADVICE_NONE, "huge": ADVICE_HUGE, "nohuge": ADVICE_NOHUGE}


def behaviour_table(spec: GuestSpec) -> NDArray[np.float64]:
    """Return the behaviours as rows that kernels read."""
    table = np.zeros((len(spec.behaviours), NR_B_FIELDS))
    total = sum(b.weight for b in spec.behaviours)
    below = 0.0
    for row, b in zip(table, spec.behaviours, strict=True):
        below += b.weight / total
        row[:] = (
            _ADVICE[b.heap_advice],
            b.growth_ratio * spec.growth_ns,
            b.free_ratio * spec.reuse_per_hour,
            b.small_ratio,
            b.jobs_per_hour,
            b.job_ratio,
            b.job_life_ns,
            b.cache_reads_per_hour,
            b.cache_drops_per_hour,
            b.restart_ns,
            b.period_ns,
            below,
            b.heap_ratio,
            round(1000.0 * b.load),
            alike_word(b.zero_ratio, b.alike_ratio, b.image_ratio),
            spec.used_ratio,
            spec.cold_reads_per_hour,
        )
    return table


@inline_kernel
def grown_by(pages: int, age_ns: int, growth_ns: float) -> int:
    """Return how much of a target is reached: exponential growth."""
    if growth_ns <= 0.0:
        return pages
    return int(float(pages) * (1.0 - math.exp(-float(age_ns) / growth_ns)))


@kernel
def push(
    ops: NDArray[np.int64], nr: int, row: int, kind: int, where: int, start: int, pages: int
) -> int:
    """Append an operation; return the new number of them."""
    ops[nr, O_ROW] = row
    ops[nr, O_KIND] = kind
    ops[nr, O_WHERE] = where
    ops[nr, O_START] = start
    ops[nr, O_NR] = pages
    return nr + 1


@kernel
def _turn_over_cache(
    guests: NDArray[np.int64],
    mem: Memory,
    profile: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    row: int,
    hours: float,
    age_ns: int,
    demand: int,
) -> tuple[int, int]:
    """Let files be deleted and read; the cache gives way when memory is short.

    It grows into free memory only; files read beyond that take the place of older ones.  The
    guest is about to touch ``demand`` pages beside.

    Returns
    -------
    nr, have
        Number of operations, and pages of the cache behind them.
    """
    limit = guests[row, G_CACHE]
    have = mem.mm[MM_CACHE, MM_ANON]
    drops = min(int(profile[B_DROPS] * hours * float(have)), have)
    have -= drops
    room = free_room(mem) - demand
    begins = hours == 0.0  # a standing VM has what its age brought
    gone_ns = age_ns if begins else int(hours * float(NS_PER_HOUR))
    reads = grown_by(max(limit - have, 0), gone_ns, profile[B_GROWTH])
    reads = min(reads, max(room, 0)) + int(profile[B_READS] * hours * float(limit))
    reads = min(reads, limit)
    short = min(max(have + reads - limit, reads - room, 0), have)
    if drops + short > 0:
        nr = push(ops, nr, row, OP_DROP, 0, 0, drops + short)
    if reads > 0:
        nr = push(ops, nr, row, OP_READ, 0, 0, reads)
    return nr, have - short + reads


@kernel
def _run_jobs(
    guests: NDArray[np.int64],
    profile: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    row: int,
    tick: int,
    tick_ns: int,
    hours: float,
) -> int:
    """End the short processes whose time has come and start others."""
    for slot in range(1, NR_SLOTS):
        if guests[row, G_SLOT + 2 * slot] != NIL and guests[row, G_SLOT + 2 * slot + 1] <= tick:
            nr = push(ops, nr, row, OP_EXIT, slot, 0, 1)
            guests[row, G_SLOT + 2 * slot + 1] = tick
    key = guests[row, G_KEY]
    wanted = profile[B_JOBS] * hours
    jobs = min(int(wanted + uniform(key, tick, 3)), MAX_JOBS)
    room = float(guests[row, G_HEAP] + guests[row, G_CACHE])
    slot = 0
    for i in range(jobs):
        mean = max(profile[B_JOB] * room, 64.0)
        pages = int(min(-math.log(uniform(key, tick, 20 + 2 * i)), 4.0) * mean) + 1
        life = -math.log(uniform(key, tick, 21 + 2 * i)) * profile[B_JOB_LIFE] / float(tick_ns)
        slot += 1
        while slot < NR_SLOTS and (
            guests[row, G_SLOT + 2 * slot] != NIL and guests[row, G_SLOT + 2 * slot + 1] > tick
        ):
            slot += 1
        if slot >= NR_SLOTS:
            break
        nr = push(ops, nr, row, OP_BEGIN, slot, ADVICE_NONE, pages)
        nr = push(ops, nr, row, OP_TOUCH_SLOT, slot, 0, pages)
        guests[row, G_SLOT + 2 * slot + 1] = tick + 1 + int(min(life, 1e6))
        if life < 1.0:
            nr = push(ops, nr, row, OP_EXIT, slot, 0, 1)
    return nr


@inline_kernel
def _small_run(guests: NDArray[np.int64], row: int, tick: int, i: int) -> int:
    """Return where the i-th small run that a heap frees at a turn begins."""
    return int(uniform(guests[row, G_KEY], tick, 40 + i) * float(guests[row, G_GROWN] - RUN_PAGES))


@kernel
def _use_heap(
    guests: NDArray[np.int64],
    profile: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    row: int,
    now_ns: int,
) -> int:
    """Touch again what the main process freed at its last turn, and let it grow."""
    if guests[row, G_FREED_NR] > 0:
        at = guests[row, G_FREED_AT]
        nr = push(ops, nr, row, OP_TOUCH_SLOT, MAIN, at, guests[row, G_FREED_NR])
        guests[row, G_FREED_NR] = 0
    for i in range(guests[row, G_RUNS]):
        start = _small_run(guests, row, guests[row, G_RUNS_TICK], i)
        nr = push(ops, nr, row, OP_TOUCH_SLOT, MAIN, start, RUN_PAGES)
    guests[row, G_RUNS] = 0
    age_ns = now_ns - guests[row, G_HEAP_NS]
    ends = profile[B_RESTART] > 0.0 and float(age_ns) > profile[B_RESTART]
    if ends:
        nr = push(ops, nr, row, OP_EXIT, MAIN, 0, 1)
        guests[row, G_HEAP_NS] = now_ns
        age_ns = 0
    heap = guests[row, G_HEAP]
    if (ends or guests[row, G_SLOT] == NIL) and heap > 0:
        nr = push(ops, nr, row, OP_BEGIN, MAIN, int(profile[B_ADVICE]), heap)
        guests[row, G_GROWN] = 0
    wanted = grown_by(heap, age_ns, profile[B_GROWTH])
    if wanted > guests[row, G_GROWN]:
        grown = guests[row, G_GROWN]
        nr = push(ops, nr, row, OP_TOUCH_SLOT, MAIN, grown, wanted - grown)
        guests[row, G_GROWN] = wanted
    return nr


@kernel
def _free_heap(
    guests: NDArray[np.int64],
    profile: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    row: int,
    tick: int,
    hours: float,
) -> int:
    """Let the main process free whole windows in a row, and small runs here and there."""
    grown = guests[row, G_GROWN]
    key = guests[row, G_KEY]
    released = profile[B_FREE] * hours * float(grown) * 2.0 * uniform(key, tick, 0)
    windows = int(released * (1.0 - profile[B_SMALL])) >> HPAGE_PMD_ORDER
    whole = grown >> HPAGE_PMD_ORDER
    if 0 < windows < whole:
        at = int(uniform(key, tick, 2) * float(whole - windows)) << HPAGE_PMD_ORDER
        nr = push(ops, nr, row, OP_FREE_SLOT, MAIN, at, windows * HPAGE_PMD_NR)
        guests[row, G_FREED_AT] = at
        guests[row, G_FREED_NR] = windows * HPAGE_PMD_NR
    runs = min(int(released * profile[B_SMALL] / RUN_PAGES + uniform(key, tick, 1)), MAX_RUNS)
    if profile[B_SMALL] > 0.0 and runs > 0 and grown > RUN_PAGES:
        guests[row, G_RUNS] = runs
        guests[row, G_RUNS_TICK] = tick
        for i in range(runs):
            start = _small_run(guests, row, tick, i)
            nr = push(ops, nr, row, OP_FREE_SLOT, MAIN, start, RUN_PAGES)
    return nr


@kernel
def _steer_balloon(
    guests: NDArray[np.int64],
    mem: Memory,
    ops: NDArray[np.int64],
    nr: int,
    row: int,
    wanted: int,
    cache: int,
) -> int:
    """Let the balloon follow the host: it takes free memory and page cache, or gives back."""
    if wanted > 0:
        spare = free_room(mem) - (guests[row, G_PAGES] >> BALLOON_RESERVE_SHIFT)
        pages = min(wanted, spare + cache)
        if pages > max(spare, 0):
            nr = push(ops, nr, row, OP_DROP, 0, 0, pages - max(spare, 0))
        if pages > 0:
            nr = push(ops, nr, row, OP_INFLATE, 0, 0, pages)
    elif wanted < 0 and guests[row, G_BALLOON] > 0:
        nr = push(ops, nr, row, OP_DEFLATE, 0, 0, min(-wanted, guests[row, G_BALLOON]))
    return nr


@kernel
def _drops_first(ops: NDArray[np.int64], first: int, last: int, nr: int) -> None:
    """Move drops of page cache from behind ``last`` before the touches that need the room."""
    for at in range(last, nr):
        if ops[at, O_KIND] != OP_DROP:
            continue
        for column in range(NR_O_FIELDS):
            value = ops[at, column]
            for i in range(at, first, -1):
                ops[i, column] = ops[i - 1, column]
            ops[first, column] = value
        first += 1


@kernel
def decide(
    guests: NDArray[np.int64],
    row: int,
    mem: Memory,
    profiles: NDArray[np.float64],
    ops: NDArray[np.int64],
    nr: int,
    tick: int,
    tick_ns: int,
    now_ns: int,
    wanted: int,
) -> int:
    """Decide what a guest does now; return the number of operations with its own.

    Parameters
    ----------
    guests
        (rows, NR_G_FIELDS); the guest's row is modified.
    mem
        The guest's memory.
    ops
        (rows * OPS_PER_GUEST, NR_O_FIELDS); operations are appended at ``nr``.
    wanted
        Pages that the host would have of each balloon; negative: gives back.
    """
    profile = profiles[guests[row, G_CLASS]]
    hours = float(now_ns - guests[row, G_LAST_NS]) / float(NS_PER_HOUR)
    age_ns = now_ns - guests[row, G_START_NS]
    if hours > 0.0:
        nr = push(ops, nr, row, OP_DAEMONS, guests[row, G_LAST_NS], now_ns, 1)
    first = nr
    nr = _use_heap(guests, profile, ops, nr, row, now_ns)
    nr = _run_jobs(guests, profile, ops, nr, row, tick, tick_ns, hours)
    demand = 0
    for i in range(first, nr):
        if ops[i, O_KIND] == OP_TOUCH_SLOT:
            demand += ops[i, O_NR]
    last = nr
    nr, cache = _turn_over_cache(guests, mem, profile, ops, nr, row, hours, age_ns, demand)
    _drops_first(ops, first, last, nr)
    nr = _free_heap(guests, profile, ops, nr, row, tick, hours)
    if guests[row, G_REPORTS] != 0:
        passed_ns = now_ns - guests[row, G_LAST_NS] if hours > 0.0 else age_ns
        passes = passed_ns // guests[row, G_REPORT_NS]
        nr = push(ops, nr, row, OP_REPORT, guests[row, G_REPORTS] - 1, 0, passes)
    if guests[row, G_BALLOONED] != 0:
        nr = _steer_balloon(guests, mem, ops, nr, row, wanted, cache)
    guests[row, G_LAST_NS] = now_ns
    period = max(int(profile[B_PERIOD]) // tick_ns, 1)
    guests[row, G_NEXT_TICK] = tick + period
    return nr
