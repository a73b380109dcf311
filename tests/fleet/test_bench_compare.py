"""A change is told from noise where runs were measured by turns, and not where they were not."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fleet import bench_ab, claims
from fleet.bench_compare import CANNOT_TELL, compare, read_document
from fleet.claims import Found, Group, at_least, at_most
from fleet.cli_bench import bench_app
from hostsim.core.errors import ResultsError, ScenarioError


def document(values, session="s", cpu_s=1.0, bound=at_least, unit="/s"):
    runs = [Found([bound("rate", float(v), 1.0, unit)], None, (), cpu_s, 1) for v in values]
    return json.loads(json.dumps(claims.document([Group("g", runs)], session)))


DRIFT = np.array([1.0, 1.5, 0.8, 1.3, 0.9])  # of the machine, hits both of a pair
NOISE = np.array([1.01, 0.99, 1.0, 1.01, 0.99])


@pytest.mark.parametrize(("change", "verdict"), [(1.1, "faster"), (0.9, "slower")])
def test_a_change_of_a_tenth_is_seen_through_drift_of_halves(change, verdict):
    rate, cpu = compare(document(100 * DRIFT), document(100 * DRIFT * change * NOISE))
    assert rate.verdict == verdict
    assert rate.ratio == pytest.approx(change, rel=0.01)
    assert rate.low < change < rate.high
    assert cpu.verdict == "same"


def test_noise_alone_is_not_told():
    assert compare(document(100 * DRIFT), document(100 * DRIFT * NOISE))[0].verdict == CANNOT_TELL


def test_two_sessions_are_never_told_apart_by_time_but_by_exact_counts():
    fast, slow = document([100, 101, 99], "a"), document([200, 201, 199], "b")
    assert compare(fast, slow)[0].verdict == CANNOT_TELL
    small = document([10, 10, 10], "a", bound=at_most, unit="B")
    large = document([11, 11, 11], "b", bound=at_most, unit="B")
    assert compare(small, large)[0].verdict == "worse"
    assert compare(large, small)[0].verdict == "better"


def test_two_pairs_are_too_few():
    assert compare(document([1, 1]), document([9, 9.1]))[0].verdict == CANNOT_TELL


def test_the_more_rows_the_surer_each_must_be():
    """Twenty figures without any change: a table calls one in twenty times, not each time."""
    rng = np.random.Generator(np.random.PCG64(1))
    alarms = 0
    for _ in range(80):
        a, b = (
            {"session": "s", "groups": {}, "claims": [
                {"group": "g", "name": str(i), "unit": "s", "bound": "at most",
                 "samples": np.exp(0.05 * rng.standard_normal(5)).tolist()}
                for i in range(20)
            ]}
            for _ in range(2)
        )  # fmt: skip
        alarms += any(row.verdict != CANNOT_TELL for row in compare(a, b))
    assert alarms <= 10  # 4 expected, standard deviation 2


def test_the_command_exits_1_if_something_is_slower(tmp_path):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(document(100 * DRIFT)))
    b.write_text(json.dumps(document(80 * DRIFT * NOISE)))
    done = CliRunner().invoke(bench_app, ["compare", str(a), str(b)])
    assert done.exit_code == 1
    assert "slower" in done.stdout
    assert CliRunner().invoke(bench_app, ["compare", str(b), str(a)]).exit_code == 0
    b.write_text(json.dumps(document(80 * DRIFT, "other")))
    done = CliRunner().invoke(bench_app, ["compare", str(a), str(b)])
    assert done.exit_code == 0
    assert "two sessions" in done.stdout


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "x"}'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"a\.json: "):
        read_document(path)
    with pytest.raises(ResultsError, match="cannot be read"):
        read_document(tmp_path / "none.json")


def test_pairs_are_run_by_turns_and_joined(monkeypatch, tmp_path):
    order = []
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet" / "cli_bench.py").write_text("")

    def fake(checkout, name, repeat=1):
        order.append("a" if checkout == tmp_path else "b")
        return document([len(order)], str(len(order)))

    monkeypatch.setattr(bench_ab, "run_bench", fake)
    a, b = bench_ab.run_pairs(tmp_path, "placement", 3)
    assert "".join(order) == "ab" + "abbaab"
    assert a["session"] == b["session"]
    assert a["claims"][0]["samples"] == [3, 6, 7]
    assert b["claims"][0]["samples"] == [4, 5, 8]
    assert len(b["groups"]["g"]["cpu_s"]) == 3


def test_a_folder_that_is_no_checkout_is_named(tmp_path):
    with pytest.raises(ScenarioError, match="holds no fleet"):
        bench_ab.run_pairs(tmp_path, "placement", 2)
