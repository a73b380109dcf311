"""VMs of one image on a small host: ksmd saves what their contents let it save."""

import pytest

from fleet.validate_ksm import GIB_PAGES, XP_RATIOS, homogeneous
from hostsim.core.units import PAGE_BYTES
from hostsim.mm.content import IMAGE_PAGES
from hostsim.mm.ksm_tree import ITEM_BYTES

VMS = 4


def test_vms_of_one_image_take_their_own_pages_and_the_image_once():
    """The VMs touch 3.5 GiB of the host's 2 GiB; expected is the sum of what stays unshared."""
    found = homogeneous(VMS, 2)
    assert (found.vms, found.oom_kills) == (VMS, 0)
    guest = found.guest_pages
    assert guest > 1.5 * 2 * GIB_PAGES
    zero, image = XP_RATIOS
    own = (1 - zero - image) * guest + IMAGE_PAGES + zero * guest / 256
    reserved = 2 * GIB_PAGES / 64 + 2 * GIB_PAGES / 64  # struct pages and slab
    tables = 2 * guest / 512  # of the process and the EPT
    items = guest * ITEM_BYTES / PAGE_BYTES
    qemu = VMS * (32 << 8)
    assert found.used_pages == pytest.approx(own + reserved + tables + items + qemu, rel=0.05)
