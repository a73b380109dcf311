"""The seed's benchmark: its table, and counts that follow from the sizes of things."""

import json
import subprocess
import sys

import pytest

from fleet.largepages import ARRAY_PAGES, CONFIGURATIONS, PUBLISHED_US, judge, published, run_all


@pytest.fixture(scope="module")
def found():
    return run_all()


def test_every_figure_of_the_seed_is_within_its_tolerance(found):
    cells = judge(found)
    assert len(cells) == 15 + 5 + 5 + 3
    assert [cell for cell in cells if not cell.verdict] == []


def test_counts_follow_from_the_sizes(found):
    """Every page, or every 2 MiB, is a fault once and a walk in each loop: no TLB holds 3 GiB."""
    for name in CONFIGURATIONS:
        units = ARRAY_PAGES if name == "off" else ARRAY_PAGES // 512
        assert [phase.faults for phase in found[name]] == [units, 0, 0, 0, 0]
        for phase in found[name]:
            assert phase.walks == units
            # Directories come from their cache: one read a walk, and one a new directory or table.
            upper = ARRAY_PAGES // 512 + 3 if name == "off" else 3
            assert units <= phase.references <= units + upper + 2


def test_an_array_at_any_page_has_1535_huge_pages_and_513_small_ones():
    """kernel.md 3.7: malloc(3 GiB) is 3 GiB + 4 KiB at an arbitrary page."""
    found = run_all(unaligned=True)
    assert found["thp"][0].faults == 1535 + 513
    assert found["off"][0].faults == ARRAY_PAGES + 1
    assert all(cell.verdict for cell in judge(found, unaligned=True))


def test_a_figure_off_its_tolerance_is_seen(found):
    phases = found["off"]
    slow = [phases[0]._replace(time_us=phases[0].time_us * 1.02), *phases[1:]]
    missed = [cell.name for cell in judge({**found, "off": slow}) if not cell.verdict]
    assert missed == ["off: page fault, us", "off / thp: page fault"]


def test_means_are_those_of_both_runs():
    assert published("thp")[0] == (PUBLISHED_US["thp"][0][0] + PUBLISHED_US["thp"][0][1]) / 2
    assert published("off")[0] / published("thp")[0] == pytest.approx(1.3931, abs=5e-5)


def test_the_command_prints_both_tables():
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "largepages", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert [phase["faults"] for phase in made["phases"]["off"]] == [786432, 0, 0, 0, 0]
    assert all(cell["verdict"] for cell in made["cells"])
