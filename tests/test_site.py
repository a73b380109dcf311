"""The documentation as a site: it builds without a warning and loads nothing from elsewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOADED = re.compile(
    r"<(?:img|script|iframe|source|link)\b[^>]*?\b(?:src|href)=[\"']((?:https?:)?//[^\"']+)"
    r"|url\([\"']?((?:https?:)?//[^)\"']+)|@import [\"']((?:https?:)?//[^\"']+)",
    re.IGNORECASE,
)


def module_of(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PICTURES = module_of(ROOT / "docs" / "img" / "draw.py").PICTURES


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build it, which runs the notebook."""
    pytest.importorskip("mkdocstrings")
    out = tmp_path_factory.mktemp("site")
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_nothing_is_loaded_from_elsewhere(site):
    for path in (p for p in site.rglob("*") if p.suffix in (".html", ".css", ".svg")):
        found = LOADED.search(path.read_text())
        assert found is None, f"{path.relative_to(site)}: {found[0]}"


def test_what_would_be_loaded_from_elsewhere_is_noticed():
    for text in (
        '<link rel="x" href="https://fonts.example/a.css">',
        '<img alt="" src="//b.example/c.png">',
        "src: url(https://d.example/e.woff2)",
    ):
        assert LOADED.search(text)
    assert not LOADED.search('<a href="https://f.example">a link is not loaded</a>')


def test_pictures_are_part_of_their_page(site):
    page = (site / "concepts.html").read_text()
    for name, draw in PICTURES.items():
        title = re.search("<title>(.*?)</title>", draw())[1]
        assert f"<title>{title}</title>" in page, name
    assert "<style>.hf" not in page  # the page's colour, not the system's


def test_tutorial_shows_what_its_cells_show(site):
    page = (site / "tutorial.html").read_text()
    assert page.count('<div class="chart"') == 2
    assert "huge_coverage_ratio" in page
    assert "ten minutes later" in page


def test_reference_is_written_from_docstrings(site):
    page = (site / "api.html").read_text()
    for name in ("fleet.loading.load", "fleet.scheduler.run", "hostsim.lab.Host.boot_vm"):
        assert f'id="{name}"' in page


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_current(name):
    """Made by: make docs."""
    assert (ROOT / "docs" / "img" / name).read_text() == PICTURES[name]()
