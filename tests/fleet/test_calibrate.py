"""Calibration: rules of derivation, bounds, and that nothing is changed; no time is asserted."""

import json
import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from fleet import calibrate
from fleet.calibrate import Figure, derive, memory_of_own
from fleet.calibrate_kernels import chase, link
from fleet.cost_file import read_costs, write_costs
from hostsim.core.errors import ScenarioError
from hostsim.mm.cost import NAMES

THP = Path("/sys/kernel/mm/transparent_hugepage")
MIB = 1 << 20


def figures(**medians):
    return {name: Figure(value, value, value, 3) for name, value in medians.items()}


def test_costs_follow_by_the_rules_of_the_cost_table():
    """kernel.md 12.1: T4 = f4 + z4; T2 = f2 + 512 z4, f2 = 2 us. Migrating is fault and copy."""
    measured = figures(
        fault_4k=2190.0, fault_2m=2000 + 512 * 1412.0, copy_4k=2118.0, free_4k=99.6, split=9000.4,
        fill_4k=400.0,
    )  # fmt: skip
    assert derive(measured) == {
        "fault": 778,
        "clear_page": 1412,
        "copy_page": 2118,
        "migrate_page": 2896,
        "free_page": 100,
        "split": 9000,
        "ksm_page": 1412,
    }


def test_without_huge_pages_clearing_is_filling():
    found = derive(figures(fault_4k=300.0, copy_4k=500.0, free_4k=0.2, fill_4k=400.0))
    assert found["clear_page"] == 400
    assert found["fault"] == 1  # never below: a cost of nothing would stop time
    assert found["free_page"] == 1
    assert "split" not in found


def settings_now():
    return {path: path.read_text() for path in THP.rglob("*") if path.is_file() and readable(path)}


def readable(path):
    counts = path.name in ("full_scans", "pages_collapsed") or path.parent.name == "stats"
    return path.stat().st_mode & 0o444 and not counts


@pytest.fixture(scope="module")
def found():
    """Calibrate with the least memory, and note how much there is at once."""
    before = settings_now()
    content = calibrate.calibrate(0.0, 16 * MIB)
    after = settings_now()
    changed = [path for path in before if before[path] != after[path]]
    return content, changed


def test_settings_are_left_alone(found):
    assert found[1] == []


def test_every_cost_is_of_the_table_and_at_least_a_nanosecond(found, tmp_path):
    costs = found[0]["costs"]
    assert set(costs) <= set(NAMES)
    assert {"fault", "clear_page", "copy_page", "migrate_page", "free_page"} <= set(costs)
    assert min(costs.values()) >= 1
    write_costs(found[0], tmp_path / "costs.json")
    assert read_costs(tmp_path / "costs.json") == costs


def test_figures_have_a_spread(found):
    for figure in found[0]["measured"].values():
        assert figure["p25_ns"] <= figure["median_ns"] <= figure["p75_ns"]
        assert figure["rounds"] >= calibrate.MIN_ROUNDS - 1
    assert json.dumps(found[0])


def test_virtual_machines_are_said_to_spoil_it(found):
    is_virtual = bool(re.search(r"\bhypervisor\b", Path("/proc/cpuinfo").read_text()))
    assert found[0]["machine"]["virtual"] == is_virtual
    said = [note for note in found[0]["notes"] if "virtual machine" in note]
    assert len(said) == is_virtual


@pytest.mark.parametrize("advice", [mmap.MADV_HUGEPAGE, mmap.MADV_NOHUGEPAGE])
def test_memory_is_aligned_bounded_and_given_back(advice):
    def mapped():
        return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    before = mapped()
    with memory_of_own(64 * MIB, advice) as (_, words, _):
        assert words.ctypes.data % (2 * MIB) == 0
        assert words.nbytes == 64 * MIB
        assert 64 * MIB <= mapped() - before <= 68 * MIB
        del words
    assert mapped() - before <= 4 * MIB


@pytest.mark.parametrize(
    ("nr_bytes", "rule"),
    [
        (8 * MIB, "is not 16 MiB to 1 GiB"),
        (2048 * MIB, "is not 16 MiB to 1 GiB"),
        (17 * MIB, "in steps of 2 MiB"),
        (48 * MIB, "is no power of two"),
    ],
)
def test_memory_out_of_bounds_is_refused(nr_bytes, rule):
    with pytest.raises(ScenarioError, match=rule):
        calibrate.calibrate(0.0, nr_bytes)


def test_ring_meets_every_place_once():
    words = np.zeros(512 * 64, np.int64)
    link(words, 512, 64)
    assert chase(words, 512, 64) == 0
    assert all(chase(words, 512, nr) != 0 for nr in range(1, 64))
