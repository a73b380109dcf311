"""The run directory: who may write it, what ``run.json`` says, and how readers open it."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from fleet.lock import LOCK_FILE
from fleet.store import STAGING, Store
from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.stats import SCHEMA_VERSION, TABLES

RUN_FILE = "run.json"
MANIFEST_FILE = "_manifest.json"
CHECKPOINTS = "_checkpoints"
FORMAT = "hugefleet run"
UNBORN = (LOCK_FILE, f".{RUN_FILE}.new", f".{LOCK_FILE}.new")  # what a run has before run.json
_PACKAGES = ("hugefleet", "numba", "numpy", "polars", "pyarrow", "ray")


def write_json(store: Store, path: str, content: object) -> None:
    """Write JSON whole or not at all, in a stable layout."""
    store.write(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(store: Store, path: str) -> Any:
    """Read JSON.

    Raises
    ------
    ResultsError
        The file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(store.read(path))
    except ValueError as error:
        raise ResultsError(f"{store.label(path)}: is not JSON: {error}") from None


def is_run(store: Store) -> bool:
    """Say whether a folder was written by a run."""
    try:
        record = read_json(store, RUN_FILE) if store.exists(RUN_FILE) else None
    except ResultsError:
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def claim(store: Store, overwrite: bool, resume: bool) -> None:
    """Look whether a run may begin or go on in a folder, and make the folder; delete nothing.

    Raises
    ------
    ScenarioError
        It holds something, and the user did not say what should become of it.
    ResultsError
        It cannot be made.
    """
    place = f"--out {store}"
    if store.exists(""):
        raise ScenarioError([Problem(place, "is a file; it stays untouched")])
    found = store.names()
    if set(found) - set(UNBORN) and not is_run(store):
        message = "exists and is not a run directory; it stays untouched"
        raise ScenarioError([Problem(place, message, "choose another --out")])
    if not found and resume:
        raise ScenarioError([Problem(place, "holds no run to resume")])
    if RUN_FILE in found and not (overwrite or resume):
        hint = "--overwrite deletes that run, --resume continues it, --out names another place"
        raise ScenarioError([Problem(place, "already holds a run", hint)])
    store.make_folder()


def clear(store: Store) -> None:
    """Delete a run, ``run.json`` last: it is the proof that the rest is ours."""
    for table in (*TABLES, STAGING, CHECKPOINTS):
        store.delete_folder(table)
    for name in (MANIFEST_FILE, RUN_FILE):
        if store.exists(name):
            store.delete(name)


def versions() -> dict[str, str]:
    """Return what the bytes of a run depend on besides scenario and seed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, or None outside of one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class RunDirectory(NamedTuple):
    """A finished or unfinished run, opened for reading; parts as the manifest has them."""

    store: Store
    record: dict[str, Any]  # run.json
    parts: dict[str, list[str]]  # by table, in epoch and group order

    @property
    def complete(self) -> bool:
        """Whether the run reached its end."""
        return bool(self.record.get("status") == "complete")


def part_path(table: str, epoch: int, group: int) -> str:
    """Return where a part lies: a function of table, epoch and host group alone."""
    return f"{table}/part-e{epoch:05d}-g{group:04d}.parquet"


def epoch_of(path: str) -> int:
    """Return the epoch of a part, from its path."""
    return int(path.rpartition("/part-e")[2].partition("-")[0])


def read_manifest(store: Store) -> list[dict[str, Any]]:
    """Return the parts of a run that are committed.

    Raises
    ------
    ResultsError
        The manifest cannot be read, or names files that are no parts of a run.
    """
    if not store.exists(MANIFEST_FILE):
        return []
    found = read_json(store, MANIFEST_FILE)
    try:
        parts: list[dict[str, Any]] = found["parts"]
        for part in parts:
            expected = part_path(part["table"], part["epoch"], part["group"])
            if part["table"] not in TABLES or part["path"] != expected:
                raise ValueError(f"{part['path']} is no part of a run")
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError(f"{store.label(MANIFEST_FILE)}: is damaged: {error}") from None
    return parts


def open_run(place: str | Path | Store) -> RunDirectory:
    """Open a run for reading.

    Raises
    ------
    ScenarioError
        It is no run, or one of another schema version.
    ResultsError
        A file is missing or damaged.
    """
    store = Store.of(place)
    if not is_run(store):
        message = f"is not a run directory: no {RUN_FILE} written by fleet run"
        raise ScenarioError([Problem(str(store), message)])
    record = read_json(store, RUN_FILE)
    _check_schema(store, record)
    parts: dict[str, list[str]] = {table: [] for table in TABLES}
    for part in read_manifest(store):
        parts[part["table"]].append(part["path"])
    for path in store.missing([path for paths in parts.values() for path in paths])[:1]:
        raise ResultsError(f"{store.label(path)}: is in the manifest, but missing")
    return RunDirectory(store, record, parts)


def _check_schema(store: Store, record: dict[str, Any]) -> None:
    """Refuse a run whose columns may mean something else."""
    found = record.get("schema_version")
    if found == SCHEMA_VERSION:
        return
    newer = isinstance(found, int) and found > SCHEMA_VERSION
    message = (
        f"was written by {'a newer' if newer else 'an older'} hugefleet: schema {found},"
        f" this one reads {SCHEMA_VERSION}"
    )
    commit = str(record.get("git_commit") or "")[:12]
    origin = f"hugefleet {record.get('versions', {}).get('hugefleet', 'of unknown version')}"
    hint = f"read it with {origin}{f', commit {commit}' if commit else ''}, or run it again"
    raise ScenarioError([Problem(str(store), message, hint)])
