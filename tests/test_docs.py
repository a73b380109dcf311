"""What the documents say exists, and what exists is in the documents."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from fleet.loading import builtin_names, builtin_text, question
from fleet.scenario import json_schema
from fleet.schema import markdown
from hostsim.core.stats import TABLES

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COLUMNS = [
    pytest.param(column, id=f"{table}.{column.name}")
    for table, columns in TABLES.items()
    for column in columns
]
DIMENSIONLESS = {"host_id", "source_host_id", "vm_id", "event", "reason"}


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_has_a_unit_and_a_sentence(column):
    assert column.unit or column.name in DIMENSIONLESS
    assert len(column.doc.split()) > 1
    assert column.doc.endswith(".")
    assert bool(column.labels) == (column.kind == "label")


def test_columns_document_is_current():
    """Made by: make docs."""
    assert (ROOT / "docs" / "columns.md").read_text() == markdown()


def reference_pages():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("page", reference_pages())
def test_reference_made_from_the_code_is_current(page):
    """Made by: make docs."""
    assert (ROOT / "docs" / page).read_text() == reference_pages()[page]()


def test_every_field_of_a_scenario_says_what_it_means():
    for name, section in json_schema()["$defs"].items():
        for field, schema in section["properties"].items():
            text = schema.get("description", "")
            assert len(text.split()) > 1, f"{name}.{field}"
            assert text.endswith("."), f"{name}.{field}"


def test_defaults_in_the_schema_are_in_the_words_of_the_file():
    schema = json_schema()
    assert schema["$defs"]["FailuresSection"]["properties"]["repair"]["default"] == "4h"
    assert schema["$defs"]["HostsSection"]["properties"]["memory"]["default"] == "256GiB"


def simplifications():
    """Return module and number of "Simplified:" lines, where there are any."""
    for package in ("hostsim", "guestsim", "fleet"):
        for path in sorted((ROOT / package).rglob("*.py")):
            number = path.read_text().count("Simplified:")
            if number:
                module = path.relative_to(ROOT).as_posix()
                yield pytest.param(module, number, id=module)


@pytest.mark.parametrize(("module", "number"), list(simplifications()))
def test_every_simplification_is_listed_in_the_model_document(module, number):
    """docs/model.md names the module once for each of its "Simplified:" lines."""
    assert (ROOT / "docs" / "model.md").read_text().count(module) >= number


def test_dependencies_of_the_readme_are_those_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split("[<>=]", name)[0] for name in project["dependencies"]}
    section = README.split("## Dependencies")[1].split("##")[0]
    listed = set(re.findall(r"^\| ([a-z][a-z-]+) \|", section, re.MULTILINE))
    assert listed - {"package"} == declared


@pytest.mark.parametrize("name", builtin_names())
def test_scenario_opens_with_its_question_and_how_long_it_runs(name):
    text = question(builtin_text(name))
    assert text.startswith("Question: ")
    assert re.search("(Runs in|Takes) ", text)


def test_links_of_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            made = target == "tutorial.md"  # from tutorial.py, by docs/site_hooks.py
            assert made or (document.parent / target).exists(), f"{document.name}: {target}"
