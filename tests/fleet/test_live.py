"""What an operator sees while a run advances: terminal and metrics."""

import logging
import sys
from typing import ClassVar

import numpy as np
import pytest
from fakenode import FakeNode, row, stack

from fleet import metrics, scheduler
from fleet.live import Live, Progress, live_figures
from fleet.progress import live_text, shown
from fleet.shard import InlineBackend
from fleet.summary import summarise


def make_live(**changes):
    figures = dict.fromkeys(Live._fields, 0) | {"hosts": 4, "empty_hosts": 1, "vms": 1234}
    return Live(**(figures | changes))


def make_progress(**changes):
    figures = {
        "epoch": 3,
        "nr_epochs": 4,
        "t_ns": 3 * 3600 * 10**9,
        "vm_events": 100,
        "live": make_live(),
        "host_hours_per_core_s": 2.5,
        "peak_memory_bytes": 1 << 30,
        "recoveries": 0,
    }
    return Progress(**(figures | changes))


def test_last_figures_of_a_run_are_those_of_its_summary(small, tmp_path):
    seen = []
    scheduler.run(small(), tmp_path / "r", None, seen.append, lambda s: InlineBackend(s, FakeNode))
    found, live = summarise(tmp_path / "r"), seen[-1].live
    now = found["at_end"]
    assert [p.epoch for p in seen] == list(range(1, seen[-1].nr_epochs + 1))
    assert seen[0].host_hours_per_core_s > 0  # the first epoch is looked at
    assert seen[0].peak_memory_bytes > 0
    assert live.vms == found["vms"]["running"]
    assert live.empty_hosts == found["fleet"]["empty_hosts"]
    assert live.huge_coverage_ratio == pytest.approx(now["huge_coverage_ratio"], abs=1e-6)
    assert live.fragmentation_p95_ratio == now["unusable_index_order9"]["p95"]
    assert live.fragmentation_median_ratio == now["unusable_index_order9"]["median"]
    assert live.thp_fallback_ratio == found["counters"]["thp_fallback_ratio"]
    assert live.hosts_without_free_2m / live.hosts == 0.6


def test_figures_are_of_the_last_tick_and_weighted_by_vcpus():
    def host(t_ns, host_id, **values):
        return row("hosts", t_ns=t_ns, host_id=host_id, **values)

    rows = [
        host(1, 0, oom_kill=0, running_milli_vcpus=9, walk_share=900_000),
        host(2, 0, oom_kill=2, running_milli_vcpus=3000, walk_share=100_000, stall_ns=5 * 10**8),
        host(2, 1, oom_kill=1, running_milli_vcpus=1000, walk_share=300_000, swap_used_pages=2),
    ]
    live = live_figures(stack("hosts", rows), stack("fleet", [row("fleet", nr_hosts=2)]))
    assert live.oom_kills == 3
    assert live.walk_ratio == pytest.approx(0.15)  # (3 x 0.1 + 1 x 0.3) / 4
    assert live.stall_s == 0.5
    assert live.swap_used_bytes == 8192
    assert live.huge_coverage_ratio == 0  # nothing resident


def test_line_names_what_should_be_0_only_if_it_is_not():
    calm = live_text(make_live(huge_coverage_ratio=0.955))
    assert "1,234 VMs on 3 of 4 hosts" in calm
    assert "huge 95.5%" in calm
    assert "OOM" not in calm
    assert "OOM kills 7" in live_text(make_live(oom_kills=7))


def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch):
    with shown("quiet") as on_epoch:
        assert on_epoch is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    with shown("demo") as on_epoch:
        on_epoch(make_progress())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 3/4" in captured.err
    assert "3 h simulated" in captured.err
    assert "1,234 VMs" in captured.err


class Recorded:
    """A metric of Ray that only remembers."""

    values: ClassVar = {}

    def __init__(self, name, doc, tag_keys):
        assert doc.endswith(".")
        self.name, self.tag_keys = name, tag_keys

    def set(self, value, tags):
        assert tuple(tags) == self.tag_keys
        self.values[self.name] = value

    def inc(self, value, tags):
        assert tuple(tags) == self.tag_keys
        assert value > 0  # ray refuses others
        self.values[self.name] = self.values.get(self.name, 0) + value


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(Recorded, "values", {})
    monkeypatch.setattr(metrics, "Gauge", Recorded)
    monkeypatch.setattr(metrics, "Counter", Recorded)
    return Recorded.values


def test_counters_of_metrics_grow_by_what_is_new(recorded):
    export = metrics.Exporter("demo", 7)
    for kills in (2, 2, 5):
        export(make_progress(live=make_live(oom_kills=kills), vm_events=100 * kills))
    assert recorded["hugefleet_oom_kills"] == 5
    assert recorded["hugefleet_vm_events"] == 500
    assert recorded["hugefleet_simulated_seconds"] == 3 * 3600
    assert recorded["hugefleet_peak_memory_bytes"] == 1 << 30


def test_metrics_that_fail_do_not_end_the_run(monkeypatch, caplog):
    def refuse(*_):
        raise RuntimeError("no agent")

    monkeypatch.setattr(metrics, "Gauge", refuse)
    export = metrics.Exporter("demo", 7)
    with caplog.at_level(logging.WARNING):
        export(make_progress())
        export(make_progress())
    assert caplog.messages == ["metrics are exported no more: no agent"]


def test_names_of_metrics_are_those_of_prometheus():
    names = [metric.name for metric in metrics.METRICS]
    assert len(set(names)) == len(names)
    for metric in metrics.METRICS:
        assert not metric.name.endswith("_total")  # ray adds it to counters
        assert metric.exported.endswith("_total") == metric.counter
    assert {np.sign(m.value(make_progress())) for m in metrics.METRICS} <= {0, 1}
