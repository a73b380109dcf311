"""What pages hold, as far as merging and splitting ask: pages never written are zero.

A huge page is cleared as a whole and written page by page; a record notes which of its pages
were written until all are.  Small pages are written when they are faulted in, but for those
that a split or a collapse left behind (EXT_ZERO).  What a written page holds is a *key*: pages
with equal keys are equal.

Source: the job of memory's contents; compare Linux mm/ksm.c memcmp_pages, calc_checksum and
mm/huge_memory.c thp_underused.
Simplified: contents are keys, and a page never turns back to zero by being written.
Simplified: what a page of a guest holds is a function of its place: written again, it is the same.
"""

from typing import Final

import numpy as np

from hostsim.core.bits import run_mask, weight
from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import PAGEBLOCK_NR_PAGES
from hostsim.mm.mm_types import (
    MM_ALIKE,
    MM_CONTENT,
    MM_IMAGE,
    MM_RAM_PAGES,
    NIL,
    NR_WORDS,
    P_WRITTEN_FREE,
    P_WRITTEN_USED,
    WORD_FRAMES,
    Memory,
)
from hostsim.mm.page_ext import lookup_page_ext, need_page_ext, put_page_ext
from hostsim.mm.tunables import T_KEEP_WRITTEN

KEY_ZERO: Final = 0  # a page of zeros
KEY_ONE: Final = 1  # a page with a 1 in its first byte: what op scripts write
CONTENT_EQUAL: Final = 0  # MM_CONTENT: every written page holds KEY_ONE
SHARE_BITS: Final = 10  # of a share of pages in MM_ALIKE
SHARE_MASK: Final = (1 << SHARE_BITS) - 1
OWN_COPIES: Final = 4  # pages of a VM that are alike, on average (assumed)
IMAGE_PAGES: Final = 1 << 14  # kernel, libraries and programs of an image: 64 MiB (assumed)
_GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)  # of splitmix64 (Steele et al. 2014), signed
_MIX_1: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2: Final = 0x94D049BB133111EB - (1 << 64)


@inline_kernel
def mix_key(value: int) -> int:
    """Return a number all of whose bits depend on all of the value's, at least zero."""
    z = np.int64(value) + _GOLDEN
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * _MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return int((z ^ ((z >> 31) & 0x1FFFFFFFF)) & 0x7FFFFFFFFFFFFFFF)


@kernel
def written_key(mem: Memory, mm: int, vpn: int) -> int:
    """Return the key of a written page of a process.

    With CONTENT_EQUAL all are alike; any other number keys pages that are all different, the
    same for processes of the same number, but for the shares of `MM_ALIKE`.
    """
    seed = mem.mm[mm, MM_CONTENT]
    if seed == CONTENT_EQUAL:
        return KEY_ONE
    key = mix_key(mix_key(seed) + vpn)
    if mem.mm[mm, MM_ALIKE] != 0:
        key = _alike(mem, mm, key)
        if key == KEY_ZERO:
            return KEY_ZERO
    return max(key, KEY_ONE + 1)


@kernel
def _alike(mem: Memory, mm: int, key: int) -> int:
    """Return the content of a page that is zero, one of several in its VM, or of its image.

    Parameters
    ----------
    key
        What it is if it is none of these; decides which it is, too.
    """
    alike = mem.mm[mm, MM_ALIKE]
    zero = alike & SHARE_MASK
    own = (alike >> SHARE_BITS) & SHARE_MASK
    image = alike >> (2 * SHARE_BITS)
    drawn = key & SHARE_MASK
    which = key >> SHARE_BITS
    if drawn < zero:
        return KEY_ZERO
    if drawn < zero + own:
        pages = mem.mm[mm, MM_RAM_PAGES] * own >> SHARE_BITS
        contents = max(pages // OWN_COPIES, 1)
        return mix_key(mix_key(mem.mm[mm, MM_CONTENT] + 1) + which % contents)
    if drawn < zero + own + image:
        return mix_key(mix_key(mem.mm[mm, MM_IMAGE]) + which % IMAGE_PAGES)
    return key


def alike_word(zero: float, own: float, image: float) -> int:
    """Return shares of written pages as `MM_ALIKE` holds them."""
    shares = [round(share * (1 << SHARE_BITS)) for share in (zero, own, image)]
    return shares[0] | shares[1] << SHARE_BITS | shares[2] << (2 * SHARE_BITS)


@kernel
def clear_huge(mem: Memory, pb: int) -> None:
    """Note that a huge page was cleared and nothing is written to it yet."""
    if mem.tunables[T_KEEP_WRITTEN] == 0:
        return
    record = mem.pool[P_WRITTEN_FREE] - 1
    if record >= 0:
        mem.pool[P_WRITTEN_FREE] = mem.wrec[record].nr
    else:
        record = mem.pool[P_WRITTEN_USED]
        mem.pool[P_WRITTEN_USED] += 1
    for word in range(NR_WORDS):
        mem.wrec[record].bits[word] = 0
    mem.wrec[record].nr = 0
    mem.page_ext[need_page_ext(mem, pb)].written = record + 1


@inline_kernel
def written_record(mem: Memory, pb: int) -> int:
    """Return the record of which pages of a huge page are written; NIL if all are."""
    at = lookup_page_ext(mem, pb)
    return int(mem.page_ext[at].written) - 1 if at != NIL else NIL


@inline_kernel
def partly_written(mem: Memory, pb: int) -> bool:
    """Tell whether a pageblock is a huge page of which some pages were never written."""
    return written_record(mem, pb) != NIL


@kernel
def _free_record(mem: Memory, pb: int) -> None:
    at = lookup_page_ext(mem, pb)
    record = int(mem.page_ext[at].written) - 1
    mem.wrec[record].nr = mem.pool[P_WRITTEN_FREE]
    mem.pool[P_WRITTEN_FREE] = record + 1
    mem.page_ext[at].written = 0
    put_page_ext(mem, at)


@inline_kernel
def forget_huge(mem: Memory, pb: int) -> None:
    """Drop the record of a huge page that is freed or split."""
    if partly_written(mem, pb):
        _free_record(mem, pb)


@kernel
def note_written(mem: Memory, pb: int, first: int, nr: int) -> None:
    """Note that pages ``first .. first + nr - 1`` (0..511) of a huge page are written."""
    record = written_record(mem, pb)
    if record < 0:
        return
    if nr == PAGEBLOCK_NR_PAGES:
        _free_record(mem, pb)
        return
    while nr > 0:
        word = first // WORD_FRAMES
        shift = first % WORD_FRAMES
        here = min(nr, WORD_FRAMES - shift)
        mask = run_mask(shift, here)
        value = int(np.int64(mem.wrec[record].bits[word]))
        mem.wrec[record].nr += weight(mask & ~value)
        mem.wrec[record].bits[word] = value | mask
        first += here
        nr -= here
    if mem.wrec[record].nr == PAGEBLOCK_NR_PAGES:
        _free_record(mem, pb)


@inline_kernel
def is_written(mem: Memory, pb: int, i: int) -> bool:
    """Tell whether page ``i`` (0..511) of a huge page was ever written."""
    record = written_record(mem, pb)
    if record < 0:
        return True
    value = int(np.int64(mem.wrec[record].bits[i // WORD_FRAMES]))
    return (value >> (i % WORD_FRAMES)) & 1 != 0


@kernel
def nr_zero_pages(mem: Memory, pb: int) -> int:
    """Return how many pages of a huge page were never written."""
    record = written_record(mem, pb)
    return PAGEBLOCK_NR_PAGES - int(mem.wrec[record].nr) if record >= 0 else 0
