"""The balloon against a plain stack of frames, and how few extents its windows take."""

import numpy as np
from guests import GUESTS
from hypothesis import given, settings
from hypothesis import strategies as st
from pagemap import page_frames

from guestsim.balloon import deflate, inflate
from guestsim.behaviour import G_BALLOON, G_BALLOON_END, G_PAGES, NR_G_FIELDS
from guestsim.guest import MM_BALLOON, boot_memory
from hostsim.core.units import HPAGE_PMD_NR, NO_PFN
from hostsim.mm.check import check_memory
from hostsim.mm.fault import touch_range
from hostsim.mm.mm_types import MM_ANON, MM_BASE, MM_WINDOWS, P_TOUCHED
from hostsim.mm.mmap import ADVICE_NOHUGE, folds_downward, is_folded, mm_alloc
from hostsim.mm.zap import discard_range

PAGES = 1 << 16  # 256 MiB


class Balloon:
    """A guest with a balloon and a process beside, and the frames that a plain stack has."""

    def __init__(self, kernel="6.12"):
        spec = GUESTS._replace(kernel=kernel, boot_pages=4096, balloon_ratio=1.0)
        self.mem = boot_memory(spec, PAGES, 2)
        self.guests = np.zeros((1, NR_G_FIELDS), np.int64)
        self.guests[0, G_PAGES] = PAGES
        self.other = mm_alloc(self.mem, 0, PAGES, ADVICE_NOHUGE, False, 0)
        self.stack = []

    def inflate(self, nr):
        """Inflate by batches, as long as there is memory."""
        named = []
        while nr > 0 and (taken := inflate(self.mem, self.guests, 0, nr)) > 0:
            for first, pages in self.mem.touched[: self.mem.pool[P_TOUCHED]].tolist():
                named += range(first, first + pages)
            self.mem.pool[P_TOUCHED] = 0
            nr -= taken
        assert len(named) == len(set(named))
        frames = self.frames()
        assert frames[: len(self.stack)] == self.stack
        assert sorted(frames[len(self.stack) :]) == sorted(named)
        self.stack = frames

    def deflate(self, nr):
        given = deflate(self.mem, self.guests, 0, nr)
        assert given == min(nr, len(self.stack))
        del self.stack[len(self.stack) - given :]
        assert self.frames() == self.stack

    def touch(self, start, nr):
        nr = min(nr, PAGES - start, max(int(self.mem.zone[:, 3].sum()) - 4096, 0))
        touch_range(self.mem, self.other, start, nr, 1, 1.0, 0, True, start)
        self.mem.pool[P_TOUCHED] = 0

    def frames(self):
        """Return the frames in the balloon, the oldest first."""
        frames = page_frames(self.mem, MM_BALLOON)
        return frames[frames != NO_PFN].tolist()

    def words(self):
        base = self.mem.mm[MM_BALLOON, MM_BASE]
        return self.mem.windows[base : base + self.mem.mm[MM_BALLOON, MM_WINDOWS]].tolist()


STEPS = st.tuples(
    st.sampled_from(["inflate", "inflate", "inflate", "deflate", "touch", "discard", "stripes"]),
    st.integers(0, PAGES - 1),
    st.integers(1, 3000),
)


@given(kernel=st.sampled_from(["6.1", "6.12"]), steps=st.lists(STEPS, max_size=12))
@settings(max_examples=25, deadline=None)
def test_the_balloon_gives_back_the_newest_pages_of_a_plain_stack(kernel, steps):
    balloon = Balloon(kernel)
    for step, start, nr in steps:
        if step == "inflate":
            balloon.inflate(nr)
        elif step == "deflate":
            balloon.deflate(nr)
        elif step == "touch":
            balloon.touch(start, nr)
        elif step == "discard":
            discard_range(balloon.mem, balloon.other, start, min(nr, PAGES - start))
        else:  # of what the process has, every few pages
            for page in range(start, min(start + nr, PAGES), 40):
                discard_range(balloon.mem, balloon.other, page, min(20, PAGES - page))
        held = len(balloon.stack)
        assert balloon.guests[0, G_BALLOON] == balloon.mem.mm[MM_BALLOON, MM_ANON] == held
        room = balloon.mem.mm[MM_BALLOON, MM_WINDOWS] * HPAGE_PMD_NR
        assert balloon.guests[0, G_BALLOON_END] + PAGES - held <= room
    check_memory(balloon.mem)


def test_most_windows_of_a_balloon_are_folded_wherever_it_began():
    balloon = Balloon()
    balloon.touch(0, 333)
    balloon.inflate(PAGES)
    words = [word for word in balloon.words() if word != 0]
    assert len(words) <= len(balloon.stack) // HPAGE_PMD_NR + 12
    assert sum(map(is_folded, words)) >= len(words) - 12


def test_frames_that_fall_from_page_to_page_fill_windows_too():
    balloon = Balloon()
    balloon.touch(0, 20 * HPAGE_PMD_NR + 100)
    for window in range(20):  # freed upward onto the lists of the CPUs, and taken from their ends
        discard_range(balloon.mem, balloon.other, window * HPAGE_PMD_NR, HPAGE_PMD_NR)
    balloon.inflate(PAGES)
    folded = [word for word in balloon.words() if is_folded(word)]
    assert any(map(folds_downward, folded))
    check_memory(balloon.mem)


def test_a_balloon_of_single_pages_leaves_no_gaps():
    balloon = Balloon()
    balloon.touch(0, 60 * HPAGE_PMD_NR)
    for page in range(0, 60 * HPAGE_PMD_NR, 2):
        discard_range(balloon.mem, balloon.other, page, 1)
    balloon.inflate(PAGES)
    words = [word for word in balloon.words() if word != 0]
    assert len(words) <= len(balloon.stack) // HPAGE_PMD_NR + 40


def test_a_gap_never_takes_the_room_of_a_page():
    balloon = Balloon()
    balloon.guests[0, G_PAGES] = 2 * PAGES  # as if every page of the process could be needed
    balloon.touch(0, 333)
    balloon.inflate(PAGES)
    assert balloon.guests[0, G_BALLOON_END] == len(balloon.stack)
