"""Benches are functions; the command line makes commands of them."""

import json
import sys
from importlib import import_module
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fleet import cli_bench
from fleet.claims import Found, at_least
from fleet.cli import app
from fleet.cli_bench import BENCHES


def bench(
    name: Annotated[str, "Of what."] = "x",
    /,
    size: Annotated[int, "How many."] = 3,
    set_: Annotated[list[str] | None, "PATH=VALUE."] = None,
    fast: Annotated[bool, "Be quick."] = False,
) -> Found:
    r"""Measure nothing.

    \b
    Example:
      fleet bench it
    """
    return Found([at_least("speed", size, 3, "/s")], [name, size, set_, fast], ["details"])


def run(*arguments: str):
    made = typer.Typer(rich_markup_mode=None)
    made.command()(cli_bench._command("it", bench))
    return CliRunner().invoke(made, list(arguments))


def test_options_reach_the_bench_and_claims_are_printed_behind_details():
    done = run("y", "--size", "4", "--set", "a=1", "--fast")
    assert done.exit_code == 0
    assert done.stdout.index("details") < done.stdout.index("speed")
    assert "1 of 1 claims hold" in done.stdout
    assert run("--size", "2").exit_code == 1
    shown = run("--help").stdout
    assert "Example:\n" in shown
    assert "\\b" not in shown


def test_repeats_are_samples_in_the_document(tmp_path):
    out = tmp_path / "a.json"
    done = run("--repeat", "3", "--json", "-o", str(out))
    made = json.loads(done.stdout)
    assert json.loads(out.read_text()) == made
    assert made["claims"][0]["samples"] == [3, 3, 3]
    assert len(made["groups"]["it"]["cpu_s"]) == 3
    assert made["groups"]["it"]["details"] == ["x", 3, None, False]


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_is_there_and_has_help(name):
    module, _, function = BENCHES[name].place.partition(":")
    assert callable(getattr(import_module(module), function))
    shown = CliRunner().invoke(app, ["bench", name, "--help"])
    assert shown.exit_code == 0
    assert "--json" in shown.output


def test_a_bench_that_does_not_run_is_a_claim_that_fails(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    group = cli_bench._elsewhere("memory", 1)
    assert group.failed == 1
