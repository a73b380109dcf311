"""The figures of a report: each chart with its name, title, caption, and words if it is empty."""

from typing import Final, NamedTuple

import polars as pl

from fleet import charts
from fleet.charts import Drawing, Palette
from fleet.report_data import FREE, HUGE_ON_BOTH, HUGE_ON_HOST, STALLS, UNUSABLE, Frames

HOST_HEIGHT: Final = 160


class Figure(NamedTuple):
    """One chart of a report."""

    name: str  # of its file, and of its place on the page
    title: str
    caption: str  # how to read it
    drawing: Drawing | None
    empty: str  # what is said where there is nothing to draw


def figures(frames: Frames, palette: Palette) -> list[Figure]:
    """Return the charts of a run, in the order of the page."""
    clock, waits = frames.clock, frames.waits
    programs = not frames.translation.is_empty()
    waited = bool((waits["stall worst"] > 0).any())
    worked = bool((waits["daemon mean"] > 0).any())
    return [
        Figure(
            "load",
            "Memory rented and in use",
            "Rented: the sizes of the running VMs. Resident: what of it has been touched.",
            charts.load(frames.load, clock, palette),
            "",
        ),
        Figure(
            "coverage",
            "Huge coverage",
            "Huge on the host: share of the guest RAM resident there. Huge in guest and host: share"
            " of what guests use that is huge on both sides, at the same place; known as of each"
            " VM's last row in vms.",
            charts.coverage(frames.coverage, clock, palette),
            "",
        ),
        Figure(
            "orders",
            "Free memory by buddy order",
            "How free memory is cut, mean over hosts. A huge page needs a block of order 9 or 10.",
            charts.orders(frames.orders, clock, palette),
            "",
        ),
        Figure(
            "fragmentation",
            "Fragmentation",
            "Share of free memory in blocks too small for a huge page (debugfs unusable_index).",
            charts.fragmentation(frames.fragmentation, clock, palette),
            "",
        ),
        Figure(
            "translation",
            "What translation costs",
            "By class of guest: the mean over vCPUs, and p5 to p95 over VMs and hours.",
            charts.translation(frames.translation, palette) if programs else None,
            "No program ran whose translation was sampled.",
        ),
        Figure(
            "walks",
            "Memory references of a page walk",
            "Mean over walks. A cold walk of two four-level tables makes 24 references, with huge"
            " pages on both sides 15; walk caches spare most of them.",
            charts.walks(frames.translation, palette) if programs else None,
            "No program ran whose translation was sampled.",
        ),
        Figure(
            "stalls",
            "Stalls",
            "Time that accesses waited for direct compaction and direct reclaim.",
            charts.stalls(waits, clock, palette) if waited else None,
            "No access waited for compaction or reclaim.",
        ),
        Figure(
            "daemons",
            "Time of daemons",
            "CPU time of khugepaged, kcompactd and ksmd.",
            charts.daemons(waits, clock, palette) if worked else None,
            "The daemons used no CPU time.",
        ),
        Figure(
            "events",
            "Kills, moves, failures and rejections",
            "Counts in slices of time.",
            None if frames.events.is_empty() else charts.events(frames.events, clock, palette),
            "No VM was rejected, killed, moved or started again, and no host failed.",
        ),
    ]


def host_figures(frames: Frames, palette: Palette) -> list[Figure]:
    """Return the charts of the worst host; the page puts other hosts' rows into them."""
    if not frames.details:
        return []
    rows = pl.DataFrame(next(iter(frames.details.values()))["curves"])
    drawn = (
        ("coverage", "Huge coverage", "Guest RAM (%)", "%", (HUGE_ON_HOST, HUGE_ON_BOTH), (0, 100)),
        ("free", "Free memory", "Share of memory (%)", "%", (FREE, UNUSABLE), (0, 100)),
        ("stalls", "Stalls", "Stalls (ms)", "ms", (STALLS,), None),
    )
    return [
        Figure(
            name,
            title,
            "",
            charts.lines(
                rows,
                frames.clock,
                {curve: curve for curve in curves},
                axis,
                palette,
                unit=unit,
                domain=domain,
                height=HOST_HEIGHT,
            ),
            "",
        )
        for name, title, axis, unit, curves, domain in drawn
    ]
