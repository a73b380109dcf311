"""Results as plain text that fits the terminal."""

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

NO_LIMIT = 1 << 30
_NAME_WIDTHS = 16, 12, 9, 7, 5, 1  # that names are broken to, the first that fits
_MOST_TURNED = 5  # rows of a frame too wide for the screen that are printed as columns


def as_text(frame: pl.DataFrame, width: int = NO_LIMIT) -> str:
    """Print a frame as a plain table.

    If it is too wide, names of columns are broken at underscores; then, if there are few rows,
    rows and columns change places; then columns are left out, and the last line says how many.
    """
    cells = [[cell_text(value) for value in column] for column in frame]
    right = [dtype.is_numeric() for dtype in frame.dtypes]
    heads = [[name] for name in frame.columns]
    for least in _NAME_WIDTHS:
        if _width(heads, cells) > width:
            heads = [_broken(name, cells[i], least) for i, name in enumerate(frame.columns)]
    if _width(heads, cells) <= width:
        return _printed(heads, cells, right)
    if len(frame) <= _MOST_TURNED:
        numbers = [[str(row)] for row in range(1, len(frame) + 1)]
        rows = [[column[row] for column in cells] for row in range(len(frame))]
        return _printed(
            [["column"], *numbers], [frame.columns, *rows], [False, *(True for _ in rows)]
        )
    shown = len(heads)
    while shown > 1 and _width(heads[:shown], cells[:shown]) > width:
        shown -= 1
    text = _printed(heads[:shown], cells[:shown], right)
    return f"{text}\n{shown} of {len(heads)} columns fit; name some, or use --csv"


def cell_text(value: Any) -> str:
    """Print one value; numbers with as many digits as people read."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"


def _broken(name: str, cells: Sequence[str], least: int) -> list[str]:
    """Break a name at underscores into lines no wider than they must be, or than ``least``."""
    parts = name.split("_")
    room = max(least, *map(len, [*parts, *cells]))
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) <= room:
            lines[-1] += f"_{part}"
        else:
            lines.append(f"_{part}" if len(part) < room else part)
    return lines


def _widths(heads: Sequence[list[str]], cells: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, [*head, *column])) for head, column in zip(heads, cells, strict=True)]


def _width(heads: Sequence[list[str]], cells: Sequence[Sequence[str]]) -> int:
    return sum(width + 3 for width in _widths(heads, cells)) + 1


def _printed(
    heads: Sequence[list[str]], cells: Sequence[Sequence[str]], right: Sequence[bool]
) -> str:
    widths = _widths(heads, cells)
    height = max(map(len, heads), default=0)
    padded = [head + [""] * (height - len(head)) for head in heads]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=False)
        )
        return f"| {' | '.join(aligned)} |"

    lines = [line([head[i] for head in padded]) for i in range(height)]
    lines.append(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
    lines += [line(row) for row in zip(*cells, strict=True)]
    return "\n".join(lines)
