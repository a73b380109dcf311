"""Capturing: from a made host, and from the machine the test runs on."""

import json
import os
import subprocess
import sys

import pytest
from test_snapshot_text import ZONEINFO

from fleet.snapshot_capture import _Host, capture, memory_of, vcpus_of
from hostsim.core.errors import ScenarioError

BUDDYINFO = "Node 0, zone      DMA    1   0   0   0   0   0   0   0   0   1   3 \n"
TYPES = """Free pages count per migrate type at order 0 1 2 3 4 5 6 7 8 9 10
Node    0, zone      DMA, type    Unmovable    1   0   0   0   0   0   0   0   0   0   0
Node    0, zone      DMA, type      Movable    0   0   0   0   0   0   0   0   0   1   3

Number of blocks type     Unmovable      Movable
Node 0, zone      DMA            1            7
"""
SMAPS = (
    "55d0-7fff ---p 00000000 00:00 0 [rollup]\nRss: 4096 kB\nAnonHugePages: 2048 kB\nSwap: 8 kB\n"
)
THP = "sys/kernel/mm/transparent_hugepage"
FILES = {
    "proc/buddyinfo": BUDDYINFO,
    "proc/pagetypeinfo": TYPES,
    "proc/zoneinfo": ZONEINFO,
    "proc/vmstat": "nr_free_pages 1\nthp_fault_alloc 90\nthp_fault_fallback 10\n",
    "proc/meminfo": "MemTotal: 15360 kB\nMemFree: 14340 kB\n",
    "proc/cpuinfo": "processor : 0\nmodel name : X\nflags : fpu\nprocessor : 1\n",
    "proc/uptime": "3600.00 1.00\n",
    "proc/sys/kernel/osrelease": "6.12.1-test\n",
    "proc/sys/kernel/hostname": "secret-name\n",
    "proc/sys/vm/swappiness": "60\n",
    f"{THP}/enabled": "always [madvise] never\n",
    f"{THP}/khugepaged/pages_to_scan": "4096\n",
    f"{THP}/khugepaged/scan_sleep_millisecs": "10000\n",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "2\n",
    "sys/kernel/mm/ksm/run": "1\n",
    "sys/devices/system/node/node0/cpulist": "0-1\n",
    "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:  15360 kB\n",
    "proc/4711/comm": "qemu-system-x86\n",
    "proc/4711/smaps_rollup": SMAPS,
    "proc/4711/cmdline": "qemu\0-name\0secret-vm\0-m\0size=2G,slots=2\0-smp\x004,sockets=1\0",
    "proc/12/comm": "bash\n",
    "proc/12/smaps_rollup": SMAPS,
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_host_is_read_whole(root):
    found = capture(root)
    assert found.consistent
    assert (found.kernel_release, found.cpu_model, found.nr_cpus) == ("6.12.1-test", "X", 2)
    assert found.thp["enabled"] == "madvise"
    assert found.khugepaged["pages_to_scan"] == 4096
    assert found.hugetlb == {"1048576kB/nr_hugepages": 2}
    assert (found.nodes[0].cpus, found.nodes[0].memory_kb) == (2, 15360)
    (vm,) = found.processes
    assert (vm.rss_kb, vm.anon_huge_kb, vm.swap_kb, vm.memory_mib, vm.vcpus) == (
        4096,
        2048,
        8,
        2048,
        4,
    )


def test_no_secret_is_kept_unasked(root):
    assert "secret" not in capture(root).model_dump_json()
    assert capture(root, with_name=True).hostname == "secret-name"


def test_other_processes_count_as_vms_if_named(root):
    assert len(capture(root, pids=[12]).processes) == 2
    with pytest.raises(ScenarioError, match="--pid 13: no such process"):
        capture(root, pids=[13])


@pytest.mark.parametrize(
    ("name", "what", "cost"),
    [
        ("proc/pagetypeinfo", "/proc/pagetypeinfo", "migratetype is unknown"),
        ("proc/zoneinfo", "/proc/zoneinfo", "watermarks"),
        ("proc/4711/smaps_rollup", "smaps_rollup of 1 VMs", "coverage is unknown"),
        (f"{THP}/enabled", f"/{THP}/enabled", "THP settings are unknown"),
    ],
)
def test_what_is_missing_is_named_with_its_cost(root, name, what, cost):
    (root / name).unlink()
    entry = next(entry for entry in capture(root).unread if entry.what == what)
    assert cost in entry.cost


def test_files_of_two_moments_are_noticed(root, monkeypatch):
    monkeypatch.setattr("fleet.snapshot_capture.PAUSE_S", 0.0)
    (root / "proc/buddyinfo").write_text(BUDDYINFO.replace(" 3 ", " 2 "))
    assert not capture(root).consistent


def test_files_are_read_again_until_nothing_changes_meanwhile(root, monkeypatch):
    """Without pagetypeinfo only a second look tells that memory has changed."""
    monkeypatch.setattr("fleet.snapshot_capture.PAUSE_S", 0.0)
    (root / "proc/pagetypeinfo").unlink()
    later = BUDDYINFO.replace(" 3 ", " 2 ")
    printed, read = [BUDDYINFO, later, later, later], _Host.text

    def text(self, path, cost=""):
        return printed.pop(0) if path == "proc/buddyinfo" else read(self, path, cost)

    monkeypatch.setattr(_Host, "text", text)
    found = capture(root)
    assert printed == []
    assert found.consistent
    assert found.buddyinfo == (later.rstrip(),)


def test_without_buddyinfo_there_is_no_snapshot(tmp_path):
    with pytest.raises(ScenarioError, match=r"proc/buddyinfo: cannot be read"):
        capture(tmp_path)


@pytest.mark.parametrize(
    ("option", "mib"),
    [("4096", 4096), ("4G", 4096), ("size=4194304k", 4096), ("1T", 1 << 20), ("x", None)],
)
def test_memory_of_a_command_line(option, mib):
    assert memory_of(["qemu", "-m", option]) == mib


@pytest.mark.parametrize(
    ("option", "vcpus"),
    [
        ("4", 4),
        ("8,sockets=2", 8),
        ("cpus=6,maxcpus=12", 6),
        ("sockets=2,cores=4,threads=2", 16),
        ("x", None),
    ],
)
def test_vcpus_of_a_command_line(option, vcpus):
    assert vcpus_of(["qemu", "-smp", option, "-m"]) == vcpus
    assert vcpus_of(["qemu", "-smp"]) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="root drops its rights")
def test_no_root_is_needed_for_what_needs_none():
    """A process of nobody's, with read rights to this package alone, captures this machine."""
    code = (
        "import json, os\n"
        "from fleet.snapshot_capture import capture\n"
        "from fleet.snapshot_file import to_json\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "print(to_json(capture()))\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    assert found["buddyinfo"]
    types = [e for e in found["unread"] if e["what"] == "/proc/pagetypeinfo"]
    assert bool(types) == (not found["pagetypeinfo"])
    assert all("only root may read it" in entry["why"] for entry in types)
