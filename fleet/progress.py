"""Progress on stderr: how far, how fast, and what the hosts look like.

Silent unless stderr is a terminal.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleet.live import Live, Progress, SweepProgress, Watch
from hostsim.core.units import format_duration


def live_text(live: Live) -> str:
    """Return the figures of an epoch as a line, the ones that should be 0 only if they are not."""
    parts = [
        f"{live.vms:,} VMs on {live.hosts - live.empty_hosts:,} of {live.hosts:,} hosts",
        f"huge {live.huge_coverage_ratio:.1%}",
        f"THP fallback {live.thp_fallback_ratio:.1%}",
        f"fragmentation {live.fragmentation_median_ratio:.0%}"
        f" median {live.fragmentation_p95_ratio:.0%} p95",
    ]
    if live.walk_ratio:
        parts.append(f"page walks {live.walk_ratio:.1%} of run time")
    if live.oom_kills:
        parts.append(f"OOM kills {live.oom_kills:,}")
    return ", ".join(parts)


@contextmanager
def shown(title: str) -> Iterator[Watch | None]:
    """Show a bar while a run advances; yields what the run is to call, or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console, Group
    from rich.live import Live as Screen
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed:.0f}/{task.total:.0f}  {task.fields[state]}"),
        TimeRemainingColumn(),
    )
    line = Text("", overflow="ellipsis", no_wrap=True, style="dim")
    first: list[tuple[float, int]] = []  # when the first epoch was done, and its events
    with Screen(Group(bar, line), console=Console(stderr=True), transient=True):
        task = bar.add_task(title, total=1, state="starting")

        def on_epoch(progress: Progress) -> None:
            if not first:
                first.append((time.perf_counter(), progress.vm_events))
            begin_s, events = first[0]
            rate = (progress.vm_events - events) / max(time.perf_counter() - begin_s, 1e-3)
            state = f"{format_duration(progress.t_ns)} simulated, {rate:,.0f} VM events/s"
            bar.update(task, total=progress.nr_epochs, completed=progress.epoch, state=state)
            line.plain = live_text(progress.live)

        yield on_epoch


@contextmanager
def sweep_shown(title: str) -> Iterator[Callable[[SweepProgress], None] | None]:
    """Show a bar while a sweep advances; yields what it is to call, or None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[runs]} runs, epoch {task.completed:.0f}/{task.total:.0f}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(title, total=1, runs="0")

        def watch(progress: SweepProgress) -> None:
            runs = f"{progress.runs}/{progress.nr_runs}"
            bar.update(task, total=progress.nr_epochs, completed=progress.epochs, runs=runs)

        yield watch
