"""Health: the figures against arithmetic by hand, advice on both sides of its thresholds."""

import pytest
from test_snapshot_capture import root  # noqa: F401  (a fixture)

from fleet.snapshot_capture import capture
from fleet.snapshot_show import advice, full_scan_s, health
from fleet.snapshot_table import as_lines


@pytest.fixture
def snapshot(root):  # noqa: F811
    return capture(root)


def test_free_memory_and_indices(snapshot):
    """One page, one block of 2 MiB and three of 4 MiB: 1 + 512 + 3072 pages."""
    found = health(snapshot)
    assert found["memory"]["free_bytes"] == 3585 << 12
    assert found["memory"]["free_2m_bytes"] == 3584 << 12
    (zone,) = found["zones"]
    assert zone["unusable_index"][9] == 0.000  # 1 page of 3585: under a thousandth
    assert zone["unusable_index"][10] == 0.143  # 513 pages of 3585, in whole thousandths
    assert found["pageblocks"] == {
        "by_type": {"Unmovable": 1, "Movable": 7},
        "total": 8,
        "unmovable_ratio": 1 / 8,
    }


def test_coverage_and_rates(snapshot):
    found = health(snapshot)
    assert found["vms"]["coverage_ratio"] == 0.5
    assert found["rates"]["thp_fault_fallback_ratio"] == 0.1
    assert found["rates"]["thp_collapse_alloc_failed_ratio"] is None


@pytest.mark.parametrize(
    ("windows", "pages", "sleep_ms", "seconds"),
    [(1024, 4096, 10_000, 1280), (1025, 4096, 10_000, 1290), (10, 512, 1000, 10), (10, 1, 0, 0)],
)
def test_full_scan_is_the_bound_of_the_kernel(windows, pages, sleep_ms, seconds):
    """kernel.md 5.2: windows * 512 / pages_to_scan * scan_sleep, in whole passes."""
    assert full_scan_s(windows, pages, sleep_ms) == seconds


def test_windows_are_of_what_vms_were_given(snapshot):
    found = health(snapshot)["khugepaged"]
    assert found["windows"] == 1024
    assert found["full_scan_s"] == 1280


def tries(found):
    return [entry["try"].split("--set ")[1] for entry in advice(found)]


def test_advice_has_reasons_and_thresholds(snapshot):
    found = health(snapshot)
    assert tries(found) == ["hosts.ksm.run=0"]  # coverage 0.5 while ksmd runs
    found["ksm"]["run"] = 0
    assert tries(found) == []
    found["rates"]["thp_fault_fallback_ratio"] = 0.11
    assert tries(found) == ["hosts.thp.defrag=defer+madvise"]


@pytest.mark.parametrize(("full_s", "wanted"), [(3600.0, []), (3610.0, ["pages_to_scan=1536"])])
def test_long_scans_are_advised_against(snapshot, full_s, wanted):
    """1024 windows in the 360 passes of an hour are 3 windows a pass."""
    found = health(snapshot)
    found["ksm"]["run"] = 0
    found["khugepaged"]["full_scan_s"] = full_s
    assert tries(found) == [f"hosts.khugepaged.{text}" for text in wanted]


def test_table_fits_a_terminal_whatever_is_unknown(root, snapshot):  # noqa: F811
    for name in ("pagetypeinfo", "zoneinfo", "vmstat", "meminfo"):
        (root / "proc" / name).unlink()
    for found in (health(snapshot), health(capture(root))):
        lines = list(as_lines("host.json", found, advice(found)))
        assert max(map(len, lines)) <= 120
        assert any("unusable index" in line for line in lines)
