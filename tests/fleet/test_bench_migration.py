"""What `fleet bench migration` prints is what the tables of the run say."""

import json

import pytest
from tiny import TINY
from typer.testing import CliRunner

from fleet.bench_migration import measure_migration
from fleet.cli import app


@pytest.mark.parametrize("mode", ["precopy", "postcopy"])
def test_drained_host_is_told_of(small, mode):
    drain = "maintenance=[{start = '30min', duration = '30min'}]"
    found = measure_migration(
        small(*TINY, "run.duration=2h", "vms.scale=0.0001", drain, f"migration.mode={mode}")
    )
    assert found["mode"] == mode
    assert found["vms"] >= 1
    assert found["stayed"] == 0  # the run is shorter than the last look
    assert set(found["huge_ratio"].values()) == {None}
    assert 0 < found["vm_s"]["median"] <= found["vm_s"]["max"]
    assert found["vm_s"]["max"] <= found["total_s"] * (1 + 1e-9)  # rounded differently
    assert 20 <= found["downtime_ms"]["median"] <= found["downtime_ms"]["max"]
    assert found["sent_gib"] > 0
    json.dumps(found)


def test_command_is_there():
    shown = CliRunner().invoke(app, ["bench", "migration", "--help"]).output
    assert "post-copy" in shown
