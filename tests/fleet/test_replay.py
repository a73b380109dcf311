import json
import subprocess
import sys

import numpy as np
import pytest

from fleet.replay import PROCESS, REQUEST_NS, SNAPSHOT_NS, USUAL_NS, USUAL_PACE, VM_NS, Replay
from fleet.replay_script import Start, read_script, unaccounted_pages, zones_of
from hostsim.core.errors import ScenarioError
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import PCP_COUNT, Z_FREE


def script(tmp_path, text, name="a.ops"):
    path = tmp_path / name
    path.write_text(text)
    return read_script(path)


def snapshots(tmp_path, text, kernel="6.1", start=None):
    replay = Replay(script(tmp_path, "# memory_mb=256\n" + text), kernel, start)
    found = {s["snapshot"]: s for s in replay.run()}
    check_memory(replay.mem)
    return found


def test_every_wrong_line_is_named(tmp_path):
    text = "# memory_mb=64\nvm a\ntouhc a 0 1\nvm a 10 big\ntouch a 0 x\ntouch a 0 1 step=0\n"
    with pytest.raises(ScenarioError) as error:
        script(tmp_path, text)
    assert [p.place.split("line ")[1] for p in error.value.problems] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("vm a 512\ntouch a 500 13", "touch: page 512 is outside of 'a', which has 512 pages"),
        ("vm a 512\ncollapse a 512 1", "collapse: page 512 is outside of 'a'"),
        ("vm a 512\nvm b 95\ninterleave a,b 0 91 8", "page 95 is outside of 'b'"),
        ("vm a 512\nvm a 512", "vm: there is a VM 'a' already"),
        ("vm a 512\nfork a a", "fork: there is a VM 'a' already"),
        ("vm a 512\ntouch b 0 1", "touch: no VM 'b' runs here; there are: a"),
        ("vm a 512\nexit a\nread a 0 1", "read: no VM 'a' runs here; there are: none"),
        ("vm a 512\nexit b", "exit: no VM 'b' runs here"),
        ("vm a 512\nfork b c", "fork: no VM 'b' runs here"),
        ("vm a 512\ninterleave a,b 0 8 1", "interleave: no VM 'b' runs here"),
        ("vm a 512\ninterleave a 0 8 0", "0 is not a chunk of at least 1 page"),
    ],
)
def test_wrong_page_or_vm_is_named_with_its_line(tmp_path, lines, reason):
    text = "# memory_mb=64\n" + lines + "\n"
    with pytest.raises(ScenarioError, match=reason) as error:
        script(tmp_path, text)
    assert error.value.problems[0].place.endswith(f"line {text.count(chr(10))}")


def test_name_of_a_gone_vm_may_be_used_again(tmp_path):
    text = "vm a 512\ntouch a 511 1\nexit a\nvm a 600\ntouch a 599 1\nfork a b\ntouch b 599 1\n"
    snapshots(tmp_path, text + "vm c 96\ninterleave a,c 0 91 8\n")


def test_wrong_script_ends_with_exit_code_2(tmp_path):
    (tmp_path / "a.ops").write_text("# memory_mb=64\nvm a 10\ntouch a 10 1\n")
    argv = [sys.executable, "-m", "fleet", "replay", str(tmp_path / "a.ops")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "a.ops: line 3: touch: page 10 is outside of 'a'" in done.stderr


def test_script_without_memory_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="memory_mb"):
        script(tmp_path, "snapshot a\n")


def test_missing_script_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="cannot be read"):
        read_script(tmp_path / "none.ops")


def test_always_maps_whole_windows_huge_and_the_rest_small(tmp_path):
    text = "set enabled always\nvm a 1100\ntouch a 0 1100\nsnapshot s\n"
    s = snapshots(tmp_path, text)["s"]
    assert s["vms"]["a"]["AnonHugePages"] == 2 * 2048
    assert s["vmstat"]["thp_fault_alloc"] == 2


@pytest.mark.parametrize(("advice", "huge"), [("none", 0), ("huge", 1), ("nohuge", 0)])
def test_madvise_wants_advice(tmp_path, advice, huge):
    text = f"set enabled madvise\nvm a 512 {advice}\ntouch a 0 512\nsnapshot s\n"
    assert snapshots(tmp_path, text)["s"]["vmstat"]["thp_fault_alloc"] == huge


def test_partial_discard_of_a_huge_page_frees_nothing(tmp_path):
    text = "set enabled always\nvm a 512\ntouch a 0 512\nsnapshot s\ndiscard a 0 100\nsnapshot t\n"
    found = snapshots(tmp_path, text)
    assert found["t"]["vmstat"]["nr_free_pages"] == found["s"]["vmstat"]["nr_free_pages"]
    assert found["t"]["vmstat"]["thp_split_pmd"] == 1
    assert found["t"]["vmstat"]["thp_deferred_split_page"] == 1
    assert found["s"]["vms"]["a"]["Rss"] - found["t"]["vms"]["a"]["Rss"] == 400


def test_fraction_touches_the_pages_that_the_recorder_chooses(tmp_path):
    text = "set enabled never\nvm a 40000\ntouch a 0 40000 fraction=0.5 seed=8\nsnapshot s\n"
    anon = snapshots(tmp_path, text)["s"]["vms"]["a"]["Rss"] // 4 - 150 - 13
    assert anon == sum(_chosen(8, page, 0.5) for page in range(40000))


def _chosen(seed, page, fraction):
    """splitmix64 in plain integers."""
    mask = (1 << 64) - 1
    z = ((seed << 32) + page + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53 < fraction


def test_fork_shares_and_writing_copies(tmp_path):
    text = (
        "set enabled never\nvm a 100\ntouch a 0 100\nsnapshot s\nfork a b\nsnapshot f\n"
        "touch b 0 10\nsnapshot w\nexit a\nexit b\nsnapshot e\n"
    )
    found = snapshots(tmp_path, text)
    anon = {k: s["vmstat"]["nr_anon_pages"] for k, s in found.items()}
    assert anon["f"] - anon["s"] <= 13
    assert anon["w"] - anon["f"] == 10
    assert anon["e"] == 0


def test_dead_vm_stays_as_an_empty_entry_until_an_op_finds_it(tmp_path):
    text = "set enabled never\nvm a 40000\nvm b 40000\ntouch a 0 40000\ntouch b 0 40000\n"
    found = snapshots(tmp_path, text + "snapshot s\ntouch a 0 1\nsnapshot t\n")
    assert found["s"]["vms"]["a"] == {}
    assert "a" not in found["t"]["vms"]
    assert found["s"]["vmstat"]["oom_kill"] == 1


def test_kfree_closes_only_chosen_pipes(tmp_path):
    text = "kalloc 160\nsnapshot s\nkfree fraction=0.5 seed=4\nsnapshot t\n"
    found = snapshots(tmp_path, text)
    freed = found["s"]["vmstat"]["nr_kernel_pages"] - found["t"]["vmstat"]["nr_kernel_pages"]
    assert freed == 16 * sum(_chosen(4, pipe, 0.5) for pipe in range(10))


def test_a_process_keeps_pipes_that_were_open_when_it_started(tmp_path):
    text = "set enabled never\nkalloc 64\nvm a 100\nfork a b\nkalloc 32\nsnapshot s\nkfree\n"
    found = snapshots(tmp_path, text + "snapshot k\nexit a\nsnapshot a\nexit b\nsnapshot b\n")
    kernel = {label: s["vmstat"]["nr_kernel_pages"] for label, s in found.items()}
    process = PROCESS.kernel_pages + (1 << PROCESS.pgd_order)
    assert kernel["s"] - kernel["k"] == 32
    assert kernel["k"] - kernel["a"] == process
    assert kernel["a"] - kernel["b"] == process + 64


def test_slabs_of_closed_pipes_serve_later_ones(tmp_path):
    text = "kalloc 336\nsnapshot s\nkfree\nkalloc 336\nsnapshot t\nkalloc 16\nsnapshot u\n"
    found = snapshots(tmp_path, text)
    kernel = {label: s["vmstat"]["nr_kernel_pages"] for label, s in found.items()}
    # 21 pipes: 2 slabs of buffer arrays and 1 of inodes (4 pages each), 1 + 1 of 21 objects
    # of pipe and dentry, 3 of 16 files; the 22nd pipe needs another of those with 21
    assert kernel["s"] == 336 + 12 + 2 + 3
    assert kernel["t"] == kernel["s"]
    assert kernel["u"] - kernel["t"] == 16 + 2


PAGETYPEINFO = [
    "Free pages count per migrate type at order       0      1      2      3      4      5"
    "      6      7      8      9     10 ",
    "Node    0, zone      DMA, type    Unmovable      0      0      0      0      0      1"
    "      1      1      0      0      0 ",
    "Node    0, zone      DMA, type      Movable      0      0      0      0      0      0"
    "      0      0      0      1      3 ",
    "Node    0, zone    DMA32, type    Unmovable      0      0      0      1      0      0"
    "      1      0      0      0      0 ",
    "Node    0, zone    DMA32, type      Movable      0      1      1      0      1      1"
    "      0      0      1      1     40 ",
    "Node    0, zone    DMA32, type  Reclaimable      1      0      1      0      1      0"
    "      0      0      1      1      0 ",
    "",
    "Number of blocks type     Unmovable      Movable  Reclaimable   HighAtomic      Isolate ",
    "Node 0, zone      DMA            1            7            0            0            0 ",
    "Node 0, zone    DMA32           17           97            6            0            0 ",
]


@pytest.fixture
def start():
    free_kb = 4 * sum(
        int(cell) << order
        for line in PAGETYPEINFO[1:6]
        for order, cell in enumerate(line.split()[-11:])
    )
    first = {
        "snapshot": "start",
        "t_ms": 1000,
        "pagetypeinfo": PAGETYPEINFO,
        "vmstat": {"nr_anon_pages": 9, "pgfault": 40, "nr_zone_inactive_anon": 200},
        "meminfo_kb": {"MemTotal": 240_000, "MemFree": free_kb, "Slab": 14_000},
    }
    return Start(first, {"start": 1000, "end": 2500})


@pytest.mark.parametrize("kernel", ["6.1", "6.12"])
def test_start_gives_the_free_blocks_and_types_of_the_recording(tmp_path, start, kernel):
    s = snapshots(tmp_path, "snapshot start\n", kernel, start)["start"]
    want, got = zones_of(PAGETYPEINFO), zones_of(s["pagetypeinfo"])
    for zone in want:
        assert (want[zone].free == got[zone].free).all()
        assert (want[zone].pageblocks == got[zone].pageblocks).all()
    assert s["t_ms"] == 1000
    assert s["vmstat"]["pgfault"] == 40


def test_counters_go_on_from_the_start(tmp_path, start):
    text = "set enabled never\nsnapshot start\nvm a 10\ntouch a 0 10\nsnapshot end\n"
    found = snapshots(tmp_path, text, "6.1", start)
    assert found["end"]["vmstat"]["nr_anon_pages"] == 9 + 13 + 10
    assert found["end"]["t_ms"] == 2500


def test_half_of_the_unaccounted_pages_lie_on_per_cpu_lists(tmp_path, start):
    replay = Replay(script(tmp_path, "# memory_mb=256\n"), "6.1", start)
    used = unaccounted_pages(start.first) // 2
    # half a refill at batch 15 (nr_pcp_alloc): 3, 1, 1 unmovable blocks of orders 1 to 3 and
    # a reclaimable one of order 2
    high_orders = 3 * 2 + 1 * 4 + 1 * 8 + 1 * 4
    assert replay.mem.zone[:, PCP_COUNT].sum() == used + high_orders
    check_memory(replay.mem)
    assert replay.mem.zone[:, Z_FREE].sum() * 4 == start.first["meminfo_kb"]["MemFree"]


def test_op_of_a_later_model_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fleet.replay.LATER_OPS", ("kalloc",))
    replay = Replay(script(tmp_path, "# memory_mb=64\nsnapshot s\nkalloc 3\n"), "6.1")
    assert [s["snapshot"] for s in replay.run()] == ["s"]
    assert replay.later == ["line 3: kalloc"]


def test_unknown_kernel_is_refused(tmp_path):
    (tmp_path / "a.ops").write_text("# memory_mb=64\nsnapshot s\n")
    argv = [sys.executable, "-m", "fleet", "replay", "a.ops", "--kernel", "5.10"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "'5.10' is not one of 2.6.38, 6.1, 6.12" in done.stderr


def test_wait_takes_its_time_and_operations_share_the_rest(tmp_path, start):
    text = "set enabled never\nsnapshot start\nvm a 3000\ntouch a 0 3000\nwait 700\nsnapshot end\n"
    replay = Replay(script(tmp_path, "# memory_mb=256\n" + text), "6.1", start)
    times = [s["t_ms"] for s in replay.run()]
    assert times == [1000, 2500]
    paced_ns, priced_ns = (int(ns) for ns in replay.paced_ns)
    assert paced_ns - USUAL_PACE * USUAL_NS == (1500 - 700) * 10**6
    touched_ns = 3013 * (778 + 1412)
    assert priced_ns - USUAL_NS == touched_ns + 2 * REQUEST_NS + VM_NS + SNAPSHOT_NS


def test_without_recorded_times_costs_are_the_time(tmp_path):
    text = "set enabled never\nvm a 3000\nsnapshot s\ntouch a 0 3000\nwait 700\nsnapshot t\n"
    found = snapshots(tmp_path, text)
    took_ns = 3000 * (778 + 1412) + REQUEST_NS + SNAPSHOT_NS + 700 * 10**6
    assert found["t"]["t_ms"] - found["s"]["t_ms"] in (took_ns // 10**6, took_ns // 10**6 + 1)


def test_trial_leaves_the_machine_alone(tmp_path, start):
    text = "set enabled always\nsnapshot start\nvm a 3000\ntouch a 0 3000\nkalloc 40\n"
    replay = Replay(script(tmp_path, "# memory_mb=256\n" + text), "6.1", start)
    before = [np.array(part) for part in replay.mem]
    assert replay._trial_cost_ns(list(replay.script.ops[2:])) > 0
    assert all((a == b).all() for a, b in zip(before, replay.mem, strict=True))
    assert replay.mm_of == {}
    assert replay.pipes.extents == []


def test_khugepaged_works_while_the_script_waits(tmp_path):
    text = (
        "set enabled always\nvm a 8192\ntouch a 0 1\nset enabled never\ntouch a 0 8192\n"
        "snapshot s\nset enabled always\nwait 9000\nsnapshot t\nwait 20000\nsnapshot u\nexit a\n"
    )
    found = snapshots(tmp_path, text)
    assert [found[k]["vms"]["a"]["AnonHugePages"] // 2048 for k in "stu"] == [1, 8, 16]
    assert found["u"]["pages_collapsed"] == ["15"]


def test_collapse_op_collapses_at_once_whatever_enabled_says(tmp_path):
    text = "set enabled never\nvm a 1100\ntouch a 0 1100 step=5\ncollapse a 0 1100\nsnapshot s\n"
    s = snapshots(tmp_path, text)["s"]
    assert s["vms"]["a"]["AnonHugePages"] == 2 * 2048
    assert s["vmstat"]["thp_collapse_alloc"] == 2


def test_mm_under_khugepageds_cursor_is_freed_when_the_cursor_moves_on(tmp_path):
    text = "set enabled always\nvm a 8192\ntouch a 0 8192\nwait 1\nsnapshot s\nexit a\nsnapshot t\n"
    replay = Replay(
        script(tmp_path, "# memory_mb=256\n" + text + "wait 11000\nsnapshot u\n"), "6.1"
    )
    kernel_pages = {}
    for s in replay.run():
        kernel_pages[s["snapshot"]] = s["vmstat"]["nr_kernel_pages"]
        check_memory(replay.mem)
    assert kernel_pages["t"] == 1 << PROCESS.pgd_order
    assert kernel_pages["u"] == 0


def test_a_folder_takes_the_output_of_one_script(tmp_path):
    path = tmp_path / "a.ops"
    path.write_text("# memory_mb=64\nsnapshot start\n")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "fleet", "replay", str(path), "-o", str(out)]
    subprocess.run(command, check=True)
    assert json.loads((out / "a.jsonl").read_text())["snapshot"] == "start"
