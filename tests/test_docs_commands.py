"""Every command that the documents show runs, on small scenarios; or says why it does not."""

import doctest
import re
import runpy

import pytest
from console import ROOT, commands, make_small, parsed, python_blocks, run_fleet, usage_error

from fleet import loading, scheduler

# Commands that are not run here, and why; of those of `fleet` the options are checked.
NOT_RUN = {
    r"fleet .*--address": "needs a Ray cluster: tests/chaos and `fleet bench cluster`",
    r"fleet .*--metrics-port": "needs ray[default]: seen by hand, deploy/README.md",
    r"fleet bench": "takes minutes: the table of docs/results.md",
    r"fleet validate": "takes minutes: tests/fleet/test_validate_*.py",
    r"fleet run my-hosts": "depends on what the machine has free: test_snapshot_apply.py",
    r"fleet compare runs/as-is": "of the runs that are not made here",
    r"fleet warmup": "compiles for a minute: tests/fleet/test_warmup.py",
    r"fleet largepages": "takes half a minute: tests/fleet/test_largepages.py",
    r"fleet trace import (azure|huawei)": "needs a download",
    r"fleet run .*=(balanced|cautious)|runs/cautious": "the reader's own policy, in its how-to",
}
# What is put in place of a number that makes sense on the scenario as shown, not on a small one.
SUBSTITUTIONS = {r"fleet map (\S+) 18 --every 8h": r"fleet map \1 1 --every 30min"}
OTHER_PROGRAMS = (  # and only these may be shown
    "make", "pip", "python3", "ray", "docker", "git", "cd", ".", "curl", ".venv/bin/pip", "export",
)  # fmt: skip
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_COMMANDS = [page for page in PAGES if commands(page.read_text())]
CSV = re.compile(r"^```csv\n(.*?)^```", re.MULTILINE | re.DOTALL)


def reason(line):
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), "")


def small(command):
    """Return a command as it is run here."""
    for pattern, replacement in SUBSTITUTIONS.items():
        if re.match(pattern, command.line):
            return parsed(re.sub(pattern, replacement, command.line))
    if command.words[1] == "sweep":
        return command._replace(words=[*command.words, "--inline"])
    return command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, in which scenarios are small and runs stay in this process."""
    make_small(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_of_a_page_run_in_its_order(page, place):
    text = page.read_text()
    for table in CSV.findall(text):
        (place / "vms.csv").write_text(table)
    for command in commands(text):
        program, *words = command.words
        if program != "fleet":
            assert program in OTHER_PROGRAMS, command.line
            continue
        assert usage_error(words) == "", command.line
        if not reason(command.line):
            code, printed = run_fleet(small(command).words[1:])
            assert code == 0, command.line
            if command.to_file:
                (place / command.to_file).write_text(printed)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if python_blocks(p.read_text())], ids=lambda p: p.name
)
def test_python_of_a_page_runs(page, place):
    for block in python_blocks(page.read_text()):
        (place / "block.py").write_text(block)
        runpy.run_path(str(place / "block.py"))


@pytest.mark.parametrize("module", [loading, scheduler], ids=lambda module: module.__name__)
def test_examples_of_docstrings_print_what_they_say(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_exceptions_are_needed(pattern):
    shown = [c.line for page in PAGES for c in commands(page.read_text())]
    assert any(re.search(pattern, line) for line in shown)


def test_inline_commands_of_the_documents_exist():
    """In running text a command may be shortened; it must exist, and so must its options."""
    for page in PAGES:
        if page.name == "cli.md":
            continue
        for line in re.findall(r"`(fleet [a-z][^`\n]*)`", page.read_text()):
            words = parsed(line.split(" ...")[0].split(" X")[0]).words[1:]
            said = usage_error(words)
            missing = re.search(
                "Missing (argument|option|command)|requires an argument|no command [A-Z]+$", said
            )
            assert said == "" or missing, f"{page.name}: {line}: {said}"


def test_commands_of_the_transcripts_exist():
    """They ran once, as typed; what they printed stands beside them."""
    found = commands((ROOT / "docs" / "transcripts.md").read_text(), "text")
    assert len(found) >= 5
    for command in found:
        if command.words[0] == "fleet":
            assert usage_error(command.words[1:]) == "", command.line


def test_a_wrong_command_is_noticed():
    assert usage_error(["rnu", "smoke"]) == "there is no command rnu"
    assert "no command export" in usage_error(["trace", "export"])
    assert "--inlin" in usage_error(["run", "smoke", "--inlin"])
    shown = commands("```console\n$ fleet query a 'SELECT *\n  FROM vms' > b.csv\n| a |\n```\n")
    assert [(c.words, c.to_file) for c in shown] == [
        (["fleet", "query", "a", "SELECT *\n  FROM vms"], "b.csv")
    ]
