"""Pictures of a host's physical memory: a cell a pageblock, a panel a time, with legends."""

import base64
import html
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template
from typing import Any, Final

import altair as alt
import numpy as np
import vl_convert
from numpy.typing import NDArray

from fleet import charts
from fleet.memory_map import CELLS, TYPES, MemoryMap, Word, bytes_of_row, columns_of
from hostsim.core.units import format_bytes, format_duration

PANELS_A_ROW: Final = 3
PANEL_PX: Final = 400  # width of a panel, at least
ONE_PANEL_PX: Final = 640  # of the only panel
PPI: Final = 72  # a pixel of a panel is one of the file
GIB: Final = 1 << 30
MIB: Final = 1 << 20
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_INDEXED: Final = 3  # colour type of a PNG with a palette


def indexed_png(pixels: NDArray[np.uint8], colours: Sequence[str]) -> bytes:
    """Return a picture whose pixels are numbers of colours (``#rrggbb``) as a PNG file.

    Source: PNG specification (ISO/IEC 15948), chunks IHDR, PLTE, IDAT and IEND.
    """
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, _INDEXED, 0, 0, 0)
    palette = b"".join(bytes.fromhex(colour[1:]) for colour in colours)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    return _PNG + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def grid(values: NDArray[np.uint8], beyond: int) -> NDArray[np.uint8]:
    """Return cells in rows of ascending addresses; what is beyond memory has a value of its own."""
    columns = columns_of(len(values))
    rows = -(-len(values) // columns)
    cells = np.full(rows * columns, beyond, np.uint8)
    cells[: len(values)] = values
    return cells.reshape(rows, columns)


def _panel(
    values: NDArray[np.uint8], words: Sequence[Word], title: str, what: str, width_px: int
) -> Any:
    """Draw the cells of one time."""
    cells = grid(values, len(words))
    rows, columns = cells.shape
    scale = max(width_px // columns, 1)
    pixels = cells.repeat(scale, axis=0).repeat(scale, axis=1)
    png = indexed_png(pixels, [*(word.colour for word in words), "#ffffff"])
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    high = rows * bytes_of_row(columns) / GIB
    wide = bytes_of_row(columns) / MIB
    x = alt.X("x:Q").scale(domain=[0, wide], nice=False).title("Offset in the row (MiB)")
    y = alt.Y("y:Q").scale(domain=[high, 0], nice=False).title("Physical address (GiB)")
    size = {"width": columns * scale, "height": rows * scale}
    picture = (
        alt.Chart(alt.InlineData(values=[{"x": 0, "y": 0, "url": url}]))
        .mark_image(align="left", baseline="top", **size)
        .encode(x=x, y=y, url="url:N")
    )
    names = [word.text for word in words]
    legend = (
        alt.Chart(alt.InlineData(values=[{"x": 0, "y": 0, "is": name} for name in names]))
        .mark_square(opacity=0)
        .encode(
            x=x,
            y=y,
            color=alt.Color("is:N")
            .scale(domain=names, range=[word.colour for word in words])
            .legend(
                title=what, orient="right", direction="vertical", columns=1, symbolStrokeWidth=1
            ),
        )
    )
    return alt.layer(picture, legend).properties(title=title, **size)


def _rows(panels: Iterable[Any]) -> Any:
    return alt.concat(*panels, columns=PANELS_A_ROW)


def specification(maps: Sequence[MemoryMap], title: str) -> str:
    """Return the pictures of some times as Vega-Lite: what pageblocks hold, and their types."""
    width_px = ONE_PANEL_PX if len(maps) == 1 else PANEL_PX
    times = [format_duration(one.t_ns) for one in maps]
    cells, types = list(CELLS.values()), list(TYPES)
    held = [
        _panel(one.cells, cells, time, "Pageblock of 2 MiB", width_px)
        for one, time in zip(maps, times, strict=True)
    ]
    typed = [
        _panel(one.types, types, time, "Migratetype", width_px)
        for one, time in zip(maps, times, strict=True)
    ]
    chart = alt.vconcat(_rows(held), _rows(typed)).resolve_scale(color="independent")
    found = chart.properties(title=title).to_dict()
    config = charts.config(charts.LIGHT)
    config["title"] = {"anchor": "start", "fontSize": 13, "color": charts.LIGHT.text}
    return json.dumps(found | {"config": config})


def rendered(kind: str, maps: Sequence[MemoryMap], title: str, text: str) -> bytes:
    """Return the pictures as a file: png, svg or html (with the counts as text)."""
    spec = specification(maps, title)
    if kind == "png":
        content: bytes = vl_convert.vegalite_to_png(spec, ppi=PPI)
        return content
    svg: str = vl_convert.vegalite_to_svg(spec)
    if kind == "svg":
        return svg.encode()
    parts = files("fleet").joinpath("page")
    page = Template(parts.joinpath("map.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        style=parts.joinpath("report.css").read_text(encoding="utf-8"),
        svg=svg,
        text=html.escape(text),
    )
    return page.encode()


def as_text(maps: Sequence[MemoryMap], title: str) -> str:
    """Print how many pageblocks hold what, a column a time."""
    times = [format_duration(one.t_ns) for one in maps]
    total = len(maps[0].cells)
    lines = [
        f"{title}: {total:,} pageblocks of 2 MiB, {format_bytes(total * 2 * MIB)}",
        f"  {'':<34}" + "".join(f"{time:>12}" for time in times),
    ]
    counts = [one.counts() for one in maps]
    for cell, word in CELLS.items():
        lines.append(f"  {word.text:<34}" + "".join(f"{found[cell]:>12,}" for found in counts))
    for word in TYPES:
        found_types = (one.type_counts()[word.text] for one in maps)
        name = f"migratetype {word.text}"
        lines.append(f"  {name:<34}" + "".join(f"{nr:>12,}" for nr in found_types))
    return "\n".join(lines)
