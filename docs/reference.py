"""Write the reference pages that are made from the code: docs/cli.md and docs/scenario-fields.md.

python docs/reference.py
"""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import typer
from typer.main import get_command

from fleet import cli
from fleet.scenario import json_schema

DOCS = Path(__file__).resolve().parent
MADE = "Written by `make docs` from the code.\n"


def _cell(text: object) -> str:
    """Return text as it stands in a cell of a table."""
    return str(text).replace("|", "\\|").replace("\n", " ")


def _table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    if not rows:
        return []
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows), ""]


def _forwarded(callback: Any) -> Any:
    """Return the command behind one that only hands its arguments on; None if it does not."""
    found: list[Any] = []
    before = cli._forward
    cli._forward = lambda _, module, name: found.append(getattr(import_module(module), name))
    try:
        if list(inspect.signature(callback).parameters) == ["context"]:
            callback(SimpleNamespace(args=[], info_name=""))
    finally:
        cli._forward = before
    if not found or isinstance(found[0], typer.Typer):
        return get_command(found[0]) if found else None
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(found[0])
    return get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Return every command with its full name, those of sub-apps behind their group."""
    callbacks = {
        info.name or info.callback.__name__: info.callback for info in cli.app.registered_commands
    }
    for name, own in get_command(cli.app).commands.items():
        command = _forwarded(callbacks[name]) or own
        yield f"fleet {name}", command
        for sub_name, sub_command in getattr(command, "commands", {}).items():
            behind = getattr(sub_command.callback, "behind", None)
            yield f"fleet {name} {sub_name}", get_command(behind()) if behind else sub_command


def _prose(text: str) -> list[str]:
    """Return the help of a command; blocks behind a backspace as they stand."""
    lines: list[str] = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("\b"):
            title, *rest = block.removeprefix("\b").strip("\n").split("\n")
            body = rest if title.endswith(":") else [title, *rest]
            lines += [title, ""] if title.endswith(":") else []
            lines += ["```text", *(line.removeprefix("  ") for line in body), "```", ""]
        else:
            lines += [" ".join(block.split()), ""]
    return lines


def _default(parameter: Any) -> str:
    default = parameter.default
    if default in (None, False, (), []) or callable(default):
        return ""
    return f"`{getattr(default, 'value', default)}`"


def _command(name: str, command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = [(p.metavar or p.name.upper()) + (" ..." if p.nargs == -1 else "") for p in arguments]
    shown = [w if p.required else f"[{w}]" for w, p in zip(words, arguments, strict=True)]
    usage = " ".join([name, *shown, *(["[OPTIONS]"] if options else [])])
    if getattr(command, "commands", None):
        usage = f"{name} COMMAND ..."
    lines = [f"## {name}", "", "```text", usage, "```", "", *_prose(command.help or "")]
    lines += _table(
        ("argument", "meaning"),
        [(f"`{word}`", p.help or "") for word, p in zip(words, arguments, strict=True)],
    )
    lines += _table(
        ("option", "default", "meaning"),
        [
            (", ".join(f"`{o}`" for o in p.opts + p.secondary_opts), _default(p), p.help or "")
            for p in options
            if p.name != "help"
        ],
    )
    return lines


def cli_markdown() -> str:
    """Return docs/cli.md."""
    lines = ["# Commands", "", MADE]
    lines += [
        "Results go to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed,",
        "2 bad usage or scenario, 130 interrupted. `fleet COMMAND --help` prints the same.",
        "",
    ]
    for name, command in commands():
        lines += _command(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _type(field: dict[str, Any]) -> str:
    """Say in words what a field takes, from its JSON Schema."""
    parts = [part for part in field.get("anyOf", [field]) if part.get("type") != "null"]
    field = parts[0]
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field["type"] == "array":
        return "list of " + _type(field["items"]) + "s"
    if field["type"] == "string" and "examples" in field:
        return "size" if field["examples"][0].endswith("B") else "duration"
    word = {"string": "text", "boolean": "`true`, `false`", "object": "table of numbers"}.get(
        field["type"], "whole number" if field["type"] == "integer" else "number"
    )
    bounds = {
        "minimum": "at least {:,}",
        "exclusiveMinimum": "above {:,}",
        "maximum": "at most {:,}",
        "exclusiveMaximum": "below {:,}",
    }
    if "minimum" in field and abs(field.get("maximum", 2**31)) < 2**31 - 1:
        return f"{word}, {field['minimum']:,} to {field['maximum']:,}"
    said = [
        text.format(field[key])
        for key, text in bounds.items()
        if key in field and abs(field[key]) < 2**31 - 1
    ]
    return ", ".join([word, *said])


def _toml(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"`{name} = {weight}`" for name, weight in value.items())
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def _sections(path: str, schema: dict[str, Any], whole: dict[str, Any]) -> Iterator[list[str]]:
    """Return the lines of a table of the file, then of those in it."""
    rows: list[tuple[object, ...]] = []
    below: list[tuple[str, dict[str, Any]]] = []
    required = schema.get("required", [])
    prefix = f"{path.strip('[]')}." if path else ""
    for name, field in schema["properties"].items():
        parts = [field, field.get("items", {}), *field.get("anyOf", [])]
        reference = next((part["$ref"] for part in parts if "$ref" in part), None)
        if reference:
            inner = f"[[{prefix}{name}]]" if "items" in field else f"[{prefix}{name}]"
            below.append((inner, whole["$defs"][reference.rpartition("/")[2]]))
            continue
        default = "required" if name in required else _toml(field.get("default"))
        rows.append((f"`{name}`", _type(field), default, field["description"]))
    if rows:
        said = inspect.cleandoc(schema["description"]).replace("``", "`")
        head = ("field", "value", "default", "meaning")
        yield [f"## {path}", "", *said.split("\n"), "", *_table(head, rows)]
    for inner, definition in below:
        yield from _sections(inner, definition, whole)


def scenario_markdown() -> str:
    """Return docs/scenario-fields.md."""
    schema = json_schema()
    lines = ["# Scenario fields", "", MADE]
    lines += [
        "Every field of a scenario file, with what it is if left out. Sizes are text such as",
        '`"64GiB"`, durations text such as `"5min"`. Any of them can be set on the command line:',
        "`--set run.duration=1h`, `--set hosts.thp.enabled=madvise` (all groups of hosts),",
        "`--set hosts[1].memory=64GiB`. The same for programs: `fleet check --schema`.",
        "",
    ]
    for section in _sections("", schema, schema):
        lines += section
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"cli.md": cli_markdown, "scenario-fields.md": scenario_markdown}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (DOCS / page).write_text(make())
