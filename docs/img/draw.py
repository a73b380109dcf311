"""Draw the pictures of docs/concepts.md.

python docs/img/draw.py
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
STYLE = ".hf{color:#1b1f24}@media(prefers-color-scheme:dark){.hf{color:#e6e8ec}}"
HOST, GUEST, FREE, FIXED = "#3b82c4", "#d9822b", "#5aa469", "#a0526b"
Parts = list[str]


def text(
    x: float, y: float, words: str, size: int = 13, anchor: str = "start", bold: bool = False
) -> str:
    """Return a line of text."""
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}"{weight}'
        f' fill="currentColor">{words}</text>'
    )


def box(x: float, y: float, w: float, h: float, fill: str = "none", opacity: float = 1.0) -> str:
    """Return a rectangle."""
    stroke = "currentColor" if fill == "none" else fill
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}"'
        f' fill-opacity="{opacity:g}" stroke="{stroke}" stroke-width="1"/>'
    )


def gone(x: float, y: float, w: float, h: float) -> str:
    """Return the place of what is not there."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="none"'
        ' stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="3 3"/>'
    )


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """Return an arrow."""
    return (
        f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="currentColor"'
        ' stroke-width="1.3" marker-end="url(#tip)"/>'
    )


def picture(name: str, width: int, height: int, title: str, parts: Parts) -> str:
    """Return an SVG; its arrow tip has a name of its own, since a page may hold several."""
    tip = (
        f'<defs><marker id="tip-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/>'
        "</marker></defs>"
    )
    body = "\n".join(parts).replace("url(#tip)", f"url(#tip-{name})")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="hf" viewBox="0 0 {width} {height}"'
        f' role="img" aria-label="{title}" font-family="sans-serif">\n'
        f"<style>{STYLE}</style>\n<title>{title}</title>\n{tip}\n{body}\n</svg>\n"
    )


def _walk(x: float, y: float, guest: int, ept: int, title: str) -> Parts:
    """Draw one walk: a row for each level of the guest's table, and one for the data."""
    parts = [text(x, y, title, 15, bold=True)]
    number = 0
    cell, gap = 30, 4
    for row in range(5):
        data = row == 4
        top = y + 14 + row * (cell + gap)
        missing = not data and row >= guest
        for column in range(4):
            left = x + 64 + column * (cell + gap)
            if missing or column >= ept:
                parts.append(gone(left, top, cell, cell))
            else:
                number += 1
                parts.append(box(left, top, cell, cell, HOST, 0.3))
                parts.append(text(left + cell / 2, top + 20, str(number), 12, "middle"))
        left = x + 64 + 4 * (cell + gap) + 8
        if not data and not missing:
            number += 1
            parts.append(box(left, top, cell, cell, GUEST, 0.4))
            parts.append(text(left + cell / 2, top + 20, str(number), 12, "middle"))
        elif not data:
            parts.append(gone(left, top, cell, cell))
        name = "data" if data else f"gL{4 - row}"
        parts.append(text(x + 56, top + 20, name, 12, "end"))
    return parts


def walk() -> str:
    """Draw the two-dimensional walks of 24, 19 and 15 references."""
    parts: Parts = []
    cases = (
        (4, 4, "24: 4 KiB in 4 KiB"),
        (4, 3, "19: 4 KiB in 2 MiB"),
        (3, 3, "15: 2 MiB in 2 MiB"),
    )
    for index, (guest, ept, title) in enumerate(cases):
        parts += _walk(8 + index * 262, 24, guest, ept, title)
    parts += [box(72, 222, 14, 14, HOST, 0.3), text(92, 234, "reads the EPT")]
    parts += [box(212, 222, 14, 14, GUEST, 0.4), text(232, 234, "reads the guest's page table")]
    parts += [
        gone(442, 222, 14, 14),
        text(462, 234, "falls away: a huge page ends the walk a level early"),
    ]
    return picture("walk", 790, 246, "References of a two-dimensional page walk", parts)


def buddy() -> str:
    """Draw physical memory as pageblocks, and the free lists that hold what is free."""
    parts = [text(10, 22, "Physical memory, in pageblocks of 2 MiB", 15, bold=True)]
    kinds = [
        (GUEST, "one huge page"),
        (HOST, "512 small pages"),
        ("mix", "partial"),
        (FREE, "free"),
        (FREE, "free"),
        ("kernel", "holds unmovable"),
    ]
    for index, (kind, words) in enumerate(kinds):
        left, top = 10 + index * 126, 34
        if kind == "mix":
            pieces = [(HOST, 3), (FREE, 1), (HOST, 2), (FREE, 4), (HOST, 1), (FREE, 1), (HOST, 4)]
        elif kind == "kernel":
            pieces = [(FREE, 5), (FIXED, 1), (FREE, 8), (FIXED, 1), (FREE, 1)]
        else:
            pieces = [(kind, 16)]
        x = left
        for fill, sixteenths in pieces:
            parts.append(box(x, top, sixteenths * 7.3, 34, fill, 0.45))
            x += sixteenths * 7.3
        parts.append(text(left, top + 50, words, 12))
    parts.append(
        text(
            10, 122, "Free lists of a zone: a list for each order and mobility type", 15, bold=True
        )
    )
    rows = [
        ("Movable", (1, 2, 1, 0, 1, 0, 0, 1, 0, 1, 0)),
        ("Unmovable", (2, 1, 0, 1, 0, 0, 1, 0, 0, 0, 0)),
    ]
    for order in range(11):
        size = f"{4 << order} KiB" if order < 8 else f"{1 << (order - 8)} MiB"
        parts.append(text(132 + order * 58, 146, str(order), 12, "middle", True))
        parts.append(text(132 + order * 58, 160, size, 10, "middle"))
    for row, (name, counts) in enumerate(rows):
        top = 170 + row * 40
        parts.append(text(92, top + 20, name, 12, "end"))
        for order, count in enumerate(counts):
            parts.append(box(108 + order * 58, top, 48, 30))
            parts += [
                box(114 + order * 58 + 14 * n, top + 9, 11, 12, FREE, 0.5) for n in range(count)
            ]
    parts.append(
        text(
            10,
            268,
            "A huge page needs a block of order 9 or 10; what is free in smaller blocks"
            " is unusable for it: fragmentation.",
            13,
        )
    )
    return picture("buddy", 770, 280, "Pageblocks and buddy lists", parts)


def epoch() -> str:
    """Draw the life of an epoch."""
    parts = [text(10, 22, "An epoch: one simulated hour, twelve ticks", 15, bold=True)]
    for x, name in ((150, "barrier"), (640, "barrier")):
        parts.append(
            f'<line x1="{x}" y1="36" x2="{x}" y2="232" stroke="currentColor"'
            ' stroke-dasharray="5 4"/>'
        )
        parts.append(text(x, 248, name, 12, "middle"))
    parts += [box(12, 44, 126, 46, FIXED, 0.3), text(75, 64, "driver: places VMs,", 12, "middle")]
    parts += [text(75, 80, "moves, failures", 12, "middle")]
    for row in range(3):
        top = 104 + row * 40
        name = ("host 0", "host 1", "host N")[row]
        parts.append(text(142, top + 19, name, 12, "end"))
        for tick in range(12):
            parts.append(box(156 + tick * 40, top, 36, 28, HOST if tick % 2 else GUEST, 0.3))
    parts.append(
        text(
            396, 62, "each host alone, any number of workers: guests touch and free,", 12, "middle"
        )
    )
    parts.append(
        text(
            396, 80, "faults, khugepaged, compaction, reclaim; a row of hosts a tick", 12, "middle"
        )
    )
    parts += [box(652, 44, 126, 46, FREE, 0.3), text(715, 64, "driver: rows in host", 12, "middle")]
    parts += [text(715, 80, "order, parquet", 12, "middle")]
    parts += [arrow(75, 92, 146, 102), arrow(650, 102, 712, 92)]
    return picture("epoch", 790, 260, "The life of an epoch", parts)


def memory() -> str:
    """Draw a VM's memory through guest and host."""
    parts: Parts = []
    names = ("program in the guest", "guest-physical memory", "host memory")
    tops = (30, 120, 210)
    for top, name in zip(tops, names, strict=True):
        parts.append(text(10, top + 20, name, 13, bold=True))
    left, width = 190, 128
    kinds = ["huge", "huge", "small", "small"]
    host_kinds = ["huge", "small", "huge", "small"]
    said = [
        "effective: huge on both sides",
        "the host has 4 KiB pages",
        "the guest has 4 KiB pages",
        "small everywhere",
    ]
    reads = [15, 19, 19, 24]
    for index in range(4):
        x = left + index * (width + 20)
        parts.append(box(x, tops[0], width, 32))
        for top, kind, fill in ((tops[1], kinds[index], GUEST), (tops[2], host_kinds[index], HOST)):
            if kind == "huge":
                parts.append(box(x, top, width, 32, fill, 0.45))
                parts.append(text(x + width / 2, top + 21, "2 MiB", 12, "middle"))
            else:
                shift = [0, 3, 1, 4, 2, 5, 7, 6]
                parts += [box(x + 16 * s, top, 13, 32, fill, 0.45) for s in shift]
        parts.append(arrow(x + width / 2, tops[0] + 36, x + width / 2, tops[1] - 4))
        parts.append(arrow(x + width / 2, tops[1] + 36, x + width / 2, tops[2] - 4))
        parts.append(text(x + width / 2, 262, said[index], 11, "middle"))
        parts.append(
            text(x + width / 2, 280, f"{reads[index]} references a cold walk", 11, "middle")
        )
    parts.append(text(left - 12, 100, "guest's page table", 11, "end"))
    parts.append(text(left - 12, 190, "EPT", 11, "end"))
    return picture("memory", 790, 292, "A VM's memory through guest and host", parts)


PICTURES = {"walk.svg": walk, "buddy.svg": buddy, "epoch.svg": epoch, "memory.svg": memory}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw())
