"""A host to experiment with by hand."""

import doctest

import numpy as np
import pytest

import hostsim
from hostsim import Host, lab
from hostsim.core.units import PAGE_BYTES
from hostsim.mm.mm_types import PCP_COUNT


def test_examples_print_what_they_say():
    found = doctest.testmod(lab)
    assert found.attempted > 10
    assert found.failed == 0


@pytest.fixture(scope="module")
def host():
    return Host("1GiB", kernel="6.1")


def test_free_blocks_are_the_free_pages(host):
    vm = host.boot_vm("256MiB")
    vm.touch("3MiB", at="1MiB", every="8KiB")
    pages = sum(nr << order for order, nr in enumerate(host.free_blocks()))
    assert pages == host.vmstat()["nr_free_pages"]
    assert host.meminfo()["MemFree"] == pages * PAGE_BYTES >> 10
    printed = np.sum([list(map(int, line.split()[4:])) for line in host.buddyinfo()], axis=0)
    assert list(printed) == host.free_blocks()
    vm.stop()
    host.check()


def unused_pages(host):
    """Return the free pages, those on per-CPU lists among them."""
    return host.vmstat()["nr_free_pages"] + int(host.mem.zone[:, PCP_COUNT].sum())


def test_what_a_vm_touches_is_resident_and_goes_with_it(host):
    free = unused_pages(host)
    vm = host.boot_vm("512MiB")
    vm.touch("64MiB", at="2MiB")
    vm.touch("4KiB", at="510MiB")
    assert vm.huge_bytes == 66 << 20  # a window for the last page, too
    vm.discard("2MiB", at="4MiB")
    assert vm.rss_bytes == 64 << 20
    assert host.vmstat()["thp_fault_alloc"] >= 33
    vm.stop()
    vm.touch("2MiB")  # nobody is there to touch it
    assert (vm.alive, vm.rss_bytes, vm.huge_bytes) == (False, 0, 0)
    assert unused_pages(host) == free
    host.check()


def test_a_host_too_small_kills_the_largest_vm():
    host = Host("256MiB")
    small, large = host.boot_vm("64MiB"), host.boot_vm("1GiB")
    small.touch("32MiB")
    large.touch("1GiB")
    assert (small.alive, large.alive) == (True, False)
    assert host.vmstat()["oom_kill"] == 1
    host.check()


def test_one_page_every_so_far_is_touched_and_given_back():
    host = Host("256MiB", enabled="never")
    vm = host.boot_vm("64MiB")
    vm.touch("1MiB", at="8MiB", every="64KiB")
    assert vm.rss_bytes == 16 * PAGE_BYTES
    vm.discard("512KiB", at="8MiB", every="128KiB")
    assert vm.rss_bytes == 12 * PAGE_BYTES


def test_time_passes_by_waiting_and_by_work():
    host = Host("256MiB")
    begin_ns = host.now_ns
    host.wait("10s")
    assert host.now_ns == begin_ns + 10 * 10**9
    host.boot_vm("64MiB").touch("64MiB")
    assert host.now_ns > begin_ns + 10 * 10**9


def test_compaction_makes_huge_pages_of_holes():
    host = Host("512MiB", enabled="never")
    vm = host.boot_vm("400MiB")
    vm.touch("400MiB")
    vm.discard("396MiB", every="16KiB")
    before = sum(host.free_blocks()[9:])
    host.compact()
    assert sum(host.free_blocks()[9:]) > before
    host.check()


def test_mistakes_are_said(host):
    vm = host.boot_vm("8MiB")
    with pytest.raises(ValueError, match="not within the VM"):
        vm.touch("8MiB", at="4KiB")
    with pytest.raises(ValueError, match="at least one page"):
        vm.touch("8MiB", every="0KiB")
    with pytest.raises(ValueError, match="unknown setting"):
        host.write("khugepaged/scan", 1)
    with pytest.raises(AttributeError, match="no attribute 'Hots'"):
        hostsim.Hots  # noqa: B018
    vm.stop()
