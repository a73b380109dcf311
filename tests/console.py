"""Commands that documents show: found, made small, and run in this process."""

import contextlib
import inspect
import io
import re
import shlex
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import typer
from typer.main import get_command

from fleet import cli, grid, loading, scheduler

ROOT = Path(__file__).resolve().parents[1]
# What makes any scenario cheap: small hosts, few VMs, an hour, no samples of translation.
SMALL = (
    "hosts.memory=8GiB",
    "hosts.vcpus=16",
    "hosts.reserved=2GiB",
    "hosts.slab.base=256MiB",
    "run.duration=1h",
    "run.epoch_ticks=6",
    "mmu.enabled=false",
)
FEW_HOSTS, FEW_VMS = "hosts.count=2", "vms.scale=0.00005"


class Command(NamedTuple):
    """One line behind a prompt."""

    line: str  # continuations joined
    words: list[str]
    to_file: str  # behind >, or ""


def commands(text, mark="console"):
    """Return the commands of a document: lines behind ``$ `` in blocks with this mark."""
    found = []
    for block in re.findall(rf"^ *```{mark}\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        lines = iter(textwrap.dedent(block).splitlines())
        for line in lines:
            if not line.startswith("$ "):
                continue  # what it prints
            typed = line.removeprefix("$ ")
            while typed.endswith("\\") or typed.count("'") % 2 or typed.count('"') % 2:
                typed = typed.removesuffix("\\") + "\n" + next(lines)
            found.append(parsed(typed))
    return found


def parsed(typed):
    words = shlex.split(typed, comments=True)
    to_file = words[words.index(">") + 1] if ">" in words else ""
    if to_file:
        words = words[: words.index(">")]
    return Command(" ".join(typed.split()), words, to_file)


def python_blocks(text):
    """Return the examples in Python that are whole: they begin with an import of ours."""
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [b for b in blocks if re.match(r"(from pathlib.*\n)?from (fleet|hostsim) import", b)]


def make_small(monkeypatch):
    """Let every scenario be a small one and every run one of this process."""
    load, run = loading.load, scheduler.run

    def load_small(name, overrides=()):
        path = Path(name)
        text = path.read_text() if path.exists() else loading.builtin_text(name)
        groups = text.count("[[hosts]]")
        few = [f"hosts[{group}].count=1" for group in range(groups)] if groups > 1 else [FEW_HOSTS]
        of_trace = 'source = "trace"' in text
        vms = ["hosts.memory=32GiB"] if of_trace else [FEW_VMS]
        as_captured = re.search(r"^snapshot = |^\[\[hosts.snapshot", text, re.MULTILINE)
        kept = [o for o in SMALL if not (as_captured and o.startswith("hosts."))]
        stops = [] if "[[maintenance]]" not in text else ["maintenance[0].start=30min"]
        stops += [] if not stops else ["maintenance[0].duration=10min"]
        return load(name, [*overrides, *kept, *few, *vms, *stops])

    def run_small(scenario, out, options=None, *rest):
        wanted = options or scheduler.Options()
        small = scheduler.Options(inline=True, overwrite=wanted.overwrite, resume=wanted.resume)
        return run(scenario, out, small, *rest)

    for module in (loading, grid):
        monkeypatch.setattr(module, "load", load_small)
    monkeypatch.setattr(scheduler, "run", run_small)


def run_fleet(words):
    """Run ``fleet`` with these arguments; return its exit code and what it printed."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
    before = sys.argv
    sys.argv = ["fleet", *words]
    code = 0
    try:
        with contextlib.redirect_stdout(printed):
            cli.main()
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.argv = before
    return code, printed.buffer.getvalue().decode()


def forwarded(command):
    """Return the app behind a command that only hands its arguments on, or None."""
    found = []
    before = cli._forward
    cli._forward = lambda _, module, name: found.append(getattr(import_module(module), name))
    try:
        names = {i.name or i.callback.__name__: i.callback for i in cli.app.registered_commands}
        callback = names.get(command)
        if callback and list(inspect.signature(callback).parameters) == ["context"]:
            callback(SimpleNamespace(args=[], info_name=""))
    finally:
        cli._forward = before
    if not found or isinstance(found[0], typer.Typer):
        return get_command(found[0]) if found else None
    app = typer.Typer(add_completion=False)
    app.command()(found[0])
    return get_command(app)


def usage_error(words):
    """Return what the command line says against a ``fleet`` command, without running it."""
    known = get_command(cli.app).commands
    if words[0] not in known:
        return f"there is no command {words[0]}"
    command, rest = forwarded(words[0]) or known[words[0]], words[1:]
    while getattr(command, "commands", None) and rest:
        if rest[0] not in command.commands:
            return f"fleet {words[0]} has no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    if getattr(command, "commands", None):
        return ""
    try:
        command.make_context("fleet", [word for word in rest if word != "--help"])
    except Exception as error:
        if not hasattr(error, "format_message"):  # of click, which typer may carry in itself
            raise
        return error.format_message()
    return ""
