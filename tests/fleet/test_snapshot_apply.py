"""Applying: counts of the simulated host beside the captured ones, and runs that start there."""

import pytest
from test_snapshot_capture import root  # noqa: F401  (a fixture)
from test_snapshot_state import host  # noqa: F401  (a fixture)

from fleet import scheduler
from fleet.loading import load
from fleet.recordings import KERNELS
from fleet.snapshot_apply import applied, compare, scenario_text, spec_of
from fleet.snapshot_capture import capture
from fleet.snapshot_file import write_snapshot
from fleet.snapshot_state import machine_problems
from fleet.sql import query
from fleet.validate_snapshot import recorded_snapshots
from hostsim.core.units import NS_PER_HOUR
from hostsim.host import Host
from hostsim.mm.check import check_memory
from hostsim.mm.mm_types import (
    PCP_COUNT,
    Z_FREE,
    Z_MANAGED,
    Z_WMARK_HIGH,
    Z_WMARK_LOW,
    Z_WMARK_MIN,
)


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_states_of_all_recordings_are_reproduced(kernel):
    names = []
    for name, snapshot in recorded_snapshots(kernel):
        names.append(name)
        rows = applied(snapshot, name)
        assert {row.what for row in rows} == {"buddyinfo", "pagetypeinfo", "pageblocks"}
        assert [row for row in rows if row.differing] == []
    assert len(names) == 29


def test_this_machine_is_reproduced_and_consistent():
    snapshot = capture()
    foreign = [problem.message for problem in machine_problems(snapshot, "here")]
    if foreign:
        pytest.skip(f"this machine is none of the model's: {foreign}")
    mem = Host(spec_of(snapshot, "here"), 0, 0).mem
    assert [row for row in compare(snapshot, mem) if row.differing] == []
    check_memory(mem)


def test_differences_are_counted(host):  # noqa: F811
    snapshot = capture(host)
    mem = Host(spec_of(snapshot, "h"), 0, 0).mem
    mem.nr_free[1, 1, 0] += 1
    found = {(row.zone, row.what): row.differing for row in compare(snapshot, mem)}
    assert found["DMA32", "buddyinfo"] == found["DMA32", "pagetypeinfo"] == 1
    assert sum(found.values()) == 2


def test_marks_and_per_cpu_pages_are_those_of_zoneinfo(host):  # noqa: F811
    """Settings are written after the memory is laid out, and move the marks of other hosts.

    The DMA zone has no page in use that could lie on a list.
    """
    with (host / "proc/zoneinfo").open("a") as file:
        file.write("  pagesets\n    cpu: 0\n              count:    4000\n")
    mem = Host(spec_of(capture(host), "h"), 0, 0).mem
    assert mem.zone[0, [Z_WMARK_MIN, Z_WMARK_LOW, Z_WMARK_HIGH]].tolist() == [11, 14, 17]
    assert mem.zone[1, [Z_WMARK_MIN, Z_WMARK_LOW, Z_WMARK_HIGH]].tolist() == [90, 100, 110]
    assert mem.zone[:2, Z_MANAGED].tolist() == [3840, 500_000]
    assert mem.zone[:2, PCP_COUNT].tolist() == [0, 4000]
    check_memory(mem)


def test_rebooted_host_is_empty(host):  # noqa: F811
    mine = Host(spec_of(capture(host), "h"), 0, 0)
    before = int(mine.mem.zone[:, Z_FREE].sum())
    mine.reboot(NS_PER_HOUR)
    assert int(mine.mem.zone[:, Z_FREE].sum()) > 2 * before
    check_memory(mine.mem)


def test_saved_host_is_restored(host):  # noqa: F811
    spec = spec_of(capture(host), "h")
    saved = Host(spec, 0, 0).save()
    other = Host(spec, 0, 0)
    other.reboot(NS_PER_HOUR)
    other.restore(saved)
    assert [row for row in compare(capture(host), other.mem) if row.differing] == []


def enlarge(host):  # noqa: F811
    """Add 7400 MiB of free memory to the made host."""
    for name, old, new in (
        ("buddyinfo", "   1   150 ", "   1   2000 "),
        ("pagetypeinfo", "   1   150\n", "   1   2000\n"),
        ("pagetypeinfo", " 950 ", " 4650 "),
        ("zoneinfo", "managed  500000", "managed  2394400"),
    ):
        path = host / "proc" / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def scenario_path(host):  # noqa: F811
    enlarge(host)
    write_snapshot(capture(host), host / "host.json")
    (host / "sub").mkdir()
    out = host / "sub" / "mine.toml"
    text, resolved = scenario_text([str(host / "host.json")] * 2, "smoke", 2, out)
    out.write_text(text)
    assert load(str(out)).groups == resolved.groups
    return out


def test_written_scenario_has_a_group_a_snapshot(scenario_path):
    scenario = load(str(scenario_path))
    assert [group.name for group in scenario.groups] == ["host-1", "host-2"]
    assert [group.nr_hosts for group in scenario.groups] == [2, 2]
    assert scenario.groups[0].spec.state == scenario.groups[1].spec.state
    assert scenario_path.read_text().startswith("# Question: ")


def test_resumed_run_has_the_same_bytes(scenario_path, tmp_path, monkeypatch):
    """Validators run after every epoch; the snapshot's file is gone when the run goes on."""
    monkeypatch.setenv("FLEET_CHECK", "1")
    sets = ["run.duration=2h", "hosts.count=1", "vms.scale=0.0005", "hosts.ksm.run=0"]
    sets += ["placement.vcpu_overcommit=4.0", "guests.boot=32MiB", "mmu.enabled=false"]
    scenario = load(str(scenario_path), sets)
    options = {"inline": True, "checkpoint_epochs": 1}

    def stop(progress):
        raise KeyboardInterrupt

    scheduler.run(scenario, tmp_path / "a", scheduler.Options(**options))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run(scenario, tmp_path / "b", scheduler.Options(**options), stop)
    (scenario_path.parent.parent / "host.json").unlink()
    scheduler.run(scenario, tmp_path / "b", scheduler.Options(**options, resume=True))
    started = query(tmp_path / "a", "SELECT host_id, vm_id, t_ns FROM events WHERE vm_id < 2")
    assert sorted(started.rows())[:2] == [(0, 0, 0), (1, 1, 0)]  # the VM of each snapshot
    columns = "SELECT * FROM hosts ORDER BY host_id, t_ns"
    assert query(tmp_path / "a", columns).equals(query(tmp_path / "b", columns))
