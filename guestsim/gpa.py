"""Guest-physical addresses of a PC, and where they lie in QEMU's address space.

RAM below 4 GiB ends where the PCI hole begins, the rest lies above 4 GiB; both are one block of
QEMU's memory.  A guest's *frame* is a page of that block: its guest kernel numbers frames
without the hole, and frame ``f`` is page ``offset + f`` of the process.

Source: QEMU 8.2 hw/i386/pc_q35.c pc_q35_init (where the hole begins), hw/i386/pc.c
pc_memory_init; hw/pci-host/pam.c (768 KiB to 1 MiB); Linux v6.1 arch/x86/kvm/x86.c
kvm_alloc_memslot_metadata (which 2 MiB ranges of a slot may be mapped by one leaf).
Simplified: the 384 KiB below 1 MiB that hold video memory and firmware count as guest RAM.
"""

from typing import Final, NamedTuple

from hostsim.core.jit import inline_kernel, kernel
from hostsim.core.units import HPAGE_PMD_NR, HPAGE_PMD_ORDER, PAGE_SHIFT

FOUR_GIB_GFN: Final = 1 << (32 - PAGE_SHIFT)
SMALL_RAM_PAGES: Final = 0xB0000000 >> PAGE_SHIFT  # up to here all RAM lies below the hole
LOW_RAM_PAGES: Final = 0x80000000 >> PAGE_SHIFT  # else this much of it, on whole GiB
VIDEO_GFN: Final = 0xA0000 >> PAGE_SHIFT
BIOS_GFN: Final = 0xC0000 >> PAGE_SHIFT
MIB_GFN: Final = 0x100000 >> PAGE_SHIFT


class MemSlot(NamedTuple):
    """One range of guest-physical memory that QEMU gave to KVM."""

    base_gfn: int
    nr_pages: int
    frame: int  # first page of the RAM block


@inline_kernel
def low_ram_pages(nr_pages: int) -> int:
    """Return how many frames lie below the PCI hole."""
    return LOW_RAM_PAGES if nr_pages >= SMALL_RAM_PAGES else nr_pages


@kernel
def gfn_of(frame: int, nr_pages: int) -> int:
    """Return the guest-physical page number of a frame of a VM with so many pages."""
    low = low_ram_pages(nr_pages)
    return frame if frame < low else frame - low + FOUR_GIB_GFN


@kernel
def frame_of(gfn: int, nr_pages: int) -> int:
    """Return the frame of a guest-physical page number that is RAM."""
    low = low_ram_pages(nr_pages)
    return gfn if gfn < low else gfn - FOUR_GIB_GFN + low


def memslots(nr_pages: int) -> list[MemSlot]:
    """Return the slots of a VM's RAM, lowest first."""
    low = int(low_ram_pages(nr_pages))
    slots = [
        MemSlot(0, VIDEO_GFN, 0),
        MemSlot(BIOS_GFN, MIB_GFN - BIOS_GFN, BIOS_GFN),
        MemSlot(MIB_GFN, low - MIB_GFN, MIB_GFN),
    ]
    if nr_pages > low:
        slots.append(MemSlot(FOUR_GIB_GFN, nr_pages - low, low))
    return slots


@kernel
def may_be_large(window: int, nr_pages: int, offset: int) -> bool:
    """Tell whether KVM may map a 2 MiB range of guest RAM by one leaf.

    It must lie inside one slot, and the slot's guest-physical and host-virtual addresses must be
    aligned alike.

    Parameters
    ----------
    window
        Frames ``512 * window`` on.
    offset
        Page of QEMU's address space, modulo 2 MiB, at which guest RAM begins.
    """
    if offset & (HPAGE_PMD_NR - 1) != 0:
        return False
    low = low_ram_pages(nr_pages)
    first = window << HPAGE_PMD_ORDER
    last = first + HPAGE_PMD_NR
    if first < low:
        return first >= MIB_GFN and last <= low
    return last <= nr_pages
