"""The run directory: who may write it, what ``run.json`` says, and how readers open it."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from hostsim.core.errors import Problem, ResultsError, ScenarioError
from hostsim.core.stats import SCHEMA_VERSION, TABLES

RUN_FILE = "run.json"
MANIFEST_FILE = "_manifest.json"
STAGING = "_staging"
CHECKPOINTS = "_checkpoints"
FORMAT = "hugefleet run"
_OURS = (*TABLES, STAGING, CHECKPOINTS, MANIFEST_FILE, RUN_FILE)  # run.json last: it is the proof
_PACKAGES = ("hugefleet", "numba", "numpy", "polars", "pyarrow", "ray")


@contextmanager
def reported(path: Path, doing: str) -> Iterator[None]:
    """Turn an ``OSError`` into a :class:`ResultsError` that names the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(f"{error.filename or path}: cannot {doing}: {reason}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old or the new content, never a part.

    Raises
    ------
    ResultsError
        The file cannot be written.
    """
    staged = path.with_name(f".{path.name}.new")
    with reported(path, "write"):
        with staged.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically, in a stable layout."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises
    ------
    ResultsError
        The file is missing, unreadable or no JSON.
    """
    with reported(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except ValueError as error:
        raise ResultsError(f"{path}: is not JSON: {error}") from None


def is_run(out: Path) -> bool:
    """Say whether a directory was written by a run."""
    try:
        record = read_json(out / RUN_FILE)
    except ResultsError:
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def claim(out: Path, overwrite: bool, resume: bool) -> None:
    """Make the directory ready for a run, or refuse it.

    Raises
    ------
    ScenarioError
        It holds something, and the user did not say what should become of it.
    ResultsError
        It cannot be made or emptied.
    """
    with reported(out, "use as run directory"):
        occupied = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if occupied and not is_run(out):
        message = "exists and is not a run directory; it stays untouched"
        raise ScenarioError([Problem(f"--out {out}", message, "choose another --out")])
    if occupied and resume:
        return
    if resume:
        raise ScenarioError([Problem(f"--out {out}", "holds no run to resume")])
    if occupied and not overwrite:
        hint = "--overwrite deletes that run, --resume continues it, --out names another place"
        raise ScenarioError([Problem(f"--out {out}", "already holds a run", hint)])
    with reported(out, "use as run directory"):
        if occupied:
            _delete(out)
        out.mkdir(parents=True, exist_ok=True)


def _delete(out: Path) -> None:
    for name in _OURS:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


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

    path: Path
    record: dict[str, Any]  # run.json
    parts: dict[str, list[Path]]  # by table, in epoch and group order

    @property
    def complete(self) -> bool:
        """Whether the run reached its end."""
        return bool(self.record.get("status") == "complete")


def open_run(path: Path) -> RunDirectory:
    """Open a run for reading.

    Raises
    ------
    ResultsError
        It is no run, a part is missing, or its schema version is not ours.
    """
    if not is_run(path):
        raise ResultsError(f"{path}: is not a run directory (no {RUN_FILE} written by fleet run)")
    record = read_json(path / RUN_FILE)
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ResultsError(
            f"{path}: schema version {record.get('schema_version')},"
            f" this program reads version {SCHEMA_VERSION}"
        )
    parts: dict[str, list[Path]] = {table: [] for table in TABLES}
    if (path / MANIFEST_FILE).exists():
        for part in read_json(path / MANIFEST_FILE)["parts"]:
            file = path / part["path"]
            if not file.is_file():
                raise ResultsError(f"{file}: is in the manifest, but missing")
            parts[part["table"]].append(file)
    return RunDirectory(path, record, parts)
