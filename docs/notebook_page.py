"""A marimo notebook as a Markdown page: its prose, its code, and what its cells show."""

import ast
import importlib.util
import inspect
import textwrap
from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    """Return a notebook as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path: Path) -> list[str]:
    """Return the code of each cell, as it would be typed."""
    text = path.read_text()
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            last = node.body[-1]
            body = node.body[:-1] if isinstance(last, ast.Return) else node.body
            lines = text.splitlines()[body[0].lineno - 1 : body[-1].end_lineno]
            found.append(textwrap.dedent("\n".join(lines)))
    return found


def shown(output: Any) -> str:
    """Return what a cell shows as Markdown."""
    import altair as alt
    import polars as pl
    import vl_convert

    if output is None:
        return ""
    if isinstance(output, alt.Chart):
        drawing = vl_convert.vegalite_to_svg(output.to_json(validate=False))
        return f'<div class="chart" style="background:#fff">{drawing}</div>'
    if isinstance(output, pl.DataFrame):
        from fleet.text_table import NO_LIMIT, as_text

        return "```text\n" + as_text(output.head(12), NO_LIMIT).rstrip() + "\n```"
    return f"```text\n{output}\n```"


def page(path: Path) -> str:
    """Run a notebook and return its page."""
    outputs, _ = load(path).app.run()
    parts = []
    for code, output in zip(cells(path), outputs, strict=True):
        prose = [
            node.args[0].value
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "mo.md"
        ]
        if prose:
            parts.append(inspect.cleandoc(prose[0]))
        else:
            parts += [f"```python\n{code}\n```", shown(output)]
    return "\n\n".join(filter(None, parts)) + "\n"
