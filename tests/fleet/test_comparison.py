"""Comparisons of runs made by hand, against plain Python; and what may not be compared."""

import json
import shutil

import pytest
from fakenode import AT
from handmade import write_run

from fleet.comparison import compare
from fleet.comparison_text import as_text
from fleet.effects import EFFECTS, figures
from fleet.rundir import open_run
from hostsim.core.errors import ScenarioError
from hostsim.core.rng import Stream, stream
from hostsim.core.stats import TABLES

MIN_NS = 60 * 10**9
HOUR_NS = 60 * MIN_NS
TICK_NS = 10 * MIN_NS
COUNTERS = [column.name for column in TABLES["hosts"] if column.kind == "counter"]


def host_rows(seed, planted=0.0, noise=1.0):
    """Return rows of five hosts over an hour; what is planted is added to coverage, in percent."""
    rng = stream(seed, Stream.TRACE_ARRIVALS, 0, 0)
    rows = []
    for host_id in range(5):
        base = rng.integers(1, 2000, len(AT["hosts"]))
        own = stream(seed, Stream.TRACE_ARRIVALS, host_id, int(1000 * abs(planted)) + 1)
        for tick in range(1, 7):
            row = {name: int(base[i]) for name, i in AT["hosts"].items()}
            row |= {name: row[name] * tick for name in COUNTERS}
            row |= {"t_ns": tick * TICK_NS, "host_id": host_id, "nr_guest_pages": 512_000_000}
            shift = planted + noise * own.normal()
            row["nr_anon_transparent_hugepages"] = int(10_000 * (50 + shift))
            row |= {"managed_pages": 3 << 18, "nr_free_pages": 1 << 18, "nr_pcp_pages": 0}
            row |= {"slowdown_all_huge": 1_100_000 + host_id, "unusable_index_order9": 100}
            rows.append(row)
    return rows


def fleet_rows(empty=1):
    return [{"t_ns": t_ns, "empty_hosts": empty} for t_ns in (30 * MIN_NS, 60 * MIN_NS)]


@pytest.fixture
def make_run(small, tmp_path):
    def make(name, *overrides, seed=1, planted=0.0, noise=1.0, rows=None, events=(), **record):
        record = {"tally": {"arrivals": 50}} | record
        alike = ("run.duration=1h", f"run.seed={seed}", "hosts.thp.enabled=madvise")
        scenario = small(*alike, *overrides)
        tables = {"hosts": rows or host_rows(seed, planted, noise), "fleet": fleet_rows()}
        return write_run(tmp_path / name, scenario, tables | {"events": list(events)}, **record)

    return make


NEVER = "hosts.thp.enabled=never"


def by_effect(found, arm=None):
    return {row.effect: row for row in found.differences if arm in (None, row.arm)}


def test_figures_are_sums_over_hosts_and_ticks(make_run):
    rows = host_rows(3)
    events = [
        {"t_ns": 5 * MIN_NS, "host_id": -1, "vm_id": 1, "event": "reject"},
        {"t_ns": 5 * MIN_NS, "host_id": 1, "vm_id": 2, "event": "start"},
    ]
    out = make_run("run", rows=rows, events=events, tally={"arrivals": 50})
    found = figures(open_run(out), TICK_NS)

    def total(name, of=rows):
        return sum(row[name] for row in of)

    last = [row for row in rows if row["t_ns"] == HOUR_NS]
    fallback = total("thp_fault_fallback", last)
    used = total("managed_pages") - total("nr_free_pages") - total("nr_pcp_pages")
    weights = [row["running_milli_vcpus"] for row in rows]
    lost = sum(w * (1 - 1e6 / r["slowdown_all_huge"]) for w, r in zip(weights, rows, strict=True))
    expected = {
        "huge_coverage": 100
        * 512
        * total("nr_anon_transparent_hugepages")
        / total("nr_guest_pages"),
        "effective_coverage": 100 * 512 * total("effective_huge_pages") / total("guest_used_pages"),
        "cycles_lost": 100 * lost / sum(weights),
        "memory_used": used / 2**18 / len(rows),
        "empty_hosts": 1.0,
        "vms_rejected": 2.0,
        "thp_fallback": 100 * fallback / (fallback + total("thp_fault_alloc", last)),
        "unusable_index": 10.0,
        "stalls": total("stall_ns", last) / 1e6 / 5,
        "daemon_cpu": total("daemon_ns", last) / 1e9 / 5 * 24,
        "swap_in": total("pswpin", last) / 256 / 5,
        "oom_kills": total("oom_kill", last) / 5 * 24 * 100,
        "migrations": 0.0,
        "memory_gib": 3.0,
        "nr_hosts": 5.0,
    }
    assert found.run == pytest.approx(expected)
    assert set(expected) >= {effect.name for effect in EFFECTS}


def test_figures_of_a_host_are_those_of_a_fleet_of_one(make_run):
    rows = host_rows(3)
    found = figures(open_run(make_run("run", rows=rows)), TICK_NS)
    assert found.hosts["host_id"].to_list() == [0, 1, 2, 3, 4]
    own = [row for row in rows if row["host_id"] == 2]
    alone = figures(open_run(make_run("alone", rows=own)), TICK_NS)
    row = found.hosts.row(2, named=True)
    expected = {name: alone.run.get(name, 2) for name in row}  # 2: the host's number
    assert row == pytest.approx(expected)


def test_what_happened_before_can_be_left_out(make_run):
    rows = host_rows(3)
    found = figures(open_run(make_run("run", rows=rows)), TICK_NS, after_ns=2 * TICK_NS)
    late = [row for row in rows if row["t_ns"] > 2 * TICK_NS]
    huge = sum(row["nr_anon_transparent_hugepages"] for row in late) * 512
    coverage = 100 * huge / sum(row["nr_guest_pages"] for row in late)
    assert found.run["huge_coverage"] == pytest.approx(coverage)
    at = {
        tick: sum(row["stall_ns"] for row in rows if row["t_ns"] == tick * TICK_NS)
        for tick in (2, 6)
    }
    stalls = (at[6] - at[2]) / 1e6 / (5 * 40 / 60)
    assert found.run["stalls"] == pytest.approx(stalls)


def test_planted_effect_is_found_with_its_sign(make_run):
    places = [make_run(f"a{seed}", seed=seed) for seed in (1, 2, 3, 4)]
    places += [make_run(f"b{seed}", NEVER, seed=seed, planted=-20.0) for seed in (1, 2, 3, 4)]
    found = compare(places)
    assert (found.baseline, found.pairing, found.pairs) == ("enabled=madvise", "seeds", 4)
    row = by_effect(found)["huge_coverage"]
    assert row.arm == "enabled=never"
    assert row.verdict == "worse"
    assert row.low < -20.0 < row.high
    assert row.difference == pytest.approx(row.mean - row.baseline_mean)
    again = by_effect(compare(places, baseline="enabled=never"))["huge_coverage"]
    assert again.verdict == "better"
    assert again.difference == pytest.approx(-row.difference)
    assert "worse: huge coverage 20" in as_text(found, 100)


@pytest.mark.parametrize(
    ("planted", "noise", "verdict"), [(0.1, 0.1, "no_difference"), (1.0, 2.0, "cannot_tell")]
)
def test_difference_too_small_to_matter_and_one_too_uncertain(make_run, planted, noise, verdict):
    places = [make_run(f"a{seed}", seed=seed, noise=noise) for seed in (1, 2, 3)]
    places += [
        make_run(f"b{seed}", NEVER, seed=seed, planted=planted, noise=noise) for seed in (1, 2, 3)
    ]
    row = by_effect(compare(places))["huge_coverage"]
    assert row.verdict == verdict
    assert (row.more_pairs is not None) == (verdict == "cannot_tell")


def test_same_runs_are_identical(make_run):
    place = make_run("a")
    shutil.copytree(place, place.with_name("b"))
    found = compare([place, place.with_name("b")])
    assert {row.verdict for row in found.differences} == {"identical"}
    assert {row.difference for row in found.differences} == {0.0}


EVENT = {"t_ns": TICK_NS, "host_id": 1, "vm_id": 2, "event": "start"}


def test_hosts_are_pairs_where_vms_were_placed_alike(make_run):
    rows = host_rows(1, planted=-20.0)
    places = [make_run("a", events=[EVENT]), make_run("b", NEVER, rows=rows, events=[EVENT])]
    found = compare(places)
    assert (found.pairing, found.pairs) == ("hosts", 5)
    assert "hold for these arrivals" in found.notes[0]
    rows = by_effect(found)
    assert rows["huge_coverage"].verdict == "worse"
    assert rows["empty_hosts"].low is None


def test_one_pair_of_runs_placed_otherwise_gives_no_interval(make_run):
    other = make_run("b", NEVER, planted=-20.0, events=[EVENT | {"host_id": 2}])
    found = compare([make_run("a", events=[EVENT]), other])
    assert found.pairing == "none"
    row = by_effect(found)["huge_coverage"]
    assert (row.low, row.verdict) == (None, "cannot_tell")
    assert row.difference == pytest.approx(-20.0, abs=3.0)
    assert "gives no interval" in as_text(found, 100)


def test_figure_that_an_arm_does_not_have_is_not_compared(make_run):
    rows = [row | {"thp_fault_alloc": 0, "thp_fault_fallback": 0} for row in host_rows(1)]
    row = by_effect(compare([make_run("a"), make_run("b", NEVER, rows=rows)]))["thp_fallback"]
    assert (row.verdict, row.mean, row.difference) == ("no_data", None, None)


@pytest.mark.parametrize(
    ("overrides", "record", "message"),
    [
        (["run.duration=2h"], {}, "lasts 2h, .*a 1h"),
        (["hosts[0].count=4"], {}, "has 6 hosts, .*a has 5"),
        (["vms.scale=0.002"], {}, r"b: had other arrivals than .*a\n    hint: seed, vms"),
        ([NEVER], {"status": "interrupted"}, 'b: is not finished: its status is "interrupted"'),
        ([NEVER], {"arrivals_sha256": None}, "b: does not say which VMs arrived"),
        (["run.seed=2"], {}, "is one arm; there is nothing to compare"),
        ([NEVER, "run.seed=2"], {}, "seeds 2, not 1 as enabled=madvise: different arrivals"),
        (["run.seed=1"], {"schema_version": 99}, "a newer hugefleet: schema 99"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(make_run, overrides, record, message):
    other = make_run("b", *overrides)
    content = json.loads((other / "run.json").read_text()) | record
    (other / "run.json").write_text(json.dumps(content))
    with pytest.raises(ScenarioError, match=message):
        compare([make_run("a"), other])


def test_unknown_names_are_explained(make_run):
    places = [make_run("a"), make_run("b", NEVER)]
    with pytest.raises(ScenarioError, match="is no arm\n    hint: did you mean enabled=never"):
        compare(places, baseline="enabled=nevr")
    with pytest.raises(ScenarioError, match="is no effect\n    hint: did you mean huge_coverage"):
        compare(places, margins={"huge_covrage": 1.0})
    with pytest.raises(ScenarioError, match="is named twice"):
        compare([places[0], places[0]])


def test_baseline_may_be_named_by_its_directory(make_run):
    places = [make_run("a"), make_run("b", NEVER)]
    assert compare(places, baseline=str(places[1])).baseline == "enabled=never"


def test_frame_and_json_have_a_row_an_arm_and_figure(make_run):
    found = compare([make_run("a"), make_run("b", NEVER), make_run("c", "hosts.thp.defrag=never")])
    assert found.frame().shape == (2 * len(EFFECTS), 13)
    assert json.loads(json.dumps(found.as_dict()))["arms"] == [
        "enabled=madvise,defrag=madvise",
        "enabled=never,defrag=madvise",
        "enabled=madvise,defrag=never",
    ]
    lines = as_text(found, 100).splitlines()
    assert max(map(len, lines)) <= 100
    assert (found.frame()["margin"] > 0).all()
