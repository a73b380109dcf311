"""What the trace importers share: text files as columns, sizes as flavours, batches."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.trace import I16, I64, Check, RowProblems
from hostsim.core.errors import Problem, ScenarioError
from hostsim.core.units import PAGE_BYTES, parse_pages

if TYPE_CHECKING:
    import polars as pl

F64 = NDArray[np.float64]

GIB_PAGES = (1 << 30) // PAGE_BYTES
CHUNK_BYTES = 32 << 20


class ImportOptions(NamedTuple):
    """What an importer may need to know beside the file; each reads what concerns it."""

    part: str = "test"  # azure-v1-arrivals: train, dev or test
    keep_clock: bool = False  # azure-v1-arrivals: time 0 is the month's, not the part's
    machine_id: int = 16  # azure-packing: the machine type that public loaders choose
    vcpus: int = 64  # azure-packing: vCPUs that the share 1.0 stands for
    memory_pages: int = parse_pages("512GiB")  # azure-packing: base pages of the share 1.0


def text_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of a text file, gzipped or not, in chunks with the first one's number."""
    if not path.is_file():
        raise ScenarioError([Problem(str(path), "no such file")])
    number, rest = 1, b""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                whole, cut, last = (rest + chunk).rpartition(b"\n")
                if not cut:
                    rest = last
                    continue
                lines = whole.decode("utf-8", "replace").split("\n")
                yield number, lines
                number += len(lines)
                rest = last
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ScenarioError(
            [Problem(str(path), f"gzip data is broken: {error}", "fetch the file again")]
        ) from error
    except OSError as error:
        raise ScenarioError([Problem(str(path), f"cannot be read: {error}")]) from error
    if rest.strip():
        yield number, rest.decode("utf-8", "replace").split("\n")


def text_frames(
    path: Path, nr_fields: int, problems: RowProblems, skip_lines: int = 0
) -> Iterator[tuple[I64, "pl.DataFrame"]]:
    """Yield line numbers and fields (columns "0", "1", ... of text) of a CSV file.

    Empty lines are passed over; lines with another number of fields are bad rows.
    """
    import polars as pl

    for first, lines in text_lines(path):
        text = pl.Series("line", lines, dtype=pl.String).str.strip_chars_end("\r")
        number = np.arange(first, first + len(lines), dtype=np.int64)
        keep = (text.str.len_bytes() > 0).to_numpy() & (number > skip_lines)
        text, number = text.filter(pl.Series(keep)), number[keep]
        found = text.str.count_matches(",", literal=True).to_numpy() + 1
        is_bad = found != nr_fields

        def miscounted(row: int, found: I64 = found) -> str:
            return f"{found[row]} fields, must be {nr_fields}"

        problems.check([(is_bad, miscounted)], number)
        fields = text.filter(pl.Series(~is_bad)).str.split_exact(",", nr_fields - 1)
        frame = fields.struct.rename_fields([str(at) for at in range(nr_fields)]).struct.unnest()
        yield number[~is_bad], frame


def numbers(frame: "pl.DataFrame", at: int) -> F64:
    """Return a text column as numbers, NaN where it holds none."""
    import polars as pl

    column = frame[str(at)].str.strip_chars().cast(pl.Float64, strict=False)
    return column.fill_null(float("nan")).to_numpy().astype(np.float64)


def not_a_number(values: F64, texts: "pl.Series", what: str) -> Check:
    """Return the check that a column held numbers."""
    return ~np.isfinite(values), lambda row: f"{what} {texts[row]!r} is not a number"


def flavours_of(vcpus: F64, gib: F64) -> tuple[I16, tuple[str, ...]]:
    """Return the number of each VM's size, smallest first, and names like ``2c-3.5GiB``."""
    sizes, flavour = np.unique(np.stack([vcpus, gib], axis=1), axis=0, return_inverse=True)
    names = tuple(f"{cores:g}c-{size:g}GiB" for cores, size in sizes)
    return flavour.reshape(-1).astype(np.int16), names


def batches_of(key: NDArray[np.generic], start: NDArray[np.generic]) -> I64:
    """Return batch numbers: same tenant key, same start; in order of first appearance."""
    _, tenant = np.unique(key, return_inverse=True)
    _, moment = np.unique(start, return_inverse=True)
    joint = tenant.astype(np.int64) * (moment.max(initial=0) + 1) + moment
    _, first, batch = np.unique(joint, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[batch]


def whole_pages(gib: F64) -> tuple[I64, NDArray[np.bool_]]:
    """Return GiB as base pages and where that is no whole number of them."""
    pages = np.nan_to_num(gib) * GIB_PAGES
    return np.rint(pages).astype(np.int64), np.abs(pages - np.rint(pages)) > 1e-3
