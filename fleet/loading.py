"""Reading a scenario: find the file, apply ``--set``, and name every problem at once."""

import difflib
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fleet.scenario import HostsSection, RunSection, Scenario, ScenarioFile, resolve
from fleet.scenario_fleet import (
    FailuresSection,
    MaintenanceSection,
    MigrationSection,
    MmuSection,
    PlacementSection,
    VmsSection,
)
from fleet.scenario_guests import GuestsSection
from hostsim.core.errors import Problem, ScenarioError, near

M = TypeVar("M", bound=BaseModel)
Step = str | int
_STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)((?:\[\d+\])*)|(\d+)")


class Override(NamedTuple):
    """One ``--set PATH=VALUE``, parsed."""

    text: str
    steps: tuple[Step, ...]
    raw: str  # the value as typed


def builtin_names() -> list[str]:
    """Return the names of the scenarios in the package."""
    folder = files("scenarios")
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def builtin_text(name: str) -> str:
    """Return the text of a built-in scenario."""
    return files("scenarios").joinpath(f"{name}.toml").read_text(encoding="utf-8")


def question(text: str) -> str:
    """Return the comment that opens a scenario file: its question and how long it runs."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return "\n".join(lines)


def load(name_or_path: str, overrides: Sequence[str] = ()) -> Scenario:
    """Read a built-in scenario or a file, apply overrides, and resolve it.

    Parameters
    ----------
    name_or_path
        As on the command line; `fleet scenarios` lists what is built in.
    overrides
        As of ``--set``: ``"hosts.thp.enabled=madvise"``.

    Raises
    ------
    ScenarioError
        With every problem found, each with its file or ``--set``, path, value and rule.

    Examples
    --------
    >>> scenario = load("smoke", ["hosts.memory=32GiB", "run.duration=30min"])
    >>> scenario.nr_hosts, scenario.nr_epochs, scenario.host_specs()[0].memory_pages
    (4, 1, 8388608)
    """
    text, name, path = _read(name_or_path)
    origin = str(path) if path else name
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError([Problem(origin, f"is not TOML: {error}")]) from None
    if path:  # a file speaks of its neighbours
        for table, key in _file_names(raw):
            table[key] = str(path.parent / table[key])
    return build(raw, name, origin, overrides)


def _file_names(raw: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the tables and keys that name files."""
    groups = raw.get("hosts")
    tables = [("path", raw.get("vms"))]
    for host in groups if isinstance(groups, list) else ():
        tables += [("snapshot", host), ("costs", host)]
    for key, table in tables:
        if isinstance(table, dict) and isinstance(table.get(key), str) and table[key]:
            yield table, key


def _embed_files(
    raw: dict[str, Any], problems: list[Problem], place: Callable[[tuple[Step, ...]], str]
) -> None:
    """Put what files say in the place of the names of files, of snapshots and costs."""
    groups = raw.get("hosts")
    for index, host in enumerate(groups if isinstance(groups, list) else ()):
        for key in ("snapshot", "costs"):
            if not isinstance(host, dict) or not isinstance(host.get(key), str):
                continue
            name = host.pop(key)
            try:
                if key == "snapshot":
                    from fleet.snapshot_file import read_snapshot
                    from fleet.snapshot_state import embed

                    embed(host, read_snapshot(name), Path(name).name)
                else:
                    from fleet.cost_file import read_costs

                    host[key] = read_costs(name)
            except ScenarioError as error:
                where = place(("hosts", index, key))
                problems += [
                    Problem(where, f"{found.place} {found.message}", found.hint)
                    for found in error.problems
                ]


def _read(name_or_path: str) -> tuple[str, str, Path | None]:
    known = builtin_names()
    if name_or_path in known:
        return builtin_text(name_or_path), name_or_path, None
    path = Path(name_or_path)
    try:
        return path.read_text(encoding="utf-8"), path.stem, path
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(name_or_path, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "built in: " + ", ".join(known)
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        message = f"is no built-in scenario, and as a file cannot be read: {reason}"
        raise ScenarioError([Problem(name_or_path, message, hint)]) from None


def build(raw: dict[str, Any], name: str, origin: str, overrides: Sequence[str] = ()) -> Scenario:
    """Validate a parsed file section by section and resolve it.

    Raises
    ------
    ScenarioError
        With every problem found.
    """
    problems: list[Problem] = []
    places: dict[tuple[Step, ...], str] = {}
    for text in overrides:
        try:
            override = parse_override(text)
            for steps in apply_override(raw, override):
                places[steps] = f"--set {override.text}"
        except ValueError as error:
            problems.append(Problem(f"--set {text}", str(error)))

    def place(steps: tuple[Step, ...]) -> str:
        for length in range(len(steps), 0, -1):
            if steps[:length] in places:
                return places[steps[:length]]
        return f"{origin}: {path_text(steps)}" if steps else origin

    _embed_files(raw, problems, place)
    parts = _validate_sections(raw, problems, place)
    file = None if problems else _validate(ScenarioFile, parts, (), problems, place)
    if file is None:
        raise ScenarioError(list(dict.fromkeys(problems)))
    return resolve(file, name, origin)


def _validate_sections(
    raw: dict[str, Any],
    problems: list[Problem],
    place: Callable[[tuple[Step, ...]], str],
) -> dict[str, Any]:
    """Validate each table on its own, so that a problem in one hides none in another."""
    models: dict[str, type[BaseModel]] = {
        "run": RunSection,
        "guests": GuestsSection,
        "vms": VmsSection,
        "placement": PlacementSection,
        "migration": MigrationSection,
        "failures": FailuresSection,
        "mmu": MmuSection,
    }
    parts: dict[str, Any] = {}
    for key in raw:
        if key not in ScenarioFile.model_fields:
            problems.append(
                Problem(place((key,)), "unknown key", near(key, ScenarioFile.model_fields))
            )
    for key, model in models.items():
        parts[key] = _validate(model, raw.get(key, {}), (key,), problems, place)
    groups = raw.get("hosts", [])
    if not isinstance(groups, list) or not groups:
        problems.append(
            Problem(place(("hosts",)), "a fleet needs hosts", "write one [[hosts]] table a group")
        )
        groups = []
    windows = raw.get("maintenance", [])
    if not isinstance(windows, list):
        message = "is no list of windows"
        problems.append(
            Problem(place(("maintenance",)), message, "write one [[maintenance]] table a window")
        )
        windows = []
    rows: tuple[tuple[str, type[BaseModel], list[object]], ...] = (
        ("hosts", HostsSection, groups),
        ("maintenance", MaintenanceSection, windows),
    )
    for key, section, tables in rows:
        parts[key] = tuple(
            _validate(section, table, (key, index), problems, place)
            for index, table in enumerate(tables)
        )
    return parts


def _validate(
    model: type[M],
    raw: object,
    path: tuple[Step, ...],
    problems: list[Problem],
    place: Callable[[tuple[Step, ...]], str],
) -> M | None:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            steps = path + tuple(found["loc"])
            if found["type"] == "extra_forbidden":
                fields = _fields_at(model, found["loc"][:-1])
                problems.append(Problem(place(steps), "unknown key", near(str(steps[-1]), fields)))
            else:
                message = _message(found, steps, place(steps))
                problems.append(Problem(place(steps), message, _nearest_choice(found)))
        return None


def _nearest_choice(found: Any) -> str:
    """Return a hint that names the word meant; the rule has named them all."""
    if found["type"] != "literal_error":
        return ""
    choices = re.findall("'([^']*)'", found["ctx"]["expected"])
    close = difflib.get_close_matches(str(found["input"]), choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def _message(found: Any, steps: tuple[Step, ...], where: str) -> str:
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "value_error":  # ours: value and rule are in it
        return message
    if found["type"] == "missing":
        return "is missing"
    rule = message.replace("Input should be", "must be")
    shown = f"{found['input']!r} {rule}"
    return f"{path_text(steps)}: {shown}" if where.startswith("--set") else shown


def _fields_at(model: type[BaseModel], loc: Iterable[Step]) -> Iterable[str]:
    for step in loc:
        annotation = model.model_fields[str(step)].annotation
        assert isinstance(annotation, type)
        model = annotation
    return model.model_fields


def path_text(steps: Iterable[Step]) -> str:
    """Print a path as a user writes it: ``hosts[0].thp.enabled``."""
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.lstrip(".")


def parse_override(text: str) -> Override:
    """Split ``PATH=VALUE``.

    Raises
    ------
    ValueError
        There is no ``=``, or the path is none.
    """
    path, equals, raw = text.partition("=")
    if not equals:
        raise ValueError("is not PATH=VALUE, such as hosts.thp.enabled=madvise")
    steps: list[Step] = []
    for part in path.strip().split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ValueError(f"{path!r} is no path, such as hosts[0].memory")
        if match[3]:
            steps.append(int(match[3]))
        else:
            steps.append(match[1])
            steps += [int(number) for number in re.findall(r"\d+", match[2] or "")]
    return Override(text, tuple(steps), raw.strip())


def apply_override(raw: dict[str, Any], override: Override) -> list[tuple[Step, ...]]:
    """Write one override into the parsed file, in place; return the paths written.

    A path that names a list without a number means all of its entries.

    Raises
    ------
    ValueError
        The path leads through something that is no table, or past the end of a list.
    """
    value = _override_value(override)
    written: list[tuple[Step, ...]] = []

    def descend(node: Any, done: tuple[Step, ...], left: tuple[Step, ...]) -> None:
        if isinstance(node, list) and not isinstance(left[0], int):
            for index in range(len(node)):
                descend(node, done, (index, *left))
            return
        step, rest = left[0], left[1:]
        if isinstance(node, list):
            if not isinstance(step, int) or step >= len(node):
                raise ValueError(f"{path_text(done)} has {len(node)} entries, 0 to {len(node) - 1}")
        elif not isinstance(node, dict) or isinstance(step, int):
            raise ValueError(f"{path_text(done)} has no parts, it is {node!r}")
        if not rest:
            node[step] = value
            written.append((*done, step))
            return
        if isinstance(node, dict):
            node.setdefault(step, {})
        descend(node[step], (*done, step), rest)

    descend(raw, (), override.steps)
    return written


def _override_value(override: Override) -> object:
    if _wants_text(override.steps):
        return override.raw.strip("\"'")
    try:
        return tomllib.loads(f"value = {override.raw}")["value"]
    except tomllib.TOMLDecodeError:
        return override.raw


def _wants_text(steps: Iterable[Step]) -> bool:
    """Say whether the field of this path holds words, so that kernel=6.10 stays "6.10"."""
    annotation: Any = ScenarioFile
    for step in steps:
        if isinstance(step, int):
            continue
        if get_origin(annotation) is tuple:
            annotation = get_args(annotation)[0]
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        field = annotation.model_fields.get(step)
        if field is None:
            return False
        annotation = field.annotation
    if get_origin(annotation) in (types.UnionType, typing.Union):
        return False
    return annotation is str or (
        get_origin(annotation) is Literal and isinstance(get_args(annotation)[0], str)
    )
