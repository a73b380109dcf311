"""The claims about the MMU that are quick enough for every run, and how they are printed."""

import json

import pytest
from typer.testing import CliRunner

from fleet import cli_validate, validate_mmu
from fleet.claims import Claim, Found
from fleet.lru_cascade import STREAMS, compare, hits_by_cascade
from hostsim.core.errors import ScenarioError


def test_cold_walks_hold():
    checks = list(validate_mmu.cold_walks())
    assert [check for check in checks if not check.verdict] == []
    cells = sum(len(row) for rows in validate_mmu.MATRICES.values() for row in rows)
    assert cells == 40 + 1  # the misprint is one of them
    assert len(checks) == 10 + 5 + 4


@pytest.mark.parametrize(("cpu", "name", "huge"), STREAMS)
def test_counts_equal_the_cascade(cpu, name, huge):
    expected, found = compare(cpu, name, huge, 60_000)
    assert expected == found
    assert found.l1_hits + found.l2_hits + found.walks == 60_000


def test_the_cascade_by_hand():
    """One set of two ways: a b a c b."""
    import numpy as np

    keys = np.array([1, 2, 1, 3, 2])
    assert hits_by_cascade(keys, np.zeros(5, np.int64), 2).tolist() == [0, 0, 1, 0, 0]
    assert hits_by_cascade(keys, np.zeros(5, np.int64), 3).tolist() == [0, 0, 1, 0, 1]


def test_a_share_is_judged_on_both_sides_of_its_tolerance(monkeypatch):
    class Fake:
        share = 0.1149

    monkeypatch.setattr(validate_mmu, "_native", lambda *_: Fake)
    assert validate_mmu._share("c", "p", "never", 10.0, 0.0, "s").verdict
    Fake.share = 0.1151
    assert not validate_mmu._share("c", "p", "never", 10.0, 0.0, "s").verdict
    assert not validate_mmu._share("c", "p", "never", 10.0, 0.01, "s").verdict
    Fake.share = 0.0109
    assert validate_mmu._share("c", "p", "never", 0.1, 0.01, "s").verdict
    assert not validate_mmu._share("c", "p", "never", 0.05, 0.01, "s").verdict


def run(*arguments, claims, monkeypatch):
    import typer

    monkeypatch.setattr(validate_mmu, "CHECKS", {"one": lambda: iter(claims)})
    monkeypatch.setattr(validate_mmu, "beside", lambda: Found((), {}))
    app = typer.Typer()
    app.command()(cli_validate.validate)
    return CliRunner().invoke(app, list(arguments))


HOLDS = Claim("steps", "24", "the seed", "24", True)
FAILS = Claim("references", "24", "the seed", "23", False)


def test_a_claim_that_fails_is_shown_and_exits_1(monkeypatch):
    done = run("mmu", claims=[HOLDS, FAILS], monkeypatch=monkeypatch)
    assert done.exit_code == 1
    assert "[the seed]" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["references", "24", "23", "FAIL"] in rows
    assert "1 of 2 claims hold" in done.stdout


def test_json_has_every_claim(monkeypatch):
    done = run("mmu", "--json", claims=[HOLDS], monkeypatch=monkeypatch)
    assert done.exit_code == 0
    made = json.loads(done.stdout)
    assert made["failed"] == 0
    assert made["claims"] == [{"group": "mmu", **HOLDS._asdict(), "samples": [None]}]
    assert made["machine"]["cores"] >= 1


def test_an_unknown_group_is_named():
    with pytest.raises(ScenarioError, match="'cpu' is none of mm, replay, mmu"):
        cli_validate.validate("cpu")


@pytest.mark.validate
@pytest.mark.parametrize("name", validate_mmu.CHECKS)
def test_every_claim_holds(name):
    assert [check for check in validate_mmu.CHECKS[name]() if not check.verdict] == []
