import json

import pytest

from fleet.summary import as_text, summarise
from hostsim.core.errors import InvariantError


def test_vms_balance(run_small):
    vms = summarise(run_small())["vms"]
    assert vms["arrived"] == vms["started"] + vms["rejected"]
    assert vms["started"] == vms["ended"] + vms["running"]
    assert vms["killed"] == 1


def test_missing_vm_is_noticed(run_small):
    out = run_small()
    record = json.loads((out / "run.json").read_text())
    record["tally"]["arrivals"] += 1
    (out / "run.json").write_text(json.dumps(record))
    with pytest.raises(InvariantError, match=r"started \+ rejected is not arrived"):
        summarise(out)


def test_ratios_come_from_the_last_tick(run_small):
    """The fake node touches half of what is committed, all huge; odd hosts have a free block."""
    found = summarise(run_small())
    now = found["at_end"]
    assert now["touched_memory_ratio"]["mean"] == pytest.approx(
        now["committed_memory_ratio"]["mean"] / 2, abs=1e-6
    )
    assert now["huge_coverage_ratio"] == pytest.approx(0.5, abs=0.01)
    assert found["fleet"]["hosts_without_free_2m_ratio"] == 0.6
    assert now["unusable_index_order9"] == {"median": 0.25, "p95": 0.25}
    assert found["counters"]["thp_fallback_ratio"] == 0.25


def test_text_fits_a_terminal(run_small):
    lines = as_text(summarise(run_small())).splitlines()
    assert max(map(len, lines)) <= 90
