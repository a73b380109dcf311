"""What `mkdocs build` does beside Markdown: files from elsewhere, the notebook, pictures inline."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BROUGHT = {  # page -> file outside of docs/
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "conventions.md": "CONVENTIONS.md",
    "deploy.md": "deploy/README.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    for page, source in BROUGHT.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    spec = importlib.util.spec_from_file_location("notebook_page", DOCS / "notebook_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files.append(File.generated(config, "tutorial.md", content=module.page(DOCS / "tutorial.py")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links at the pages of the site, and put pictures into their page.

    In the page they take its colour, light or dark.
    """
    for name, source in BROUGHT.items():
        markdown = markdown.replace(f"](../{source}", f"]({name}").replace(
            f"]({source}", f"]({name}"
        )
    markdown = re.sub(r"\]\((?:\.\./)+docs/", "](", markdown)
    if page.file.src_uri in BROUGHT:
        markdown = markdown.replace("](docs/", "](")
    return re.sub(r"!\[[^]]*\]\((img/[\w.-]+\.svg)\)", _inline, markdown)


def _inline(match: re.Match[str]) -> str:
    drawing = (DOCS / match[1]).read_text()
    drawing = re.sub(r"<style>.*?</style>", "", drawing, flags=re.DOTALL)
    return f'<div markdown="0">{drawing}</div>'
