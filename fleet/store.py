"""Where a run's files lie: a folder on a local disk, or under any URI that pyarrow.fs opens.

A file appears whole or not at all. On a disk it is written beside, synced and renamed; an object
store shows an object when its upload has ended, and what is too large for one request is
uploaded under another key and moved.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.fs as pafs

from hostsim.core.errors import Problem, ResultsError, ScenarioError

STAGING = "_staging"
_OBJECT_STORES = ("s3", "gcs", "abfs")  # pyarrow's names; folders need not be made there


@contextmanager
def reported(path: object, doing: str) -> Iterator[None]:
    """Turn an error of a file system into a :class:`ResultsError` that names file and reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultsError(f"{error.filename or path}: cannot {doing}: {reason}") from error
    except pa.ArrowException as error:
        raise ResultsError(f"{path}: cannot {doing}: {error}") from error


class Store:
    """A folder of files; paths are relative to it, with forward slashes.

    Parameters
    ----------
    place
        A path, or a URI: ``file:///...``, ``s3://bucket/...``, ``gs://bucket/...``.
    filesystem
        If given, ``place`` is a folder of it.

    Raises
    ------
    ScenarioError
        The URI cannot be understood or reached.
    """

    def __init__(self, place: "str | Path", filesystem: pafs.FileSystem | None = None) -> None:
        self.name = str(place)
        self.fs: Any = filesystem
        self.root = self.name.rstrip("/")
        if filesystem is None:
            self.fs, self.root = _opened(self.name)
        kind = self.fs.type_name
        self.folder = Path(self.root) if kind == "local" else None  # on a disk of this machine
        self.is_object_store = kind in _OBJECT_STORES

    @classmethod
    def of(cls, place: "str | Path | Store") -> "Store":
        """Return the store at a place."""
        return place if isinstance(place, Store) else cls(place)

    def __str__(self) -> str:
        return self.name

    def label(self, path: str) -> str:
        """Return a file's name for messages."""
        return f"{self.name.rstrip('/')}/{path}" if path else self.name

    def full(self, path: str) -> str:
        """Return a file's path in the file system."""
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str) -> bool:
        """Say whether there is a file."""
        with reported(self.label(path), "look for"):
            return bool(self.fs.get_file_info(self.full(path)).is_file)

    def missing(self, paths: list[str]) -> list[str]:
        """Return those files that do not exist."""
        with reported(self.name, "look for files in"):
            infos = self.fs.get_file_info([self.full(path) for path in paths])
        return [path for path, info in zip(paths, infos, strict=True) if not info.is_file]

    def names(self, path: str = "") -> list[str]:
        """Return the names of files and folders in a folder, sorted; none if there is none."""
        selector = pafs.FileSelector(self.full(path), allow_not_found=True)
        with reported(self.label(path), "list"):
            return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read(self, path: str) -> bytes:
        """Return the content of a file."""
        with reported(self.label(path), "read"), self.fs.open_input_file(self.full(path)) as file:
            return bytes(file.read())

    @contextmanager
    def opened(self, path: str) -> Iterator[Any]:
        """Open a file for reading anywhere in it."""
        with reported(self.label(path), "read"), self.fs.open_input_file(self.full(path)) as file:
            yield file

    def write(self, path: str, content: bytes, attempt: str = "") -> None:
        """Write a file; a reader sees the old content or the new."""
        self.write_all({path: content}, attempt)

    def write_all(self, files: Mapping[str, bytes], attempt: str = "") -> None:
        """Write files: all of them are staged before the first appears.

        Raises
        ------
        ResultsError
            One cannot be written.
        """
        if self.is_object_store:
            for path, content in files.items():
                with reported(self.label(path), "write"), self._stream(path) as file:
                    file.write(content)
            return
        for path, content in files.items():
            staged = _staged(path, attempt)
            with reported(self.label(staged), "write"), self._new(staged) as file:
                file.write(content)
        for path in files:
            self._commit(_staged(path, attempt), path)
        for folder in {path.rpartition("/")[0] for path in files}:
            self._sync_folder(folder)

    @contextmanager
    def writing(self, path: str) -> Iterator[Any]:
        """Write a file piece by piece; it appears when the block ends without an error."""
        staged = _staged(path, "")
        with reported(self.label(path), "write"):
            with self._new(staged) as file:
                yield file
            self._commit(staged, path)
            self._sync_folder(path.rpartition("/")[0])

    def make_folder(self, path: str = "") -> None:
        """Make a folder and those above it, where there is such a thing."""
        if not self.is_object_store:
            with reported(self.label(path), "make"):
                self.fs.create_dir(self.full(path), recursive=True)

    def delete(self, path: str) -> None:
        """Delete a file."""
        with reported(self.label(path), "delete"):
            self.fs.delete_file(self.full(path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all in it, if it exists; a link to one is not followed."""
        with reported(self.label(path), "delete"):
            if self.folder is not None:
                link = self.folder / path
                if link.is_symlink():
                    link.unlink()
                elif link.exists():
                    shutil.rmtree(link)
            elif self.fs.get_file_info(self.full(path)).type != pafs.FileType.NotFound:
                self.fs.delete_dir(self.full(path))

    @contextmanager
    def _new(self, path: str) -> Iterator["IO[bytes]"]:
        """Open a new file; on a disk of this machine its content is safe when the block ends."""
        if self.folder is None:
            self.make_folder(path.rpartition("/")[0])
            with self._stream(path) as stream:
                yield stream
            return
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    def _stream(self, path: str) -> Any:
        return self.fs.open_output_stream(self.full(path))

    def _commit(self, staged: str, path: str) -> None:
        with reported(self.label(path), "commit"):
            self.fs.move(self.full(staged), self.full(path))

    def _sync_folder(self, path: str) -> None:
        """Make renames in a folder outlast a loss of power."""
        if self.folder is not None:
            with reported(self.label(path), "sync"):
                handle = os.open(self.folder / path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def _staged(path: str, attempt: str) -> str:
    """Return where a file is written first: in an attempt's folder, or beside."""
    if attempt:
        return f"{STAGING}/{attempt}/{path}"
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}.{name}.new"


def _opened(place: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path in it."""
    if "://" not in place:
        return pafs.LocalFileSystem(), str(Path(place).absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(place)
        if not path.strip("/"):
            raise ValueError("it names no folder")
    except (pa.ArrowException, OSError, ValueError) as error:
        hint = "a path, file:///..., s3://bucket/... or gs://bucket/..."
        message = f"cannot be opened: {str(error).splitlines()[0]}"
        raise ScenarioError([Problem(place, message, hint)]) from None
    return filesystem, str(path).rstrip("/")
